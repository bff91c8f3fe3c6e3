"""The commands of docs/vllm.md, as vLLM itself reads them. Needs vLLM."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from selfextend_rag.bundled import FOLDER
from vllm_selfextend.settings import option_of, resolve

pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")
CONFIG = SimpleNamespace(
    max_position_embeddings=8192
)  # a model that 32,768 tokens are too many for


def commands() -> list[list[str]]:
    """The flags of every server that the page starts, and of every row of its recipes."""
    found = []
    for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL):
        words = shlex.split(block.replace("\\\n", " "), comments=True) if "--" in block else []
        if "--additional-config" in words:
            start = words.index("MODEL") + 1
            found.append(words[start:])
    recipes = PAGE.split("## Recipes")[1].split("##")[0]
    for row in re.findall(r"^\|.*\|$", recipes, re.MULTILINE):
        flags = [text for text in re.findall(r"`([^`]*)`", row) if text.startswith("--")]
        if flags:
            found.append(shlex.split(" ".join(flags)))
    return found


@pytest.fixture(scope="module")
def parser():
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


@pytest.mark.parametrize("flags", commands(), ids=" ".join)
def test_vllm_reads_each_command_of_the_page(parser, flags):
    from vllm.engine.arg_utils import AsyncEngineArgs

    given = AsyncEngineArgs.from_cli_args(parser.parse_args(["--model", str(FOLDER), *flags]))
    option = option_of(given.additional_config)
    assert ("--additional-config" in flags) == (option is not None)
    if option is not None:
        assert resolve(option, CONFIG).settings.group_size > 1


def test_the_page_has_the_recipes_that_it_promises():
    joined = [" ".join(flags) for flags in commands()]
    for words in (
        "--tensor-parallel-size 4", "--pipeline-parallel-size 2", "executor-backend ray",
        "--node-rank 0", "--headless", "--max-model-len 32768 --additional-config",
    ):  # fmt: skip
        assert any(words in one for one in joined), words


def test_the_container_adds_this_package_to_what_vllm_installed_and_changes_nothing(tmp_path):
    """Its last line, as pip resolves it in this environment, without an index to look things up."""
    (line,) = re.findall(r"^RUN (.*)$", PAGE, re.MULTILINE)
    line = line.replace("pip ", f"{shlex.quote(sys.executable)} -m pip ")
    line = line.replace("/tmp/installed", str(tmp_path / "installed"))
    how = "--dry-run --no-index --no-build-isolation"
    line = line.replace("/opt/selfextend-rag", f"{how} {shlex.quote(str(ROOT))}")
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (would,) = re.findall(r"^Would install (.*)$", done.stdout, re.MULTILINE)
    assert re.fullmatch(r"selfextend-rag-\S+", would)


def test_every_option_on_the_page_is_one_that_the_plugin_takes():
    found = re.findall(r'"selfextend": (\{[^{}]*\})', PAGE)
    assert len(found) >= 3
    for option in found:
        resolve(json.loads(option), CONFIG)
