"""What layers keep, measured without weights; the caches themselves in `tests/planning`."""

from __future__ import annotations

import pytest
import torch

from selfextend_rag.errors import UnknownMemoryError
from selfextend_rag.model.footprint import layer_shapes
from tests import zoo


def sizes(name, **overrides):
    return [(x.kind, x.key_size, x.value_size) for x in layer_shapes(zoo.build(name, **overrides))]


def test_shared_heads_and_stated_head_dimensions_count():
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 40}
    assert set(sizes("llama", **heads)) == {("growing", 80, 80)}
    assert set(sizes("llama", **{**heads, "num_key_value_heads": 4})) == {("growing", 160, 160)}


def test_latent_attention_keeps_one_vector_and_one_rotary_key_and_expands_them():
    model = zoo.build("deepseek_v3")
    text = model.config
    for layer in layer_shapes(model):
        assert {layer.key_size, layer.value_size} == {text.kv_lora_rank, text.qk_rope_head_dim}
        assert layer.expanded
        assert layer.head_size == text.qk_nope_head_dim + text.qk_rope_head_dim


def test_the_model_is_not_run_or_changed(monkeypatch):
    model = zoo.build("gemma2")
    before = model.config.to_dict(), model.config._attn_implementation
    monkeypatch.setattr(model, "forward", None)
    kinds = {layer.kind for layer in layer_shapes(model)}
    assert kinds == {"growing", "sliding"}
    assert (model.config.to_dict(), model.config._attn_implementation) == before
    assert model.dtype == torch.float32


def test_heads_that_a_configuration_misstates_are_measured():
    """Sliding layers of MiMo V2 have twice the key-value heads that its configuration says."""
    model = zoo.build("mimo_v2_flash")
    shapes = layer_shapes(model)
    cache = model(input_ids=zoo.tokens(8), use_cache=True).past_key_values
    for shape, layer in zip(shapes, cache.layers, strict=True):
        assert shape.key_size == layer.keys.shape[1] * layer.keys.shape[3]


def test_a_model_that_does_not_run_without_weights_is_refused_by_name():
    with pytest.raises(UnknownMemoryError, match="of xLSTMConfig can't be measured"):
        layer_shapes(zoo.build("xlstm"))
