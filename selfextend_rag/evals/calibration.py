"""Measure how much of a model's window is well trained: pass keys and perplexity on a small grid.

The farthest relative position in use is what a group size and a neighbor window come down to. Each
cell of the grid uses another share of the window for prompts of one length; a share is good where
the model finds pass keys and predicts text as well as it does inside its window.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.engine import Engine, GenerationSettings
from selfextend_rag.evals.metrics import perplexity
from selfextend_rag.evals.prose import Prose, depths, leading_tokens
from selfextend_rag.evals.runner import MAX_NEW_TOKENS
from selfextend_rag.evals.tasks import passkey_task
from selfextend_rag.model import extended
from selfextend_rag.planning.pretraining import (
    CALIBRATION_FORMAT,
    CalibrationError,
    stored_calibration,
)
from selfextend_rag.positions import SelfExtend

FRACTIONS = (Fraction(1, 2), Fraction(2, 3), Fraction(5, 6), Fraction(1))
SHARES = (Fraction(1, 8), Fraction(1, 4), Fraction(1, 2))
KEYS_FOUND = 0.9  # of those found inside the window
PERPLEXITY_ROSE = 1.05  # over the best of the grid and the window


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

    def explain(self) -> str:
        """Return in one line what was measured; a group size of 1 is plain attention."""
        plain = self.group_size == 1
        what = "plain" if plain else f"G {self.group_size:3}, W {self.neighbor_window:5}"
        return (
            f"{what:15} {self.fraction:4.0%} of the window used: {self.right} of {self.asked} pass "
            f"keys, perplexity {self.perplexity:.2f}"
        )


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

    def to_dict(self) -> dict[str, object]:
        """Return the calibration as JSON values."""
        return {"format": CALIBRATION_FORMAT, **asdict(self)}

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Calibration:
        """Return a stored calibration.

        Raises:
            CalibrationError: there is none, or it can't be read.
        """
        values = stored_calibration(path)
        try:
            fields = {name: values[name] for name in cls.__dataclass_fields__}
            cells = tuple(CalibrationCell(**cell) for cell in fields.pop("cells"))
        except (KeyError, TypeError) as error:
            raise CalibrationError(f"not a calibration: {error}") from error
        return cls(**fields, cells=cells)


Measured = tuple[CalibrationCell, list[CalibrationCell]]
Progress = Callable[[CalibrationCell], None]


def grid(window: int, length: int, shares: Iterable[Fraction] = SHARES) -> list[SelfExtend]:
    """Return settings whose farthest position comes near each of `FRACTIONS` of the window.

    Args:
        window: P, in tokens.
        length: tokens of the prompts to measure.
        shares: neighbor windows, as shares of P.
    """
    found: dict[SelfExtend, None] = {}
    for share in shares:
        for fraction in FRACTIONS:
            rest = fraction - share
            if rest > 0:
                group = -(-(length - int(share * window)) // int(rest * window))
                neighbor = int(share * window) // group * group
                if neighbor and group > 1:
                    found[SelfExtend(group, neighbor)] = None
    return [settings for settings in found if settings.extended_window(window) >= length]


class Calibrator:
    """Measures one model at one length of prompt.

    Args:
        engine: the model.
        tokenizer: its tokenizer.
        prose: the text to read; longer than ``length``.
        window: P, in tokens.
        length: tokens of each prompt, more than P.
        depth_count: places of the pass key.
        samples: texts for each place, and for the perplexity.
        seed: moves keys and texts.

    Raises:
        ValueError: the prose is too short, the length is inside the window or out of reach, or a
            count is not positive.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        prose: Prose,
        *,
        window: int,
        length: int,
        depth_count: int = 5,
        samples: int = 2,
        seed: int = 0,
    ) -> None:
        for name, count in (("depths", depth_count), ("samples", samples)):
            if count < 1:
                raise ValueError(f"{name} must be a positive integer, got {count}")
        if length <= window:
            raise ValueError(f"length must exceed the window of {window} tokens, got {length}")
        if len(prose.ids) < length:
            raise ValueError(
                f"the text has {len(prose.ids)} tokens; give files with at least {length} in all, "
                "or a smaller length"
            )
        self.engine, self.tokenizer, self.prose = engine, tokenizer, prose
        self.window, self.length = window, length
        self.grid = grid(window, length)
        if not self.grid:
            raise ValueError(f"no settings reach {length} tokens with a window of {window}")
        self.depths = depths(depth_count)
        self.samples, self.seed = samples, seed
        self.head = leading_tokens(tokenizer)
        # The last tokens of each text; those before them are what a setting lets the model see.
        self.scored = max(1, window // 4)

    def run(
        self, progress: Progress | None = None
    ) -> tuple[CalibrationCell, list[CalibrationCell]]:
        """Return the cell inside the window, by plain attention, and the cells of the grid."""
        measured = []
        for settings in (None, *self.grid):
            measured.append(self.cell(settings))
            if progress is not None:
                progress(measured[-1])
        inside, *cells = measured
        return inside, judged(inside, cells)

    def cell(self, settings: SelfExtend | None) -> CalibrationCell:
        """Return what settings measure; None is plain attention inside the window."""
        length = self.window if settings is None else self.length
        right, asked = self._pass_keys(settings, length - MAX_NEW_TOKENS)
        reach = length - 1 if settings is None else settings.bands[-1].query_position(length - 1)
        return CalibrationCell(
            group_size=1 if settings is None else settings.group_size,
            neighbor_window=length if settings is None else settings.neighbor_window,
            fraction=(reach + 1) / self.window,
            right=right,
            asked=asked,
            perplexity=self._perplexity(settings, length),
            good=settings is None,
        )

    def _pass_keys(self, settings: SelfExtend | None, length: int) -> tuple[int, int]:
        right = asked = 0
        for place, depth in enumerate(self.depths):
            for sample in range(self.samples):
                task = passkey_task(
                    self.tokenizer, self.prose, length=length, depth=depth,
                    seed=self.seed + 1000 * place + sample,
                )  # fmt: skip
                generation = self.engine.generate(
                    task.prompt_ids,
                    GenerationSettings(max_new_tokens=MAX_NEW_TOKENS),
                    settings=settings,
                )
                text = self.tokenizer.decode(list(generation), skip_special_tokens=True)
                right += task.answer in text
                asked += 1
        return right, asked

    def _perplexity(self, settings: SelfExtend | None, length: int) -> float:
        values: list[float] = []
        for sample in range(self.samples):
            text, _ = self.prose.run(self.length - len(self.head), sample / self.samples)
            seen = text[len(text) - (length - len(self.head)) :]
            values += last_nll(self.engine, [*self.head, *seen], self.scored, settings)
        return perplexity(values)


@torch.inference_mode()
def last_nll(
    engine: Engine, tokens: Sequence[int], count: int, settings: SelfExtend | None
) -> list[float]:
    """Return the negative log-likelihood of the last ``count`` tokens, in nats, read in chunks."""
    before = tokens[: len(tokens) - count]
    prefix = engine.prefill(before, settings=settings, capacity=len(tokens))
    judged = torch.tensor([tokens[len(before) - 1 :]], device=engine.model.device)
    cache: SelfExtendCache = prefix.cache
    cache.crop(-1)  # the last token before is run again, for its logits
    if settings is None:
        logits = engine.model(judged[:, :-1], past_key_values=cache).logits[0]
    else:
        with extended(engine.model, settings):
            logits = engine.model(judged[:, :-1], past_key_values=cache).logits[0]
    values: list[float] = torch.nn.functional.cross_entropy(
        logits.float(), judged[0, 1:], reduction="none"
    ).tolist()
    return values


def judged(inside: CalibrationCell, cells: Sequence[CalibrationCell]) -> list[CalibrationCell]:
    """Return the cells, with ``good`` set where a cell is as good as inside the window."""
    best = min((cell.perplexity for cell in (inside, *cells)), default=inside.perplexity)
    return [
        replace(
            cell,
            good=cell.right >= KEYS_FOUND * inside.right
            and cell.perplexity <= PERPLEXITY_ROSE * best,
        )
        for cell in cells
    ]


def chosen(
    model: str,
    window: int,
    length: int,
    inside: CalibrationCell,
    cells: Sequence[CalibrationCell],
) -> Calibration:
    """Return the calibration that the cells come to.

    Of the good cells, the one with the smallest group size is taken, and of several the one with
    the lowest perplexity: positions as far as it uses are trained, and no finer map is known.

    Raises:
        CalibrationError: no cell is good.
    """
    good = [cell for cell in cells if cell.good]
    if not good:
        raise CalibrationError(
            f"none of {len(cells)} settings was as good at {length} tokens as the model is inside "
            f"its window of {window}; the empirical rule stays in place"
        )
    cell = min(good, key=lambda cell: (cell.group_size, cell.perplexity))
    return Calibration(
        model=model,
        pretraining_window=window,
        length=length,
        trained_fraction=min(1.0, cell.fraction),
        neighbor_share=cell.neighbor_window / window,
        window_right=inside.right,
        window_perplexity=inside.perplexity,
        cells=tuple(cells),
    )


def store(calibration: Calibration, path: Path) -> None:
    """Write a calibration where planners find it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(calibration.to_dict(), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
