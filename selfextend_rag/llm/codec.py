"""Text to token ids and back, so that no text of a user can become a control token."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any


class TextCodec:
    """A tokenizer's encoding and decoding, safe to use from several threads.

    Control tokens are the tokenizer's special tokens, and those of its other added tokens that its
    chat template writes (such as ``<think>``). Only a template can produce them.

    ``control_ids`` has their ids by their texts, and ``control`` is a pattern that finds them.

    Args:
        tokenizer: a tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        # Fast tokenizers keep options of the last call in shared state.
        self._lock = threading.Lock()
        self.control_ids = _control_tokens(tokenizer)
        longest_first = sorted(self.control_ids, key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # Some vocabularies write a character that they lack as their unknown token.
        self._forbidden = frozenset(self.control_ids.values()) - {tokenizer.unk_token_id}

    def start(self) -> list[int]:
        """Return the start token that prompts begin with, if the tokenizer has one."""
        bos = self.tokenizer.bos_token_id
        return [] if bos is None else [bos]

    def text(self, text: str, *, after: str = "") -> list[int]:
        """Return the tokens of a text, in which nothing is a control token.

        Args:
            text: the text.
            after: what stands before it, if it does not begin there; its tokens are left out. So
                a continuation gets no space of a beginning.

        Raises:
            ValueError: the vocabulary has no other way to write a control token's text.
        """
        ids = self._after(text, after, as_text=True)
        if self._forbidden.isdisjoint(ids):
            return ids
        first, *others = _broken_up(text, self.control)
        ids = self._after(first, after, as_text=True)
        for piece in others:
            ids += self._encode(piece, as_text=True)
        if not self._forbidden.isdisjoint(ids):
            raise ValueError(
                "a document holds the text of a control token, and the vocabulary has no other "
                f"way to write it: {sorted(self._forbidden.intersection(ids))}"
            )
        return ids

    def written(self, text: str, *, after: str = "") -> list[int]:
        """Return the tokens of what a template wrote, its control tokens among them."""
        return self._after(text, after, as_text=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        with self._lock:
            return self.tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )

    def _after(self, text: str, after: str, *, as_text: bool) -> list[int]:
        if not text:
            return []
        if after:
            before = self._encode(after, as_text=as_text)
            both = self._encode(after + text, as_text=as_text)
            if both[: len(before)] == before:
                return both[len(before) :]
        return self._encode(text, as_text=as_text)

    def _encode(self, text: str, *, as_text: bool) -> list[int]:
        with self._lock:
            return self.tokenizer.encode(
                text, add_special_tokens=False, split_special_tokens=as_text, verbose=False
            )


def _control_tokens(tokenizer: Any) -> dict[str, int]:
    template = tokenizer.chat_template or ""
    written = template if isinstance(template, str) else "".join(template.values())
    return {
        token.content: index
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special or (token.content in written and not token.content.isspace())
    }


def _broken_up(text: str, control: re.Pattern[str]) -> list[str]:
    """Return the text in pieces, none of which holds a control token longer than a character."""
    pieces = []
    while found := control.search(text):
        border = found.start() + 1
        pieces.append(text[:border])
        text = text[border:]
    return [*pieces, text]
