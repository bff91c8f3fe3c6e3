"""What the model said, and the options of asking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from selfextend_rag import display
from selfextend_rag.engine import Cancelled, FinishReason, Progress, Usage
from selfextend_rag.evidence import Evidence
from selfextend_rag.planning import ContextPlan
from selfextend_rag.text.messages import ToolCall

AnswerReason = FinishReason | Literal["tool_calls"]


class AnswerOptions(TypedDict, total=False):
    """What every way of asking takes: three options, and the fields of `GenerationSettings`."""

    json_schema: Mapping[str, object] | None
    progress: Progress | None
    cancelled: Cancelled
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    also_stop: str | Sequence[str]
    stop_token_ids: Sequence[int] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said, and what it took.

    Args:
        text: the answer; the parts of its stream, joined.
        finish_reason: ``"stop"`` at its own end or a stop text, ``"length"`` when
            ``max_new_tokens`` were not enough, ``"cancelled"``, or ``"tool_calls"`` when it ends
            in calls. JSON and calls are whole after ``"stop"`` and ``"tool_calls"`` alone.
        usage: tokens and seconds.
        plan: the settings it ran under.
        tool_calls: the calls it asks for, each one whole and valid for its tool's schema.
        unfinished_call: the text of a call that was cut off, which is none of ``tool_calls``.
        evidence: passages of the documents that the model looked at while it answered, those it
            looked at most first; empty without documents, or if it was not asked for.
        attention: for each document that was read, in their order, the share of all attention that
            the answer paid to the documents in each of 200 equal slices of its text; empty where
            the evidence is. It is for pictures, and ``to_dict`` leaves it out.
    """

    text: str
    finish_reason: AnswerReason
    usage: Usage
    plan: ContextPlan
    tool_calls: tuple[ToolCall, ...] = ()
    unfinished_call: str = ""
    evidence: tuple[Evidence, ...] = ()
    attention: tuple[tuple[float, ...], ...] = field(default=(), repr=False)

    @property
    def complete(self) -> bool:
        """Return whether the answer came to its own end, and was not cut off."""
        return self.finish_reason in ("stop", "tool_calls")

    def _repr_html_(self) -> str:
        """Return the answer for a notebook, its evidence marked in what is around it."""
        used, ended = self.usage, "" if self.complete else f", ended by {self.finish_reason}"
        parts = [display.paragraph(self.text or self.unfinished_call)]
        if self.tool_calls:
            rows = [(call.name, call.arguments) for call in self.tool_calls]
            parts.append(display.table(("calls", "arguments"), rows))
        for found in self.evidence:
            where = found.location or f"characters {found.start} to {found.end}"
            source = f"{found.title or found.document_id}, {where} ({found.score:.0%})"
            parts.append(display.quotation(found.before, found.text, found.after, source))
        figures = f"{used.prompt_tokens} tokens read, {used.completion_tokens} answered{ended}"
        return display.page(*parts, display.paragraph(figures))

    def _repr_markdown_(self) -> str:
        return self._repr_html_()

    def to_dict(self) -> dict[str, object]:
        """Return the answer as JSON values."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": self.usage.to_dict(),
            "plan": self.plan.to_dict(),
            "tool_calls": [call.to_dict() for call in self.tool_calls],
            "unfinished_call": self.unfinished_call,
            "evidence": [passage.to_dict() for passage in self.evidence],
        }
