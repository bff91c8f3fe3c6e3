"""Input that is refused, and outputs that can't be written: one line and an exit code."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import transformers

from tests.tiny import byte_tokenizer


@pytest.fixture
def bad_files(tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "junk.bin").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "latin.txt").write_bytes("déjà vu".encode("cp1252"))
    (tmp_path / "huge.txt").write_text("word " * 1000)
    (tmp_path / "good.txt").write_text("Good.")
    (tmp_path / "damaged.pdf").write_bytes(b"%PDF-1.4\nand no more")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.txt", "-q", "?"], "missing.txt"),
        (["empty.txt", "-q", "?"], "empty.txt"),
        (["junk.bin", "-q", "?"], "junk.bin"),
        (["latin.txt", "-q", "?", "--encoding", "utf-8"], "latin.txt"),
        (["good.txt", "-q", "?", "--encoding", "klingon"], "klingon"),
        (["good.txt", "empty.txt", "-q", "?"], "empty.txt"),
        (["good.txt", "-q", " "], "question is empty"),
        (["huge.txt", "-q", "?"], "exceeds the extended window"),
        (["good.txt", "-q", "?", "--model", "nobody/no-such-model"], "nobody/no-such-model"),
        (["good.txt", "-q", "?", "--model", "."], "there is no tokenizer in this folder"),
        (["good.txt", "-q", "?", "--group-size", "99"], "--group-size must be"),
        (["good.txt", "-q", "?", "--neighbor-window", "500"], "--neighbor-window must be"),
        (["good.txt", "-q", "?", "--max-new-tokens", "0"], "--max-new-tokens must be"),
        (["good.txt", "-q", "?", "--temperature", "-1"], "temperature must be"),
        (["good.txt", "-q", "?", "--plain", "--group-size", "4"], "--plain goes without"),
        (["good.txt", "-q", "?", "--pretraining-window", "3"], "--pretraining-window must be"),
        (["good.txt", "-q", "?", "--pretraining-window", "0"], "--pretraining-window must be"),
        (["junk.bin", "-q", "?"], "pass --encoding if it is text"),
        (["good.txt", "-q", "?", "--encoding", "punycode"], "can't be read as 'punycode'"),
        (["good.txt", "-q", "?", "--encoding", "a\0b"], "--encoding takes names such as utf-8"),
        (["good.txt", "-q", "?", "--seed", "9" * 30], "--seed must be an integer of at most 64"),
        (["good.txt", "-q", "\udcff"], "lone surrogate"),
        (["good.txt", "-q", "?", "--model", ""], "the name is empty"),
        (["good.txt", "-q", "?", "--model", "good.txt"], "it is a file; name the folder"),
        (["damaged.pdf", "-q", "?"], "damaged or unusual PDF"),
        (["-", "-", "-q", "?"], "name - once"),
        (["good.txt", "-q", "?", "--device", "warp9"], "warp9"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True], ids=["", "json"])
def test_bad_input_is_one_line_and_exit_code_2(
    run, bad_files, monkeypatch, model_folder, arguments, said, as_json
):
    monkeypatch.chdir(bad_files)
    if "--model" not in arguments:
        arguments = [*arguments, "--model", model_folder]
    code, out, err = run("ask", *arguments, *(["--json"] if as_json else []))
    assert code == 2
    assert out == ""
    assert err.startswith("selfextend-rag: error: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_model_that_can_not_be_extended_is_bad_input_for_a_long_document(run, tmp_path, long):
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=300, n_positions=128, bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    code, out, err = run("ask", long, "-q", "?", "--model", tmp_path, "--json")
    assert (code, out) == (2, "")
    assert "GPT2LMHeadModel can't be extended" in err


@pytest.mark.parametrize(
    "arguments", [[], ["ask"], ["ask", "x.txt"], ["nonsense"], ["plan"], ["support"]]
)
def test_missing_arguments_are_exit_code_2_with_the_usage(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: selfextend-rag" in err


def test_a_wrong_use_has_a_frame_on_a_terminal_alone(run, monkeypatch):
    assert "╭" not in run("plan")[2]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    code, out, err = run("plan")
    assert (code, out) == (2, "")
    assert "╭" in err


def test_a_model_that_is_no_decoder_is_one_short_line(run, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    code, _, err = run("support", tmp_path)
    assert code == 2
    assert "can't be judged by its configuration alone" in err
    assert len(err) < 600


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_an_output_that_can_not_be_written_is_one_line_and_exit_code_74(model_folder, short):
    for asked in (["plan", short, "--model", model_folder], ["ask", "--help"], ["--version"]):
        command = [sys.executable, "-m", "selfextend_rag", *asked]
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 74
        assert done.stderr == (
            "selfextend-rag: error: can't write the output: No space left on device\n"
        )


def test_an_output_that_nobody_reads_ends_the_program_without_a_word(model_folder, short):
    command = [sys.executable, "-m", "selfextend_rag", "plan", short, "--model", model_folder]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_output_is_one_line_and_exit_code_74(run, model_folder, short, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    code, _, err = run("plan", short, "--model", model_folder)
    assert code == 74
    assert "standard output is closed" in err
