"""Tokens to text as they come: never half a character, never a part of a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"
"""What decoders write for bytes that are no character yet, and for those that never become one."""


class Detokenizer:
    """Turns the tokens of one answer into text that can be shown at once.

    The texts joined are the text of all tokens, cut before the stop text that was complete first.
    Where one ends means nothing: text is held back while it may still belong to a character or a
    stop text.

    Args:
        decode: token ids to text, special tokens left out.
        stop: texts that end the answer.
        skip_leading_space: leave out white space at the start, so that a stop text such as a line
            end does not end an answer that has not begun.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop: Sequence[str] = (),
        *,
        skip_leading_space: bool = False,
    ) -> None:
        self.stopped = False
        self._decode = decode
        self._stop = StopTexts(stop)
        self._skipping = skip_leading_space
        # Tokens before _shown are text already. Those from _start on are decoded again with each
        # new token, because a token's text may depend on the one before it (word-start spaces).
        self._tokens: list[int] = []
        self._start = 0
        self._shown = 0

    def push(self, token: int) -> str:
        """Take the next token and return the text that is certain now; ``""`` after a stop."""
        self._tokens.append(token)
        return self._emit(final=False)

    def finish(self) -> str:
        """Return what was held back, at the end of the answer."""
        return self._emit(final=True)

    def _emit(self, *, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._stop.push(self._skip(self._new_text(final)))
        if final and not self._stop.found:
            text += self._stop.rest()
        self.stopped = self._stop.found
        return text

    def _new_text(self, final: bool) -> str:
        """Return the text of the tokens that are not shown, if it ends with a whole character."""
        known = self._decode(self._tokens[self._start : self._shown])
        text = self._decode(self._tokens[self._start :])
        if text.endswith(_UNFINISHED) and not final:
            return ""
        if len(text) <= len(known):
            return ""
        self._start, self._shown = self._shown, len(self._tokens)
        return text[len(known) :]

    def _skip(self, text: str) -> str:
        if self._skipping:
            text = text.lstrip()
            self._skipping = not text
        return text


class StopTexts:
    """Finds the stop text that is complete first in a text that arrives in chunks.

    Where several are complete at the same character, the longest counts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.found = False
        self._texts = sorted(texts, key=len, reverse=True)
        self._held = ""

    def push(self, text: str) -> str:
        """Take more text and return what can't be part of a stop text any more."""
        held = self._held + text
        ends = [(held.find(stop) + len(stop), -len(stop)) for stop in self._texts if stop in held]
        if ends:
            end, minus_length = min(ends)
            self.found = True
            self._held = ""
            return held[: end + minus_length]
        keep = max((_overlap(held, stop) for stop in self._texts), default=0)
        certain = len(held) - keep
        self._held = held[certain:]
        return held[:certain]

    def rest(self) -> str:
        """Return what is still held back, because nothing comes after it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that a stop text begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
