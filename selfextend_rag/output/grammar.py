"""Grammars of answers: written as llguidance reads them, compiled for a tokenizer, and run.

They constrain an answer to JSON for a schema, or to calls of tools after free text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from selfextend_rag.errors import ConstraintError, SchemaError
from selfextend_rag.output.schema import require_grammars, schema_text
from selfextend_rag.output.tools import ToolRequest
from selfextend_rag.text.calls import ID, ID_PATTERN, CallForm
from selfextend_rag.text.template import THOUGHT_END

_JSON_PARTS = r'"[^"]*"|: |, |[^"]'


def thought_rules(end_token: int | None, free_tokens: Collection[int] = ()) -> list[str]:
    """Return the rules of ``thought``: any text, its end, and a little white space.

    The end is a control token if the vocabulary has one for it; the free ones may come before it.
    """
    before = _optional("THOUGHT", free_tokens)
    text = [r"THOUGHT: /(.|\n)*/", r"THOUGHT_SPACE: /[ \n]{0,2}/"]
    if end_token is not None:
        return [f"thought: {before}THOUGHT <[{end_token}]> THOUGHT_SPACE", *text]
    ended = f"thought_end[lazy]: THOUGHT {_string(THOUGHT_END)}"
    return [f"thought: {before}thought_end THOUGHT_SPACE", ended, *text]


def _optional(text: str, tokens: Collection[int], *, after: bool = False) -> str:
    """Return any number of free texts, each before (or after) one of the control tokens."""
    if not tokens:
        return ""
    token = f"<[{','.join(map(str, sorted(tokens)))}]>"
    return f"({token} {text})*" if after else f"({text} {token})* "


def json_grammar(
    schema: Mapping[str, object], *, leading_space: bool = False, thought: Sequence[str] = ()
) -> str:
    """Return the grammar of the JSON texts that a schema allows, for ``Grammars.compiled``.

    A leading space may come where an answer begins after a colon; ``thought`` are the rules of one
    that the prompt has begun.

    Raises:
        SchemaError: it is no JSON schema, or holds what can't be enforced or be satisfied.
    """
    source = schema_text(schema)
    if thought:
        return "\n".join([*thought, f"start: thought %json {source}"])
    if leading_space:
        return LLMatcher.grammar_from_lark(f'start: " "? %json {source}')
    return LLMatcher.grammar_from_json_schema(source)


def calls_grammar(
    form: CallForm,
    request: ToolRequest,
    *,
    instead: Mapping[str, object] | None = None,
    leading_space: bool = False,
    free_tokens: Collection[int] = (),
    thought: Sequence[str] = (),
) -> str:
    """Return the grammar of answers that are calls or, unless these are forced, begin as free text.

    With a schema of what may come ``instead``, they are calls or JSON for it, and no text. The free
    tokens are control tokens that may occur in free text. Forced calls, and JSON, may follow a
    space or, by its rules, a thought that the prompt has begun; free text may hold one anyway.

    Raises:
        SchemaError: a schema holds what can't be enforced; the message names the tool.
    """
    rules = [
        f"args_{i}: %json {schema_text(schema, f'the schema of tool {name!r}')}"
        for i, (name, schema) in enumerate(request.callable.items())
    ]

    def alternatives(before: str) -> str:
        texts = [_literals(before + name + form.middle, form.tokens) for name in request.callable]
        if form.bare and instead is not None:
            # In the parts that JSON has too, or these texts would rule JSON out that begins alike.
            given = [before + name + form.middle for name in request.callable]
            texts = [" ".join(map(_string, re.findall(_JSON_PARTS, text))) for text in given]
        return " | ".join(f"{text} args_{i}" for i, text in enumerate(texts))

    end = _literals(form.tail, form.tokens)
    if request.parallel and form.link is not None:
        rules.append(f"next: {alternatives(form.link)}")
        end = f"next* {end}"
    if request.forced or instead is not None:
        before = "thought " if thought else '" "? ' if leading_space else ""
        rules += [*thought, f"start: {before}answer", f"first: {alternatives(form.head)}"]
        rules += [f"calls: first {end}", f"answer: calls{'' if request.forced else ' | json'}"]
        if not request.forced and instead is not None:
            rules.append(f"json: %json {schema_text(instead)}")
    else:
        rest = form.head.removeprefix(form.trigger)
        rules += [*_free_text(form, free_tokens), f"first: {alternatives(rest)}"]
        rules.append(f"start: text | opening first {end}")
    return "\n".join(rules)


def _free_text(form: CallForm, free_tokens: Collection[int]) -> list[str]:
    """Return the rules of text before calls and of what begins these."""
    before = _optional("TEXT", free_tokens)
    rules = [f"text: {before}TEXT", r"TEXT: /(.|\n)*/"]
    if form.trigger_token is not None:
        return [*rules, f"opening: text <[{form.trigger_token}]>"]
    if not form.bare:
        lazy = f"trigger[lazy]: TEXT {_string(form.trigger)}"
        return [*rules, lazy, f"opening: {before}trigger"]
    # The text of an answer may begin in any way but this one.
    begun = "".join(c if c.isalnum() else rf"\x{{{ord(c):x}}}" for c in form.trigger)
    return [
        f"text: FIRST {_optional('TEXT', free_tokens, after=True)}",
        rf"FIRST: /(.|\n)*/ & ~/{begun}(.|\n)*/",
        r"TEXT: /(.|\n)*/",
        f"opening: /{begun}/",
    ]


def _literals(text: str, tokens: Mapping[str, int]) -> str:
    """Return a fixed text, in which control tokens are tokens and `ID` is any id."""
    symbols = {name: f"<[{token}]>" for name, token in tokens.items()} | {ID: f"/{ID_PATTERN}/"}
    longest_first = sorted(symbols, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    return " ".join(symbols.get(part) or _string(part) for part in parts if part)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


class Grammar:
    """A grammar compiled for one vocabulary, and how far an answer has come in it.

    Run, it is the engine's `TokenConstraint`; ``start`` may be called from several threads. Some of
    the tokens that end an answer may be beyond the vocabulary.
    """

    def __init__(self, matcher: LLMatcher, ends: tuple[int, ...]) -> None:
        self._matcher = matcher
        self._ends = ends
        self._ended = False

    def start(self) -> Grammar:
        """Return the grammar for one more answer."""
        return Grammar(self._matcher.deep_copy(), self._ends)

    def mask(self, scores: Tensor) -> Tensor:
        """Return scores ``[1, V]`` with ``-inf`` for every token that the grammar rules out.

        Raises:
            ConstraintError: the grammar came to its limits, or leaves no token.
        """
        width = scores.shape[-1]
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise ConstraintError(
                f"the grammar of this answer came to its limits: {self._matcher.get_error()[:300]};"
                " use a simpler schema"
            )
        found = np.unpackbits(bits, bitorder="little")[:width]
        allowed = np.zeros(width, dtype=bool)  # nothing beyond the vocabulary
        allowed[: len(found)] = found
        if self._matcher.is_accepting():
            allowed[[end for end in self._ends if end < width]] = True
        if not allowed.any():
            raise ConstraintError(
                "no token of the vocabulary can follow in the grammar of this answer; the "
                "vocabulary lacks a character that the schema asks for"
            )
        return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), float("-inf"))

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


class Grammars:
    """The grammars of one tokenizer, the latest used kept; safe to use from several threads.

    ``compiled(source, ends)`` returns a `Grammar`, compiled unless it is kept from before, of a
    source as ``json_grammar`` returns it, and of the tokens that end an answer, which are allowed
    where the grammar is satisfied. It raises a SchemaError if the grammar holds what can't be
    enforced, can't be satisfied or is too large, or if the tokenizer, a fast one, can't be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, kept: int = 128) -> None:
        self._tokenizer = tokenizer
        self._of_size = lru_cache(1)(_vocabulary_of)
        self.compiled = lru_cache(kept)(self._compiled)

    def _compiled(self, source: str, ends: tuple[int, ...]) -> Grammar:
        require_grammars()
        matcher = LLMatcher(self._vocabulary(ends), source, log_level=0)
        problem = matcher.get_error() if matcher.is_error() else ""
        if problem := problem or "; ".join(matcher.get_grammar_warnings()):
            lines = [line.strip() for line in problem.splitlines() if line.strip()]
            raise SchemaError(" ".join(lines[:6])[:600])
        return Grammar(matcher, ends)

    def control_tokens(self, ends: tuple[int, ...]) -> dict[str, int]:
        """Return the tokens that are no text to a grammar, with their ids."""
        is_special = self._vocabulary(ends).is_special_token
        added = self._tokenizer.added_tokens_decoder
        return {token.content: index for index, token in added.items() if is_special(index)}

    def _vocabulary(self, ends: tuple[int, ...]) -> LLTokenizer:
        # A changed number of tokens means that some were added.
        return self._of_size(self._tokenizer, len(self._tokenizer), ends)


def _vocabulary_of(
    tokenizer: PreTrainedTokenizerBase, size: int, ends: tuple[int, ...]
) -> LLTokenizer:
    """Return the vocabulary of a tokenizer; takes up to a second for a large one."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise SchemaError(
            "the grammar of an answer needs the bytes of each token, and "
            f"{type(tokenizer).__name__} does not know them; load a fast tokenizer, one "
            "with a tokenizer.json"
        )
    known = 1 + max(size - 1, max(tokenizer.added_tokens_decoder, default=0))
    # An end beyond the tokenizer's own tokens is let in by `Grammar.mask`.
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


@lru_cache(8)
def grammars_of(tokenizer: PreTrainedTokenizerBase) -> Grammars:
    """Return the grammars of this tokenizer, shared by all that use it."""
    return Grammars(tokenizer)
