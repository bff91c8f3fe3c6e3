"""Text files come back whole, whatever their encoding."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfextend_rag.documents import Document, DocumentError
from selfextend_rag.documents.encoding import decode
from tests.documents.files import FRENCH, written

EXAMPLES = Path(__file__).parents[2] / "examples" / "documents"


def test_a_text_file_is_kept_as_it_is(tmp_path):
    text = "Travel rules\n\n  Anna approves travel. \t\n\fPage two.\n"
    document = Document.from_file(written(tmp_path, "rules.txt", text))
    assert document.text == text
    assert document.title == "rules"
    assert document.source == str(tmp_path / "rules.txt")
    assert document.metadata == {"format": "text", "encoding": "utf-8", "encoding_from": "content"}


@pytest.mark.parametrize("name", ["genesis.txt", "numbers.txt", "chronicles.txt", "elements.md"])
def test_the_example_documents_are_read_whole(name):
    assert Document.from_file(EXAMPLES / name).text == (EXAMPLES / name).read_text("utf-8")


def test_line_ends_are_the_only_thing_changed_in_a_text_file(tmp_path):
    document = Document.from_file(written(tmp_path, "a.txt", b"one\r\ntwo\rthree\n\r\nfour"))
    assert document.text == "one\ntwo\nthree\n\nfour"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Intro\n\n# The Handbook #\n\n## Part\n", "The Handbook"),
        ("The Handbook\n============\n\ntext\n", "The Handbook"),
        ("```sh\n# a comment\n```\n~~~\n# another\n```\n~~~\n## The Handbook\n", "The Handbook"),
        ("no heading, #hashtag\n", "notes"),
    ],
)
def test_the_title_of_markdown_is_its_first_heading(tmp_path, text, title):
    document = Document.from_file(written(tmp_path, "notes.md", text))
    assert (document.text, document.title) == (text, title)
    assert document.metadata["format"] == "markdown"


def test_a_pipe_is_read_like_a_file(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    thread = threading.Thread(target=path.write_text, args=("from a pipe",))
    thread.start()
    document = Document.from_file(path)
    thread.join()
    assert document.text == "from a pipe"


@pytest.mark.parametrize(
    ("codec", "reported", "evidence"),
    [
        ("utf-8", "utf-8", "content"),
        ("utf-8-sig", "utf-8", "byte order mark"),
        ("utf-16", "utf-16-le", "byte order mark"),
        ("utf-32", "utf-32-le", "byte order mark"),
        ("utf-16-le", "utf-16-le", "content"),
        ("utf-16-be", "utf-16-be", "content"),
        ("latin-1", "cp1252", "guess"),
    ],
)
@pytest.mark.parametrize("repeats", [1, 40])
def test_text_comes_back_from_each_encoding(tmp_path, codec, reported, evidence, repeats):
    path = written(tmp_path, "a.txt", (FRENCH * repeats).encode(codec))
    document = Document.from_file(path)
    assert document.text == FRENCH * repeats
    assert document.metadata["encoding"] == reported
    assert document.metadata["encoding_from"] == evidence


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("latin-1", "Grüße aus Köln"),
        ("latin-1", "På söndag åker vi till Göteborg för att hälsa på våra vänner."),
        ("cp1252", "The manager\u2019s “handbook” – version two – costs 20 €."),
        ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy. Dnes je hezky, půjdeme do parku."),
        ("cp1251", "Сегодня хорошая погода, и мы пойдём гулять в парк."),
        ("koi8-r", "Сегодня хорошая погода, и мы пойдём гулять в парк."),
        ("cp1253", "Σήμερα ο καιρός είναι καλός και θα πάμε στο πάρκο."),
        ("shift_jis", "今日は天気がいいので公園に散歩に行きます。明日は雨が降るので家にいます。"),
        ("euc-jp", "今日は天気がいいので公園に散歩に行きます。明日は雨が降るので家にいます。"),
        ("iso2022_jp", "今日は天気がいいので公園に散歩に行きます。"),
        ("gb18030", "今天天气很好，我们去公园散步。明天会下雨，所以我们待在家里。" * 3),
        ("utf-16-le", "今日は 天気が\nいいので"),
    ],
)
def test_text_of_many_languages_is_recognised(codec, text):
    assert decode(text.encode(codec), "a.txt").text == text


def test_a_guessed_encoding_is_said_aloud_and_can_be_overruled(tmp_path, caplog):
    path = written(tmp_path, "a.txt", FRENCH.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        Document.from_file(path)
    assert "a.txt: read as cp1252, which is a guess" in caplog.text
    caplog.clear()
    document = Document.from_file(path, encoding="cp1251")
    assert document.text == FRENCH.encode("latin-1").decode("cp1251")
    assert document.metadata["encoding_from"] == "given"
    assert not caplog.records


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_every_utf8_text_comes_back_unchanged(text):
    content = decode(text.encode("utf-8"), "a.txt")
    found = "byte order mark" if text.startswith("\ufeff") else "content"
    assert content.text == text.removeprefix("\ufeff")
    assert content.metadata == {"encoding": "utf-8", "encoding_from": found}


@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_a_document_error(data):
    with contextlib.suppress(DocumentError):
        assert "\0" not in decode(data, "a.txt").text
