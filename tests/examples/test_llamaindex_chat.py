"""The chat streams answers with their pages, and continues from a reading that was kept."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_index.core", reason="llama-index-core is an extra and not installed")

from selfextend_rag import CacheMismatchError


def test_it_reads_once_answers_with_pages_and_continues_from_the_file(run_example, tmp_path):
    kept = tmp_path / "handbook.kv"
    out = run_example("llamaindex_chat", "--reading", kept)
    assert "SelfExtend with group_size" in out
    assert "What is the access code of the workshop?\n48213\n" in out
    assert "] page 4: The access code of the workshop is 48213." in out
    assert "What is the budget of the library?\n6400" in out
    question = "What is the access code of the workshop?"
    again = run_example("llamaindex_chat", "--reading", kept, "-q", question)
    assert again.startswith(f"Continuing from {kept}\n\n{question}\n48213\n")
    other = tmp_path / "other.txt"
    other.write_text("Dogs wait in the yard.")
    with pytest.raises(CacheMismatchError, match="other documents"):
        run_example("llamaindex_chat", other, "--reading", kept)
