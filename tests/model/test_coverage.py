"""Every decoder family of the installed transformers: equal to the oracle, or refused by name.

One tiny random model of each family runs through what users do with it. Where the stock model
itself does not agree with its own whole forward (some hybrids lose their state between chunks, some
caches are not accepted), there is nothing to compare with, and the test says so by skipping.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StaticCache

from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.model import extend, extended, restore, support
from selfextend_rag.positions import SelfExtend
from tests import oracle, zoo

pytestmark = pytest.mark.coverage

NAMES = [name for name in (*zoo.families(), *zoo.variants()) if name not in zoo.NOT_BUILT]
PAGE = (Path(__file__).parents[2] / "docs" / "coverage.md").read_text(encoding="utf-8")
# What the committed page says decides which tests a family gets, and the tests decide whether the
# page is right; what another release of transformers has more than the page gets all of them.
REFUSED = set(re.findall(r"^\| (\S+) \| \w+ \| refused \|", PAGE, re.MULTILINE))
SETTINGS = SelfExtend(4, 7)
LENGTH = 64
# Largest error over largest logit. Stock models differ by up to 1.7e-6 between their eager and SDPA
# attention; we differ from the oracle by up to 1.9e-6, and a wrong position by 6e-2 and more.
TOLERANCE = 1e-5


@dataclass
class Tiny:
    """A stock model of one family, and what was measured on it."""

    name: str
    model: PreTrainedModel
    tokens: Tensor
    stock: Tensor

    @cached_property
    def tolerance(self) -> float:
        """Room for what the stock model's attention differs from the family's eager one.

        That is rounding, or more: older releases run Gemma 2's softcap in eager attention alone.
        """
        noise = relative_error(self.stock, oracle.eager_logits(self.model, self.tokens))
        assert noise < 5e-3
        return max(TOLERANCE, 4 * noise)

    @cached_property
    def extended(self) -> Tensor:
        with extended(self.model, SETTINGS):
            return whole(self.model, self.tokens)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models run no faster on more threads, which then only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def built(name: str) -> Tiny:
    model, tokens = zoo.build(name), zoo.tokens(LENGTH)
    return Tiny(name, model, tokens, whole(model, tokens))


@pytest.fixture(scope="module", params=[name for name in NAMES if name not in REFUSED])
def supported(request: pytest.FixtureRequest) -> Tiny:
    """One model at a time: pytest runs all tests of a family before it builds the next."""
    tiny = built(request.param)
    report = support(tiny.model)
    if not report.supported:
        pytest.skip(f"refused with transformers {transformers.__version__}: {report.reason}")
    return tiny


def test_the_page_and_the_installed_transformers_have_families_in_common() -> None:
    assert len(REFUSED & set(NAMES)) > 50
    assert len(set(NAMES) - REFUSED) > 85


@pytest.mark.parametrize("name", [name for name in NAMES if name in REFUSED])
def test_a_refused_model_is_named_and_stays_as_it_was(name: str) -> None:
    tiny = built(name)
    report = support(tiny.model)
    if report.supported:
        pytest.skip(f"it is extended with transformers {transformers.__version__}")
    with pytest.raises(UnsupportedModelError, match=type(tiny.model).__name__) as error:
        extend(tiny.model, SETTINGS)
    assert len(report.reason) > 10
    assert report.reason in str(error.value)
    assert torch.equal(whole(tiny.model, tiny.tokens), tiny.stock)


def test_the_extended_layers_are_those_that_see_all_the_past_by_rotation(supported: Tiny) -> None:
    found = oracle.rotary_layers(supported.model, supported.tokens)
    report = support(supported.model)
    assert set(report.extended_layers) == {name for name, sees_all in found.items() if sees_all}
    assert not [layer for layer in report.layers if layer.status == "refused"]


def test_extended_logits_equal_the_oracle(supported: Tiny) -> None:
    layers = support(supported.model).extended_layers
    expected = oracle.oracle_logits(supported.model, supported.tokens, 4, 7, layers)
    assert_close(supported.extended, expected, supported.tolerance)
    assert relative_error(supported.extended, supported.stock) > 1e-2  # it does something


@pytest.mark.parametrize("settings", [SelfExtend(1, 7), SelfExtend(4, LENGTH)])
def test_no_grouping_is_the_stock_model(supported: Tiny, settings: SelfExtend) -> None:
    tolerance = supported.tolerance
    with extended(supported.model, settings):
        assert_close(whole(supported.model, supported.tokens), supported.stock, tolerance)


def test_chunks_and_decode_equal_one_forward(supported: Tiny) -> None:
    def run(model: PreTrainedModel, tokens: Tensor) -> Tensor:
        return in_pieces(model, tokens, DynamicCache(config=model.config), [29, 61, 62, 63, 64])

    compare_ways(supported, run)


def test_static_cache_decode_equals_one_forward(supported: Tiny) -> None:
    def run(model: PreTrainedModel, tokens: Tensor) -> Tensor:
        cache = StaticCache(config=model.config, max_cache_len=LENGTH + 5)
        return in_pieces(model, tokens, cache, [61, 62, 63, 64])

    compare_ways(supported, run)


def test_a_left_padded_row_equals_the_row_alone(supported: Tiny) -> None:
    padding = 9

    def run(model: PreTrainedModel, tokens: Tensor) -> Tensor:
        other = zoo.tokens(LENGTH + padding, seed=1)
        row = torch.cat([torch.zeros(1, padding, dtype=tokens.dtype), tokens], dim=1)
        mask = torch.ones(2, LENGTH + padding, dtype=torch.long)
        mask[0, :padding] = 0
        return model(
            input_ids=torch.cat([row, other]),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
        ).logits[:1, padding:]

    compare_ways(supported, run)


def test_greedy_generation_is_the_argmax_of_whole_forwards(supported: Tiny) -> None:
    prompt, new = supported.tokens[:, :40], 3
    settings = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0)
    model = supported.model
    with extended(model, SETTINGS):
        generated = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=settings
        )
        expected = prompt
        for _ in range(generated.shape[1] - prompt.shape[1]):
            best = whole(model, expected)[:, -1:].argmax(-1)
            expected = torch.cat([expected, best], dim=1)
    assert generated.shape[1] > prompt.shape[1]
    assert torch.equal(generated, expected)


def test_restore_gives_the_untouched_model_back(supported: Tiny) -> None:
    extend(supported.model, SETTINGS)
    restore(supported.model)
    assert torch.equal(whole(supported.model, supported.tokens), supported.stock)


@pytest.mark.parametrize("name", [name for name in NAMES if ":many-" in name])
def test_layers_that_select_keys_are_refused_even_where_a_short_prompt_selects_all(
    name: str,
) -> None:
    """Such a layer attends to everything in the probe's few tokens, and not beyond them."""
    assert not support(zoo.build(name)).supported


@pytest.mark.parametrize("name", ["llama:dynamic", "phi3:longrope"])
def test_a_long_prompt_before_does_not_change_what_is_measured(name: str) -> None:
    """Some rotary modules change their frequencies with the last prompt, here past their window."""
    model, fresh = zoo.build(name), zoo.build(name)
    whole(model, zoo.tokens(600))
    assert support(model) == support(fresh)


@torch.no_grad()
def whole(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


@torch.no_grad()
def in_pieces(
    model: PreTrainedModel, tokens: Tensor, cache: DynamicCache, ends: list[int]
) -> Tensor:
    pieces, begin = [], 0
    for end in ends:
        # Positions are given: the stock Bamba restarts at 0 with each piece if it may count.
        piece = {"input_ids": tokens[:, begin:end], "position_ids": torch.arange(begin, end)[None]}
        pieces.append(model(**piece, past_key_values=cache, use_cache=True).logits)
        begin = end
    return torch.cat(pieces, dim=1)


@torch.no_grad()
def compare_ways(tiny: Tiny, run: Callable[[PreTrainedModel, Tensor], Tensor]) -> None:
    """Check that another way to run the extended model agrees with its whole forward."""
    try:
        stock = run(tiny.model, tiny.tokens)
    except Exception as error:  # noqa: BLE001  (whatever a family raises, it raises un-extended too)
        pytest.skip(f"the stock model refuses: {type(error).__name__}: {error}")
    noise = relative_error(stock, tiny.stock)  # recurrent layers sum in another order
    if noise > 1e-3:
        pytest.skip(f"the stock model disagrees with its own whole forward by {noise:.1g}")
    with extended(tiny.model, SETTINGS):
        assert_close(run(tiny.model, tiny.tokens), tiny.extended, max(TOLERANCE, 4 * noise))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert relative_error(actual, expected) <= tolerance
