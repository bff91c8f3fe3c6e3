"""The command line as a person uses it: what is written where, and the exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest

from selfextend_rag.cli.app import Command
from selfextend_rag.documents import Document
from selfextend_rag.llm import LongContextLLM, Reading
from selfextend_rag.planning import ContextPlan
from tests.documents.scans import fake_recogniser


@pytest.mark.parametrize("name", ["short", "long"])
def test_ask_writes_the_answer_and_nothing_else_to_standard_output(
    run, request, model_folder, name
):
    file = Path(request.getfixturevalue(name))
    code, out, err = run("ask", file, "-q", "Why?", "--model", model_folder)
    assert code == 0
    llm = LongContextLLM.from_pretrained(model_folder)
    text = file.read_text()
    expected = llm.read(text).ask("Why?").text
    assert out == f"{expected}\n"
    assert ("SelfExtend with group_size 4 and neighbor_window 32" in err) == (name == "long")
    assert ("attention runs plain" in err) == (name == "short")
    assert "trained on 128" in err or "the 128 the model was trained on" in err
    assert f"Read {llm.plan(text).prompt_tokens} tokens in" in err


def test_several_questions_are_asked_of_one_reading(run, model_folder, long):
    code, out, err = run("ask", long, "-q", "Why?", "-q", "Who?", "--model", model_folder)
    assert code == 0
    questions = [line for line in out.split("\n") if line.startswith("Q: ")]
    assert questions == ["Q: Why?", "Q: Who?"]
    assert out.count("\nA: ") == 2
    assert err.count("Read ") == 1


def test_questions_without_evidence_are_answered_together(run, model_folder, long, monkeypatch):
    asked = []
    real = Reading.ask_batch

    def ask_batch(reading, questions, **options):
        asked.append(list(questions))
        return real(reading, questions, **options)

    monkeypatch.setattr(Reading, "ask_batch", ask_batch)
    arguments = ["ask", long, "-q", "Why?", "-q", "Who?", "--model", model_folder]
    for more in ([], ["--json"]):
        one_by_one = run(*arguments, *more)
        assert not asked
        together = run(*arguments, "--no-evidence", *more)
        assert asked == [["Why?", "Who?"]]
        assert one_by_one[0] == together[0] == 0
        told = [one_by_one[1], together[1]]
        if more:
            told = [[(x["question"], x["text"]) for x in json.loads(o)["answers"]] for o in told]
        assert told[0] == told[1]
        asked.clear()
    assert run("ask", long, "-q", "Why?", "--model", model_folder, "--no-evidence")[0] == 0
    assert not asked


def test_json_is_one_object_and_nothing_else(run, model_folder, long, short):
    code, out, err = run(
        "ask", long, short, "-q", "Why?", "-q", "Who?", "--model", model_folder, "--json",
        "--max-new-tokens", 7,
    )  # fmt: skip
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values["model"] == model_folder
    assert [document["source"] for document in values["documents"]] == [long, short]
    plan = ContextPlan.from_dict(values["plan"])
    assert plan.extended
    assert plan.max_new_tokens == 7
    assert plan.reserve_tokens == len("\n\nQuestion: Why?\nAnswer:")
    assert [answer["question"] for answer in values["answers"]] == ["Why?", "Who?"]
    for answer in values["answers"]:
        assert answer["usage"]["cached_tokens"] == plan.prompt_tokens
        assert answer["usage"]["completion_tokens"] <= 7
    assert values["read_seconds"] > 0


def test_an_answer_that_was_cut_off_is_said_to_be(run, model_folder, short):
    _, _, err = run("ask", short, "-q", "?", "--model", model_folder, "--max-new-tokens", 1)
    assert "cut off after 1 tokens" in err


def test_settings_are_passed_on(run, model_folder, long):
    def ask(*options):
        code, out, _ = run("ask", long, "-q", "?", "--model", model_folder, "--json", *options)
        assert code == 0
        return json.loads(out)

    fixed = ask("--group-size", 5, "--neighbor-window", 30)["plan"]
    assert (fixed["group_size"], fixed["neighbor_window"]) == (5, 30)
    assert not ask("--plain")["plan"]["extended"]
    assert not ask("--pretraining-window", 1000)["plan"]["extended"]
    draws = {ask("--temperature", 5, "--seed", seed)["answers"][0]["text"] for seed in (1, 1, 2, 3)}
    assert 1 < len(draws) <= 3


def test_the_precision_is_passed_on(run, model_folder, short, monkeypatch):
    loaded = []
    plain = LongContextLLM.from_pretrained.__func__

    def load(cls, source, **options):
        loaded.append(plain(cls, source, **options))
        return loaded[-1]

    monkeypatch.setattr(LongContextLLM, "from_pretrained", classmethod(load))
    assert run("ask", short, "-q", "?", "--model", model_folder, "--dtype", "bfloat16")[0] == 0
    assert str(loaded[0].model.dtype) == "torch.bfloat16"


def test_the_bundled_model_is_the_default(run, short):
    code, out, err = run("plan", short, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["model"] == "bundled"
    assert json.loads(out)["plan"]["pretraining_window"] == 512


def test_version(run):
    assert run("--version")[:2] == (0, f"selfextend-rag {metadata.version('selfextend-rag')}\n")


@pytest.fixture
def _interruptible():
    """Also where tests run in the background, whose processes are started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_while_reading_is_exit_code_130_without_a_traceback(
    run, model_folder, short, monkeypatch
):
    """A real signal, in the middle of a forward, and one alone: another could hit the next test."""

    def interrupt(*_):
        hook.remove()
        signal.raise_signal(signal.SIGINT)

    plain, hook = LongContextLLM.from_pretrained.__func__, None

    def load(cls, source, **options):
        llm = plain(cls, source, **options)
        nonlocal hook
        hook = llm.model.register_forward_pre_hook(interrupt)
        return llm

    monkeypatch.setattr(LongContextLLM, "from_pretrained", classmethod(load))
    code, out, err = run("ask", short, "-q", "?", "--model", model_folder)
    assert (code, out) == (130, "")
    assert err.endswith("selfextend-rag: error: interrupted\n")
    assert "Traceback" not in err


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_while_answering_ends_the_answer(run, model_folder, short, monkeypatch):
    def write(self, text):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Command, "write", write)
    code, out, err = run("ask", short, "-q", "?", "--model", model_folder)
    assert (code, out) == (130, "")
    assert err.endswith("interrupted\n")


def test_warnings_are_one_line_each(run, tmp_path, model_folder):
    """The encoding of this file can only be guessed, which is worth a remark."""
    path = tmp_path / "latin.txt"
    path.write_bytes("Le café est fermé à midi, déjà. ".encode("cp1252"))
    code, out, err = run("plan", path, "--model", model_folder)
    assert (code, bool(out)) == (0, True)
    assert err.startswith("selfextend-rag: warning: ")
    assert err.count("\n") == 1


def test_progress_is_shown_on_a_terminal_alone(run, model_folder, long, monkeypatch):
    assert "reading" not in run("ask", long, "-q", "?", "--model", model_folder)[2]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert "reading" in run("ask", long, "-q", "?", "--model", model_folder)[2]


def test_what_goes_wrong_in_eval_is_one_line(run, monkeypatch):
    from selfextend_rag.evals import grids

    def fail(grid, write):
        raise OSError("no such model")

    monkeypatch.setattr(grids, "run_grid", fail)
    code, _, err = run("eval", "passkey")
    assert (code, err) == (2, "selfextend-rag: error: no such model\n")


def test_help_and_version_load_nothing_heavy():
    program = """
        import sys
        from selfextend_rag.cli import main
        for arguments in (["--help"], ["ask", "--help"], ["--version"]):
            try:
                main(arguments)
            except SystemExit as end:
                assert end.code == 0
        heavy = {"torch", "transformers", "numpy", "rich", "pypdfium2", "lxml"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60,
                   capture_output=True)  # fmt: skip


def test_the_program_runs_as_such(model_folder, short, run):
    """In an interpreter of its own, with nothing of transformers on standard error."""
    command = [sys.executable, "-m", "selfextend_rag", "ask", short, "-q", "Why?"]
    done = subprocess.run(
        [*command, "--model", model_folder], capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == run("ask", short, "-q", "Why?", "--model", model_folder)[1]
    lines = [line for line in done.stderr.split("\n") if line]
    remarks = [line for line in lines if line[0] not in "( "]  # no hints, no evidence
    assert [line.split()[0] for line in remarks] == ["17", "They", "Memory", "Read"]


def test_ask_shows_the_passages_an_answer_rests_on(run, model_folder, long):
    code, _, err = run("ask", long, "-q", "Why?", "--model", model_folder)
    assert code == 0
    llm = LongContextLLM.from_pretrained(model_folder)
    answer = llm.read(Document.from_file(long)).ask("Why?")
    text = Path(long).read_text()
    assert answer.evidence
    for passage in answer.evidence:
        line = text[: passage.start].count("\n") + 1
        assert f"{long}, line {line} ({passage.score:.0%}): " in err
    code, told, err = run("ask", long, "-q", "Why?", "--model", model_folder, "--json")
    (asked,) = json.loads(told)["answers"]
    assert asked["evidence"] == [passage.to_dict() for passage in answer.evidence]


def test_ask_shows_the_page_where_it_is_known(run, model_folder, scan, tmp_path):
    code, _, err = run("ask", scan, "-q", "Why?", "--model", model_folder)
    assert code == 0
    assert re.search(rf'^  {re.escape(scan)}, pages? \S+ \(\d+%\): "', err, re.MULTILINE)
    assert ", line " not in err
    saved = tmp_path / "x.kv"
    assert run("read", scan, "-o", saved, "--model", model_folder)[0] == 0
    again = run("ask", "--reading", saved, "-q", "Why?", "--model", model_folder, "--json")
    (asked,) = json.loads(again[1])["answers"]
    assert asked["evidence"]
    assert all(x["location"].startswith("page") for x in asked["evidence"])


@pytest.mark.parametrize("command", ["ask", "plan", "read"])
def test_scans_are_recognised_on_request(run, model_folder, scan, tmp_path, monkeypatch, command):
    fake_recogniser(tmp_path, monkeypatch, [(9, 9, "The grass is red.", 0.99)])
    asked = {"ask": ["-q", "?"], "plan": [], "read": ["-o", tmp_path / "x.kv"]}[command]
    given = [command, scan, "--model", model_folder, "--json", *asked]
    found = [json.loads(run(*given, *more)[1])["documents"][0] for more in ([], ["--ocr"])]
    assert [each["metadata"]["pages_without_text"] for each in found] == [[2], []]
    assert [each["remarks"][0]["kind"] for each in found] == [
        "pages without text",
        "recognised pages",
    ]
    assert "pictures, which --ocr reads, or blank" in run("plan", scan, "--model", model_folder)[2]


LACKS = "1 of 3 pages has no text"


def test_what_a_file_lacks_is_said_once(run, model_folder, scan, tmp_path):
    """By a warning when the file is read; a saved reading brings no file, and its plan says it."""
    saved = tmp_path / "x.kv"
    for command in (["ask", scan, "-q", "?"], ["read", scan, "-o", saved], ["plan", scan]):
        code, out, err = run(*command, "--model", model_folder)
        assert code == 0
        assert err.count(LACKS) == 1
        assert f"selfextend-rag: warning: {scan}: {LACKS}" in err
        assert out.count(LACKS) == (command[0] == "plan")
    code, _, err = run("ask", "--reading", saved, "-q", "?", "--model", model_folder)
    assert (code, err.count(LACKS)) == (0, 1)
    assert re.search(rf"^{re.escape(scan)}: {LACKS}.*\(loss\)$", err, re.MULTILINE)


def test_plans_name_options_and_not_arguments(run, model_folder, tmp_path):
    guessed = tmp_path / "guessed.txt"
    guessed.write_bytes("Le café est fermé à midi, déjà. ".encode("cp1252"))
    code, out, err = run("plan", guessed, "--model", model_folder)
    assert (code, "encoding=" in out + err) == (0, False)
    assert out.count("--encoding") == err.count("--encoding") == 1


def test_json_has_all_remarks(run, model_folder, scan, short, tmp_path):
    saved = tmp_path / "x.kv"
    for command in (
        ["ask", short, scan, "-q", "?"],
        ["read", short, scan, "-o", saved],
        ["plan", short, scan],
        ["ask", "--reading", saved, "-q", "?"],
    ):
        code, out, _ = run(*command, "--model", model_folder, "--json")
        assert code == 0
        values = json.loads(out)
        plain, scanned = values["documents"]
        assert (plain["source"], plain["remarks"]) == (short, [])
        assert scanned["remarks"] == [x.to_dict() for x in Document.from_file(scan).remarks]
        (planned,) = values["plan"]["remarks"]
        assert (planned["document"], planned["severity"]) == (scan, "loss")
        assert planned["message"] == scanned["remarks"][0]["message"]


def test_what_is_not_whole_is_refused_on_request(run, model_folder, scan, tmp_path):
    saved = tmp_path / "x.kv"
    model = ["--model", model_folder]
    assert run("read", scan, "-o", saved, *model)[0] == 0
    for command in (
        ["ask", scan, "-q", "?"],
        ["plan", scan],
        ["read", scan, "-o", tmp_path / "y.kv"],
        ["ask", "--reading", saved, "-q", "?"],
    ):
        for severity in ("loss", "warning"):
            code, out, err = run(*command, *model, "--strict", severity)
            assert (code, out) == (2, "")
            assert err == (
                f"selfextend-rag: error: {scan} is not read whole: {LACKS} (pictures, which --ocr "
                "reads, or blank) and is missing from the document: 2; mend the file, or read "
                "it without --strict\n"
            )
    guessed = tmp_path / "guessed.txt"
    guessed.write_bytes("Le café est fermé à midi, déjà. ".encode("cp1252"))
    assert run("plan", guessed, *model, "--strict", "loss")[0] == 0
    assert run("plan", guessed, *model, "--strict", "warning")[0] == 2
    assert run("plan", guessed, *model, "--strict", "all")[0] == 2


def test_folders_and_archives_are_read_and_what_is_skipped_is_said(run, model_folder, folder):
    archive = shutil.make_archive(str(folder.parent / "archive"), "zip", folder)
    for root in (str(folder), archive):
        for command in (["ask", root, "-q", "?"], ["plan", root], ["read", root, "-o", "OUT"]):
            command = [str(folder.parent / "x.kv") if x == "OUT" else x for x in command]
            code, out, err = run(*command, "--model", model_folder, "--json")
            values = json.loads(out)
            assert code == 0
            sources = [document["source"] for document in values["documents"]]
            assert sources == [f"{root}/a.txt", f"{root}/minutes/b.md"]
            (skip,) = values["skipped"]
            assert (skip["source"], skip["kind"]) == (f"{root}/photo.png", "unsupported")
            assert 'pages="auto"' in skip["message"]
            message = (
                skip["message"].replace('pages="auto"', "--pages auto").replace("ocr=True", "--ocr")
            )
            assert err == f"selfextend-rag: warning: skipped: {message}\n"
            assert values["unmatched"] == 0
            assert message in run(*command, "--model", model_folder)[2]


def test_a_pattern_chooses_files_of_folders(run, model_folder, folder):
    code, out, err = run("plan", folder, "--glob", "*.md", "--model", model_folder, "--json")
    values = json.loads(out)
    assert (code, err) == (0, "")
    assert [x["source"] for x in values["documents"]] == [f"{folder}/minutes/b.md"]
    assert (values["skipped"], values["unmatched"]) == ([], 2)
    code, out, err = run("plan", folder, "--glob", "*.pdf", "--model", model_folder)
    assert (code, out) == (2, "")
    assert err.startswith(
        f"selfextend-rag: error: {folder} has nothing to read; 3 files do not match"
    )


def test_evidence_can_be_switched_off(run, model_folder, long):
    code, _, err = run("ask", long, "-q", "Why?", "--model", model_folder, "--no-evidence")
    assert code == 0
    assert ", line " not in err
    _, told, _ = run("ask", long, "-q", "Why?", "--model", model_folder, "--no-evidence", "--json")
    assert json.loads(told)["answers"][0]["evidence"] == []


def test_standard_input_is_a_file_named_by_a_dash(model_folder):
    command = [sys.executable, "-m", "selfextend_rag", "plan", "-", "--model", model_folder]
    done = subprocess.run(command, input="The sky is blue.", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("17 tokens of prompt")


@pytest.mark.parametrize("command", ["plan", "support", "read"])
def test_the_bundled_model_has_a_name(run, short, tmp_path, command):
    arguments = {
        "plan": [short, "--model", "bundled"],
        "support": ["bundled"],
        "read": [short, "--model", "bundled", "-o", tmp_path / "x.kv"],
    }
    code, out, _ = run(command, *arguments[command])
    assert code == 0
    assert out


def test_file_names_that_are_no_text_are_read(run, model_folder, short, tmp_path):
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt")
    try:
        with open(name, "w") as file:
            file.write("The sea is green.")
    except OSError:
        pytest.skip("the file system takes no such name")
    code, out, _ = run("plan", os.fsdecode(name), short, "--model", model_folder, "--json")
    assert code == 0
    assert json.loads(out)["plan"]["prompt_tokens"] > 40
