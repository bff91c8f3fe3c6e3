"""The stated bound of memory against every allocation that real forwards make."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from selfextend_rag import SelfExtend, extended
from selfextend_rag.engine import Engine
from selfextend_rag.engine.run import forward
from selfextend_rag.maps import MAPS
from selfextend_rag.model import support
from selfextend_rag.model.footprint import layer_shapes, work_shape
from selfextend_rag.planning import published_map
from selfextend_rag.planning.memory import DeviceShare, ModelMemory
from tests import zoo

pytestmark = pytest.mark.slow

FAMILIES = [
    "llama", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v3", "mixtral", "gpt_neox", "cohere",
    "qwen3_moe", "longcat_flash", "lfm2", "qwen3_next", "bailing_hybrid", "phi3", "mistral",
    "gemma4_text:shared-keys", "nemotron_h",
]  # fmt: skip
ROUNDED = [
    "llama",
    "gemma2",
    "deepseek_v3",
    "longcat_flash",
    "qwen3_next",
    "gemma4_text:shared-keys",
]
METHOD = SelfExtend(4, 64)
WIDTHS = {
    "grouped queries": (256, 704, 8, 2, 32, 2048),
    "large vocabulary": (128, 2048, 4, 4, 64, 32_000),
    "one key head": (512, 512, 8, 1, 64, 2048),
}


def peak_bytes(run) -> int:
    """Return the largest sum of live tensors that ``run`` allocated, at any moment."""
    gc.freeze()  # what is there already need not be searched below
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    del events, recorded
    gc.collect()  # of each operation there is an object, and they point at each other
    gc.unfreeze()
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak


def memory_of(model, kv_bits=None):
    shapes, itemsize = layer_shapes(model), model.dtype.itemsize
    return ModelMemory(
        shapes,
        itemsize,
        work_shape(model.config, shapes, itemsize=itemsize),
        (DeviceShare("cpu", 0, tuple(range(len(shapes)))),),
        kv_bits=kv_bits,
    )


def peak_and_bound(model, prompt, chunk, settings, later=20, kv_bits=None):
    """Bytes that reading and then asking takes at most without weights: measured and stated."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    tokens = torch.randint(4, vocabulary, (prompt,)).tolist()
    engine = Engine(model, chunk_size=chunk, kv_bits=kv_bits)
    engine.prefill(tokens[:8], settings=settings)  # the model has been measured, once for all

    def run():
        prefix = engine.prefill(tokens, settings=settings, capacity=prompt + later)
        switched = extended(model, settings) if settings else contextlib.nullcontext()
        with prefix.borrowed() as cache, switched:
            forward(model, [tokens[: later // 2]], cache)
            for token in tokens[: later // 2]:
                forward(model, [(token,)], cache)

    bound = memory_of(model, kv_bits).estimate(prompt, later, settings, chunk).needed_bytes
    return peak_bytes(run), bound


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_needs_more_than_the_bound(name):
    model = zoo.build(name)
    for settings in (None, METHOD) if support(model).supported else (None,):
        peak, bound = peak_and_bound(model, 900, 300, settings)
        assert peak <= bound <= 8 * peak  # tiny models: what is counted loosely weighs more


@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("prompt", "chunk"), [(700, 2048), (2000, 256)])
def test_no_length_needs_more_than_the_bound_which_is_not_loose(widths, dtype, prompt, chunk):
    hidden, inner, heads, kept, head, vocabulary = widths
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=2,
        num_attention_heads=heads, num_key_value_heads=kept, head_dim=head,
        max_position_embeddings=1024,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).eval()
    for settings in (None, SelfExtend(8, 128)):
        peak, bound = peak_and_bound(model, prompt, chunk, settings)
        assert peak <= bound <= 4 * peak


@pytest.mark.parametrize("method", sorted(MAPS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_no_other_map_needs_more_than_the_bound(method, dtype):
    config = LlamaConfig(
        vocab_size=2048, hidden_size=256, intermediate_size=704, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=2, head_dim=32, max_position_embeddings=1024,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).eval()
    for prompt, chunk in ((1200, 2048), (1200, 256)):
        peak, bound = peak_and_bound(model, prompt, chunk, published_map(method, 1024, prompt + 20))
        assert peak <= bound <= 6 * peak


def test_a_smaller_chunk_needs_a_smaller_workspace():
    memory = memory_of(zoo.build("llama"))
    needed = [
        memory.estimate(4000, 100, METHOD, chunk).workspace_bytes for chunk in (64, 256, 2048)
    ]
    assert needed == sorted(needed)
    assert needed[0] < needed[-1] / 3


@pytest.mark.parametrize("name", ROUNDED)
def test_no_family_needs_more_than_the_bound_with_rounded_keys(name):
    model = zoo.build(name)
    for settings in (None, METHOD) if support(model).supported else (None,):
        peak, bound = peak_and_bound(model, 600, 150, settings, kv_bits=4)
        assert peak <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [None, METHOD], ids=["plain", "extended"])
def test_with_rounded_keys_less_is_needed_and_less_is_stated(dtype, settings):
    config = LlamaConfig(
        vocab_size=500, hidden_size=128, intermediate_size=256, num_hidden_layers=8,
        num_attention_heads=4, num_key_value_heads=4, head_dim=64, max_position_embeddings=1024,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).eval()
    found = [peak_and_bound(model, 1500, 64, settings, kv_bits=bits) for bits in (None, 8, 4)]
    peaks, bounds = zip(*found, strict=True)
    assert all(peak <= bound for peak, bound in found)
    assert list(peaks) == sorted(peaks, reverse=True)
    assert list(bounds) == sorted(bounds, reverse=True)
    assert peaks[-1] < peaks[0] * 0.7
