"""What was measured of one model: how much of its pretraining window is well trained.

``selfextend-rag calibrate`` measures and stores it; planners of the same model find it by the
model's configuration and name. Without one, the empirical rule holds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from selfextend_rag.errors import SelfExtendError

FORMAT = 1
HOME_VARIABLE = "SELFEXTEND_RAG_HOME"
_VOLATILE = frozenset(
    ("_name_or_path", "attn_implementation", "dtype", "transformers_version", "use_cache")
)


class CalibrationError(SelfExtendError):
    """A stored calibration that can't be read, or one that measured no usable settings."""


@dataclass(frozen=True, slots=True)
class CalibrationCell:
    """One group size and neighbor window, measured.

    Args:
        group_size: G.
        neighbor_window: W.
        fraction: the farthest relative position in use, as a share of P.
        right: pass keys that were found.
        asked: pass keys that were asked for.
        perplexity: of the last tokens of long texts.
        good: whether both are as good as inside the window.
    """

    group_size: int
    neighbor_window: int
    fraction: float
    right: int
    asked: int
    perplexity: float
    good: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """Which part of a model's window is well trained, and the map it was read from.

    Args:
        model: name of the model.
        pretraining_window: P, in tokens.
        length: tokens of each measured prompt.
        trained_fraction: share of P that positions may use; the one of the best good cell.
        neighbor_share: its neighbor window as a share of P.
        window_right: pass keys found inside the window, by plain attention.
        window_perplexity: of the same last tokens, from the window's worth of text before them.
        cells: the map.
    """

    model: str
    pretraining_window: int
    length: int
    trained_fraction: float
    neighbor_share: float
    window_right: int
    window_perplexity: float
    cells: tuple[CalibrationCell, ...]

    def explain(self) -> str:
        """Return in plain words what was found."""
        good = sum(cell.good for cell in self.cells)
        return (
            f"{good} of {len(self.cells)} settings were good at {self.length} tokens. Plans for "
            f"{self.model} will use {self.trained_fraction:.0%} of its window of "
            f"{self.pretraining_window} tokens, {self.neighbor_share:.0%} of it for the neighbor "
            "window."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as JSON values."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Return the calibration that ``to_dict`` wrote.

        Raises:
            CalibrationError: something is missing, of another format or out of range.
        """
        try:
            if values["format"] != FORMAT:
                raise CalibrationError(
                    f"a calibration of format {values['format']}, expected {FORMAT}; "
                    "run selfextend-rag calibrate again"
                )
            fields = {name: values[name] for name in cls.__dataclass_fields__}
            cells = tuple(CalibrationCell(**cell) for cell in fields.pop("cells"))
        except (KeyError, TypeError) as error:
            raise CalibrationError(f"not a calibration: {error}") from error
        found = cls(**fields, cells=cells)
        if not 0 < found.neighbor_share < found.trained_fraction <= 1:
            raise CalibrationError(
                f"neighbor_share {found.neighbor_share} and trained_fraction "
                f"{found.trained_fraction} must be in order within (0, 1]"
            )
        return found


def calibration_path(config: Any) -> Path:
    """Return where the calibration of a model is kept, whether or not there is one.

    ``$SELFEXTEND_RAG_HOME/calibration``, by default in ``~/.cache/selfextend-rag``.

    Args:
        config: the model's configuration: its values and the name it was loaded by are the key, so
            that a fine-tuned model has a calibration of its own.
    """
    home = os.environ.get(HOME_VARIABLE) or "~/.cache/selfextend-rag"
    name = str(getattr(config, "_name_or_path", ""))
    values = {key: value for key, value in config.to_dict().items() if key not in _VOLATILE}
    text = json.dumps([name, values], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Path(home).expanduser() / "calibration" / f"{digest}.json"


def load_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Return a stored calibration.

    Raises:
        CalibrationError: there is none, or it can't be read.
    """
    try:
        return Calibration.from_dict(json.loads(Path(path).read_text("utf-8")))
    except (OSError, ValueError, CalibrationError) as error:
        raise CalibrationError(f"can't use the calibration {os.fspath(path)}: {error}") from error


def find_calibration(config: Any, pretraining_window: int) -> Calibration | None:
    """Return the calibration of a model if one is stored for this pretraining window.

    Raises:
        CalibrationError: it is there and can't be read; delete it, or calibrate again.
    """
    path = calibration_path(config)
    if not path.exists():
        return None
    found = load_calibration(path)
    return found if found.pretraining_window == pretraining_window else None


def planner_defaults(
    config: Any, pretraining_window: int, trained_fraction: Fraction | float | None = None
) -> dict[str, Any]:
    """Return the share options of a planner: as given, else as calibrated, else none.

    Args:
        config: the model's configuration.
        pretraining_window: P, in tokens.
        trained_fraction: what the user asked for; it goes before any calibration.

    Raises:
        CalibrationError: there is a calibration that can't be read.
    """
    if trained_fraction is not None:
        return {"trained_fraction": trained_fraction}
    found = find_calibration(config, pretraining_window)
    if found is None:
        return {}
    return {
        "trained_fraction": found.trained_fraction,
        "neighbor_share": found.neighbor_share,
    }
