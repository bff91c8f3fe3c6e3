"""What docs/server.md tells people to type works against a server."""

from __future__ import annotations

import re

import pytest

from selfextend_rag.cli.serve import Serve
from selfextend_rag.serve.api.requests import Sampling
from selfextend_rag.serve.errors import ApiError
from tests.serve.test_chat import asked
from tests.test_docs import BLOCK, PRINTED, REMOTE, ROOT, SERVER

PAGE = (ROOT / SERVER).read_text("utf-8")
ADDRESS = "http://127.0.0.1:8000"
SNIPPETS = [
    pytest.param(found[2], id=f"{name}-{number}")
    for name in (SERVER, REMOTE)
    for number, found in enumerate(BLOCK.finditer((ROOT / name).read_text("utf-8")))
    if found[1] == "python"
]


@pytest.mark.parametrize("source", SNIPPETS)
def test_snippets_print_what_they_say(server, source, capsys, monkeypatch):
    for library in ("openai", "langchain_core", "llama_index.core"):
        pytest.importorskip(library, reason=f"a snippet uses {library}")
    monkeypatch.chdir(ROOT)
    assert ADDRESS in source
    exec(compile(source.replace(ADDRESS, server.url), "snippet", "exec", dont_inherit=True), {})
    printed = capsys.readouterr().out
    assert PRINTED.findall(source)
    for promised in PRINTED.findall(source):
        assert promised in printed


def fields_of(row):
    """The fields in the first cell of the row whose second begins so."""
    cells = [line.split("|")[1:3] for line in PAGE.splitlines() if line.startswith("| ")]
    (first,) = [fields for fields, about in cells if about.strip().startswith(row)]
    return re.findall(r"`(\w+)`", first)


def test_the_fields_that_it_says_are_refused_are():
    with pytest.raises(ApiError):
        Sampling(model="m", functions=[]).check_fields()
    names = fields_of("refused, unless")
    assert len(names) > 10
    for name in names:
        with pytest.raises(ApiError, match=name):
            Sampling(model="m", **{name: ["odd"]}).check_fields()
        Sampling(model="m", **{name: None}).check_fields()


def test_the_fields_that_it_says_have_no_effect_are_taken(client):
    names = fields_of("taken, without effect")
    assert len(names) > 4
    assert asked(client, **dict.fromkeys(names, "any")).status_code == 200


def test_the_options_it_names_are_there():
    fields = {name.replace("_", "-") for name in Serve.__dataclass_fields__}
    for option in re.findall(r"`--([a-z-]+)", PAGE):
        assert option in fields, option
