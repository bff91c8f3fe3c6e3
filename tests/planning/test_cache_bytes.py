"""Predicted bytes of a cache against the caches of every family that transformers has."""

from __future__ import annotations

import contextlib

import pytest
import torch

from selfextend_rag import SelfExtend, extended
from selfextend_rag.engine import Engine
from selfextend_rag.engine.run import forward
from selfextend_rag.errors import UnknownMemoryError, UnsupportedModelError
from selfextend_rag.llm.memory import memory_of_model
from selfextend_rag.model import support
from selfextend_rag.model.footprint import layer_shapes
from selfextend_rag.planning.workspace import Forward, layer_bytes
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
# One of each kind of layer; the others are tried by `make test-rest`.
DAILY = {"llama", "mistral", "gemma3n_text", "deepseek_v3", "minicpm3", "gpt_oss", "falcon_h1"}
COVERAGE = pytest.mark.coverage
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


def measured_and_predicted(model, settings, kv_bits=None):
    """Bytes after a prefill in chunks, and after some more tokens; each measured and predicted."""
    shapes = layer_shapes(model)
    engine = Engine(model, chunk_size=CHUNK, kv_bits=kv_bits)
    tokens = zoo.tokens(PROMPT)[0].tolist()
    prefix = engine.prefill(tokens, settings=settings, capacity=CAPACITY)
    size = model.dtype.itemsize
    read = Forward(PROMPT % CHUNK, PROMPT, settings, size, kv_bits, 0, CAPACITY)
    asked = Forward(1, PROMPT + LATER, settings, size, kv_bits, LATER, CAPACITY)
    found = [(prefix.cache.nbytes, predicted(shapes, read))]
    switched = extended(model, settings) if settings else contextlib.nullcontext()
    with prefix.borrowed() as cache, switched:
        forward(engine.model, [(5, 6, 7)], cache)
        forward(engine.model, [(8,)], cache)
        found.append((cache.nbytes, predicted(shapes, asked)))
    return found


def predicted(shapes, run):
    return sum(sum(layer_bytes(shape, run)) for shape in shapes)


def can_be_tried(name):
    family = name.split(":")[0]
    return family not in zoo.NOT_BUILT and family not in NO_CACHE


def rounds(model):
    """Return whether a model keeps the keys of any layer in few bits."""
    return any(shape.rounded_bytes for shape in layer_shapes(model))


@pytest.mark.parametrize(
    "name", [name if name in DAILY else pytest.param(name, marks=COVERAGE) for name in NAMED]
)
def test_a_cache_in_half_precision_holds_exactly_the_bytes_predicted(name):
    """Plain and extended, as they are and with keys and values in 8 and 4 bits."""
    model = zoo.build(name).to(torch.bfloat16)
    for settings in (None, METHOD) if support(model).supported else (None,):
        for kv_bits in (None, 8, 4) if rounds(model) else (None,):
            for measured, expected in measured_and_predicted(model, settings, kv_bits):
                assert measured == expected
    if not rounds(model):
        with pytest.raises(UnsupportedModelError, match="would change nothing"):
            Engine(model, kv_bits=8)
        with pytest.raises(UnsupportedModelError, match="would change nothing"):
            memory_of_model(model, 8)


@COVERAGE
def test_of_the_named_families_most_are_extended_and_most_can_be_rounded():
    models = [zoo.build(name) for name in NAMED]
    assert sum(support(model).supported for model in models) >= 24
    assert 24 <= sum(rounds(model) for model in models) < len(NAMED)


@COVERAGE
@pytest.mark.parametrize("name", [n for n in zoo.families() + zoo.variants() if can_be_tried(n)])
def test_every_family_is_predicted_or_refused_by_name(name):
    """A family that fails here is not what its copy without weights is, and has to be refused."""
    model = zoo.build(name)
    try:
        layer_shapes(model)
    except UnknownMemoryError as error:
        assert type(model.config).__name__ in str(error)  # noqa: PT017  most raise nothing
        return
    settings = METHOD if support(model).supported else None
    for measured, expected in measured_and_predicted(model, settings):
        if name.split(":")[0] in BOUNDS:
            assert measured <= expected
        else:
            assert measured == expected
