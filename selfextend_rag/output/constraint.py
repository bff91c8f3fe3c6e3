"""Grammars compiled for one tokenizer, kept, and run as the engine's `TokenConstraint`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from selfextend_rag.errors import ConstraintError, SchemaError

_KEPT = 128


class GrammarConstraint:
    """How far one answer has come in its grammar.

    Args:
        matcher: the grammar, at its start.
        ends: tokens that end an answer; some may be beyond the vocabulary.
    """

    def __init__(self, matcher: LLMatcher, ends: tuple[int, ...]) -> None:
        self._matcher = matcher
        self._ends = ends
        self._ended = False

    def mask(self, scores: Tensor) -> Tensor:
        """Return scores ``[1, V]`` with ``-inf`` for every token that the grammar rules out.

        Raises:
            ConstraintError: the grammar came to its limits, or leaves no token.
        """
        allowed = self._allowed(scores.shape[-1]).to(scores.device)
        return scores.masked_fill(~allowed, float("-inf"))

    def accept(self, token: int) -> None:
        """Note the next token.

        Raises:
            ConstraintError: the grammar does not allow it.
        """
        if token in self._ends and self._matcher.is_accepting():
            self._ended = True
        elif not self._matcher.consume_token(token):
            raise ConstraintError(
                f"token {token} can't follow in the grammar of this answer: "
                f"{self._matcher.get_error()[:300]}"
            )

    @property
    def finished(self) -> bool:
        """Return whether nothing but an end token could follow."""
        return self._ended or (self._matcher.is_stopped() and not self._matcher.is_error())

    def _allowed(self, width: int) -> Tensor:
        """Return ``[V]``, true for tokens that may come; those beyond the vocabulary may not."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise ConstraintError(
                f"the grammar of this answer came to its limits: {self._matcher.get_error()[:300]};"
                " use a simpler schema"
            )
        found = np.unpackbits(bits, bitorder="little")[:width]
        allowed = np.zeros(width, dtype=bool)
        allowed[: len(found)] = found
        if self._matcher.is_accepting():
            allowed[[end for end in self._ends if end < width]] = True
        if not allowed.any():
            raise ConstraintError(
                "no token of the vocabulary can follow in the grammar of this answer; the "
                "vocabulary lacks a character that the schema asks for"
            )
        return torch.from_numpy(allowed)


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

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, kept: int = _KEPT) -> None:
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
        """Return the vocabulary; a changed number of tokens means that some were added."""
        key = (len(self._tokenizer), ends)
        if key not in self._vocabularies:
            self._vocabularies = {key: vocabulary_of(self._tokenizer, ends)}
        return self._vocabularies[key]


_known: WeakKeyDictionary[PreTrainedTokenizerBase, Grammars] = WeakKeyDictionary()
_known_lock = threading.Lock()


def grammars_of(tokenizer: PreTrainedTokenizerBase) -> Grammars:
    """Return the grammars of this tokenizer, shared by all that use it."""
    with _known_lock:
        return _known.setdefault(tokenizer, Grammars(tokenizer))


def _reason(error: str) -> str:
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return " ".join(lines[:6])[:600]


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, ends: tuple[int, ...]) -> LLTokenizer:
    """Return the vocabulary of a tokenizer; takes up to a second for a large one.

    Args:
        tokenizer: a fast tokenizer of transformers, byte-level or with byte fallback.
        ends: tokens that end an answer.

    Raises:
        SchemaError: the bytes of the tokenizer's tokens are unknown, or there is no end.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise SchemaError(
            "the grammar of an answer needs the bytes of each token, and "
            f"{type(tokenizer).__name__} does not know them; load a fast tokenizer, one "
            "with a tokenizer.json"
        )
    known = 1 + max(len(tokenizer) - 1, max(tokenizer.added_tokens_decoder, default=0))
    # An end beyond the tokenizer's own tokens is let in by `GrammarConstraint`.
    within = [end for end in ends if end < known]
    if not within:
        raise SchemaError(
            "an answer constrained by a grammar needs a token of the vocabulary that ends it, and "
            "neither model nor tokenizer names one; pass stop_token_ids"
        )
    try:
        return from_tokenizer(tokenizer, eos_token=within)
    except ValueError as error:
        raise SchemaError(
            f"the grammar of an answer needs the bytes of each token, and those of this tokenizer "
            f"are unknown ({error}); use a model with a byte-level or byte-fallback vocabulary"
        ) from error
