"""Prompts with pictures: what a processor makes of each, and where they are among the tokens.

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
from dataclasses import replace
from functools import lru_cache, partial
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfextend_rag.cache.identity import digest
from selfextend_rag.documents import Document, DocumentError, Picture
from selfextend_rag.errors import UnsupportedModelError, in_short
from selfextend_rag.evidence import Boxes, TokenRanges
from selfextend_rag.model import PictureSpan, PromptPictures, lock_of, picture_embeddings
from selfextend_rag.planning.encoding import PictureWork
from selfextend_rag.text.codec import Encoded
from selfextend_rag.text.messages import (
    Message,
    calls_as_text,
    tools_text,
    turns_of,
    with_system_text,
)
from selfextend_rag.text.picture_places import keeps_places, token_boxes
from selfextend_rag.text.prompts import (
    PlacedPicture,
    Prompt,
    PromptBuilder,
    joined_documents,
)
from selfextend_rag.text.template import plain_conversation

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


def _of_documents(
    ranges: TokenRanges,
    documents: Sequence[Document],
    placed: Sequence[PlacedPicture],
    mark: int,
) -> TokenRanges:
    """Return ranges in documents whose texts had a mark for each picture, of so many characters."""
    start, end, number = ranges.start.copy(), ranges.end.copy(), ranges.document.copy()
    pictures, coming = np.full(len(number), -1), iter(placed)
    for index, document in enumerate(documents):
        borders = [x.start + (n + 1) * mark for n, x in enumerate(document.pictures)]
        own = number == index
        for places in (start, end):
            places[own] -= mark * np.searchsorted(borders, places[own], side="right")
        for n, picture in enumerate(document.pictures):
            found = next(coming)
            tokens = slice(found.start, found.stop)
            number[tokens], pictures[tokens] = index, n
            start[tokens] = end[tokens] = picture.start
    return TokenRanges(number, start, end, pictures)


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


class PicturePrompts(PromptBuilder):
    """Builds prompts of documents that may have pictures; see `PromptBuilder`.

    Args:
        tokenizer: the processor's.
        processor: what makes tokens of pictures.
        options: of `PromptBuilder`.

    Raises:
        UnsupportedModelError: processor or chat template do not write pictures in a known way.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, processor: Any, **options: Any
    ) -> None:
        super().__init__(tokenizer, **options)
        said = "zqsaidzq"
        written = (
            self._template.try_render([{"role": "user", "content": said}]) if self.chat else ""
        )
        self._template.in_parts = self.chat and said not in (written or "")
        self.pictures = PictureProcessor(processor, self.codec.lock)
        self._before, self._after = self._written()

    @property
    def reads_pictures(self) -> bool:
        """Return that documents and messages may have pictures."""
        return True

    def picture_tokens(self, document: Document) -> int:
        """Return how many tokens the pictures of a document are, with what is around each."""
        around = len(self.codec.text(self._before)) + len(self.codec.text(self._after))
        sizes = ((picture.width, picture.height) for picture in document.pictures)
        return sum(len(self.pictures.tokens_of_size(*size)) + around for size in sizes)

    def picture_works(self, pictures: Sequence[Picture]) -> list[PictureWork]:
        """Return what the model is given for each size of these pictures."""
        sizes = {(picture.width, picture.height): None for picture in pictures}
        return [self.pictures.work_of_size(*size) for size in sizes]

    def picture_numbers(self, document: Document) -> list[int]:
        """Return the negative numbers that a prompt has for the pictures of a document."""
        return [number for x in document.pictures for number in self.pictures.numbers(x)]

    def picture_boxes(self, picture: Picture, model: PreTrainedModel) -> Boxes | None:
        """Return where in a picture each of its tokens comes from, if the model keeps that."""
        return self.pictures.boxes(picture, model)

    def shortcomings(self, document: Document) -> tuple[str, ...]:
        """Return what the processor cuts off pictures."""
        cut = [x for x in document.pictures if x.width != x.height]
        if not cut or not self.pictures.cuts_margins():
            return ()
        return (
            f"{len(cut)} of its pictures lose their margins: the model's processor cuts out a "
            "square in the middle",
        )

    def pictures_in(self, prompt: Prompt, model: PreTrainedModel) -> PromptPictures | None:
        """Return the pictures of a prompt for the model that is to read it, if it has some."""
        if not prompt.media:
            return None
        return self.pictures.pictures(model, prompt.tokens, prompt.media)

    def documents(self, documents: Sequence[Document], *, ranges: bool = True) -> Prompt:
        """Return all that comes before a question, with pictures where they are in the text.

        Raises:
            DocumentError: the processor does not take a picture.
            ValueError: there are none, or the chat template changes what they say.
        """
        pictures = [picture for document in documents for picture in document.pictures]
        if not pictures:
            return super().documents(documents, ranges=ranges)
        text, starts, stops = joined_documents([self._marked(x) for x in documents])
        place, before = 0, text + self._border.left
        if self.chat:
            before = self._rendered_halves(text, "")[0]
            begun, lost = self._template.place_of_documents(before, self._left(text))
            place = begun - lost
        parts = before.split(self._mark)
        if len(parts) != len(pictures) + 1:
            raise ValueError("the chat template does not write a user message once and as it is")
        encoded, placed = self._with_pictures(parts, pictures, ranges)
        held = None
        if encoded.ends is not None:
            begins = [place + start for start in starts]
            firsts, lasts = [max(0, x) for x in begins], [place + stop for stop in stops]
            held = TokenRanges.within(encoded.ends, begins, firsts, lasts)
        if held is not None:
            held = _of_documents(held, documents, placed, len(self._mark))
        return Prompt(tuple(encoded.ids), held, tuple(placed))

    def prompt(
        self, prompt: str | Sequence[Message], tools: Sequence[Mapping[str, object]] = ()
    ) -> Prompt:
        """Return a text or a conversation, whose user's messages may hold pictures.

        Raises:
            DocumentError: the processor does not take a picture, or it is no user's.
            ValueError: as `PromptBuilder.prompt`.
        """
        turns = [] if isinstance(prompt, str) else turns_of(prompt, pictures=True)
        pictures = [picture for turn in turns for picture in turn.pictures]
        if not pictures:
            return super().prompt(prompt, tools)
        turns = [
            replace(turn, content=self._with_marks(turn.content, turn.pictures), pictures=())
            for turn in turns
        ]
        if self.chat:
            text = self._rendered_chat(turns, tools)
        else:
            if tools:
                turns = with_system_text(turns, tools_text(tools), own_message=True)
            text = plain_conversation(calls_as_text(turns))
        parts = text.split(self._mark)
        if len(parts) != len(pictures) + 1:
            raise ValueError("the chat template does not write each picture once, where it is")
        encoded, placed = self._with_pictures(parts, pictures, False)
        return Prompt(tuple(encoded.ids), None, tuple(placed))

    def _with_pictures(
        self, parts: Sequence[str], pictures: Sequence[Picture], ends: bool
    ) -> tuple[Encoded, list[PlacedPicture]]:
        """Return tokens of texts with pictures between them, and where these are.

        They end in the text that has a mark for each picture, all of whose tokens end with it.
        """
        start = [] if self.chat else self.codec.start()
        encoded, placed, place = Encoded(start, [0] * len(start) if ends else None), [], 0
        for index, part in enumerate(parts):
            left = self._after if index else ""
            right = self._before if index < len(pictures) else ""
            length = len(self._template.unguarded(part) if self.chat else part)
            own = self._encoded(left + part + right, first=index == 0, ends=ends)
            if own.ends is not None:  # what the template writes of a picture is at its border
                own.ends = [min(max(end - len(left), 0), length) for end in own.ends]
            encoded.append(own, place)
            place += length
            if index < len(pictures):
                numbers, begun = self.pictures.numbers(pictures[index]), len(encoded.ids)
                place += len(self._mark)
                encoded.append(Encoded(numbers, [0] * len(numbers) if ends else None), place)
                placed.append(PlacedPicture(pictures[index], begun, len(encoded.ids)))
        return encoded, placed

    @property
    def _mark(self) -> str:
        """What pictures are in a text that is rendered; no document can hold it."""
        return f"{self._template.mark}:picture]"

    def _marked(self, document: Document) -> Document:
        """Return a document whose pictures are marks in its text."""
        text = self._with_marks(document.text, document.pictures)
        return Document(text, document.title, document.id)

    def _with_marks(self, text: str, pictures: Sequence[Picture]) -> str:
        """Return a text with a mark where each of its pictures is."""
        parts, place = [], 0
        for picture in pictures:
            parts += [text[place : picture.start], self._mark]
            place = picture.start
        return "".join([*parts, text[place:]])

    def _encoded(self, text: str, *, first: bool, ends: bool) -> Encoded:
        """Return the tokens of text between pictures, as they follow the token before them."""
        before = "" if first else self.pictures.placeholder
        if not self.chat:
            return self.codec.encoded(text, after=before, ends=ends)
        if first or self._template.mark in text:
            return self._template.encoded(text, after="" if first else "\n", ends=ends)
        return self.codec.encoded(text, after=before, as_text=False, ends=ends)

    def _written(self) -> tuple[str, str]:
        """Return what the chat template writes before and after a picture's placeholder.

        Where it writes all pictures before the text, they are left where they are in the text,
        each as the template writes one.
        """
        placeholder = self.pictures.placeholder
        if not self.chat:
            return "", ""
        one, other = "zqonezq", "zqotherzq"
        image = {"type": "image"}
        texts = [{"type": "text", "text": text} for text in (one, other)]
        rendered = self._template.try_render(
            [{"role": "user", "content": [texts[0], image, texts[1]]}]
        )
        plain = self._template.try_render([{"role": "user", "content": texts}])
        if rendered is None or plain is None or rendered.count(placeholder) != 1:
            raise UnsupportedModelError(
                "the chat template writes no picture once as the processor replaces it; "
                'use prompt_form="plain", or another template'
            )
        if rendered.find(one) < rendered.find(placeholder) < rendered.find(other):
            written = rendered.partition(one)[2].partition(other)[0]
        else:
            head = plain.partition(one)[0]
            written = rendered.removeprefix(head).partition(one)[0]
        before, _, after = written.partition(placeholder)
        return before, after
