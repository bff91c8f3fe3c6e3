"""Write docs/coverage.md: what `support` says about a tiny model of every decoder family.

Run it from the repository, after a change to the patch or to the pinned transformers:

    python docs/generate_coverage.py
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "coverage.md"
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402  after the path is set
import transformers  # noqa: E402  after the path is set

from selfextend_rag.errors import UnsupportedModelError  # noqa: E402  after the path is set
from selfextend_rag.model import support  # noqa: E402  after the path is set
from selfextend_rag.positions import SelfExtend  # noqa: E402  after the path is set
from selfextend_rag.text.pictures import PictureProcessor  # noqa: E402  after the path is set
from tests import zoo  # noqa: E402  after the path is set
from tests.zoo import vision  # noqa: E402  after the path is set

_COLUMNS = ("model class", "outcome", "layers", "rotary layout", "reason")
_MEASURED = re.compile(r" \((?:off by|whole|padded|cached)[^()]*\)")  # figures of this machine


class Row(NamedTuple):
    """One line of the page: a family, or another configuration of one."""

    name: str
    model: str
    outcome: str  # "extended", "refused" or "not built"
    layers: str = ""
    layout: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return f"| {' | '.join(cell.replace('|', '/') for cell in self)} |"


def row(name: str) -> Row:
    """Build the tiny model of a family or configuration and describe what `support` finds."""
    if name in zoo.NOT_BUILT:
        return Row(name, "", "not built", reason=zoo.NOT_BUILT[name])
    report = support(zoo.build(name))
    if not report.supported:
        reason = _MEASURED.sub("", report.reason.replace("\n", " "))
        return Row(name, report.model, "refused", reason=reason)
    statuses = [layer.status for layer in report.layers]
    counts = [str(statuses.count(status)) for status in ("extended", "left alone", "refused")]
    layout = _joined(layer.describe_rotary() for layer in report.layers)
    alone = _joined(x.reason for x in report.layers if x.status == "left alone")
    reason = f"left alone: {alone}" if alone else ""
    return Row(name, report.model, "extended", " / ".join(counts), layout, reason)


def vision_row(name: str) -> str:
    """Build the tiny vision-language model of a family; say whether its pictures are read."""
    model, processor = vision.model(name), PictureProcessor(vision.processor(name))
    kind, made = type(model).__name__, type(processor.processor).__name__
    report, reason = support(model), ""
    if report.supported:
        pictures = processor.pictures(model, (), ())
        try:
            for settings in (None, SelfExtend(4, 7)):
                pictures.refuse_unproven(settings, lambda: False)
        except UnsupportedModelError as error:
            reason = str(error).partition(": ")[2]
    else:
        reason = report.reason
    outcome = "refused" if reason else "extended"
    return f"| {name} | {kind} | {made} | {outcome} | {_MEASURED.sub('', reason)} |"


def _joined(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(word for word in words if word))


def render(families: list[Row], variants: list[Row]) -> str:
    """Return the page."""
    outcomes = [row.outcome for row in families]
    refused = {row.name for row in families if row.outcome == "refused"}
    extended = {row.name.split(":")[0] for row in variants if row.outcome == "extended"}
    text = _TEXT.format(
        version=transformers.__version__,
        total=len(families),
        extended=outcomes.count("extended"),
        refused=outcomes.count("refused"),
        not_built=outcomes.count("not built"),
        otherwise=", ".join(sorted(refused & extended)),
    )
    return "\n".join(
        [
            text,
            *_table("family", families),
            "\n## Other configurations of these families\n",
            *_table("family:configuration", variants),
            _VISION,
            *map(vision_row, vision.FAMILIES),
            "",
        ]
    )


def _table(first: str, rows: list[Row]) -> list[str]:
    return [
        f"| {' | '.join((first, *_COLUMNS))} |",
        "| --- " * (1 + len(_COLUMNS)) + "|",
        *map(str, rows),
    ]


_TEXT = """\
# Coverage

Every family that transformers maps to a causal language model, built tiny with random weights, and
what `selfextend_rag.support` says about it. Made by `docs/generate_coverage.py` with transformers
{version}. `tests/model/test_coverage.py` compares every family that is extended with a reference
that is made of the model's own code: whole prompts, chunks, decode, static caches, padded batches,
generation, and the model as it is given back.

| families | {total} |
| --- | --- |
| extended | {extended} |
| refused, with the reason | {refused} |
| not built, with the reason | {not_built} |

The layers of an extended model are counted as extended / left alone / refused; the tiny model has
one of each kind, or two of the only kind. A layer that is left alone works at any length as it is.
The rotary layout is measured: which dimensions turn together (half-split or interleaved pairs),
whether they are the first or the last of a head, and how many they are.

A family that is refused here may be extended in another configuration, and the other way round;
`selfextend-rag support MODEL` tells for a checkpoint. Refused as configured by default, extended in
a configuration of the second table: {otherwise}.

## Families
"""


_VISION = """
## Vision-language models

Families whose tiny model reads documents with pictures, each with its own processor; what a
refused one reads is text alone. `tests/model/test_pictures.py` compares a prompt with two pictures
with the stock model, the reference, chunks and single tokens. Others are measured before they read
their first picture, and refused where they differ: see [vision models](vision.md).

| family | model class | processor | pictures | reason |
| --- | --- | --- | --- | --- |"""


def page() -> str:
    """Return the page as it is for the installed transformers."""
    torch.set_num_threads(1)
    return render(*([row(name) for name in names] for names in (zoo.families(), zoo.variants())))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
