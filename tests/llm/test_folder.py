"""Readings in a folder: found again by what was read, and by nothing else."""

from __future__ import annotations

import logging

import pytest

from selfextend_rag import Document, KeptReadings, LongContextLLM
from selfextend_rag.llm import saved
from selfextend_rag.llm.folder import names_of, reading_id

MILL = Document.from_text("The height of the old mill is 6400. It is by the river.", title="Mill")
BARN = Document.from_text("The owner of the barn is Clara. It has two doors.", title="Barn")
QUESTION = "What is the height of the old mill?"


@pytest.fixture(scope="module")
def llm():
    return LongContextLLM.bundled()


@pytest.fixture
def reads(llm, monkeypatch):
    """How often the model read documents."""
    counted = []
    read = llm.read
    monkeypatch.setattr(llm, "read", lambda *args, **kw: counted.append(args) or read(*args, **kw))
    return counted


def test_a_later_process_finds_what_was_read(llm, tmp_path, reads):
    first = KeptReadings(llm, folder=tmp_path).get(MILL, QUESTION)
    again = KeptReadings(llm, folder=tmp_path)
    reading = again.get(MILL, QUESTION)
    assert len(reads) == 1
    assert reading.ask(QUESTION).text == first.ask(QUESTION).text
    assert again.get(MILL, QUESTION) is reading  # in memory from then on
    again.get([MILL, BARN], QUESTION)
    assert len(reads) == 2


def test_one_with_too_little_space_is_read_again(llm, tmp_path, reads):
    KeptReadings(llm, folder=tmp_path).get(MILL, max_new_tokens=4)
    (small,) = tmp_path.iterdir()
    size = small.stat().st_size
    later = KeptReadings(llm, folder=tmp_path)
    reading = later.get(MILL, "word " * 300, max_new_tokens=200)
    assert len(reads) == 2
    assert reading.plan.extended_window - reading.plan.prompt_tokens >= 500
    assert [path.name for path in tmp_path.iterdir()] == [small.name]
    assert small.stat().st_size >= size


def test_another_models_files_are_left_alone(llm, tmp_path):
    other = LongContextLLM.bundled(pretraining_window=256)
    KeptReadings(other, folder=tmp_path).get(MILL)
    mine = KeptReadings(llm, folder=tmp_path)
    assert mine.all() == []
    mine.get(MILL)
    assert len(list(tmp_path.iterdir())) == 2
    assert [kept.on_disk for kept in KeptReadings(other, folder=tmp_path).all()] == [True]


def test_a_damaged_file_is_reported_and_read_anew(llm, tmp_path, reads, caplog):
    KeptReadings(llm, folder=tmp_path).get(MILL)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        KeptReadings(llm, folder=tmp_path).get(MILL)
    assert len(reads) == 2
    assert "can't be used" in caplog.text
    KeptReadings(llm, folder=tmp_path).get(MILL)
    assert len(reads) == 2  # it was written anew


def test_the_longest_unused_is_removed_when_the_folder_is_full(llm, tmp_path):
    KeptReadings(llm, folder=tmp_path).get(MILL)
    (path,) = tmp_path.iterdir()
    size = path.stat().st_size
    bounded = KeptReadings(llm, folder=tmp_path, folder_bytes=int(size * 1.6))
    bounded.get(BARN)
    assert [reading.names for reading in bounded.folder.all()] == [names_of([BARN])]
    tiny = KeptReadings(llm, folder=tmp_path / "tiny", folder_bytes=1)
    tiny.get(MILL)
    assert list((tmp_path / "tiny").iterdir()) == []


def test_readings_are_listed_and_removed(llm, tmp_path):
    kept = KeptReadings(llm, folder=tmp_path)
    kept.get(MILL)
    kept.get(BARN)
    listed = kept.all()
    assert [reading.names for reading in listed] == [names_of([BARN]), names_of([MILL])]
    assert all(reading.in_memory and reading.on_disk for reading in listed)
    assert listed[1].id == reading_id([MILL]) != listed[0].id
    kept.clear()
    assert [(r.in_memory, r.on_disk) for r in kept.all()] == [(False, True)] * 2
    assert kept.all()[0].tokens == listed[0].tokens
    assert [r.created for r in kept.all()] == [r.created for r in listed]
    assert not kept.remove("../" + listed[0].id)
    assert not kept.remove("a" * 300)
    assert kept.remove(listed[0].id)
    assert not kept.remove(listed[0].id)
    assert [reading.names for reading in kept.all()] == [names_of([MILL])]


def test_a_file_is_opened_once_to_be_listed(llm, tmp_path, monkeypatch):
    """The documents of every file were read whenever the list was shown."""
    kept = KeptReadings(llm, folder=tmp_path)
    kept.get(MILL)
    kept.get(BARN)
    kept.clear()
    opened = []
    read = saved.documents_in
    monkeypatch.setattr(
        saved, "documents_in", lambda path, llm: opened.append(path) or read(path, llm)
    )
    first = kept.all()
    assert len(opened) == 2
    assert kept.all() == first
    assert len(opened) == 2
    mill = reading_id([MILL])
    assert kept.documents(mill) == (MILL,)
    assert kept.documents("../x") is None
    del opened[:]
    (path,) = tmp_path.glob(f"*{mill}.reading")
    path.unlink()
    assert [reading.names for reading in kept.all()] == [names_of([BARN])]
    assert kept.documents(mill) is None
    other = KeptReadings(llm, folder=tmp_path)  # as another process does
    other.get(MILL)
    assert [reading.names for reading in kept.all()] == [names_of([MILL]), names_of([BARN])]
    assert opened == [path]


def test_a_folder_that_cant_be_is_refused(llm, tmp_path):
    with pytest.raises(ValueError, match="folder_bytes must be positive"):
        KeptReadings(llm, folder=tmp_path, folder_bytes=0)
