"""Examples are loaded as the scripts that they are, and run as users run them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_example(monkeypatch, capsys, tmp_path):
    """Run a script of examples/ with arguments in an empty directory; return what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELFEXTEND_RAG_HOME", str(tmp_path / "home"))

    def run(name, *arguments):
        load(name).main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


def load(name):
    """Return a script of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclasses look for their annotations
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module
