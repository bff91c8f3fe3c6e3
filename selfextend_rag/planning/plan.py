"""The outcome of planning: what runs, with which settings, in which memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from selfextend_rag import display
from selfextend_rag.maps import map_from_dict, map_to_dict
from selfextend_rag.planning.memory import (
    DeviceMemory,
    MemoryEstimate,
    ModelMemory,
    format_bytes,
)
from selfextend_rag.planning.workspace import Forward, workspace_bytes
from selfextend_rag.positions import PositionMap, SelfExtend

Rule = Literal["empirical", "exact"]
"""What bounds an extended length: the authors' rule of the well-trained part, or P itself."""

CHUNK_SIZES = (2048, 1024, 512, 256, 128, 64)
"""Tokens of a prompt to run at once, as far as memory allows; below 64, only time is lost."""

_FIGURES = (
    "prompt_tokens", "max_new_tokens", "reserve_tokens", "pretraining_window", "group_size",
    "neighbor_window", "turns", "rule", "chunk_size",
)  # fmt: skip
_LOGITS = 2 * 4  # bytes for each word of the vocabulary: this step's logits and the last one's


@dataclass(frozen=True, slots=True)
class PlanRemark:
    """What the text of one of a prompt's documents lacks, or may have wrong.

    Args:
        document: its source, or its title where there was no file.
        severity: as the document's remark has it, such as ``loss``.
        message: the remark, a sentence.
    """

    document: str
    severity: str
    message: str


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """How one prompt and its answer will be run.

    Args:
        prompt_tokens: tokens of the prompt that are known now.
        max_new_tokens: tokens kept free for the answer.
        reserve_tokens: tokens kept free for what is added to the prompt later, such as questions.
        pretraining_window: P, tokens the model was trained to see.
        settings: to extend the model with; None when attention runs plain.
        turns: questions, each with its answer, that fit one after another.
        rule: what the group size was chosen by; None when attention runs plain.
        chunk_size: tokens of the prompt to run at once; None if memory was not looked at.
        memory: what is needed at most; None if it was not looked at, or is not known.
        remarks: what is not read of the documents, though they are planned whole: the remarks on
            their files above a note.
        served_window: the longest sequence that a server takes, which runs the model and chooses
            settings of its own; None where it runs here.
        picture_bytes: what encoding one picture of the prompt takes at most.

    Raises:
        ValueError: a figure is out of range.
    """

    prompt_tokens: int
    max_new_tokens: int
    reserve_tokens: int
    pretraining_window: int
    settings: PositionMap | None = None
    turns: int = 1
    rule: Rule | None = None
    chunk_size: int | None = None
    memory: MemoryEstimate | None = None
    remarks: tuple[PlanRemark, ...] = ()
    served_window: int | None = None
    picture_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "max_new_tokens", "reserve_tokens", "picture_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("pretraining_window", "turns", "chunk_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value}")
        if self.settings is not None:
            self.settings.extended_window(self.pretraining_window)

    @property
    def group_size(self) -> int:
        """Return G; 1 when attention runs plain, or by another map than SelfExtend."""
        return self.settings.group_size if isinstance(self.settings, SelfExtend) else 1

    @property
    def neighbor_window(self) -> int | None:
        """Return W; None when attention runs plain, or by another map than SelfExtend."""
        return self.settings.neighbor_window if isinstance(self.settings, SelfExtend) else None

    @property
    def total_tokens(self) -> int:
        """Return the tokens asked for: prompt, and reserve and answer of each turn, together."""
        return self.prompt_tokens + self.turns * (self.reserve_tokens + self.max_new_tokens)

    @property
    def later_tokens(self) -> int:
        """Return the tokens to come after the prompt: questions and answers."""
        return self.total_tokens - self.prompt_tokens

    @property
    def extended(self) -> bool:
        """Return whether attention runs by SelfExtend, or by another map."""
        return self.settings is not None

    @property
    def extended_window(self) -> int:
        """Return the longest sequence these settings allow, prompt and answer together."""
        window = self.served_window or self.pretraining_window
        return window if self.settings is None else self.settings.extended_window(window)

    @property
    def free_tokens(self) -> int:
        """Return the tokens left over; negative for plain attention forced past its window."""
        return self.extended_window - self.total_tokens

    @property
    def fits_memory(self) -> bool:
        """Return whether memory holds it; True where memory was not looked at."""
        return self.memory is None or self.memory.fits

    def _repr_html_(self) -> str:
        """Return the plan for a notebook: its words, and its settings."""
        settings = {
            "group_size": self.group_size,
            "neighbor_window": self.neighbor_window,
            "pretraining_window": self.pretraining_window,
            "extended_window": self.extended_window,
            "total_tokens": self.total_tokens,
            "chunk_size": self.chunk_size,
        }
        rows = [item for item in settings.items() if item[1] is not None]
        return display.page(
            display.paragraph(self.explain()), display.table(("setting", "tokens"), rows)
        )

    def _repr_markdown_(self) -> str:
        return self._repr_html_()

    def explain(self) -> str:
        """Return the plan in plain words: figures, what they lead to, memory, what is not read."""
        lines = [f"{added_up(self)} = {self.total_tokens} tokens.", self._verdict()]
        if self.memory is not None:
            lines.append(self.memory.explain())
        if self.memory is not None and self.picture_bytes:
            size = format_bytes(self.picture_bytes)
            lines.append(f"Of that, {size} are for looking at a picture, one at a time.")
        if self.chunk_size is not None and self.prompt_tokens > self.chunk_size:
            lines.append(f"The prompt is read {self.chunk_size} tokens at a time.")
        lines += [f"{x.document}: {x.message} ({x.severity})" for x in self.remarks]
        return "\n".join(lines)

    def _verdict(self) -> str:
        window = self.pretraining_window
        if self.served_window is not None:
            return (
                f"They fit the {self.served_window} that the server takes, which chooses the "
                "settings."
            )
        if self.settings is not None and not isinstance(self.settings, SelfExtend):
            return (
                f"The model was trained on {window}: {self.settings} lets it see "
                f"{self.extended_window}. No position goes beyond that window."
            )
        if self.settings is not None:
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

    def to_dict(self) -> dict[str, object]:
        """Return the plan as JSON values, with the figures that follow from its fields."""
        figures = (*_FIGURES, "total_tokens", "extended", "extended_window")
        memory = None if self.memory is None else self.memory.to_dict()
        remarks = [asdict(remark) for remark in self.remarks]
        named = {name: getattr(self, name) for name in figures}
        if self.settings is not None and not isinstance(self.settings, SelfExtend):
            named["map"] = map_to_dict(self.settings)
        if self.served_window is not None:
            named["served_window"] = self.served_window
        if self.picture_bytes:
            named["picture_bytes"] = self.picture_bytes
        return {**named, "memory": memory, "remarks": remarks}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ContextPlan:
        """Return the plan that ``to_dict`` wrote; derived figures are computed again."""
        fields = {name: values[name] for name in _FIGURES}
        group, window = fields.pop("group_size"), fields.pop("neighbor_window")
        settings: PositionMap | None = None if window is None else SelfExtend(group, window)
        if "map" in values:
            settings = map_from_dict(values["map"])
        memory = values["memory"] and MemoryEstimate.from_dict(values["memory"])
        remarks = tuple(PlanRemark(**remark) for remark in values.get("remarks", ()))
        served = values.get("served_window")
        return cls(
            **fields, settings=settings, memory=memory, remarks=remarks, served_window=served,
            picture_bytes=values.get("picture_bytes", 0),
        )  # fmt: skip


def added_up(plan: ContextPlan) -> str:
    """Return what the tokens of a plan are for, as a sum that can be read."""
    parts = [f"{plan.prompt_tokens} tokens of prompt"]
    times = f"{plan.turns} times " if plan.turns > 1 else ""
    if plan.reserve_tokens:
        parts.append(f"{times}{plan.reserve_tokens} kept for questions")
    parts.append(f"{times}{plan.max_new_tokens} for the answer")
    return " + ".join(parts)


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """A model and the memory there is for it.

    Args:
        model: what its memory follows from.
        devices: what there is; a device that is not named is not looked at.
        chunk_size: tokens of a prompt to run at once; by default the most of `CHUNK_SIZES` that
            memory allows.
    """

    model: ModelMemory
    devices: tuple[DeviceMemory, ...] = ()
    chunk_size: int | None = None

    def chunk_sizes(self, prompt_tokens: int) -> tuple[int, ...]:
        """Return the chunk sizes that may be chosen, largest first."""
        if self.chunk_size is not None:
            return (self.chunk_size,)
        needed = [size for size in CHUNK_SIZES if size // 2 < prompt_tokens]
        return tuple(needed) or CHUNK_SIZES[-1:]

    def estimate(self, plan: ContextPlan, chunk_size: int) -> MemoryEstimate:
        """Return what a plan needs at most, read in chunks of this size."""
        return self.model.estimate(
            plan.prompt_tokens, plan.later_tokens, plan.settings, chunk_size, self.devices,
            plan.picture_bytes,
        )  # fmt: skip

    def fitted(self, plan: ContextPlan) -> ContextPlan:
        """Return the plan with its chunk size and memory: the largest chunk that memory holds.

        Where memory holds none, the smallest is named; ``plan.memory.fits`` says so.
        """
        for chunk_size in self.chunk_sizes(plan.prompt_tokens):
            memory = self.estimate(plan, chunk_size)
            if memory.fits:
                break
        return replace(plan, chunk_size=chunk_size, memory=memory)

    def most_rows(
        self,
        plan: ContextPlan,
        own_tokens: int,
        most: int,
        held: Mapping[str, int] = MappingProxyType({}),
    ) -> int:
        """Return how many questions can be answered at a time, from 1 to ``most``.

        One question is what the plan of the documents has memory for, so 1 needs nothing more.

        Args:
            plan: of the documents that the questions share.
            own_tokens: of the longest question and its answer.
            most: questions at a time.
            held: bytes by device that the documents' keys and values take already, and that are
                taken off what the budget says there is.
        """
        devices = self.estimate(plan, plan.chunk_size or 1).devices
        for rows in range(most, 1, -1):
            more = self.rows_bytes(plan, own_tokens, rows)
            if all(
                device.available_bytes is None
                # a reading that was never asked may not have made its grouped keys yet
                or device.needed_bytes - min(held.get(device.name, 0), device.cache_bytes)
                <= device.available_bytes - more[device.name]
                for device in devices
            ):
                return rows
        return 1

    def rows_bytes(self, plan: ContextPlan, own_tokens: int, rows: int) -> dict[str, int]:
        """Return what so many questions at a time need at most beyond the plan, by device."""
        model, total = self.model, plan.total_tokens
        chunk = max(1, min(plan.chunk_size or 1, total))
        found = {}
        for share in model.shares:
            layers = [model.layers[index] for index in share.layers]
            # a row's own keys and values, with the window of a sliding layer: as they are kept, and
            # in full, as they come and as those of a row are restored
            kept, full = (
                [
                    (own_tokens + (x.window or 0)) * x.token_bytes(model.itemsize, bits)
                    for x in layers
                ]
                for bits in (model.kv_bits, None)
            )
            appended = max(full, default=0) * (1 if model.kv_bits is None else 2)
            alone, together = (
                workspace_bytes(
                    layers, model.work, Forward(tokens, total, plan.settings, model.itemsize)
                )
                for tokens in (chunk, max(chunk, rows))
            )
            # one more: the space behind the shared keys, where each row's are put while it attends
            held = (rows + 1) * sum(kept) + appended
            logits = rows * model.work.vocabulary * _LOGITS if layers else 0
            found[share.name] = held + logits + together - alone
        return found
