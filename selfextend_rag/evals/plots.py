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
    shares = {
        label: {(float(cell.length), cell.depth): cell.right / cell.samples for cell in entries}
        for label, entries in cells.items()
    }
    figure = maps_of(plt, shares, "prompt, tokens", "exact answers", form=".0%")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def maps_of(
    plt: Any,
    grids: Mapping[str, Mapping[tuple[float, float], float]],
    lengths: str,
    values: str,
    *,
    most: float = 1,
    form: str = "",
) -> Any:
    """Return a figure of maps side by side, red for 0 and green for ``most``.

    Args:
        plt: pyplot.
        grids: by the name above each map, a value at each length and depth.
        lengths: what they are lengths of.
        values: what they are.
        most: the largest value.
        form: how values are written in the map, if they are.
    """
    figure, axes = plt.subplots(
        1, len(grids), figsize=(1 + 4.2 * len(grids), 4.2), squeeze=False, layout="constrained"
    )
    image = None
    for axis, (name, found) in zip(axes[0], grids.items(), strict=True):
        columns, rows = (sorted({place[n] for place in found}) for n in (0, 1))
        grid = [[found.get((x, y), float("nan")) for x in columns] for y in rows]
        image = axis.imshow(grid, vmin=0, vmax=most, cmap="RdYlGn", aspect="auto")
        axis.set_xticks(range(len(columns)), [f"{x:.0f}" for x in columns])
        axis.set_yticks(range(len(rows)), [f"{y:.2f}" for y in rows])
        axis.set(title=name, xlabel=lengths, ylabel="depth of the fact")
        for (x, y), value in found.items() if form else ():
            place = columns.index(x), rows.index(y)
            axis.text(*place, format(value, form), ha="center", va="center", fontsize=7)
    figure.colorbar(image, ax=axes[0].tolist(), label=values)
    return figure


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
