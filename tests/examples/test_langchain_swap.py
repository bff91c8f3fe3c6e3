"""The example runs as written, and the two chains differ by two lines."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("swap", ROOT / "examples" / "langchain_swap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def body(function):
    """Return the lines of a function after its docstring."""
    lines = inspect.getsource(function).splitlines()
    end = max(number for number, line in enumerate(lines) if '"""' in line)
    return lines[end + 1 :]


def test_the_two_chains_differ_by_at_most_three_lines(example):
    before, after = body(example.classic_chain), body(example.full_document_chain)
    changes = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    removed = [line for line in changes if line[0] == "-"]
    added = [line for line in changes if line[0] == "+"]
    assert max(len(removed), len(added)) <= 2
    assert len(changes) <= 3
    assert any("FullDocumentRetriever" in line for line in added)


def test_it_prints_both_answers_and_times_for_files_and_questions(example, tmp_path, capsys):
    text = (ROOT / "examples/documents/genesis.txt").read_text("utf-8")
    start = text.index("And a river went out of Eden")
    short = tmp_path / "rivers.txt"
    short.write_text(text[start - 900 : start + 900], "utf-8")
    example.main([str(short), "-q", "What is the fourth river?", "-q", "Who was it?"])
    lines = capsys.readouterr().out.splitlines()
    head, *questions = [line for line in lines if line and not line.startswith(" ")]
    assert head.startswith("1 document(s), ")
    assert questions == ["What is the fourth river?", "Who was it?"]
    answers = [line.split() for line in lines if line.startswith(" ") and "answer" not in line]
    assert [words[:2] for words in answers] == [["three", "chunks"], ["whole", "documents"]] * 2
    for words in answers:
        first, again = float(words[2]), float(words[4])
        assert again > 0
        assert first > 0
        assert words[3] == words[5] == "s"


def test_it_answers_from_its_own_document_by_default(example):
    assert example.DOCUMENT.exists()
    assert example.QUESTIONS


def test_its_embeddings_find_the_piece_with_the_words_of_the_question(example):
    embeddings = example.WordEmbeddings()
    texts = ["the river of Eden", "a keeper of sheep", "bread and wine"]
    query = embeddings.embed_query("Who was a keeper of sheep?")
    assert sum(value * value for value in query) == pytest.approx(1)
    near = [
        sum(a * b for a, b in zip(query, vector, strict=True))
        for vector in embeddings.embed_documents(texts)
    ]
    assert near.index(max(near)) == 1
