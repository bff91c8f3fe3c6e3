"""The measurement of the bundled model runs what is missing, and renews pages between marks."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PASSKEYS = ("passkey", "plain-window")


@pytest.fixture
def script(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["bundled_model"])
    return runpy.run_path(str(ROOT / "benchmarks" / "bundled_model.py"))


@pytest.fixture
def found(script, tmp_path):
    made = script["Measurement"](samples=4, long_samples=2)
    made.out = tmp_path
    return made


def test_a_command_is_run_again_only_with_other_arguments(script, found, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append(command))
    found.run("passkey")
    once = len(ran)
    found.run("passkey")
    assert len(ran) == once == len(found.commands("passkey"))
    more = script["Measurement"](samples=5, long_samples=2)
    more.out = tmp_path
    more.run("passkey")
    assert len(ran) > once


def test_each_step_names_scripts_and_folders_of_its_own(script, found):
    for step in script["STEPS"]:
        for name, command in found.commands(step).items():
            assert command[0] == "-m" or (ROOT / command[0]).exists()
            assert any(str(found.folder(step, name)) in part for part in command)


def test_a_table_replaces_what_is_between_its_marks_and_nothing_else(script):
    page = (
        "a\n<!-- measured: x -->\nold\n<!-- end -->\nb\n<!-- measured: y -->\nkept\n<!-- end -->\n"
    )
    assert script["renewed"](page, {"x": "| new |"}) == page.replace("old", "| new |")


def test_lengths_are_joined_into_one_report(script, found):
    for name in found.commands("passkey"):
        label = name.partition("-")[0]
        folder = found.folder("passkey", name)
        folder.mkdir(parents=True)
        cell = {"length": 512, "depth": 0.5, "right": 1, "samples": 2}
        report = {"seconds": 1.0, "results": {label: [cell]}}
        (folder / "results.json").write_text(json.dumps(report))
    merged = found.grid("passkey")
    assert {label: len(cells) for label, cells in merged["results"].items()} == {
        "plain": 3,
        "selfextend": 2,
    }
    assert merged["seconds"] == 5.0


def test_the_pages_hold_tables_between_known_marks(script):
    named = set()
    for page in script["PAGES"]:
        text = (ROOT / page).read_text("utf-8")
        for name, table in re.findall(
            r"<!-- measured: (\w+) -->\n(.*?)<!-- end -->", text, re.DOTALL
        ):
            named.add(name)
            assert table.startswith("| "), f"{page}: {name} has not been measured"
    assert named == set(script["TABLES"])
