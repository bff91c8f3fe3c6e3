"""How long a sequence a model's weights were trained for, and which part of it trained well.

The configuration is read by attribute names alone, so this needs no model library. The traps:

* multimodal and wrapped models nest the figure in the configuration of their text part;
* YaRN names the original window and a factor, and some configurations leave
  ``max_position_embeddings`` at the original (Qwen2.5); for Llama 3.1 the original window is the
  *start* of the training and ``max_position_embeddings`` its end;
* LongRoPE (Phi 3) has two sets of frequencies and changes to the second when a forward goes beyond
  the original window, so keys read before and after would not match. Within the original window
  the first set holds throughout, and it is the one that is extended;
* where every layer slides (Mistral 7B v0.1: 4096 of 32768), no distance beyond the sliding window
  was ever attended to.

How much of the window is well trained is measured by ``selfextend-rag calibrate`` and stored in a
file, which planners of the same model find by its configuration and name. Without one, the
empirical rule holds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, TypedDict

from selfextend_rag.errors import SelfExtendError, UnknownPretrainingWindow

_WINDOW_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
_TEXT_PART_NAMES = ("text_config", "llm_config", "language_config")
_SLIDING_TYPES = ("sliding_attention", "chunked_attention")

CALIBRATION_FORMAT = 1
_VOLATILE = frozenset(
    ("_name_or_path", "attn_implementation", "dtype", "transformers_version", "use_cache")
)


class CalibrationError(SelfExtendError):
    """A stored calibration that can't be read, or one that measured no usable settings."""


class Config(Protocol):
    """The part of a transformers configuration that tells models apart."""

    def to_dict(self) -> dict[str, object]:
        """Return its values."""


class Shares(TypedDict, total=False):
    """Options of a planner that a calibration measures."""

    trained_fraction: Fraction | float
    neighbor_share: float


def pretraining_window_of(config: object) -> int:
    """Return P, in tokens, for a model configuration of transformers, or an object like one.

    Raises:
        UnknownPretrainingWindow: the configuration does not say.
    """
    for name in _TEXT_PART_NAMES:
        part = getattr(config, name, None)
        if part is not None and not isinstance(part, Mapping):
            return pretraining_window_of(part)
    window = _rotary_window(config)
    sliding = _sliding_window_of_all_layers(config)
    return window if sliding is None else min(window, sliding)


def _rotary_window(config: object) -> int:
    stated = first_number(config, *_WINDOW_NAMES)
    rotary = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if isinstance(rotary.get("full_attention"), Mapping):  # by type of layer
        rotary = rotary["full_attention"]
    original = rotary.get("original_max_position_embeddings")
    kind = rotary.get("rope_type", rotary.get("type"))
    if kind == "longrope" and original:
        return min(int(original), stated or int(original))
    if kind == "yarn" and original:
        return max(int(original * rotary.get("factor", 1)), stated or 0)
    if stated is None:
        raise UnknownPretrainingWindow(
            f"{type(config).__name__} does not say how long a sequence the model was trained for "
            f"(looked for {', '.join(_WINDOW_NAMES)}); pass pretraining_window"
        )
    return stated


def _sliding_window_of_all_layers(config: object) -> int | None:
    """Return the widest sliding window if every attention layer has one, else None."""
    windows = [first_number(config, name) for name in ("sliding_window", "attention_chunk_size")]
    widest = max((window for window in windows if window), default=None)
    types = getattr(config, "layer_types", None)
    if types:
        attention = [kind for kind in types if kind.endswith("attention")]
        return widest if all(kind in _SLIDING_TYPES for kind in attention) else None
    return widest if getattr(config, "use_sliding_window", True) else None


def first_number(config: object, *names: str) -> int | None:
    """Return the first of these attributes that is a positive integer."""
    values = (getattr(config, name, None) for name in names)
    return next((x for x in values if isinstance(x, int) and x is not True and x > 0), None)


def user_folder(name: str) -> Path:
    """Return the folder of what is kept from run to run; it may not exist.

    ``$SELFEXTEND_RAG_HOME/<name>``, by default in ``~/.cache/selfextend-rag``.
    """
    home = os.environ.get("SELFEXTEND_RAG_HOME") or "~/.cache/selfextend-rag"
    return Path(home).expanduser() / name


def calibration_path(config: Config) -> Path:
    """Return where the calibration of a model is kept, whether or not there is one.

    Args:
        config: the model's configuration: its values and the name it was loaded by are the key, so
            that a fine-tuned model has a calibration of its own.
    """
    name = str(getattr(config, "_name_or_path", ""))
    values = {key: value for key, value in config.to_dict().items() if key not in _VOLATILE}
    text = json.dumps([name, values], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return user_folder("calibration") / f"{digest}.json"


def stored_calibration(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Return the values of a stored calibration.

    Raises:
        CalibrationError: there is none, or it can't be read.
    """
    try:
        values = json.loads(Path(path).read_text("utf-8"))
        if values["format"] != CALIBRATION_FORMAT:
            raise CalibrationError(
                f"a calibration of format {values['format']}, expected {CALIBRATION_FORMAT}; "
                "run selfextend-rag calibrate again"
            )
        if not 0 < values["neighbor_share"] < values["trained_fraction"] <= 1:
            raise CalibrationError(
                f"neighbor_share {values['neighbor_share']} and trained_fraction "
                f"{values['trained_fraction']} must be in order within (0, 1]"
            )
    except (OSError, ValueError, KeyError, TypeError, CalibrationError) as error:
        reason = f"not a calibration: {error}" if isinstance(error, KeyError | TypeError) else error
        raise CalibrationError(f"can't use the calibration {os.fspath(path)}: {reason}") from error
    return dict(values)


def planner_defaults(
    config: Config, pretraining_window: int, trained_fraction: Fraction | float | None = None
) -> Shares:
    """Return the share options of a planner: as given, else as calibrated, else none.

    Args:
        config: the model's configuration.
        pretraining_window: P, in tokens; a calibration for another one is not used.
        trained_fraction: what the user asked for; it goes before any calibration.

    Raises:
        CalibrationError: there is a calibration that can't be read; delete it, or calibrate again.
    """
    if trained_fraction is not None:
        return {"trained_fraction": trained_fraction}
    path = calibration_path(config)
    found = stored_calibration(path) if path.exists() else {}
    if found.get("pretraining_window") != pretraining_window:
        return {}
    trained, share = found["trained_fraction"], found["neighbor_share"]
    return {"trained_fraction": trained, "neighbor_share": share}
