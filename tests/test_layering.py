"""Imports point one way: read from the import statements, so that no test has to notice it.

A *room* is a module or package directly below ``selfextend_rag``; a package's own modules are one
room. The integrations are rooms of their own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = "selfextend_rag"
INTEGRATIONS = ("langchain_selfextend", "llama_index.llms.selfextend")
VLLM = "vllm_selfextend"  # computes inside another engine: it builds on tensors, and on no text

# Rooms beside the order, and what of ours they may import.
BASE: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "display": frozenset(),
    "bundled": frozenset(),
    "positions": frozenset({"errors"}),
    "maps": frozenset({"positions"}),
    "documents": frozenset({"errors"}),
    "planning": frozenset({"display", "errors", "maps", "positions"}),
}
# The order: a room may import every earlier one, and of the rooms above these. A new room has to
# name its place here.
FROM_TENSORS_UP = ("rope", "attention", "cache", "model", "engine")
FROM_TEXT_UP = ("evidence", "text", "output", "llm", "corpus", "evals", "serve", "cli", "__main__")


def _order() -> dict[str, frozenset[str]]:
    allowed = dict(BASE)
    earlier: set[str] = set()
    for room in (*FROM_TENSORS_UP, *FROM_TEXT_UP):
        beside: set[str] = {"display", "errors", "maps", "positions"}
        if room in FROM_TEXT_UP:
            beside = set(BASE)
        elif room in ("model", "engine"):  # what layers keep is measured for the planner
            beside |= {"planning"}
        allowed[room] = frozenset(beside) | earlier
        earlier.add(room)
    return allowed


MAY_IMPORT = _order() | {VLLM: frozenset({*BASE, "rope", "attention"} - {"bundled", "documents"})}

# What a room may not import of others, because its work is defined without it.
MAY_NOT_USE: dict[str, frozenset[str]] = {
    "positions": frozenset({"torch", "numpy", "transformers", "pathlib", "io"}),
    "maps": frozenset({"torch", "numpy", "transformers", "pathlib", "io"}),
    "planning": frozenset({"torch", "numpy", "transformers", "safetensors"}),
    "documents": frozenset({"torch", "transformers"}),
    "rope": frozenset({"transformers", "tokenizers"}),
    "attention": frozenset({"transformers", "tokenizers"}),
    VLLM: frozenset({"transformers", "tokenizers"}),
    **dict.fromkeys(
        (*INTEGRATIONS, "serve"), frozenset({"torch", "transformers", "numpy", "safetensors"})
    ),
}
FRAMEWORKS = frozenset({"langchain", "langchain_core", "llama_index", "langchain_selfextend"})
CLUSTER = frozenset({"ray", "pyarrow"})
HTTP = frozenset({"httpx", "httpx2"})
WEB = frozenset({"fastapi", "starlette", "uvicorn", "prometheus_client"})

WRITERS = frozenset({"cache/files.py", "cache/store.py", "corpus", "evals", "llm/loading/gguf.py"})
_WRITING_METHODS = frozenset(
    ("write_text", "write_bytes", "savefig", "save_file", "save_pretrained", "mkdir", "makedirs")
) | frozenset(("unlink", "rmtree", "touch", "copyfile", "NamedTemporaryFile", "mkstemp"))


def modules() -> Iterator[tuple[str, str]]:
    """The name within its source root, and the source, of every module that is shipped."""
    for root in (ROOT, ROOT / "integrations"):
        for package in (CORE, *INTEGRATIONS, VLLM):
            for path in sorted((root / package.replace(".", "/")).rglob("*.py")):
                yield path.relative_to(root).as_posix(), path.read_text("utf-8")


def room_of(module: str) -> str:
    """The room of a dotted module name; empty for the front door and for others' modules."""
    for integration in (*INTEGRATIONS, VLLM):
        if module == integration or module.startswith(integration + "."):
            return integration
    parts = module.split(".")
    if parts[0] == CORE and parts[-1] == "__main__":  # also a package's: a program is the last
        return "__main__"
    return parts[1] if parts[0] == CORE and len(parts) > 1 else ""


def imported(file: str, source: str) -> Iterator[str]:
    """Every imported name in full: ``from a.b import c`` gives ``a.b.c``; relative ones too."""
    package = file.removesuffix(".py").replace("/", ".").split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def violations(file: str, source: str) -> list[str]:
    """What a module imports although its room may not."""
    room = room_of(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    if not room:  # the front door hands out names of every room
        return []
    if room not in MAY_IMPORT and room not in INTEGRATIONS:
        return [f"{file}: no place in the order of imports is named for {room!r}"]
    return [
        f"{file} imports {name}: {reason}"
        for name in imported(file, source)
        if (reason := _objection(room, file, name))
    ]


def _objection(room: str, file: str, name: str) -> str:
    top = name.split(".")[0]
    if top == CORE:
        return _objection_to_ours(room, name)
    if top in MAY_NOT_USE.get(room, ()):
        return f"{room} works without it"
    if top == "triton" and not file.startswith(f"{CORE}/attention/triton"):
        return "triton stays in attention/triton"
    if top == "vllm" and room != VLLM:
        return "only its plugin knows vLLM"
    if top in FRAMEWORKS and room not in INTEGRATIONS:
        return "the core knows no framework"
    if top in WEB and room != "serve":
        return "only the server knows the web"
    if top in HTTP and not file.startswith(f"{CORE}/llm/remote"):
        return "requests are sent in llm/remote"
    if top in CLUSTER and room != "corpus":
        return "only a corpus is spread out"
    if top == "matplotlib" and room != "evals":
        return "only the evaluations draw"
    return ""


def _objection_to_ours(room: str, name: str) -> str:
    parts = name.split(".")
    target = room_of(name)
    if room in INTEGRATIONS:
        public = len(parts) <= 2 and not parts[-1].startswith("_")
        return "" if public else "integrations use the public names of selfextend_rag alone"
    if target not in MAY_IMPORT:
        return "no room of that name; the rooms do not go through the front door"
    if target == room:
        return ""
    if any(part.startswith("_") for part in parts):
        return "a private name of another room"
    return "" if target in MAY_IMPORT[room] else f"{room} comes before {target}"


def writes(source: str) -> list[str]:
    """The calls of a module that write, make or remove files."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [ast.unparse(call) for call in calls if _writes(call)]


def _writes(call: ast.Call) -> bool:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = getattr(function.value, "id", "") if isinstance(function, ast.Attribute) else ""
    if name in ("open", "fdopen"):
        modes = [*call.args, *(k.value for k in call.keywords if k.arg == "mode")]
        texts = [m.value for m in modes if isinstance(m, ast.Constant) and isinstance(m.value, str)]
        return any(set(text) <= set("rwaxbt+") and set(text) & set("wax+") for text in texts)
    if name in ("save", "savez", "dump") and owner in ("torch", "np", "numpy", "json", "pickle"):
        return True
    return name in _WRITING_METHODS or (name in ("replace", "rename", "remove") and owner == "os")


@pytest.mark.parametrize(("file", "source"), [pytest.param(*m, id=m[0]) for m in modules()])
def test_imports_point_one_way(file, source):
    assert violations(file, source) == []


@pytest.mark.parametrize(("file", "source"), [pytest.param(*m, id=m[0]) for m in modules()])
def test_files_are_written_in_few_places(file, source):
    within = file.removeprefix(f"{CORE}/")
    if not (within in WRITERS or within.split("/")[0] in WRITERS):
        assert writes(source) == []


def test_the_order_has_no_circles():
    done: set[str] = set()
    while len(done) < len(MAY_IMPORT):
        ready = {room for room, needs in MAY_IMPORT.items() if room not in done and needs <= done}
        assert ready, sorted(set(MAY_IMPORT) - done)
        done |= ready


@pytest.mark.parametrize(
    ("file", "source", "reason"),
    [
        ("selfextend_rag/rope.py", "import selfextend_rag.attention", "rope comes before"),
        ("selfextend_rag/rope.py", "from .attention.api import Impl", "rope comes before"),
        ("selfextend_rag/cache/layers.py", "from ..model import extend", "cache comes before"),
        ("selfextend_rag/cache/layers.py", "from .. import model", "cache comes before"),
        ("selfextend_rag/engine/a.py", "def f():\n    import selfextend_rag.llm", "engine comes"),
        ("selfextend_rag/planning/a.py", "from selfextend_rag.rope import x", "planning comes"),
        ("selfextend_rag/planning/__init__.py", "from ..cache import x", "planning comes"),
        ("selfextend_rag/documents/a.py", "from selfextend_rag.llm import x", "documents comes"),
        ("selfextend_rag/engine.py", "from selfextend_rag import extend", "the front door"),
        ("selfextend_rag/engine.py", "from selfextend_rag.model.probe import _search", "private"),
        ("selfextend_rag/positions.py", "import torch", "positions works without it"),
        ("selfextend_rag/attention/api.py", "from transformers import Cache", "works without it"),
        ("selfextend_rag/attention/api.py", "import triton.language as tl", "triton stays"),
        ("selfextend_rag/llm.py", "import langchain_core.messages", "no framework"),
        ("selfextend_rag/llm.py", "from matplotlib import pyplot", "only the evaluations"),
        ("selfextend_rag/llm/llm.py", "import httpx2", "requests are sent in"),
        ("selfextend_rag/evals/runner.py", "import ray", "only a corpus is"),
        ("selfextend_rag/novel.py", "", "no place in the order"),
        ("selfextend_rag/attention/paged.py", "import vllm.config", "only its plugin"),
        ("vllm_selfextend/cpu.py", "from selfextend_rag.cache import x", "vllm_selfextend comes"),
        ("vllm_selfextend/cpu.py", "import transformers", "works without it"),
        ("langchain_selfextend/llms.py", "import torch", "works without it"),
        ("langchain_selfextend/llms.py", "from selfextend_rag import _HOMES", "public names"),
        ("langchain_selfextend/llms.py", "from selfextend_rag.llm import X", "public names"),
        ("llama_index/llms/selfextend/base.py", "import selfextend_rag.a.b", "public names"),
    ],
)
def test_a_forbidden_import_is_caught(file, source, reason):
    (found,) = violations(file, source)
    assert reason in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("selfextend_rag/__init__.py", "from selfextend_rag.llm import LongContextLLM"),
        ("selfextend_rag/attention/api.py", "from .blocked import _tiles\nimport torch"),
        ("selfextend_rag/attention/triton/launch.py", "import triton.language as tl"),
        ("selfextend_rag/engine/a.py", "from selfextend_rag.errors import SelfExtendError"),
        ("selfextend_rag/evals/plots.py", "from matplotlib import pyplot"),
        ("selfextend_rag/serve/app.py", "from fastapi import FastAPI"),
        ("selfextend_rag/llm/remote/http.py", "import httpx2"),
        ("langchain_selfextend/llms.py", "from selfextend_rag import Document\nimport asyncio"),
        ("langchain_selfextend/llms.py", "from langchain_core.messages import AIMessage"),
        ("llama_index/llms/selfextend/base.py", "from .retriever import x"),
    ],
)
def test_an_allowed_import_is_let_through(file, source):
    assert violations(file, source) == []


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("open(path, 'w')", True),
        ("path.open(mode='ab')", True),
        ("open(path, 'rb')", False),
        ("open('wax')", True),  # a name made of mode letters: rather too strict than too lax
        ("open(path, encoding='utf-8')", False),
        ("path.write_text('x')", True),
        ("safetensors.torch.save_file(x, path)", True),
        ("torch.save(x, path)", True),
        ("reading.save(path)", False),
        ("os.replace(a, b)", True),
        ("text.replace('a', 'b')", False),
    ],
)
def test_a_call_that_writes_is_caught(source, caught):
    assert bool(writes(source)) is caught
