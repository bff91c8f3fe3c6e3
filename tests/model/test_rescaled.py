"""Static NTK and YaRN against their formulas, family by family, and back again."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, LlamaConfig

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.cache.identity import model_fingerprint, rotary_state
from selfextend_rag.engine import Engine
from selfextend_rag.errors import CacheMismatchError, UnsupportedModelError
from selfextend_rag.model.rescaled import RopeScaling, rescaled
from tests.tiny import tiny_llama

TOKENS = torch.randint(5, 90, (1, 50), generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip


def rates(theta, dim=8):
    return [theta ** (-2 * i / dim) for i in range(dim // 2)]


def yarn_rates(theta, factor, window, dim=8):
    """Equations 19 to 23 of arXiv 2309.00071, alpha 1 and beta 32, ramp ends at whole indices."""

    def index(turns):
        return dim * math.log(window / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(index(32)), 0), min(math.ceil(index(1)), dim - 1)
    found = []
    for i, rate in enumerate(rates(theta, dim)):
        slow = min(max((i - low) / max(high - low, 1e-3), 0), 1)
        found.append(rate / factor * slow + rate * (1 - slow))
    return found


def test_ntk_is_another_base_and_yarn_its_formula():
    model = tiny_llama(window=32).eval()
    with rescaled(model, RopeScaling("ntk", 4.0, 32)):
        ((found, scale),) = set(rotary_state(model))
        torch.testing.assert_close(found, tuple(rates(1e4 * 4 ** (8 / 6))), rtol=1e-5, atol=0)
        assert scale == 1
    with rescaled(model, RopeScaling("yarn", 4.0, 32)):
        ((found, scale),) = set(rotary_state(model))
        torch.testing.assert_close(found, tuple(yarn_rates(1e4, 4, 32)), rtol=1e-5, atol=0)
        assert scale == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize("kind", ["ntk", "yarn"])
@torch.no_grad()
def test_a_model_is_as_before_when_the_block_ends_even_by_an_error(kind):
    model = tiny_llama(window=32).eval()
    before, print_before = model(TOKENS).logits, model_fingerprint(model)
    with rescaled(model, RopeScaling(kind, 4.0, 32)):
        assert (model(TOKENS).logits - before).abs().max() > 1e-3
        assert model_fingerprint(model) != print_before
    with pytest.raises(KeyError), rescaled(model, RopeScaling(kind, 4.0, 32)):
        raise KeyError
    assert torch.equal(model(TOKENS).logits, before)
    assert model_fingerprint(model) == print_before


@pytest.mark.parametrize("kind", ["ntk", "yarn"])
@torch.no_grad()
def test_in_chunks_and_token_by_token_as_at_once(kind):
    """What transformers' dynamic NTK does not give: its base moves while a sequence grows."""
    model = tiny_llama(window=32).eval()
    with rescaled(model, RopeScaling(kind, 4.0, 32)):
        whole = model(TOKENS).logits
        for cuts in ([20, 33], range(1, 50)):
            cache, parts = SelfExtendCache(model.config), []
            for begin, end in zip([0, *cuts], [*cuts, 50], strict=True):
                parts.append(model(TOKENS[:, begin:end], past_key_values=cache).logits)
            torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["ntk", "yarn"])
def test_gemma_3_changes_its_global_layers_alone(kind):
    config = Gemma3TextConfig(
        **SIZES, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    (module,) = [x for x in model.modules() if hasattr(x, "full_attention_inv_freq")]
    names = ("full_attention_inv_freq", "sliding_attention_inv_freq")
    full, sliding = (getattr(module, name).clone() for name in names)
    with rescaled(model, RopeScaling(kind, 4.0, 32)):
        assert not torch.equal(module.full_attention_inv_freq, full)
        assert torch.equal(module.sliding_attention_inv_freq, sliding)
        assert module.sliding_attention_attention_scaling == 1
        with torch.no_grad():
            model(TOKENS)
    assert torch.equal(module.full_attention_inv_freq, full)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (Gemma2Config(**SIZES, sliding_window=8), "sliding_attention"),
        (
            LlamaConfig(
                **SIZES,
                rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
            ),
            "of type 'linear'",
        ),
    ],
    ids=["one rotation for all layers", "scaled already"],
)
def test_what_can_t_take_the_settings_is_refused_by_name(config, why):
    model = AutoModelForCausalLM.from_config(config).eval()
    before = rotary_state(model)
    with (
        pytest.raises(UnsupportedModelError, match=f"{type(model).__name__}.*{why}"),
        rescaled(model, RopeScaling("yarn", 4.0, 32)),
    ):
        pass
    assert rotary_state(model) == before


def test_what_was_read_under_other_frequencies_is_refused():
    model = tiny_llama(window=32).eval()
    engine, tokens = Engine(model), TOKENS[0].tolist()
    prefix = engine.prefill(tokens[:30])
    with rescaled(model, RopeScaling("ntk", 4.0, 32)):
        with pytest.raises(CacheMismatchError, match="rotary frequencies"):
            list(engine.generate(tokens, prefix=prefix))
        other = engine.prefill(tokens[:30])
    with pytest.raises(CacheMismatchError, match="rotary frequencies"):
        list(engine.generate(tokens, prefix=other))


@pytest.mark.parametrize("bad", [("other", 2.0, 32), ("ntk", 1.0, 32), ("yarn", 2.0, 0)])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        RopeScaling(*bad)
