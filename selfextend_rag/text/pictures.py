"""What a processor makes of pictures: their tokens, and what the model is given for each.

A picture is processed by itself, as its processor would in a prompt. Which tokens that makes
depends on its size alone, so they are known from a blank picture of that size, before any weights
or pixels are looked at. In a prompt each has a negative number of its own in their place, drawn
from the picture's digest: equal numbers are the same part of the same picture, wherever tokens are
compared.
"""

from __future__ import annotations

import copy
import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfextend_rag.cache.identity import digest
from selfextend_rag.documents import DocumentError, Picture
from selfextend_rag.errors import UnsupportedModelError, in_short
from selfextend_rag.evidence import Boxes
from selfextend_rag.model import PictureSpan, PromptPictures, lock_of, picture_embeddings
from selfextend_rag.planning.encoding import PictureWork
from selfextend_rag.text.picture_places import keeps_places, token_boxes
from selfextend_rag.text.prompts import PlacedPicture

_THINNEST = 200  # times as long as wide; many processors make the shorter side a fixed length
_SIZES = 4096  # whose tokens are remembered
_PLACED = 64  # whose tokens' places are remembered
_SAMPLE = (64, 48), (36, 60)  # pixels of the pictures by which a model is measured
_BEFORE, _BETWEEN, _AFTER = "Look at ", " and then at ", ", and say what they show."


class PictureProcessor:
    """What a vision-language model's processor makes of pictures.

    Args:
        processor: of transformers, with its image processor and tokenizer.
        lock: is held while the tokenizer runs, which others run too.

    Raises:
        UnsupportedModelError: it does not write pictures in a way that is known.
    """

    def __init__(self, processor: Any, lock: threading.Lock | None = None) -> None:
        self.processor = processor
        self._lock = threading.Lock() if lock is None else lock
        self.placeholder = self._placeholder()
        self._sized = lru_cache(_SIZES)(self._of_size)
        self._boxes = lru_cache(_PLACED)(partial(token_boxes, self._alone))
        self._keeps_places: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()

    def tokens_of_size(self, width: int, height: int) -> tuple[int, ...]:
        """Return the token ids that a picture of so many pixels makes.

        Raises:
            DocumentError: the processor does not take such a picture.
        """
        if max(width, height) > _THINNEST * min(width, height):
            raise DocumentError(
                f"a picture of {width} x {height} pixels is over {_THINNEST} times as long as wide,"
                " which vision models don't take; cut it into several"
            )
        return self._sized(width, height)[0]

    def work_of_size(self, width: int, height: int) -> PictureWork:
        """Return what the model is given for a picture of so many pixels; errors as above."""
        self.tokens_of_size(width, height)
        return self._sized(width, height)[1]

    def numbers(self, picture: Picture) -> list[int]:
        """Return the negative numbers that a prompt has for the tokens of a picture."""
        count = len(self.tokens_of_size(picture.width, picture.height))
        key = f"{picture.digest} {processor_identity(self.processor)}"
        drawn = hashlib.shake_256(key.encode()).digest(8 * count)
        found: list[int] = (-1 - (np.frombuffer(drawn, "<u8") >> 2).astype(np.int64)).tolist()
        return found

    def arguments(self, picture: Picture) -> Mapping[str, Any]:
        """Return what the model is given for a prompt of this picture alone.

        Raises:
            DocumentError: the picture is damaged, or makes other tokens than one of its size does.
        """
        made = self._processed(self.placeholder, [picture.image()])
        tokens = tuple(made["input_ids"][0].tolist())
        if tokens != self.tokens_of_size(picture.width, picture.height):
            raise DocumentError(
                f"{picture.name or 'a picture'} makes {len(tokens)} tokens, and one of its size "
                f"({picture.width} x {picture.height}) was planned to make others"
            )
        return made

    def pictures(
        self, model: PreTrainedModel, tokens: Sequence[int], placed: Sequence[PlacedPicture]
    ) -> PromptPictures:
        """Return the pictures of a prompt for a model that is to read them."""
        spans = [PictureSpan(x.start, x.stop, self._later(x.picture)) for x in placed]
        return PromptPictures(model, tokens, spans, lambda: self._sample(model))

    def boxes(self, picture: Picture, model: PreTrainedModel) -> Boxes | None:
        """Return where in a picture each of its tokens comes from; None if the model mixes that.

        The model is measured by the first picture that tells it, which is encoded five times.
        """
        found = self._boxes(picture.width, picture.height)
        if found is None:
            return None
        known = self._keeps_places.get(model)
        if known is None:
            embedded, image = partial(picture_embeddings, model), picture.image()
            with lock_of(model).hold(lambda: False):
                known = keeps_places(self._alone, found, embedded, image)
            if known is not None:
                self._keeps_places[model] = known
        return found if known else None

    def cuts_margins(self) -> bool:
        """Return whether pictures that are no squares lose their margins: by cropping."""
        images = self.processor.image_processor
        size = getattr(images, "size", None)
        shortest = size and (
            size.get("shortest_edge") if isinstance(size, Mapping) else size["shortest_edge"]
        )
        return bool(getattr(images, "do_center_crop", False) and shortest)

    def _later(self, picture: Picture) -> Callable[[], Mapping[str, Any]]:
        return lambda: self.arguments(picture)

    def _of_size(self, width: int, height: int) -> tuple[tuple[int, ...], PictureWork]:
        blank = import_module("PIL.Image").new("RGB", (width, height), "white")
        made = self._processed(self.placeholder, [blank])
        tokens = tuple(made["input_ids"][0].tolist())
        given = [x for x in made.values() if hasattr(x, "is_floating_point")]
        given = [x for x in given if x.is_floating_point()]
        tiles = [x.shape[:-3].numel() for x in given if x.ndim > 3]
        work = PictureWork(
            pixels=width * height,
            numbers=max(1, sum(x.numel() for x in given)),
            tiles=max([1, *tiles]),
            tokens=len(tokens),
        )
        return tokens, work

    def _processed(self, text: str, images: list[Any]) -> dict[str, Any]:
        try:
            with self._lock:
                made = self.processor(
                    text=[text], images=images, return_tensors="pt", add_special_tokens=False
                )
        except Exception as error:  # what processors raise has no limit
            sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
            raise DocumentError(
                f"{type(self.processor).__name__} does not take a picture of {sizes} pixels: "
                f"{in_short(error)}"
            ) from error
        return dict(made)

    def _placeholder(self) -> str:
        """Return the text that the processor replaces by a picture's tokens, found by trying."""
        processor, problem = self.processor, ""
        square = import_module("PIL.Image").new("RGB", (64, 64), "white")
        names = ("image_placeholder_token", "image_token", "boi_token")
        for name in names:
            text = getattr(processor, name, None)
            if not isinstance(text, str):
                continue
            try:
                made = self._processed(text, [square])["input_ids"][0].tolist()
            except DocumentError as error:
                problem = str(error)
                continue
            if len(made) > 1 or made == processor.tokenizer.encode(text, add_special_tokens=False):
                return text
        raise UnsupportedModelError(
            f"{type(processor).__name__} has no token in a text that it replaces by a picture"
            + f" ({problem})" * bool(problem)
        )

    def _sample(self, model: PreTrainedModel) -> tuple[Mapping[str, Any], PromptPictures]:
        """Return a prompt of two pictures as the processor makes it, and its own pictures."""
        generator, ways = np.random.default_rng(0), import_module("PIL.Image")
        shapes = [(height, width, 3) for width, height in _SAMPLE]
        images = [ways.fromarray(generator.integers(0, 256, x, dtype=np.uint8)) for x in shapes]
        text = f"{_BEFORE}{self.placeholder}{_BETWEEN}{self.placeholder}{_AFTER}"
        whole = self._processed(text, images)
        ids, spans, place = tuple(whole["input_ids"][0].tolist()), list[PictureSpan](), 0
        for image in images:
            alone = self.tokens_of_size(image.width, image.height)
            place = _found(ids, alone, place)
            stop = place + len(alone)
            spans.append(PictureSpan(place, stop, self._of_sample(image)))
            place = stop
        return whole, PromptPictures(model, ids, spans)

    def _of_sample(self, image: Any) -> Callable[[], Mapping[str, Any]]:
        return lambda: self._alone(image)

    def _alone(self, image: Any) -> dict[str, Any]:
        return self._processed(self.placeholder, [image])


def processor_identity(processor: Any) -> str:
    """Return a digest of all that decides what a processor makes of pictures."""
    parts = processor, processor.image_processor
    settings = [json.loads(part.to_json_string()) for part in parts]
    return digest(json.dumps(settings, sort_keys=True))


def tokenizer_of(processor: Any, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer with the chat template of a processor, where that has one of its own."""
    template = getattr(processor, "chat_template", None)
    if not template or template == tokenizer.chat_template:
        return tokenizer
    found = copy.copy(tokenizer)
    found.chat_template = template
    return found


def _found(tokens: tuple[int, ...], part: tuple[int, ...], start: int) -> int:
    for place in range(start, len(tokens) - len(part) + 1):
        if tokens[place : place + len(part)] == part:
            return place
    raise UnsupportedModelError("a picture makes other tokens in company than it does alone")
