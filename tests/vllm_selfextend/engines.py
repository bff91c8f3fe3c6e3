"""Engines of vLLM in this process, on tiny random models, and what selfextend_rag makes of them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

if pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it") is not None:
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_LOGGING_LEVEL="ERROR",
    )
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.lora.request import LoRARequest

from selfextend_rag import SelfExtend, extended

WINDOW = 256  # P of the tiny models
TOKENS = 48
TOLERANCE = 1e-4  # of log-probabilities: vLLM's tables of angles are in float32, ours in float64


class Answer(NamedTuple):
    """Greedy tokens and their log-probabilities."""

    tokens: list[int]
    logprobs: list[float]
    cached: int = 0  # tokens of the prompt that were found in the prefix cache


def save_llama(folder, seed: int = 0, **options):
    """Write a tiny random Llama to a folder, and return it."""
    from transformers import LlamaConfig

    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    return save(LlamaConfig(**{**small(), **shape, **options}), folder, seed)


def small() -> dict[str, int | float]:
    """What a configuration of any family needs to be tiny, and sharp enough to tell keys apart."""
    return {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "max_position_embeddings": WINDOW, "initializer_range": 0.3,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip


def save(config, folder, seed: int = 0):
    """Write a random model of a configuration to a folder, and return it."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(  # eager: softcaps are left out by another
            config, dtype=torch.float32, attn_implementation="eager"
        )
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases: even ones hide what is done after rotation
                parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.train(mode=False)
    model.save_pretrained(folder)
    return model


@contextmanager
def engine(folder, **options) -> Iterator[LLM]:
    """An engine on a folder's model; ``selfextend`` is the plugin's option."""
    if "selfextend" in options:
        options["additional_config"] = {"selfextend": options.pop("selfextend")}
    defaults = {
        "dtype": "float32", "max_num_seqs": 8, "max_num_batched_tokens": 256, "enforce_eager": True,
    }  # fmt: skip
    llm = LLM(str(folder), skip_tokenizer_init=True, **{**defaults, **options})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def prompt(length: int, seed: int = 1) -> list[int]:
    """Random tokens."""
    make = torch.Generator().manual_seed(seed + length)
    return torch.randint(1, 512, (length,), generator=make).tolist()


def answers(
    llm: LLM,
    prompts: Sequence[list[int]],
    tokens: int = TOKENS,
    salt: str | None = None,
    lora: LoRARequest | None = None,
) -> list[Answer]:
    """Greedy answers to all prompts at once; a salt keeps their cached blocks apart."""
    how = SamplingParams(
        temperature=0, max_tokens=tokens, logprobs=1, detokenize=False, ignore_eos=True
    )
    extra = {} if salt is None else {"cache_salt": salt}
    given = [{"prompt_token_ids": p, **extra} for p in prompts]
    found = llm.generate(given, how, use_tqdm=False, lora_request=lora)
    return [
        Answer(
            list(one.outputs[0].token_ids),
            [
                row[token].logprob
                for row, token in zip(
                    one.outputs[0].logprobs, one.outputs[0].token_ids, strict=True
                )
            ],
            one.num_cached_tokens or 0,
        )
        for one in found
    ]


@torch.no_grad()
def check(model, settings: SelfExtend | None, asked: list[int], answer: Answer) -> None:
    """Check an answer against selfextend_rag on the same weights.

    Requests that fit the window, and all without settings, run plain: against transformers alone.
    One forward over prompt and answer gives every greedy token that should have come.
    """
    sequence = torch.tensor([asked + answer.tokens[:-1]])
    if settings is None or len(asked) + len(answer.tokens) <= WINDOW:
        logits = model(sequence).logits
    else:
        with extended(model, settings):
            logits = model(sequence).logits
    scores = logits[0, len(asked) - 1 :].log_softmax(-1)
    assert answer.tokens == scores.argmax(-1).tolist()
    torch.testing.assert_close(
        torch.tensor(answer.logprobs), scores.max(-1).values, rtol=0, atol=TOLERANCE
    )
