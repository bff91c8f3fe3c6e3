"""Text to token ids and back, so that no text of a user can become a control token."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"
"""What decoders write for bytes that are no character yet, and for those that never become one."""


@dataclass(slots=True)
class Encoded:
    """Tokens, and for each the character of their text before which it ends, never falling.

    The first starts at 0 and every other where the one before it ends, so a token that holds the
    rest of a character has none.
    """

    ids: list[int] = field(default_factory=list)
    ends: list[int] | None = field(default_factory=list)  # None when they are unknown

    def append(self, other: Encoded, start: int) -> None:
        """Add the tokens of the text that starts at character ``start``."""
        self.ids += other.ids
        if self.ends is not None and other.ends is not None:
            self.ends += [start + end for end in other.ends] if start else other.ends
        else:
            self.ends = None


class TextCodec:
    """A tokenizer's encoding and decoding, safe to use from several threads.

    Control tokens are the tokenizer's special tokens, and those of its other added tokens that its
    chat template writes (such as ``<think>``). Only a template can produce them. ``control_ids``
    has their ids by their texts, and ``control`` is a pattern of one group that finds them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        # Fast tokenizers keep options of the last call in shared state.
        self._lock = threading.Lock()
        self.control_ids = _control_tokens(tokenizer)
        longest_first = sorted(self.control_ids, key=len, reverse=True)
        self.control = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        # Some vocabularies write a character that they lack as their unknown token.
        self._forbidden = frozenset(self.control_ids.values()) - {tokenizer.unk_token_id}

    @property
    def lock(self) -> threading.Lock:
        """Return what has to be held while the tokenizer is run by others."""
        return self._lock

    def start(self) -> list[int]:
        """Return the start token that prompts begin with, if the tokenizer has one."""
        bos = self.tokenizer.bos_token_id
        return [] if bos is None else [bos]

    def text(self, text: str, *, after: str = "") -> list[int]:
        """Return the tokens of a text alone; see ``encoded``."""
        return self.encoded(text, after=after, ends=False).ids

    def encoded(
        self, text: str, *, after: str = "", as_text: bool = True, ends: bool = True
    ) -> Encoded:
        """Return the tokens of a text, in which nothing is a control token.

        Args:
            after: what comes before it, if it does not begin there; its tokens are left out. So
                a continuation gets no space of a beginning.
            as_text: False for what a template wrote, its control tokens among it.
            ends: find where each token ends.

        Raises:
            ValueError: the vocabulary has no other way to write a control token's text.
        """
        encoded = self._after(text, after, as_text=as_text, ends=ends)
        if not as_text or self._forbidden.isdisjoint(encoded.ids):
            return encoded
        first, *others = self._broken_up(text)
        encoded = self._after(first, after, as_text=True, ends=ends)
        start = len(first)
        for part in others:
            encoded.append(self._encode(part, as_text=True, ends=ends), start)
            start += len(part)
        if not self._forbidden.isdisjoint(encoded.ids):
            raise ValueError(
                "a document holds the text of a control token, and the vocabulary has no other "
                f"way to write it: {sorted(self._forbidden.intersection(encoded.ids))}"
            )
        return encoded

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of token ids, special tokens left out or written out."""
        with self._lock:
            text = self.tokenizer.decode(
                list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
            )
        return str(text)

    def _after(self, text: str, after: str, *, as_text: bool, ends: bool) -> Encoded:
        if not text:
            return Encoded()
        if after:
            before = self._encode(after, as_text=as_text, ends=False).ids
            both = self._encode(after + text, as_text=as_text, ends=ends)
            if both.ids[: len(before)] == before:
                rest = None
                if both.ends is not None:
                    rest = [max(0, end - len(after)) for end in both.ends[len(before) :]]
                return Encoded(both.ids[len(before) :], rest)
        return self._encode(text, as_text=as_text, ends=ends)

    def _encode(self, text: str, *, as_text: bool, ends: bool) -> Encoded:
        _refuse_surrogates(text)
        fast = self.tokenizer.is_fast
        with self._lock:
            out = self.tokenizer(
                text,
                add_special_tokens=False,
                split_special_tokens=as_text,
                return_offsets_mapping=ends and fast,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
        ids = list(out["input_ids"])
        if not ends:
            return Encoded(ids, None)
        if not fast:
            return Encoded(ids, self._decoded_ends(ids, text))
        # Vocabularies that trim white space leave gaps: running ends close them.
        found = list(accumulate((end for _, end in out["offset_mapping"]), max))
        if found:
            found[-1] = len(text)
        return Encoded(ids, found)

    def _decoded_ends(self, ids: list[int], text: str) -> list[int] | None:
        """Find where tokens end by decoding them; None unless that gives the text back."""
        detokenizer = Detokenizer(self.decode)
        texts = [detokenizer.push(token) for token in ids]
        rest = detokenizer.finish()
        if not texts or "".join(texts) + rest != text:
            return None
        ends = list(accumulate(map(len, texts)))
        ends[-1] = len(text)
        return ends

    def _broken_up(self, text: str) -> list[str]:
        """Return the text in parts, none of which holds a control token over one character."""
        parts = []
        while found := self.control.search(text):
            border = found.start() + 1
            parts.append(text[:border])
            text = text[border:]
        return [*parts, text]


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    template = tokenizer.chat_template or ""
    written = template if isinstance(template, str) else "".join(template.values())
    return {
        token.content: index
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special or (token.content in written and not token.content.isspace())
    }


def _refuse_surrogates(text: str) -> None:
    """Refuse text that no tokenizer accepts; it comes of bytes that were decoded wrongly."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20]
        raise ValueError(
            f"the text {around!a} holds the lone surrogate {text[error.start]!r}, which is no "
            "text; decode the original bytes again"
        ) from error


class Detokenizer:
    """Turns the tokens of one answer into text that can be shown at once.

    The texts joined are the text of all tokens. Where one ends means nothing: text is held back
    while it may be half a character. ``decode`` must leave special tokens out.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], *, skip_leading_space: bool = False
    ) -> None:
        self._decode = decode
        self._skipping = skip_leading_space
        # Tokens before _shown are text already. Those from _start on are decoded again with each
        # new token, because a token's text may depend on the one before it (word-start spaces).
        self._tokens: list[int] = []
        self._start = 0
        self._shown = 0

    def push(self, token: int) -> str:
        """Take the next token and return the text that is certain now."""
        self._tokens.append(token)
        return self._new_text(final=False)

    def finish(self) -> str:
        """Return what was held back, at the end of the answer."""
        return self._new_text(final=True)

    def _new_text(self, *, final: bool) -> str:
        known = self._decode(self._tokens[self._start : self._shown])
        text = self._decode(self._tokens[self._start :])
        if len(text) <= len(known) or (text.endswith(_UNFINISHED) and not final):
            return ""
        self._start, self._shown = self._shown, len(self._tokens)
        text = text[len(known) :]
        if self._skipping:
            text = text.lstrip()
            self._skipping = not text
        return text
