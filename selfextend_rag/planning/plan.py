"""The outcome of planning: what runs, with which settings, and how much room is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from selfextend_rag.planning.memory import MemoryEstimate
from selfextend_rag.positions import SelfExtend

Rule = Literal["empirical", "exact"]
"""What bounds an extended length: the authors' rule of the well-trained part, or P itself."""


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """How one prompt and its answer will be run.

    Args:
        prompt_tokens: tokens of the prompt that are known now.
        max_new_tokens: tokens kept free for the answer.
        reserve_tokens: tokens kept free for what is added to the prompt later, such as questions.
        pretraining_window: P, tokens the model was trained to see.
        group_size: G; 1 when attention runs plain.
        neighbor_window: W; None when attention runs plain.
        turns: questions, each with its answer, that there is room for one after another.
        rule: what the group size was chosen by; None when attention runs plain.
        chunk_size: tokens of the prompt to run at once; None if memory was not looked at.
        memory: what is needed at most; None if it was not looked at, or is not known.

    Raises:
        ValueError: a figure is out of range, or plain attention is given a group size.
    """

    prompt_tokens: int
    max_new_tokens: int
    reserve_tokens: int
    pretraining_window: int
    group_size: int = 1
    neighbor_window: int | None = None
    turns: int = 1
    rule: Rule | None = None
    chunk_size: int | None = None
    memory: MemoryEstimate | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "max_new_tokens", "reserve_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("pretraining_window", "turns", "chunk_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value}")
        if self.neighbor_window is None and self.group_size != 1:
            raise ValueError(
                f"group_size {self.group_size} needs a neighbor_window; "
                "plain attention has group_size 1"
            )
        if self.neighbor_window is not None:
            SelfExtend(self.group_size, self.neighbor_window).extended_window(
                self.pretraining_window
            )

    @property
    def total_tokens(self) -> int:
        """Return the tokens asked for: prompt, and reserve and answer of each turn, together."""
        return self.prompt_tokens + self.turns * (self.reserve_tokens + self.max_new_tokens)

    @property
    def extended(self) -> bool:
        """Return whether attention runs by SelfExtend."""
        return self.neighbor_window is not None

    @property
    def settings(self) -> SelfExtend | None:
        """Return the settings to extend the model with, or None for plain attention."""
        if self.neighbor_window is None:
            return None
        return SelfExtend(self.group_size, self.neighbor_window)

    @property
    def extended_window(self) -> int:
        """Return the longest sequence these settings allow, prompt and answer together."""
        settings = self.settings
        if settings is None:
            return self.pretraining_window
        return settings.extended_window(self.pretraining_window)

    @property
    def free_tokens(self) -> int:
        """Return the tokens left over; negative for plain attention forced past its window."""
        return self.extended_window - self.total_tokens

    @property
    def fits_memory(self) -> bool:
        """Return whether memory holds it; True where memory was not looked at."""
        return self.memory is None or self.memory.fits

    def explain(self) -> str:
        """Return the plan in plain words: the figures, what they lead to, and the memory."""
        lines = [f"{added_up(self)} = {self.total_tokens} tokens.", self._verdict()]
        if self.memory is not None:
            lines.append(self.memory.explain())
        if self.chunk_size is not None and self.prompt_tokens > self.chunk_size:
            lines.append(f"The prompt is read {self.chunk_size} tokens at a time.")
        return "\n".join(lines)

    def _verdict(self) -> str:
        window = self.pretraining_window
        if self.extended:
            why = {
                None: "",
                "exact": " No position goes beyond that window.",
                "empirical": " No position goes beyond the part of it that is well trained.",
            }[self.rule]
            return (
                f"The model was trained on {window}: SelfExtend with group_size {self.group_size} "
                f"and neighbor_window {self.neighbor_window} lets it see {self.extended_window}."
                f"{why}"
            )
        if self.free_tokens < 0:
            return (
                f"That is {-self.free_tokens} more than the {window} the model was trained on, and "
                "attention runs plain: do not expect sense beyond the window."
            )
        return f"They fit the {window} the model was trained on: attention runs plain."

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values, with the figures that follow from its fields."""
        derived = ("total_tokens", "extended", "extended_window")
        memory = None if self.memory is None else self.memory.to_dict()
        return {
            **asdict(replace(self, memory=None)),
            **{name: getattr(self, name) for name in derived},
            "memory": memory,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ContextPlan:
        """Return the plan that ``to_dict`` wrote; derived figures are worked out anew."""
        fields = {name: values[name] for name in cls.__dataclass_fields__}
        memory = fields.pop("memory")
        return cls(**fields, memory=None if memory is None else MemoryEstimate.from_dict(memory))


def added_up(plan: ContextPlan) -> str:
    """Return what the tokens of a plan are for, as a sum in words."""
    parts = [f"{plan.prompt_tokens} tokens of prompt"]
    times = f"{plan.turns} times " if plan.turns > 1 else ""
    if plan.reserve_tokens:
        parts.append(f"{times}{plan.reserve_tokens} kept for questions")
    parts.append(f"{times}{plan.max_new_tokens} for the answer")
    return " + ".join(parts)
