"""Without a network, models by name fail in seconds, and those on disk load."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import HfApi, close_session, constants

from selfextend_rag.errors import ModelLoadError
from selfextend_rag.llm.loading import hub, sources
from selfextend_rag.llm.loading.model import load_model
from selfextend_rag.llm.loading.sources import load_config, load_tokenizer


@pytest.fixture
def online(monkeypatch):
    """The environment does not say to stay offline, and no proxy is on the way."""
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    forget = (hub._answers.cache_clear, close_session)
    for step in forget:
        step()
    yield monkeypatch
    for step in forget:
        step()


def _closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("load", [load_config, load_tokenizer, load_model])
def test_a_model_by_name_fails_in_seconds_where_the_hub_does_not_answer(online, load):
    """It took 64 s of retries."""
    online.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{_closed_port()}")
    begin = time.monotonic()
    with pytest.raises(ModelLoadError) as caught:
        load("nobody/no-such-model")
    assert time.monotonic() - begin < 5
    assert "127.0.0.1 can't be reached, and what was downloaded before does not hold" in str(
        caught.value
    )


def answers(name="nobody/no-such-model"):
    return hub.hub_answers(name)


def test_a_name_that_takes_forever_to_look_up_is_not_waited_for(online):
    online.setattr(hub, "_SECONDS_TO_ANSWER", 0.1)
    done = threading.Event()

    def look_up(*_, **__):
        done.wait(5)
        raise OSError

    online.setattr(socket, "getaddrinfo", look_up)
    begin = time.monotonic()
    assert not answers()
    assert time.monotonic() - begin < 1
    done.set()


class Nothing(BaseHTTPRequestHandler):
    """A hub, or a proxy on the way to it, that has none of the models."""

    def do_GET(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no name of the hub"])
def test_a_hub_that_has_no_such_model_answers(online, server, name):
    online.setattr(constants, "ENDPOINT", server)
    assert answers(name)


def test_a_hub_is_asked_through_the_proxy(online, server):
    online.setattr(constants, "ENDPOINT", "http://nowhere.invalid")
    online.setenv("http_proxy", server)
    assert answers()


def test_a_hub_is_asked_once_a_minute_for_a_model(online, server):
    asked = []
    online.setattr(HfApi, "model_info", lambda *_, **__: asked.append(0))
    assert [sources._where_to_look("nobody/no-such-model", {}) for _ in range(3)] == [{}] * 3
    assert len(asked) == 1


def test_the_environment_s_word_on_staying_offline_is_taken(online):
    online.setattr(constants, "is_offline_mode", lambda: True)
    online.setattr(socket, "getaddrinfo", None)  # would fail if it were called
    assert not answers()
    assert sources._where_to_look("nobody/no-such-model", {}) == {"local_files_only": True}


def test_a_folder_asks_nobody(online, tmp_path):
    online.setattr(sources, "hub_answers", None)
    with pytest.raises(ModelLoadError, match=r"there is no config\.json in this folder"):
        load_config(tmp_path)
    with pytest.raises(ModelLoadError, match="there is no tokenizer in this folder"):
        load_tokenizer(tmp_path)
