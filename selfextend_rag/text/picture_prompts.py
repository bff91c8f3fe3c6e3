"""Prompts with pictures: where they are in documents and messages, and among the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfextend_rag.documents import Document, Picture
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.evidence import Boxes, TokenRanges
from selfextend_rag.model import PromptPictures
from selfextend_rag.planning.encoding import PictureWork
from selfextend_rag.text.codec import Encoded
from selfextend_rag.text.messages import (
    Message,
    calls_as_text,
    tools_text,
    turns_of,
    with_system_text,
)
from selfextend_rag.text.pictures import PictureProcessor
from selfextend_rag.text.prompts import (
    PlacedPicture,
    Prompt,
    PromptBuilder,
    joined_documents,
)
from selfextend_rag.text.template import plain_conversation


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
