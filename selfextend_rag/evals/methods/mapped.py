"""Other ways to read a document whole: maps of positions, static NTK, YaRN, published settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from selfextend_rag.evals.benchmarks.items import Item
from selfextend_rag.evals.methods.base import (
    Answered,
    LoadedModel,
    MethodError,
    MethodOptions,
    Predicted,
)
from selfextend_rag.evals.methods.windowed import FramedLLM, Windowed
from selfextend_rag.model.rescaled import RopeScaling, rescaled
from selfextend_rag.planning import ContextPlan
from selfextend_rag.planning.planner import ContextBudgetPlanner
from selfextend_rag.positions import SelfExtend

# Up to so many times P: G, and the share of P that is W. Llama-2 4k to 16k: 5, 1024; to 32k: 15,
# 2048. Llama-3 8k to 16k: 3, 4096; to 32k: 5, 2048 (arXiv 2401.01325 and its repository).
PUBLISHED = ((2, 3, 2), (4, 5, 4), (8, 15, 2))


class Mapped(Windowed):
    """Reads by another map of positions, with the settings that its authors published.

    Args:
        name: of the map.
        loaded: the model.
        options: of methods.
    """

    def __init__(self, name: str, loaded: LoadedModel, options: MethodOptions) -> None:
        super().__init__(name, loaded, options, "auto", ("whole",))

    def _llm(self, form: str) -> FramedLLM:
        return FramedLLM(
            self._loaded.model,
            self._loaded.tokenizer,
            pretraining_window=self._loaded.window,
            prompt_form="chat" if form == "chat" else "plain",
            kv_bits=self._options.kv_bits,
            prefix_cache_bytes=0,
            processor=self._loaded.processor,
            method=self.name,
        )


class Published(Windowed):
    """SelfExtend with the settings of its paper: G and W by how many windows a document takes."""

    def __init__(self, loaded: LoadedModel, options: MethodOptions) -> None:
        super().__init__("selfextend-published", loaded, options, "auto", ("whole",))

    def _llm(self, form: str) -> FramedLLM:
        options = replace(self._options, group_size=None, neighbor_window=None)
        llm = Windowed(self.name, self._loaded, options, "auto", self.inputs)._llm(form)
        llm.planner = llm.budget.planner = PublishedPlanner(self._loaded.window)
        return llm


@dataclass(frozen=True)
class PublishedPlanner(ContextBudgetPlanner):
    """Takes G and W from `PUBLISHED`; the exact window alone bounds the length."""

    @property
    def _pairs(self) -> list[SelfExtend]:
        window = self.pretraining_window
        return [SelfExtend(group, window // share) for _, group, share in PUBLISHED]

    @property
    def extended_window(self) -> int:
        """Return what the widest of the settings reach."""
        return self._best()[1]

    def _settled(self, plain: ContextPlan) -> ContextPlan | None:
        window = self.pretraining_window
        if plain.total_tokens <= window:
            return replace(plain, settings=None, rule=None)
        for (times, *_), found in zip(PUBLISHED, self._pairs, strict=True):
            reached = min(times * window, found.extended_window(window))
            if plain.total_tokens <= reached:
                return replace(plain, settings=found, rule="exact")
        return None

    def _best(self) -> tuple[SelfExtend | None, int]:
        widest, window = self._pairs[-1], self.pretraining_window
        return widest, min(PUBLISHED[-1][0] * window, widest.extended_window(window))


class Rescaled:
    """Plain attention with other rotary frequencies, for the length that a document needs.

    Args:
        name: ``"ntk"`` or ``"yarn"``.
        loaded: the model.
        options: of methods.
    """

    def __init__(
        self, name: Literal["ntk", "yarn"], loaded: LoadedModel, options: MethodOptions
    ) -> None:
        self.name, self.inputs = name, ("whole",)
        self._kind = name
        self._loaded, self._options = loaded, options
        self._windowed = Windowed(name, loaded, options, "never", ("whole",))

    name: str
    inputs: tuple[Literal["whole", "cut"], ...]

    def identity(self) -> Mapping[str, object]:
        """Return what decides the answers: the factor is a document's length over the window."""
        return {**self._windowed.identity(), "method": self.name, "factor": "length / window"}

    def answers(self, item: Item) -> list[Answered]:
        """Return the answers to all questions on an item, the document read once."""
        scaling = self._scaling(self._windowed.plan(item).total_tokens)
        if scaling is None:
            return self._windowed.answers(item)
        with rescaled(self._loaded.model, scaling):
            found = self._windowed.answers(item)
        return [replace(answer, settings=_as_values(scaling)) for answer in found]

    def predicted(self, item: Item) -> Predicted:
        """Return the likelihoods of the first tokens of an item's text."""
        scaling = self._scaling(item.predict_tokens)
        if scaling is None:
            return self._windowed.predicted(item)
        with rescaled(self._loaded.model, scaling):
            found = self._windowed.predicted(item)
        return replace(found, settings=_as_values(scaling))

    def _scaling(self, tokens: int) -> RopeScaling | None:
        window = self._loaded.window
        if tokens <= window:
            return None
        return RopeScaling(self._kind, tokens / window, window)


def _as_values(scaling: RopeScaling) -> dict[str, object]:
    values: dict[str, Any] = {"rope": scaling.kind, "factor": scaling.factor}
    return values


def ntk(loaded: LoadedModel, options: MethodOptions) -> Rescaled:
    """Return static NTK; see `RopeScaling`."""
    return Rescaled("ntk", loaded, options)


def yarn(loaded: LoadedModel, options: MethodOptions) -> Rescaled:
    """Return YaRN; see `RopeScaling`."""
    return Rescaled("yarn", loaded, options)


def published(loaded: LoadedModel, options: MethodOptions) -> Published:
    """Return SelfExtend with published settings.

    Raises:
        MethodError: settings are given, which would not be those.
    """
    if options.group_size is not None or options.neighbor_window is not None:
        raise MethodError("selfextend-published has settings of its own; give them to selfextend")
    return Published(loaded, options)
