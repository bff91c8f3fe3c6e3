"""What `serve` and `app` refuse before anything is loaded, and what they are given."""

from __future__ import annotations

import socket
import threading

import pytest

from selfextend_rag.cli import main
from selfextend_rag.cli import serve as command

pytest.importorskip("fastapi", reason="the server's libraries are not installed")


@pytest.fixture
def made(monkeypatch):
    """What create_app was given, in place of a server that runs on."""
    import selfextend_rag.serve as serve

    given = {}
    create = serve.create_app

    def create_app(llm, settings, **more):
        app = create(llm, settings, **more)
        given.update(llm=llm, settings=settings, app=app, **more)
        return app

    monkeypatch.setattr(serve, "create_app", create_app)
    monkeypatch.setattr(serve, "listen", lambda host, port: f"http://{host}:{port}")
    monkeypatch.setattr(serve, "run", run)
    return given


def run(make, bound, settings, on_start):
    assert make().state.served.settings == settings
    on_start(bound)


def test_a_server_that_others_reach_wants_a_key(capsys, monkeypatch):
    monkeypatch.delenv(command.KEY_VARIABLE, raising=False)
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert f"set {command.KEY_VARIABLE} or give --api-key" in capsys.readouterr().err


def test_with_a_key_it_is_reached_under_any_name_or_those_given(made, monkeypatch):
    monkeypatch.setenv(command.KEY_VARIABLE, "secret")
    assert main(["serve", "--host", "0.0.0.0"]) == 0
    assert made["settings"].api_key == "secret"
    assert made["settings"].allowed_hosts == ("*",)
    assert main(["serve", "--host", "0.0.0.0", "--allowed-host", "a.example"]) == 0
    assert "*" not in made["settings"].allowed_hosts
    assert "a.example" in made["settings"].allowed_hosts


def test_options_reach_the_model_and_the_server(made, capsys, tmp_path):
    options = ["--max-new-tokens", "9", "--group-size", "4", "--max-waiting", "3", "--name", "mine"]
    folder = tmp_path / "readings"
    assert main(["serve", *options, "--readings-dir", str(folder)]) == 0
    assert capsys.readouterr().out == "http://127.0.0.1:8000/v1\n"
    served = made["app"].state.served
    assert served.model_name == "mine"
    assert served.with_defaults({}) == {"max_new_tokens": 9}
    assert made["llm"].planner.group_size == 4
    assert served.admission.max_waiting == 3
    assert folder.is_dir()
    assert not made["web"]


def test_files_are_kept_from_the_start(made, capsys):
    assert main(["serve", "examples/documents/genesis.txt"]) == 0
    (file,) = made["app"].state.served.files.all()
    assert file.name == "genesis.txt"
    assert f"examples/documents/genesis.txt: {file.id}" in capsys.readouterr().err


def test_more_files_than_are_kept_are_refused_in_one_line(made, capsys, monkeypatch):
    keep = command.Serve.keep

    def kept_by_a_small_server(self, files, documents):
        files.most = 0
        keep(self, files, documents)

    monkeypatch.setattr(command.Serve, "keep", kept_by_a_small_server)
    assert main(["serve", "examples/documents/genesis.txt"]) == 2
    assert "the server keeps 0 files" in capsys.readouterr().err


def test_app_opens_the_page(made, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(command.webbrowser, "open", opened.append)
    assert main(["app"]) == 0
    for thread in threading.enumerate():
        if thread.name == "selfextend-rag-browser":
            thread.join()
    assert opened == ["http://127.0.0.1:8000/app/"]
    assert main(["app", "--no-browser"]) == 0
    assert len(opened) == 1
    assert made["web"]


def test_a_port_in_use_is_refused_in_one_line_before_the_model_is_loaded(capsys, monkeypatch):
    """It was found out once the model was loaded, which may take minutes."""
    monkeypatch.setattr(command.Serve, "load", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert f"can't listen on 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--max-waiting", "-1"], ["--host", "no.such.host.invalid"], ["--port", "70000"]]
)
def test_what_is_out_of_range_is_refused(options, capsys, monkeypatch):
    monkeypatch.setenv(command.KEY_VARIABLE, "secret")
    assert main(["serve", *options]) == 2
    assert capsys.readouterr().err.startswith("selfextend-rag: error:")
