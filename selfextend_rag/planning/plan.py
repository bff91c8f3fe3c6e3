"""The outcome of planning: what runs, with which settings, and how much room is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from selfextend_rag.positions import SelfExtend


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

    Raises:
        ValueError: a figure is negative, or plain attention is given a group size.
    """

    prompt_tokens: int
    max_new_tokens: int
    reserve_tokens: int
    pretraining_window: int
    group_size: int = 1
    neighbor_window: int | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "max_new_tokens", "reserve_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.pretraining_window < 1:
            raise ValueError(
                f"pretraining_window must be a positive integer, got {self.pretraining_window}"
            )
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
        """Return the tokens asked for: prompt, reserve and answer together."""
        return self.prompt_tokens + self.reserve_tokens + self.max_new_tokens

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

    def explain(self) -> str:
        """Return the plan in plain words: one line of figures, one of what they lead to."""
        parts = [f"{self.prompt_tokens} tokens of prompt"]
        if self.reserve_tokens:
            parts.append(f"{self.reserve_tokens} kept for questions")
        parts.append(f"{self.max_new_tokens} for the answer")
        head = f"{' + '.join(parts)} = {self.total_tokens} tokens."
        return f"{head}\n{self._verdict()}"

    def _verdict(self) -> str:
        window = self.pretraining_window
        if self.extended:
            return (
                f"The model was trained on {window}: SelfExtend with group_size {self.group_size} "
                f"and neighbor_window {self.neighbor_window} lets it see {self.extended_window}."
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
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ContextPlan:
        """Return the plan that ``to_dict`` wrote; derived figures are worked out anew."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})
