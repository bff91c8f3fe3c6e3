"""What `support` returns: for each attention layer, what would be done with it, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from selfextend_rag.rope import RotaryLayout

Status = Literal["extended", "left alone", "refused"]


@dataclass(frozen=True)
class LayerReport:
    """One attention layer.

    Args:
        name: its module's name within the model.
        status: ``"extended"``, ``"left alone"`` (it works at any length as it is) or ``"refused"``.
        reason: why, in a few words.
        rotary: the measured rotary layout of a layer that is extended.
    """

    name: str
    status: Status
    reason: str
    rotary: RotaryLayout | None = None

    def describe_rotary(self) -> str:
        """Return the layout in words, such as ``half/first 64``; empty without one."""
        if self.rotary is None:
            return ""
        where = "first" if self.rotary.offset == 0 else "last"
        sign = ", reversed" if self.rotary.sign < 0 else ""
        return f"{self.rotary.pairing}/{where} {self.rotary.rotary_dim}{sign}"


@dataclass(frozen=True)
class SupportReport:
    """Whether a model can be extended, layer by layer.

    Args:
        model: its class.
        layers: the attention layers that were found, in the order in which they run.
        reason: why the whole model is refused; empty when it is supported.
    """

    model: str
    layers: tuple[LayerReport, ...]
    reason: str = ""

    @property
    def supported(self) -> bool:
        """Whether `extend` accepts the model."""
        return not self.reason

    @property
    def extended_layers(self) -> tuple[str, ...]:
        """Module names of the layers that `extend` changes."""
        return tuple(layer.name for layer in self.layers if layer.status == "extended")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data for JSON."""
        rows = [
            {
                "name": x.name,
                "status": x.status,
                "reason": x.reason,
                "rotary": x.describe_rotary(),
            }
            for x in self.layers
        ]
        return {
            "model": self.model,
            "supported": self.supported,
            "reason": self.reason,
            "layers": rows,
        }

    def __str__(self) -> str:
        head = f"{self.model}: {'supported' if self.supported else 'refused: ' + self.reason}"
        rows = [f"  {x.name}: {x.status} ({x.reason}) {x.describe_rotary()}" for x in self.layers]
        return "\n".join([head, *(row.rstrip() for row in rows)])
