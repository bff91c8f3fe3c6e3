"""What a method of reading long texts is to an evaluation, and the model that all of them share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from selfextend_rag.cache.identity import token_fingerprint
from selfextend_rag.errors import SelfExtendError, UnsupportedModelError
from selfextend_rag.evals.benchmarks.items import Item
from selfextend_rag.planning import pretraining_window_of
from selfextend_rag.text.codec import TextCodec
from selfextend_rag.text.pictures import processor_identity, tokenizer_of

PASSAGE_WORDS = 200
"""Words of a passage, as LongBench's own retrieval has them."""

Input = Literal["whole", "cut"]
"""Whether prompts are given as they are, or cut by the benchmark's own rule."""


class MethodError(SelfExtendError, ValueError):
    """A method that there is not, or that can't do what a task needs."""


@dataclass(frozen=True)
class LoadedModel:
    """A model that was loaded once, for all methods.

    Args:
        name: as it was asked for.
        model: of transformers.
        tokenizer: its tokenizer; with the processor's chat template, where that has one.
        window: P; what the configuration says by default.
        processor: of a model that looks at pictures, where it can be used.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    window: int = 0
    processor: ProcessorMixin | None = None

    def __post_init__(self) -> None:
        if not self.window:
            object.__setattr__(self, "window", pretraining_window_of(self.model.config))
        if self.processor is not None:
            object.__setattr__(self, "tokenizer", tokenizer_of(self.processor, self.tokenizer))

    @cached_property
    def codec(self) -> TextCodec:
        """Return what tokenizes its texts."""
        return TextCodec(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, with the start token that prompts have."""
        return [*self.codec.start(), *self.codec.text(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        return self.codec.decode(tokens)

    @cached_property
    def fingerprint(self) -> str:
        """Return what tells the model and its tokenizer from others, weights included.

        Offloaded weights can't be looked at: of them it is the name, the configuration, and sizes
        and times of the files of a folder.
        """
        try:
            parts: dict[str, object] = {**token_fingerprint(self.model, self.tokenizer, None)}
        except UnsupportedModelError:
            parts = {"name": self.name, "configuration": self.model.config.to_dict()}
            found = sorted(Path(self.name).glob("*")) if Path(self.name).is_dir() else []
            parts["files"] = [(x.name, x.stat().st_size, x.stat().st_mtime_ns) for x in found]
        if self.processor is not None:
            parts["processor"] = processor_identity(self.processor)
        template = repr(self.tokenizer.chat_template)
        return digest({**parts, "template": template, "window": self.window})


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """What a user may choose about methods; each takes what concerns it.

    Args:
        group_size: G of SelfExtend; found if not given.
        neighbor_window: W of SelfExtend; a quarter of P by default.
        trained_fraction: share of the window that counts as well trained; measured or two thirds.
        kv_bits: keep keys and values in 8 or 4 bits.
        at_once: the most questions on one document that are answered at a time.
        embeddings: of method ``embeddings``: an object of LangChain or LlamaIndex, or the folder or
            hub id of an encoder.
        most_passages: the most that retrieval brings of a document; as many as fit by default.
        likelihood: measure how likely the right answers are, too, and wrong ones that questions
            name.
        passage_words: words of a passage.
    """

    group_size: int | None = None
    neighbor_window: int | None = None
    trained_fraction: float | None = None
    kv_bits: int | None = None
    at_once: int = 16
    embeddings: object = None
    most_passages: int | None = None
    likelihood: bool = False
    passage_words: int = PASSAGE_WORDS


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer, and what it took.

    Args:
        text: as it was generated.
        finish_reason: why it ended.
        prompt_tokens: of the whole prompt.
        new_tokens: generated.
        seconds: of the question and its answer, the reading of the document left out.
        read_seconds: of the document, which all questions on it share.
        settings: what the method chose for this document, as JSON values.
        gold_nlls: negative log-likelihood of each token of the right answer, in nats, if that was
            asked for and the question names one.
        other_nlls: the same of each wrong answer that the question names.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    new_tokens: int
    seconds: float
    read_seconds: float
    settings: Mapping[str, object] = field(default_factory=dict)
    gold_nlls: tuple[float, ...] = ()
    other_nlls: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Predicted:
    """Negative log-likelihoods of a text's tokens, in nats, and the words that they cover."""

    nlls: tuple[float, ...]
    words: int
    seconds: float
    settings: Mapping[str, object] = field(default_factory=dict)


class Method(Protocol):
    """A way to have a model answer questions on a document that may be longer than its window.

    Attributes:
        name: what users call it.
        inputs: in which form prompts are given to it, unless a user says otherwise.
    """

    name: str
    inputs: tuple[Input, ...]

    def identity(self) -> Mapping[str, object]:
        """Return all that decides its answers besides model and prompt, as JSON values."""

    def answers(self, item: Item) -> list[Answered]:
        """Return the answers to all questions on an item, the document read once.

        Raises:
            ContextBudgetExceeded: it does not fit the method; nothing has run.
            MemoryBudgetExceeded: it does not fit in memory; nothing has run.
        """

    def predicted(self, item: Item) -> Predicted:
        """Return the likelihoods of the first ``predict_tokens`` of an item's text.

        Raises:
            MethodError: the method does not read texts from their start.
        """


def digest(values: object) -> str:
    """Return 16 hexadecimal digits of JSON values' SHA-256."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
