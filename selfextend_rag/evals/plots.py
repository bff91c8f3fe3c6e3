"""Pictures of results; matplotlib comes with the extra ``evals``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfextend_rag.evals.calibration import CalibrationCell
from selfextend_rag.evals.runner import Cell, PerplexityRow


def pyplot() -> Any:
    """Return pyplot, set to draw without a screen.

    Raises:
        ImportError: matplotlib is not installed; the message names the extra.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib: pip install 'selfextend-rag[evals]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def heat_maps(cells: Mapping[str, Sequence[Cell]], title: str, path: Path) -> None:
    """Write maps of the share of exact answers by length and depth, one for each model.

    Args:
        cells: for each model's label, its cells.
        title: above all of it.
        path: the PNG.
    """
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(cells), figsize=(1 + 4.2 * len(cells), 4.2), squeeze=False, layout="constrained"
    )
    image = None
    for axis, (label, entries) in zip(axes[0], cells.items(), strict=True):
        lengths = sorted({cell.length for cell in entries})
        depths = sorted({cell.depth for cell in entries})
        shares = {(cell.length, cell.depth): cell.right / cell.samples for cell in entries}
        grid = [[shares.get((x, y), float("nan")) for x in lengths] for y in depths]
        image = axis.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axis.set_xticks(range(len(lengths)), [str(x) for x in lengths])
        axis.set_yticks(range(len(depths)), [f"{y:.2f}" for y in depths])
        axis.set(title=label, xlabel="prompt, tokens", ylabel="depth of the fact")
        for row, values in enumerate(grid):
            for column, value in enumerate(values):
                axis.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=7)
    figure.colorbar(image, ax=axes[0].tolist(), label="exact answers")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def nll_curves(
    results: Mapping[str, PerplexityRow], pretraining_window: int, title: str, path: Path
) -> None:
    """Write curves of the mean negative log-likelihood by position, one for each model.

    Args:
        results: for each model's label, what ``run_perplexity`` returned.
        pretraining_window: drawn as an upright line.
        title: above all of it.
        path: the PNG.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for label, result in results.items():
        axis.plot(result["bin_starts"], result["means"], label=label)
    axis.axvline(pretraining_window, color="grey", linestyle="--", label="pretraining window")
    axis.set(title=title, xlabel="position, tokens", ylabel="negative log-likelihood, nats a token")
    axis.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def calibration_map(cells: Sequence[CalibrationCell], title: str, path: Path) -> None:
    """Write a map of settings: pass keys found and perplexity; what was good has a green ground.

    Args:
        cells: what was measured.
        title: above it.
        path: the PNG.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for cell in cells:
        axis.text(
            cell.fraction,
            cell.neighbor_window,
            f"G {cell.group_size}\n{cell.right}/{cell.asked}\n{cell.perplexity:.1f}",
            ha="center",
            va="center",
            fontsize=8,
            bbox={"boxstyle": "round", "facecolor": "#bfe5bf" if cell.good else "#f0c0b8"},
        )
    axis.set(
        title=title,
        xlabel="share of the pretraining window in use",
        ylabel="neighbor window, tokens",
        xlim=(0.4, 1.1),
        ylim=(0, 1.2 * max(cell.neighbor_window for cell in cells)),
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)
