"""The committed table of families is what the installed code finds."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers

from tests import zoo

pytestmark = pytest.mark.coverage

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def fresh() -> str:
    """The page of the installed transformers."""
    threads = torch.get_num_threads()
    try:
        return _generator().page()
    finally:
        torch.set_num_threads(threads)


def test_at_least_85_families_are_extended(fresh: str) -> None:
    cells = [line.strip("| ").split(" | ") for line in _rows(fresh)]
    names = {row[0].split(":")[0] for row in cells if row[2:3] == ["extended"]}
    assert len(names) >= 85
    assert names <= set(zoo.families())


def test_the_committed_page_is_a_fresh_run(fresh: str) -> None:
    committed = (DOCS / "coverage.md").read_text(encoding="utf-8")
    version = re.search(r"transformers\s+(\d[\w.]*\d)\.?\s", committed)
    assert version is not None
    if version[1] != transformers.__version__:
        pytest.skip(f"made with transformers {version[1]}, here is {transformers.__version__}")
    assert _rows(committed) == _rows(fresh), "run: python docs/generate_coverage.py"


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "generate_coverage", DOCS / "generate_coverage.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rows(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("|")]
