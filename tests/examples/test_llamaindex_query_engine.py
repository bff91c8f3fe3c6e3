"""The example runs as written, on a short real document and on what it is given."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("llama_index.core", reason="llama-index-core is an extra and not installed")

ROOT = Path(__file__).parents[2]
GENESIS = ROOT / "examples" / "documents" / "genesis.txt"


@pytest.fixture(scope="module")
def example():
    path = ROOT / "examples" / "llamaindex_query_engine.py"
    spec = importlib.util.spec_from_file_location("query_engine", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_prints_the_plan_answers_and_their_passages(example, tmp_path, capsys):
    text = GENESIS.read_text("utf-8")
    start = text.index("And a river went out of Eden")
    short = tmp_path / "rivers.txt"
    short.write_text(text[start - 2000 : start + 1200], "utf-8")
    example.main([str(short)])
    out = capsys.readouterr().out
    assert "SelfExtend with group_size" in out
    for question in example.QUESTIONS:
        assert question in out
    assert "rivers.txt, from character" in out


def test_it_takes_files_questions_and_a_model(example, tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / f"{name}.md").write_text(f"# {name}\n\nThe pass key is 48213. " * 3)
    files = [str(tmp_path / "one.md"), str(tmp_path / "two.md")]
    folder = str(ROOT / "selfextend_rag" / "bundled")
    example.main([*files, "-q", "What is the pass key?", "--model", folder])
    out = capsys.readouterr().out
    assert "What is the pass key?\n48213\n" in out
    assert "one.md, from character" in out or "two.md, from character" in out


def test_the_document_it_reads_by_default_is_there(example):
    assert example.load(example.DOCUMENT).get_content().startswith("The First Book of Moses")
