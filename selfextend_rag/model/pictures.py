"""Pictures in a vision-language model: what its decoder is given for them, and whether it is all.

No code here knows a family by name. The model's own forward is run up to its decoder, and what that
is given is caught: its vision tower, its projector and where it puts their results stay its own. A
picture's embeddings are then tokens like others, which are read in chunks and kept. That this is
the whole of what the model does with pictures is measured: a prompt with two of them has to give
the logits that the stock model gives for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.model.extension import switched
from selfextend_rag.model.verify import (
    FAILURES,
    Cancelled,
    Runner,
    disagreement,
    evaluating,
    failure,
)
from selfextend_rag.positions import PositionMap, SelfExtend

_LAST = 4  # tokens after the last picture whose logits are compared, at most
_ORDINARY = frozenset(("inputs_embeds", "attention_mask", "position_ids", "cache_position"))
_reasons: WeakKeyDictionary[nn.Module, dict[bool, str]] = WeakKeyDictionary()

Arguments = Mapping[str, Any]
"""What a processor made for its model, by the names of its forward's arguments."""


@dataclass(frozen=True, slots=True)
class PictureSpan:
    """A picture among the tokens of a prompt.

    Args:
        start: its first token.
        stop: the token after its last.
        arguments: makes what the model is given for a prompt of this picture alone.
    """

    start: int
    stop: int
    arguments: Callable[[], Arguments]


class PromptPictures:
    """The embeddings of a prompt's tokens, its pictures among them.

    A picture is encoded when its first token is asked for, and kept until the next one is.

    Args:
        model: a vision-language model.
        tokens: of the whole prompt; those of pictures are any numbers.
        spans: its pictures, in order.
        sample: a prompt of two pictures as a processor made it, and its own pictures, by which the
            model is measured before it reads any.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: Sequence[int],
        spans: Sequence[PictureSpan],
        sample: Callable[[], tuple[Arguments, PromptPictures]] | None = None,
    ) -> None:
        self.model, self.tokens, self.spans = model, tuple(tokens), tuple(spans)
        self._sample = sample
        self._last: tuple[PictureSpan, Tensor] | None = None

    @torch.inference_mode()
    def embeddings(self, begin: int, end: int) -> Tensor | None:
        """Return the embeddings ``[1, T, hidden]`` of so many tokens; None if they hold no picture.

        Raises:
            UnsupportedModelError: the model makes more or fewer tokens of a picture than planned.
        """
        spans = [x for x in self.spans if x.start < end and x.stop > begin]
        if not spans:
            return None
        parts, place = [], begin
        for span in spans:
            parts.append(self._text(place, max(place, span.start)))
            place = min(end, span.stop)
            first = max(begin, span.start)
            parts.append(self._picture(span)[:, first - span.start : place - span.start])
        parts.append(self._text(place, end))
        return torch.cat(parts, dim=1)

    def refuse_unproven(self, settings: PositionMap | None, cancelled: Cancelled) -> None:
        """Raise an UnsupportedModelError if pictures would be read otherwise than by the model.

        For the holder of the model's lock. Measured once for a model, plain and extended, by a
        few forwards.
        """
        found = _reasons.setdefault(self.model, {})
        extended = settings is not None
        if extended not in found and self._sample is not None:
            arguments, pictures = self._sample()
            with evaluating(self.model):
                run = Runner(self.model, cancelled)
                found[extended] = picture_difference(run, arguments, pictures, extended=extended)
        if reason := found.get(extended):
            raise UnsupportedModelError(
                f"{type(self.model).__name__} can't read pictures in a long context: {reason}"
            )

    def _text(self, begin: int, end: int) -> Tensor:
        embed = self.model.get_input_embeddings()
        device = next(embed.parameters()).device
        device = torch.device("cpu") if device.type == "meta" else device
        found: Tensor = embed(torch.tensor([self.tokens[begin:end]], device=device).long())
        return found

    def _picture(self, span: PictureSpan) -> Tensor:
        if self._last is None or self._last[0] is not span:
            self._last = None  # two at a time would take twice the memory
            found = picture_embeddings(self.model, span.arguments())
            if found.shape[1] != span.stop - span.start:
                raise UnsupportedModelError(
                    f"{type(self.model).__name__} makes {found.shape[1]} tokens of a picture that "
                    f"its processor has {span.stop - span.start} for"
                )
            self._last = span, found
        return self._last[1]


class _Caught(BaseException):
    """Ends a forward at its decoder; no ``Exception``, which code of a model may catch."""


@contextmanager
def _entering(model: PreTrainedModel, enter: Callable[[Arguments], None]) -> Iterator[None]:
    """Call a function with what the decoder of a model is given, by name, within the block."""
    decoder = model.get_decoder()
    if decoder is None or decoder is model:
        raise UnsupportedModelError(f"{type(model).__name__} has no decoder of its own")

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        enter(kwargs)

    hook = decoder.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@torch.inference_mode()
def picture_embeddings(model: PreTrainedModel, arguments: Arguments) -> Tensor:
    """Return what the decoder of a model is given for a prompt, ``[1, T, hidden]``.

    Raises:
        UnsupportedModelError: it is given no embeddings.
    """
    found: list[Tensor] = []

    def enter(given: Arguments) -> None:
        if isinstance(given.get("inputs_embeds"), Tensor):
            found.append(given["inputs_embeds"])
        raise _Caught

    with _entering(model, enter), suppress(_Caught):
        model(**on_device(model, arguments), use_cache=False)
    if not found:
        raise UnsupportedModelError(
            f"the decoder of {type(model).__name__} is not given embeddings of pictures"
        )
    return found[0]


def on_device(model: PreTrainedModel, arguments: Arguments) -> dict[str, Any]:
    """Return a processor's tensors where the model takes them, in its precision."""
    device = next(model.get_input_embeddings().parameters()).device
    device = torch.device("cpu") if device.type == "meta" else device

    def moved(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        return x.to(device, model.dtype) if x.is_floating_point() else x.to(device)

    return {name: moved(x) for name, x in arguments.items()}


def picture_difference(
    run: Runner, arguments: Arguments, pictures: PromptPictures, *, extended: bool
) -> str:
    """Return what differs when a prompt with pictures is read as it will be; empty if nothing.

    That is in chunks whose borders are within the pictures, the last token alone, from embeddings
    and without what else the model's forward would hand its decoder.

    Args:
        run: runs the model.
        arguments: the prompt as its processor made it, for the stock model.
        pictures: the same prompt.
        extended: compare the model extended at a group size of 1, not the plain one.
    """
    model, length = run.model, len(pictures.tokens)
    seen: list[Arguments] = []
    last = min(_LAST, length - pictures.spans[-1].stop)
    try:
        with switched(model, None):
            with _entering(model, seen.append):
                given = on_device(model, arguments)
                whole = run.all_layers(last=last, **given, use_cache=False)[0]
            if reason := _beyond_embeddings(seen[0]):
                return reason
        settings = SelfExtend(1, max(2, length // 2)) if extended else None
        with switched(model, settings):
            ours = _in_chunks(run, pictures)
    except UnsupportedModelError as error:
        return str(error)
    except FAILURES as error:
        return failure(error)
    return disagreement(whole[-1], ours, model.dtype)


def _in_chunks(run: Runner, pictures: PromptPictures) -> Tensor:
    """Return the last logits ``[V]`` of a prompt that is read in chunks."""
    length = len(pictures.tokens)
    middles = [(span.start + span.stop) // 2 for span in pictures.spans]
    cache = SelfExtendCache(run.model.config, capacity=length)
    for begin, end in pairwise(sorted({0, *middles, length - 1, length})):
        given: dict[str, Any] = {"inputs_embeds": pictures.embeddings(begin, end)}
        if given["inputs_embeds"] is None:
            given = {"input_ids": torch.tensor([pictures.tokens[begin:end]])}
            given = on_device(run.model, given)
        logits = run(**given, past_key_values=cache, use_cache=True)
    return logits[0, -1]


def _beyond_embeddings(given: Arguments) -> str:
    """Return what a decoder is given besides embeddings that a prompt in chunks would lack."""
    positions, mask = given.get("position_ids"), given.get("attention_mask")
    if isinstance(positions, Tensor) and positions.ndim == 3:
        axes = positions[-3:]
        if bool((axes != axes[:1]).any()):
            return "its pictures have positions on several axes (M-RoPE), which are not extended"
    masks = mask.values() if isinstance(mask, Mapping) else [mask]
    for each in masks:
        if isinstance(each, Tensor) and each.ndim == 4 and _sees_ahead(each):
            return "the tokens of a picture attend to each other in both directions"
    others = [
        name
        for name, x in given.items()
        if name not in _ORDINARY and (isinstance(x, Tensor) or _has_tensors(x))
    ]
    return f"its decoder is given {', '.join(others)} besides embeddings" if others else ""


def _has_tensors(value: object) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(x, Tensor) for x in value)


def _sees_ahead(mask: Tensor) -> bool:
    if mask.shape[-2] != mask.shape[-1]:
        return False
    seen = mask if mask.dtype == torch.bool else mask == 0
    return bool(seen.triu(1).any())
