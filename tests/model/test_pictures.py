"""Pictures in a long context: equal to the stock model and to the oracle, or refused by name.

Tiny random models of many families, each with its own processor, read a prompt with two pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.model import PromptPictures, extended, support
from selfextend_rag.positions import SelfExtend
from selfextend_rag.text.pictures import PictureProcessor
from tests import oracle
from tests.zoo import vision

REFUSED = {
    "aya_vision": "rotary embedding is used in sliding or chunked layers alone",
    "gemma3": "attend to each other in both directions",
    "qwen2_vl": "several axes (M-RoPE)",
}
READ = [name for name in vision.FAMILIES if name not in REFUSED]
SETTINGS = SelfExtend(4, 7)
TOLERANCE = 1e-5  # of the largest logit, as of the families of text; a lost picture gives over 0.1


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Tiny:
    """A family's model, a prompt with pictures as its processor makes it, and the same as ours."""

    model: PreTrainedModel
    arguments: dict[str, Any]
    pictures: PromptPictures

    @property
    def ids(self) -> Tensor:
        return self.arguments["input_ids"]

    @cached_property
    def stock(self) -> Tensor:
        with torch.no_grad():
            return self.model(**self.arguments, use_cache=False).logits

    def run(self, *cuts: int) -> Tensor:
        """The logits of all tokens, read in chunks that begin at ``cuts``."""
        length, parts = len(self.pictures.tokens), []
        cache = SelfExtendCache(self.model.config, capacity=length)
        ends = [*cuts, length]
        with torch.no_grad():
            for begin, end in zip([0, *cuts], ends, strict=True):
                given = self.pictures.embeddings(begin, end)
                what = {"inputs_embeds": given}
                if given is None:
                    what = {"input_ids": self.ids[:, begin:end]}
                parts.append(self.model(**what, past_key_values=cache, use_cache=True).logits)
        return torch.cat(parts, dim=1)

    @cached_property
    def extended(self) -> Tensor:
        with extended(self.model, SETTINGS):
            return self.run()


def built(name: str) -> Tiny:
    model = vision.model(name)
    whole, pictures = PictureProcessor(vision.processor(name))._sample(model)
    return Tiny(model, dict(whole), pictures)


@pytest.fixture(scope="module", params=READ)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return built(request.param)


def close(actual: Tensor, expected: Tensor) -> bool:
    error = float((actual - expected).abs().max() / expected.abs().max())
    return error <= TOLERANCE


def test_at_least_ten_families_are_read():
    assert len(READ) >= 13


def test_without_grouping_a_prompt_with_pictures_is_the_stock_models(tiny):
    assert close(tiny.run(), tiny.stock)
    with extended(tiny.model, SelfExtend(1, 7)):
        assert close(tiny.run(), tiny.stock)
    with torch.no_grad():
        blind = tiny.model(input_ids=tiny.ids, use_cache=False).logits
    assert not close(blind, tiny.stock)


def test_extended_logits_equal_the_oracle(tiny):
    model, more = tiny.model, {k: v for k, v in tiny.arguments.items() if k != "input_ids"}
    more.pop("attention_mask", None)  # all ones, which the oracle's eager attention needs not
    layers = support(model).extended_layers
    forward = model.forward
    model.forward = partial(forward, **more)
    try:
        expected = oracle.oracle_logits(model, tiny.ids, 4, 7, layers)
    finally:
        del model.forward
    assert close(tiny.extended, expected)
    assert not close(tiny.extended, tiny.stock)


def test_chunks_and_single_tokens_equal_one_forward(tiny):
    first, second = tiny.pictures.spans
    with extended(tiny.model, SETTINGS):
        within = (first.start + 1, second.start, second.stop - 1)
        assert close(tiny.run(*within), tiny.extended)
        singly = range(second.start - 2, len(tiny.pictures.tokens))  # over a whole picture
        assert close(tiny.run(*singly), tiny.extended)


def test_a_model_is_measured_before_it_reads_pictures(tiny):
    measured = PromptPictures(
        tiny.model, tiny.pictures.tokens, (), lambda: (tiny.arguments, tiny.pictures)
    )
    for settings in (None, SETTINGS):
        measured.refuse_unproven(settings, lambda: False)


@pytest.mark.parametrize("name", REFUSED)
def test_other_families_are_refused_by_name(name):
    tiny = built(name)
    if name == "aya_vision":  # as its model of text is
        assert REFUSED[name] in support(tiny.model).reason
        return
    assert support(tiny.model).layers  # it is judged, whatever else its vision tower rotates
    measured = PromptPictures(
        tiny.model, tiny.pictures.tokens, (), lambda: (tiny.arguments, tiny.pictures)
    )
    kind = type(tiny.model).__name__
    with pytest.raises(UnsupportedModelError, match=f"{kind}.*{re.escape(REFUSED[name])}"):
        measured.refuse_unproven(None, lambda: False)


def test_a_model_that_loses_the_place_of_pictures_is_refused():
    """Such as one whose decoder is not given what its forward was."""
    tiny = built("llava")
    first, second = tiny.pictures.spans
    swapped = type(first)(first.start, first.stop, second.arguments)
    wrong = PromptPictures(tiny.model, tiny.pictures.tokens, (swapped, second))
    measured = PromptPictures(tiny.model, (), (), lambda: (tiny.arguments, wrong))
    with pytest.raises(UnsupportedModelError, match="its logits would change by"):
        measured.refuse_unproven(None, lambda: False)
    other = type(first)(first.start, first.stop + 1, first.arguments)
    with pytest.raises(UnsupportedModelError, match=r"makes 16 tokens of a picture .* 17 for"):
        PromptPictures(tiny.model, tiny.pictures.tokens, (other,)).embeddings(0, 20)
