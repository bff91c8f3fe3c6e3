"""``read`` and ``ask --reading``: the same answers, and one clear line for every bad input."""

from __future__ import annotations

import json
import os

import pytest
import torch

from selfextend_rag.cli import main
from tests.tiny import byte_tokenizer, tiny_llama


@pytest.fixture
def run(capsys, model_folder):
    """Run the command line on the tiny model; return exit code and the two outputs."""

    def call(*arguments, model=model_folder):
        code = main([*map(str, arguments), *(["--model", model] if model else [])])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def saved(run, long, tmp_path):
    path = tmp_path / "reading.kv"
    code, out, _ = run("read", long, "-o", path)
    assert code == 0
    assert out.startswith(f"{path}: ")
    return path


def test_a_saved_reading_answers_as_the_files_do(run, saved, long):
    plain = run("ask", long, "-q", "Why?")[1]
    code, out, err = run("ask", "--reading", saved, "-q", "Why?")
    assert code == 0
    assert out == plain
    assert "SelfExtend with group_size" in err
    assert "they had been read in" in err
    assert run("ask", long, "--reading", saved, "-q", "Why?")[:2] == (0, plain)


def test_json(run, long, tmp_path):
    path = tmp_path / "x.kv"
    code, out, err = run("read", long, "-o", path, "--json", "--question-reserve", 40)
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["reading"] == str(path)
    assert report["bytes"] == path.stat().st_size
    assert report["plan"]["reserve_tokens"] == 40
    code, out, _ = run("ask", "--reading", path, "-q", "Why?", "--json", "--max-new-tokens", 3)
    answer = json.loads(out)
    assert answer["reading"] == str(path)
    for plan in (answer["plan"], report["plan"]):
        for device in plan["memory"]["devices"]:
            del device["available_bytes"]  # is looked at anew
    assert answer["plan"] == report["plan"]
    assert answer["answers"][0]["usage"]["completion_tokens"] <= 3
    cached = answer["answers"][0]["usage"]["cached_tokens"]
    assert cached == report["plan"]["prompt_tokens"]


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    tiny_llama(window=128, dtype=torch.float32, seed=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def one_line(result):
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("selfextend-rag: error: ")
    assert err.count("\n") == 1
    return err


def test_every_bad_reading_is_one_line_and_exit_code_2(run, saved, short, other_folder, tmp_path):
    def ask(*more, path=saved, **options):
        return one_line(run("ask", "--reading", path, "-q", "Why?", *more, **options))

    assert "can't read" in ask(path=tmp_path / "missing.kv")
    assert "Is a directory" in ask(path=tmp_path)
    assert "weights" in ask(model=other_folder)
    assert "would now be read with group_size 8" in ask("--group-size", 8)
    assert "would now be read with plain attention" in ask("--plain")
    assert "pretraining_window 128 there, 100 here" in ask("--pretraining-window", 100)
    assert "other documents: " in ask(short)
    code, out, err = run("ask", "--reading", saved, "-q", "Why?", "--max-new-tokens", 5000)
    assert (code, out) == (2, "")
    assert "exceeds the extended window" in err.splitlines()[-1]

    content = saved.read_bytes()
    saved.write_bytes(content[:-100])
    assert "is damaged or no saved reading: it has" in ask()
    saved.write_bytes(content[:-100] + bytes(100))
    assert "another checksum" in ask()
    saved.write_text("Fact 1 is 1.")
    assert "is damaged or no saved reading" in ask()


def test_every_bad_place_to_save_is_told_before_anything_is_read(run, long, tmp_path):
    missing = tmp_path / "no" / "x.kv"
    assert f"there is no folder {missing.parent}" in one_line(run("read", long, "-o", missing))
    assert "is a folder; -o takes" in one_line(run("read", long, "-o", tmp_path))


def test_asking_about_nothing_is_refused(run):
    assert "name files, or a reading by --reading" in one_line(run("ask", "-q", "Why?"))


def test_a_reading_keeps_its_bits_and_is_refused_without_them(run, long, tmp_path):
    kept = tmp_path / "kept"
    code, out, _ = run("read", long, "--kv-bits", "8", "-o", kept, "--json")
    assert code == 0
    assert json.loads(out)["plan"]["memory"]["kv_bits"] == 8
    ask = ("ask", "--reading", kept, "-q", "Why?")
    assert run(*ask, "--kv-bits", "8")[0] == 0
    code, _, err = run(*ask)
    assert code == 2
    assert "in 8 bits there, in full precision here" in err
    code, out, _ = run("plan", long, "--kv-bits", "4", "--json")
    assert json.loads(out)["plan"]["memory"]["kv_bits"] == 4


def test_a_folder_that_can_not_be_written_is_told_before_anything_is_read(
    run, long, tmp_path, monkeypatch
):
    """A reading of an hour must not end in a file that can't be made."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    code, out, err = run("read", long, "-o", tmp_path / "x.kv")
    assert (code, out) == (2, "")
    assert f"nothing can be written in the folder {tmp_path}" in err
    assert "tokens of prompt" not in err
