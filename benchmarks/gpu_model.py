"""A whole random model, plain and extended: prefill and decode, for `benchmarks/gpu.py`."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from selfextend_rag import extend, restore

_ROOM = 512  # decode steps that the static cache has space for


def random_model(run: Any) -> LlamaForCausalLM:
    """The shape of Llama 3 8B with random weights."""
    sizes: dict[str, Any] = (
        {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 300}
        if run.dry
        else {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
              "vocab_size": 128256}
    )  # fmt: skip
    config = LlamaConfig(
        **sizes, num_attention_heads=run.heads, num_key_value_heads=run.kv_heads,
        max_position_embeddings=64 if run.dry else 8192,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(run.dtype)
    try:
        with run.device:
            return LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def model_speed(run: Any) -> None:
    """Tokens per second of the extended model over the plain one's, paired."""
    network = random_model(run)
    (n,) = run.tokens(1 << 15)
    ids = torch.randint(3, 290, (1, n), device=run.device)
    _prefill(run, network, ids)
    _decode(run, network, ids)


def _prefill(run: Any, network: LlamaForCausalLM, ids: Tensor) -> None:
    times: dict[str, list[float]] = {"plain": [], "extended": []}
    for turn in range(1 if run.dry else 4):
        for way in times:
            _switch(run, network, way)
            took = run.milliseconds(
                lambda: network(ids, past_key_values=DynamicCache(), logits_to_keep=1)
            )
            if turn or run.dry:  # the first is a warm-up
                times[way].append(took)
    ratio = sorted(p / e for p, e in zip(times["plain"], times["extended"], strict=True))
    middle = ratio[len(ratio) // 2]
    what = "model: extended / plain tokens per second"
    run.add(what, f"prefill, {ids.shape[1]} tokens", middle, not run.dry, ms=times)
    restore(network)
    gc.collect()


def _decode(run: Any, network: LlamaForCausalLM, ids: Tensor) -> None:
    """One token at a time after ``ids``, in a static cache, each step a CUDA graph."""
    steps = {}
    for way in ("plain", "extended"):
        _switch(run, network, way)
        cache = StaticCache(config=network.config, max_cache_len=ids.shape[1] + _ROOM)
        for chunk in ids.split(2048, dim=1):
            network(chunk, past_key_values=cache, logits_to_keep=1)
        token = ids[:, -1:].clone()

        def step(token: Tensor = token, cache: Any = cache) -> Tensor:
            return network(token, past_key_values=cache).logits

        try:
            steps[way] = run.captured(step)
        except RuntimeError as error:
            raise RuntimeError(f"the {way} decode step can't be captured: {error}") from error
        if run.dry:  # a step is not captured, so the model must stay as it is
            steps[way]()
            steps[way] = lambda: None
    pairs, run.pairs = run.pairs, min(run.pairs, 5)
    took = run.paired(steps, graph=True)
    run.pairs = pairs
    ratio = took["plain"] / max(took["extended"], 1e-9)
    what = "model: extended / plain tokens per second"
    run.add(what, f"decode, {ids.shape[1]} tokens", ratio, not run.dry, ms=took)
    restore(network)


def _switch(run: Any, network: LlamaForCausalLM, way: str) -> None:
    if way == "extended":
        extend(network, run.method, impl="triton")
    else:
        restore(network)
