"""Predicted bytes of a cache against the caches of every family that transformers has."""

from __future__ import annotations

import contextlib

import pytest
import torch

from selfextend_rag import SelfExtend, extended
from selfextend_rag.engine import Engine
from selfextend_rag.errors import UnknownMemoryError, UnsupportedModelError
from selfextend_rag.llm.memory import memory_of_model
from selfextend_rag.model import support
from selfextend_rag.model.footprint import layer_shapes
from selfextend_rag.planning.layers import CacheFill, layer_bytes
from tests import zoo

METHOD = SelfExtend(4, 16)
PROMPT, LATER, CAPACITY, CHUNK = 300, 4, 330, 70

# The bar asks for twelve; these are named, so that none of them can fall out unseen.
NAMED = [
    "llama", "qwen2", "qwen3", "mistral:full", "mistral", "gemma2", "gemma3_text", "gemma3n_text",
    "phi3", "deepseek_v2", "deepseek_v3", "minicpm3", "gpt_neox", "gpt_bigcode", "dbrx", "olmo2",
    "cohere", "cohere2", "llama4_text", "gpt_oss", "smollm3", "mixtral", "qwen3_moe", "qwen3_next",
    "lfm2", "falcon_h1", "granite", "starcoder2", "stablelm", "nemotron_h", "zamba2",
]  # fmt: skip
# Predicted above what is measured, and why.
BOUNDS = {
    "kimi_linear": "drops one recorded token of its convolution states",
    "bailing_hybrid": "drops one recorded token of its convolution states",
}
# Families that do not keep their keys in a cache of transformers, can't read so long a text, or
# can't read it in pieces: they lose their state, or, made as encoders, see what comes after.
NO_CACHE = frozenset(
    ("blt", "cpmant", "openai-gpt", "prophetnet", "reformer", "xlm", "xlnet", "blenderbot", "ctrl")
) | {"rwkv", "xlstm", "minimax", "recurrent_gemma", "mamba", "mamba2", "falcon_mamba", "bamba"}
NO_CACHE |= {
    "bert",
    "bert-generation",
    "big_bird",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
}
NO_CACHE |= {"megatron-bert", "moshi", "rembert", "roberta", "roberta-prelayernorm", "roc_bert"}
# The engine refuses these, as they are not the same in chunks, or keep no state between them.
NO_CACHE |= {"dots3_note", "dots3_note_text", "hy_v4", "jamba", "zamba", "zaya"}
NO_CACHE |= {"roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"}


def measured_and_predicted(name, dtype, settings, kv_bits=None):
    """Bytes after a prefill in chunks, and after some more tokens; each measured and predicted."""
    model = zoo.build(name).to(dtype)
    shapes = layer_shapes(model)
    engine = Engine(model, chunk_size=CHUNK, kv_bits=kv_bits)
    tokens = zoo.tokens(PROMPT)[0].tolist()
    prefix = engine.prefill(tokens, settings=settings, capacity=CAPACITY)
    read = CacheFill(PROMPT, CAPACITY, PROMPT % CHUNK, 0, settings, kv_bits)
    asked = CacheFill(PROMPT + LATER, CAPACITY, 1, LATER, settings, kv_bits)
    found = [(prefix.cache.nbytes, predicted(shapes, read, dtype))]
    switched = extended(model, settings) if settings else contextlib.nullcontext()
    with prefix.borrowed() as cache, switched:
        engine.forward([(5, 6, 7)], cache)
        engine.forward([(8,)], cache)
        found.append((cache.nbytes, predicted(shapes, asked, dtype)))
    return found


def predicted(shapes, fill, dtype):
    return sum(sum(layer_bytes(shape, fill, dtype.itemsize)) for shape in shapes)


def can_be_tried(name):
    family = name.split(":")[0]
    return family not in zoo.NOT_BUILT and family not in NO_CACHE


@pytest.mark.parametrize("name", NAMED)
def test_a_cache_in_half_precision_holds_exactly_the_bytes_predicted(name):
    supported = support(zoo.build(name).to(torch.bfloat16)).supported
    for settings in (None, METHOD) if supported else (None,):
        for measured, expected in measured_and_predicted(name, torch.bfloat16, settings):
            assert measured == expected


def rounds(name):
    """Return whether a model keeps the keys of any layer in few bits."""
    return any(shape.can_be_rounded for shape in layer_shapes(zoo.build(name)))


@pytest.mark.parametrize("name", [name for name in NAMED if rounds(name)])
def test_rounded_keys_and_values_take_exactly_the_bytes_predicted(name):
    supported = support(zoo.build(name).to(torch.bfloat16)).supported
    for kv_bits in (8, 4):
        for settings in (None, METHOD) if supported else (None,):
            found = measured_and_predicted(name, torch.bfloat16, settings, kv_bits)
            for measured, expected in found:
                assert measured == expected


def test_of_the_named_families_most_can_be_rounded_and_the_others_are_refused():
    assert sum(rounds(name) for name in NAMED) >= 24
    others = [name for name in NAMED if not rounds(name)]
    assert others
    for name in others:
        with pytest.raises(UnsupportedModelError, match="would change nothing"):
            Engine(zoo.build(name), kv_bits=8)
        with pytest.raises(UnsupportedModelError, match="would change nothing"):
            memory_of_model(zoo.build(name), 8)


def test_of_the_named_families_most_are_extended():
    assert sum(support(zoo.build(name)).supported for name in NAMED) >= 24


def refusal(name):
    """Return why the memory of a family is unknown, empty when it is not."""
    try:
        layer_shapes(zoo.build(name))
    except UnknownMemoryError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", [n for n in zoo.families() + zoo.variants() if can_be_tried(n)])
def test_every_family_is_predicted_or_refused_by_name(name):
    """A family that fails here is not what its copy without weights is, and has to be refused."""
    if refusal(name):
        assert type(zoo.config(name)).__name__ in refusal(name)
        return
    settings = METHOD if support(zoo.build(name)).supported else None
    for measured, expected in measured_and_predicted(name, torch.float32, settings):
        if name.split(":")[0] in BOUNDS:
            assert measured <= expected
        else:
            assert measured == expected
