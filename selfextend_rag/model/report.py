"""What `support` returns: for each attention layer, what would be done with it, and why.

Reports are kept from run to run in the user's cache folder. An entry belongs to a configuration, a
precision, the classes of all modules, and the versions of the libraries whose code they are. The
weights are not part of it: what depends on them, or on the state of one instance, is measured again
by `selfextend_rag.model.verify.recalled`.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedModel

from selfextend_rag import display
from selfextend_rag.cache.files import make_folder, replacing
from selfextend_rag.cache.identity import digest
from selfextend_rag.errors import ReadingFileError
from selfextend_rag.planning.pretraining import user_folder
from selfextend_rag.rope import RotaryLayout

_FORMAT = 1
_TRUSTED = ("torch", "transformers")  # whose versions say what their code is
log = logging.getLogger(__name__)

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
        """Return a name of the layout, such as ``half/first 64``; empty without one."""
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

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain data for JSON."""
        rows = [{**vars(x), "rotary": x.describe_rotary()} for x in self.layers]
        head = {"model": self.model, "supported": self.supported, "reason": self.reason}
        return {**head, "layers": rows}

    def _repr_html_(self) -> str:
        """Return the report for a notebook: the verdict, and a row for each layer."""
        rows = [(x.name, x.status, x.reason, x.describe_rotary()) for x in self.layers]
        verdict = "supported" if self.supported else f"refused: {self.reason}"
        head = ("layer", "status", "reason", "rotary layout")
        return display.page(
            display.paragraph(f"{self.model}: {verdict}"), display.table(head, rows)
        )

    def _repr_markdown_(self) -> str:
        return self._repr_html_()

    def __str__(self) -> str:
        head = f"{self.model}: {'supported' if self.supported else 'refused: ' + self.reason}"
        rows = [f"  {x.name}: {x.status} ({x.reason}) {x.describe_rotary()}" for x in self.layers]
        return "\n".join([head, *(row.rstrip() for row in rows)])


def recall(model: PreTrainedModel) -> tuple[SupportReport, str] | None:
    """Return what `remember` was given for a model like this one; None if nothing is known."""
    path = _path(model)
    if path is None:
        return None
    try:
        entry = json.loads(path.read_text("utf-8"))
        layers = [
            LayerReport(**{**row, "rotary": _layout(row["rotary"])}) for row in entry["layers"]
        ]
        return SupportReport(type(model).__name__, tuple(layers)), str(entry["continuation"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def remember(model: PreTrainedModel, report: SupportReport, continuation: str) -> None:
    """Keep what was measured on a supported model, where it can be kept."""
    path = _path(model)
    if path is None:
        return
    entry = {"layers": [asdict(layer) for layer in report.layers], "continuation": continuation}
    try:
        make_folder(path.parent)
        with replacing(path) as file:
            file.write(json.dumps(entry).encode())
    except (OSError, ReadingFileError) as error:
        log.debug("what was measured on %s is not kept: %s", report.model, error)


def _layout(row: dict[str, Any] | None) -> RotaryLayout | None:
    return None if row is None else RotaryLayout(**{**row, "inv_freq": tuple(row["inv_freq"])})


def _path(model: PreTrainedModel) -> Path | None:
    """Return where a model's entry is; None where its code is not that of the libraries."""
    kinds = {type(module) for module in model.modules()}
    patched = any(
        "forward" in vars(module) and "_hf_hook" not in vars(module) for module in model.modules()
    )
    if patched or any(kind.__module__.split(".")[0] not in _TRUSTED for kind in kinds):
        return None
    try:
        ours = version("selfextend-rag")
    except PackageNotFoundError:
        return None
    versions = [_FORMAT, ours, torch.__version__, transformers.__version__]
    config = [model.config.to_dict(), str(model.config._attn_implementation), str(model.dtype)]
    devices = sorted({p.device.type for p in model.parameters()})
    classes = sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
    key = [*versions, *config, devices, classes]
    name = digest(json.dumps(key, sort_keys=True, default=str))
    return user_folder("models") / f"{name}.json"
