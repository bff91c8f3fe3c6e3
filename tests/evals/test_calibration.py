"""The calibration: its grid, its judgement, and a whole run on the bundled model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from selfextend_rag import Document, LongContextLLM, extended
from selfextend_rag.cli import main
from selfextend_rag.evals.calibration import (
    Calibration,
    CalibrationCell,
    Calibrator,
    chosen,
    grid,
    judged,
    last_nll,
)
from selfextend_rag.evals.prose import Prose, king_james
from selfextend_rag.planning import CalibrationError, calibration_path, planner_defaults
from selfextend_rag.positions import SelfExtend


@pytest.fixture(scope="module")
def llm():
    return LongContextLLM.bundled()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFEXTEND_RAG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(("window", "length"), [(512, 2048), (4096, 16384), (8192, 100_000)])
def test_the_grid_covers_the_window_and_never_leaves_it(window, length):
    settings = grid(window, length)
    reaches = [(one.bands[-1].query_position(length - 1) + 1) / window for one in settings]
    assert all(one.extended_window(window) >= length for one in settings)
    assert max(reaches) > 0.9
    assert min(reaches) < 0.55
    assert len({one.neighbor_window > window // 3 for one in settings}) == 2


def cell(group, window, fraction, right, perplexity):
    return CalibrationCell(group, window, fraction, right, 10, perplexity, good=False)


INSIDE = cell(1, 512, 1.0, 10, 40.0)


def test_good_is_what_finds_keys_and_predicts_as_well_as_the_best():
    cells = [
        cell(8, 64, 0.6, 10, 30.0),
        cell(5, 64, 0.9, 8, 30.0),
        cell(4, 128, 1.0, 9, 31.4),
        cell(7, 256, 0.9, 10, 31.6),
    ]
    assert [one.good for one in judged(INSIDE, cells)] == [True, False, True, False]
    found = chosen("m", 512, 2048, INSIDE, judged(INSIDE, cells))
    assert (found.trained_fraction, found.neighbor_share) == (1.0, 0.25)


def test_nothing_good_is_said_and_not_stored():
    cells = judged(INSIDE, [cell(8, 64, 0.6, 1, 30.0)])
    with pytest.raises(CalibrationError, match="none of 1 settings was as good at 2048 tokens"):
        chosen("m", 512, 2048, INSIDE, cells)


def test_the_last_tokens_are_judged_in_the_whole_context(llm):
    tokens = list(range(5, 805))
    for settings in (None, SelfExtend(4, 64)):
        found = last_nll(llm.engine, tokens, 100, settings)
        ids = torch.tensor([tokens])
        with torch.inference_mode():
            if settings is None:
                logits = llm.model(ids).logits[0]
            else:
                with extended(llm.model, settings):
                    logits = llm.model(ids).logits[0]
        expected = torch.nn.functional.cross_entropy(
            logits[-101:-1], ids[0, -100:], reduction="none"
        )
        torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-4)


def test_lengths_and_texts_that_do_not_do_are_refused(llm):
    prose = Prose.tokenize(king_james()[:3000], llm.tokenizer)
    with pytest.raises(ValueError, match="length must exceed the window of 512 tokens, got 512"):
        Calibrator(llm.engine, llm.tokenizer, prose, window=512, length=512)
    with pytest.raises(ValueError, match="give files with at least 2048 in all"):
        Calibrator(llm.engine, llm.tokenizer, prose, window=512, length=2048)


def test_the_command_measures_and_stores_where_plans_look(llm, home, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(king_james()[:20000])
    arguments = ["--length", "700", "--depths", "1", "--samples", "1", "--json"]
    assert main(["calibrate", "bundled", str(text), *arguments]) == 0
    written = json.loads(capsys.readouterr().out)
    path = calibration_path(llm.model.config)
    assert written["stored"] == str(path)
    assert path.is_relative_to(home)
    found = Calibration.from_file(path)
    assert json.loads(json.dumps(found.to_dict())) == written["calibration"]
    assert len(found.cells) >= 5
    planner = LongContextLLM.bundled().planner
    assert planner.trained_fraction == found.trained_fraction
    assert planner.neighbor_share == found.neighbor_share
    assert LongContextLLM.bundled(trained_fraction=0.6).planner.trained_fraction == 0.6
    smaller = {**found.to_dict(), "trained_fraction": 0.5}  # so that the plan is another for sure
    path.write_text(json.dumps(smaller))
    assert main(["plan", "examples/documents/genesis.txt", "--json"]) == 0
    by_command = json.loads(capsys.readouterr().out)["plan"]
    document = Document.from_file("examples/documents/genesis.txt")
    plan = LongContextLLM.bundled().plan(document)
    assert by_command["group_size"] == plan.group_size
    assert plan.group_size != llm.plan(document).group_size  # made before there was a calibration
    assert planner_defaults(llm.model.config, 1024) == {}  # measured for another window


def test_a_place_that_can_not_be_written_is_one_line(tmp_path, capsys):
    text, blocked = tmp_path / "text.txt", tmp_path / "file"
    text.write_text(king_james()[:20000])
    blocked.write_text("")
    arguments = ["--length", "600", "--depths", "1", "--samples", "1"]
    output = ["--output", str(blocked / "map.json")]
    assert main(["calibrate", "bundled", str(text), *arguments, *output]) == 2
    assert "can't store the calibration in" in capsys.readouterr().err


def test_another_model_has_another_calibration(llm):
    config = llm.model.config
    tuned = type(config).from_dict(config.to_dict())
    tuned._name_or_path = "somebody/tuned"
    assert calibration_path(tuned) != calibration_path(config)
    deeper = type(config).from_dict({**config.to_dict(), "num_hidden_layers": 9})
    deeper._name_or_path = config._name_or_path
    assert calibration_path(deeper) != calibration_path(config)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "can't use the calibration .*: "),
        ("[]", "not a calibration"),
        ('{"format": 7}', "of format 7, expected 1"),
        ('{"format": 1}', "not a calibration: 'neighbor_share'"),
    ],
)
def test_a_calibration_that_can_not_be_read_is_refused(llm, content, reason):
    path = calibration_path(llm.model.config)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(CalibrationError, match=reason):
        planner_defaults(llm.model.config, 512)


def test_shares_out_of_order_are_refused(llm, tmp_path):
    good = judged(INSIDE, [cell(4, 128, 1.0, 10, 30.0)])
    wrong = replace(chosen("m", 512, 2048, INSIDE, good), neighbor_share=1.0).to_dict()
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(wrong))
    with pytest.raises(CalibrationError, match="must be in order within"):
        Calibration.from_file(path)


@pytest.mark.parametrize("name", ["depths", "samples"])
def test_nothing_is_calibrated_by_no_measurement(name, capsys):
    """With no depths, a calibration without a single pass key was stored."""
    assert main(["calibrate", "bundled", f"--{name}", "0"]) == 2
    assert f"--{name} must be a positive integer, got 0" in capsys.readouterr().err
