"""Grammars compiled for one tokenizer, kept, and started anew for each answer."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from llguidance import LLMatcher, LLTokenizer

from selfextend_rag.errors import SchemaError
from selfextend_rag.output.constraint import GrammarConstraint
from selfextend_rag.output.vocabulary import vocabulary_of

_KEPT = 128


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """A grammar compiled for one vocabulary; may be started from several threads."""

    _matcher: LLMatcher
    _ends: tuple[int, ...]
    _lock: threading.Lock

    def start(self) -> GrammarConstraint:
        """Return a constraint for one answer."""
        with self._lock:
            return GrammarConstraint(self._matcher.deep_copy(), self._ends)


class Grammars:
    """The grammars of one tokenizer, the latest used kept; safe to use from several threads.

    Args:
        tokenizer: a fast tokenizer of transformers.
        kept: how many compiled grammars to keep.
    """

    def __init__(self, tokenizer: Any, *, kept: int = _KEPT) -> None:
        self._tokenizer = tokenizer
        self._limit = kept
        self._lock = threading.Lock()
        self._vocabularies: dict[tuple[int, tuple[int, ...]], LLTokenizer] = {}
        self._compiled: OrderedDict[tuple[str, tuple[int, ...]], Grammar] = OrderedDict()

    def __len__(self) -> int:
        return len(self._compiled)

    def compiled(self, source: str, ends: tuple[int, ...]) -> Grammar:
        """Return a grammar, compiled now unless it is kept from before.

        Args:
            source: as the library writes grammars, see ``json_grammar``.
            ends: tokens that end an answer; allowed where the grammar is satisfied.

        Raises:
            SchemaError: the grammar holds what can't be enforced, can't be satisfied or is too
                large; or the tokenizer can't be used.
        """
        key = (source, ends)
        with self._lock:
            if key in self._compiled:
                self._compiled.move_to_end(key)
                return self._compiled[key]
            vocabulary = self._vocabulary(ends)
        matcher = LLMatcher(vocabulary, source, log_level=0)
        if matcher.is_error():
            raise SchemaError(_reason(matcher.get_error()))
        if warnings := matcher.get_grammar_warnings():
            raise SchemaError(_reason("; ".join(warnings)))
        grammar = Grammar(matcher, ends, threading.Lock())
        with self._lock:
            self._compiled[key] = grammar
            while len(self._compiled) > self._limit:
                self._compiled.popitem(last=False)
        return grammar

    def control_tokens(self, ends: tuple[int, ...]) -> dict[str, int]:
        """Return the tokens that are no text to a grammar, with their ids.

        Args:
            ends: tokens that end an answer.
        """
        with self._lock:
            vocabulary = self._vocabulary(ends)
        added = self._tokenizer.added_tokens_decoder
        return {
            token.content: index
            for index, token in added.items()
            if vocabulary.is_special_token(index)
        }

    def _vocabulary(self, ends: tuple[int, ...]) -> LLTokenizer:
        """Return the vocabulary; the number of tokens tells whether any were added since."""
        key = (len(self._tokenizer), ends)
        if key not in self._vocabularies:
            self._vocabularies = {key: vocabulary_of(self._tokenizer, ends)}
        return self._vocabularies[key]


_known: WeakKeyDictionary[Any, Grammars] = WeakKeyDictionary()
_known_lock = threading.Lock()


def grammars_of(tokenizer: Any) -> Grammars:
    """Return the grammars that everybody who uses this tokenizer shares."""
    with _known_lock:
        return _known.setdefault(tokenizer, Grammars(tokenizer))


def _reason(error: str) -> str:
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return " ".join(lines[:6])[:600]
