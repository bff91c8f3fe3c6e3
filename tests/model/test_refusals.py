"""What `extend` refuses, and what an extended model refuses to run."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaAttention

from selfextend_rag import extend, extended, support
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.model import is_extended, with_full_attention
from tests import zoo
from tests.model.models import LENGTH, METHOD, ids, llama

pytestmark = pytest.mark.usefixtures("no_gradients")


def test_padding_between_tokens_needs_position_ids(model):
    mask = torch.ones(1, LENGTH, dtype=torch.long)
    mask[0, 20:25] = 0
    with extended(model, METHOD):
        with pytest.raises(ValueError, match="has padding between tokens"):
            model(ids(), attention_mask=mask)
        model(ids(), attention_mask=mask, position_ids=mask.cumsum(-1) - 1)
        for side in (slice(0, 5), slice(LENGTH - 5, LENGTH)):
            padded = torch.ones(1, LENGTH, dtype=torch.long)
            padded[0, side] = 0
            model(ids(), attention_mask=padded)


@pytest.mark.parametrize(
    "positions",
    [torch.arange(LENGTH)[None] // 4, torch.cat([torch.arange(30), torch.arange(30)])[None]],
    ids=["grouped by hand", "packed"],
)
def test_positions_that_do_not_count_the_tokens_are_refused(positions):
    """They would be ignored without a word."""
    model = llama()
    with extended(model, METHOD), pytest.raises(ValueError, match="position_ids"):
        model(ids(), position_ids=positions)


def test_positions_that_skip_a_hole_in_the_mask_or_the_cached_tokens_are_refused():
    model = llama()
    mask = torch.ones(1, LENGTH, dtype=torch.long)
    mask[0, 10:20] = 0
    with extended(model, METHOD):
        with pytest.raises(ValueError, match="position_ids"):
            model(ids(), attention_mask=mask, position_ids=torch.arange(LENGTH)[None])
        model(ids(), attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
        for there in (100, 100 + torch.arange(3)):
            cache = DynamicCache(config=model.config)
            model(ids(), past_key_values=cache)
            there = torch.as_tensor(there).reshape(1, -1)
            with pytest.raises(ValueError, match="position_ids"):
                model(ids(length=there.shape[1]), past_key_values=cache, position_ids=there)


def test_masks_of_ones_own_are_refused():
    model = llama()
    own = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    with extended(model, METHOD), pytest.raises(ValueError, match="mask of its own"):
        model(ids(), attention_mask=own)


class _RotatesBeforeItsNorm(LlamaAttention):
    """Norms after the rotation with weights that differ by dimension: nothing rotates that."""

    def forward(self, hidden_states, position_embeddings=None, **kwargs):
        cos, sin = position_embeddings
        weights = torch.linspace(0.5, 1.5, cos.shape[-1])
        return super().forward(hidden_states, (cos * weights, sin * weights.flip(0)), **kwargs)


def test_a_rotation_of_an_unknown_kind_is_refused_and_nothing_changes():
    model = llama()
    for layer in model.model.layers:
        layer.self_attn.__class__ = _RotatesBeforeItsNorm
    stock = model(ids()).logits
    with pytest.raises(UnsupportedModelError, match=r"self_attn: unknown rotary layout"):
        extend(model, METHOD)
    assert not support(model).supported
    assert torch.equal(model(ids()).logits, stock)


class _HidesAPositionScale(LlamaAttention):
    """Rotary as usual, and a factor on the output that counts tokens of this call alone."""

    def forward(self, hidden_states, position_embeddings=None, **kwargs):
        out, weights = super().forward(hidden_states, position_embeddings, **kwargs)
        plain = self.config._attn_implementation in ("sdpa", "eager")
        return (out if plain else out * 1.1), weights


def test_a_model_that_passes_the_probe_and_still_differs_is_refused():
    model = llama()
    for layer in model.model.layers:
        layer.self_attn.__class__ = _HidesAPositionScale
    with pytest.raises(UnsupportedModelError, match="would change without any extension"):
        extend(model, METHOD)
    assert not is_extended(model)


def test_a_model_with_sliding_layers_alone_is_refused_with_what_to_do():
    from transformers import MistralConfig

    from tests.model.models import SIZES, build

    options = {"num_hidden_layers": 2, "num_key_value_heads": 2, **SIZES}
    model = build(MistralConfig(sliding_window=16, **options))
    with pytest.raises(UnsupportedModelError, match=r"full_attention=True \(--full-attention\)"):
        extend(model, METHOD)
    opened = build(with_full_attention(model.config))
    assert support(opened).supported
    assert opened.config.max_position_embeddings == 16  # no distance beyond it was trained
    assert model.config.sliding_window == 16


@pytest.mark.parametrize("family", ["gemma3_text", "llama4_text", "qwen2:sliding"])
def test_windows_that_a_model_was_built_around_are_not_switched_off(family):
    with pytest.raises(UnsupportedModelError, match=r"full_attention=True.*of several kinds"):
        with_full_attention(zoo.config(family))


def test_windows_of_another_kind_are_not_switched_off():
    config = zoo.config("llama4_text", layer_types=["chunked_attention"] * 2)
    with pytest.raises(UnsupportedModelError, match=r"other windows \(attention_chunk_size"):
        with_full_attention(config)


def test_a_model_without_windows_stays_as_it_is():
    config = zoo.config("llama")
    assert with_full_attention(config).to_dict() == config.to_dict()


@pytest.mark.parametrize("settings", [8, None, (4, 9)])
def test_settings_of_another_type_are_refused(settings):
    model = llama()
    with pytest.raises(TypeError, match=r"expected settings such as SelfExtend\(group_size=8"):
        extend(model, settings)
    assert not is_extended(model)
    with pytest.raises(TypeError, match="expected a model of transformers, got str"):
        extend("meta-llama/Llama-2-7b-hf", METHOD)


def test_a_model_without_its_head_is_refused_with_what_to_give():
    with pytest.raises(UnsupportedModelError, match="give the causal language model around it"):
        extend(llama().model, METHOD)
