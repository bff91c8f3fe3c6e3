"""Draws the pictures of docs/concepts: each from this package's own arithmetic, planner or results.

python docs/site/pictures.py

They are SVG files with a background of their own, light or dark as the reader prefers, so that
they can be read on any page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from selfextend_rag import ContextBudgetPlanner, Document, LongContextLLM, SelfExtend

ROOT = Path(__file__).parents[2]
DOCS = Path(__file__).parents[1]
PICTURES = DOCS / "concepts" / "pictures"
PREFILL = DOCS.parent / "benchmarks" / "results" / "cpu-prefill.json"
STYLE = """
.ground { fill: #ffffff } .ink { fill: #1f2430 } .line { stroke: #1f2430; fill: none }
.faint { stroke: #c4c8d2; fill: none } .near { fill: #4051b5 } .far { fill: #b4531f }
.near-line { stroke: #4051b5; fill: none; stroke-width: 2.5 }
.far-line { stroke: #b4531f; fill: none; stroke-width: 2.5 }
.soft { fill: #e6e8ef } .on { fill: #ffffff }
text { font: 13px sans-serif } .small { font-size: 11px } .title { font-size: 15px }
@media (prefers-color-scheme: dark) {
.ground { fill: #1e2129 } .ink { fill: #e6e8ef } .line { stroke: #e6e8ef }
.faint { stroke: #4b5163 }
.near { fill: #9aa8ff } .far { fill: #f0a070 } .near-line { stroke: #9aa8ff }
.far-line { stroke: #f0a070 } .soft { fill: #343946 } .on { fill: #1e2129 }
}
"""

Point = tuple[float, float]


def picture(width: int, height: int, title: str, marks: Iterable[str]) -> str:
    """Return an SVG file of marks on a ground; the title is read aloud, and is not drawn."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n"
        f'<rect class="ground" width="{width}" height="{height}" rx="6"/>\n'
        + "\n".join(marks)
        + "\n</svg>\n"
    )


def text(x: float, y: float, said: object, kind: str = "ink", anchor: str = "start") -> str:
    """Return a line of text, by the place of its base line."""
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(str(said))}</text>'


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    """Return a filled rectangle."""
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"/>'


def path(points: Sequence[Point], kind: str) -> str:
    """Return a line through points."""
    joined = " ".join(f"{x:.4g},{y:.4g}" for x, y in points)
    return f'<polyline class="{kind}" points="{joined}"/>'


def matrix() -> str:
    """Return the relative position of each pair of 14 tokens, at G = 3 and W = 6."""
    settings, tokens, size = SelfExtend(group_size=3, neighbor_window=6), 14, 28
    left, top = 70, 60
    marks = [
        text(left, 26, "Each query sees each earlier key at this relative position", "ink title")
    ]
    marks.append(text(left, 48, "keys, from the first token on", "ink small"))
    for query in range(tokens):
        y = top + query * size
        marks.append(text(left - 10, y + 19, f"q {query}", "ink small", "end"))
        for key in range(query + 1):
            near = query - key < settings.neighbor_window
            x, place = left + key * size, settings.relative_position(query, key)
            marks.append(box(x + 1, y + 1, size - 2, size - 2, "near" if near else "far"))
            marks.append(text(x + size / 2, y + 19, place, "on small", "middle"))
    marks += legend(left + 9 * size, top + 40, ("near", "exact: distance below W = 6"))
    marks += legend(left + 9 * size, top + 64, ("far", "grouped: divided by G = 3"))
    return picture(640, 470, "Relative positions of SelfExtend for 14 tokens", marks)


def legend(x: float, y: float, entry: tuple[str, str]) -> list[str]:
    """Return a colour and what it means."""
    kind, said = entry
    return [box(x, y - 11, 14, 14, kind), text(x + 22, y, said, "ink small")]


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return what maps values to places."""
    return lambda value: start + (value - low) * (end - start) / (high - low)


def distances() -> str:
    """Return the relative position of each distance, for a window of 512 and 2,048 tokens."""
    window, tokens = 512, 2048
    plan = ContextBudgetPlanner(window).plan(tokens - 1, max_new_tokens=1)
    settings = plan.settings
    x, y = scale(0, tokens, 70, 610), scale(0, 1000, 330, 60)
    seen = [settings.relative_position(tokens - 1, tokens - 1 - far) for far in range(tokens)]
    edge = settings.neighbor_window
    marks = [text(70, 26, f"The last of {tokens:,} tokens looks back", "ink title")]
    marks += [box(70, y(window), 540, y(0) - y(window), "soft")]
    marks += [text(604, y(window) + 16, f"trained on: P = {window}", "ink small", "end")]
    marks += axes(x, y, range(0, tokens + 1, 512), range(0, 1001, 250))
    marks += [text(340, 372, "distance, tokens", "ink small", "middle")]
    marks += [text(70, 50, "relative position", "ink small")]
    marks += [path([(x(0), y(0)), (x(1000), y(1000))], "line")]
    marks += [text(x(700), y(830), "plain: the distance itself", "ink small", "end")]
    marks += [path([(x(far), y(seen[far])) for far in range(edge)], "near-line")]
    marks += [path([(x(far), y(seen[far])) for far in range(edge, tokens)], "far-line")]
    named = f"SelfExtend, G = {settings.group_size}, W = {edge}: up to {max(seen)}"
    marks += [text(604, y(max(seen)) - 10, named, "ink small", "end")]
    return picture(640, 390, "Relative position by distance, plain and with SelfExtend", marks)


def axes(
    x: Callable[[float], float],
    y: Callable[[float], float],
    across: Sequence[float],
    up: Sequence[float],
) -> list[str]:
    """Return both axes with the values on them."""
    first, last, low = x(across[0]), x(across[-1]), y(up[0])
    marks = [path([(first, y(up[-1])), (first, low), (last, low)], "line")]
    marks += [text(x(value), low + 18, f"{value:,}", "ink small", "middle") for value in across]
    return marks + [text(first - 8, y(value) + 4, f"{value:g}", "ink small", "end") for value in up]


def budget() -> str:
    """Return how documents, question and answer fill the window, for the bundled model."""
    genesis = Document.from_file(ROOT / "examples" / "documents" / "genesis.txt")
    read = LongContextLLM.bundled().plan([genesis]).prompt_tokens
    parts = (("documents", read, "near"), ("questions", 64, "far"), ("answer", 32, "ink"))
    window, tokens = 512, sum(size for _, size, _ in parts)
    plan = ContextBudgetPlanner(window).plan(tokens - 32, max_new_tokens=32)
    settings, most = plan.settings, plan.extended_window
    x = scale(0, most, 40, 600)
    marks = [text(40, 26, f"{tokens:,} tokens, and a model trained on {window}", "ink title")]
    marks += [box(40, 60, 560, 34, "soft")]
    places = [0]
    for _, size, kind in parts:
        places.append(places[-1] + size)
        marks.append(box(x(places[-2]), 60, x(places[-1]) - x(places[-2]), 34, kind))
    for row, (name, size, kind) in enumerate(parts):
        marks += legend(40 + 130 * row, 122, (kind, f"{name}: {size:,}"))
    free = f"free, up to {most:,} tokens"
    marks += legend(40 + 130 * 3, 122, ("soft", free))
    marks += [box(40, 160, x(window) - x(0), 34, "ink")]
    marks += [text(x(window) + 10, 182, f"pretraining window: {window}", "ink small")]
    chosen = f"G = {settings.group_size} and W = {settings.neighbor_window}"
    said = f"{chosen}: the smallest group size that keeps positions in the well-trained two thirds"
    marks += [text(40, 226, said, "ink small")]
    return picture(640, 246, "What a prompt of the bundled model holds", marks)


def cost() -> str:
    """Return how long attention takes over plain causal attention, as measured on a CPU."""
    measured = json.loads(PREFILL.read_text("utf-8"))
    of = {
        name: [(row["tokens"], row["ratio"]) for row in measured["rows"] if row["baseline"] == name]
        for name in ("sdpa", "rotation + sdpa")
    }
    lengths = [tokens for tokens, _ in of["sdpa"]]
    x, y = scale(0, len(lengths) - 1, 110, 560), scale(0.8, 2.0, 290, 60)
    marks = [text(70, 26, "Time of reading with SelfExtend, over plain attention", "ink title")]
    marks += [path([(70, y(0.8)), (610, y(0.8))], "line")]
    for ratio in (1.0, 1.25, 1.5, 1.75, 2.0):
        marks += [path([(70, y(ratio)), (610, y(ratio))], "faint")]
        marks += [text(62, y(ratio) + 4, f"{ratio:g}", "ink small", "end")]
    names = {"sdpa": "far", "rotation + sdpa": "near"}
    for name, kind in names.items():
        points = [(x(number), y(ratio)) for number, (_, ratio) in enumerate(of[name])]
        marks += [path(points, f"{kind}-line")]
        marks += [f'<circle class="{kind}" cx="{a:g}" cy="{b:.4g}" r="4"/>' for a, b in points]
    marks += [text(x(i), y(0.8) + 18, f"{n:,} tokens", "ink small", "middle") for i, n in
              enumerate(lengths)]  # fmt: skip
    marks += legend(330, 78, ("far", "over causal attention alone"))
    marks += legend(330, 98, ("near", "over rotation and causal attention"))
    marks += [text(70, 336, f"{measured['shapes']}; one thread of a CPU", "ink small")]
    return picture(640, 356, "Cost of reading with SelfExtend by length", marks)


def pairs() -> str:
    """Return which pairs of a long prompt are neighbors and which are grouped, to scale."""
    side, share = 260, 0.2  # W / N
    left, top = 70, 60
    band = side * share
    triangle = f"{left},{top} {left},{top + side} {left + side},{top + side}"
    far = f"{left},{top + band:g} {left},{top + side} {left + side - band:g},{top + side}"
    marks = [text(left, 26, "A causal square and a band, in one softmax", "ink title")]
    marks += [f'<polygon class="near" points="{triangle}"/>']
    marks += [f'<polygon class="far" points="{far}"/>']
    marks += [text(left - 8, top + side / 2, "queries", "ink small", "end")]
    marks += [text(left + side / 2, top + side + 20, "keys", "ink small", "middle")]
    marks += legend(left + side + 30, top + 60, ("near", "neighbors: the last W keys of each"))
    marks += legend(left + side + 30, top + 84, ("far", "grouped: an ordinary causal square,"))
    marks += [text(left + side + 52, top + 100, "at divided positions", "ink small")]
    marks += [text(left + side + 30, top + 140, "Both enter one softmax.", "ink small")]
    return picture(640, 356, "Neighbor and grouped pairs of a prompt", marks)


DRAWN = {draw.__name__: draw for draw in (matrix, distances, budget, pairs, cost)}

if __name__ == "__main__":
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWN.items():
        (PICTURES / f"{name}.svg").write_text(draw(), "utf-8")
