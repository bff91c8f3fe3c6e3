"""Without a network, models by name fail in seconds, and those on disk load."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from huggingface_hub import constants

from selfextend_rag.errors import ModelLoadError
from selfextend_rag.llm import hub
from selfextend_rag.llm.loading import load_config, load_model, load_tokenizer


@pytest.fixture
def online(monkeypatch):
    """The environment does not say to stay offline, and no proxy is on the way."""
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(hub, "_found", {})
    return monkeypatch


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


def test_a_name_that_takes_forever_to_look_up_is_not_waited_for(online):
    online.setattr(hub, "_SECONDS_TO_ANSWER", 0.1)
    done = threading.Event()

    def look_up(*_):
        done.wait(5)
        raise OSError

    online.setattr(socket, "create_connection", look_up)
    begin = time.monotonic()
    assert not hub.hub_is_reachable()
    assert time.monotonic() - begin < 1
    done.set()


def test_a_hub_or_proxy_that_listens_is_asked(online):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        online.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        assert hub.hub_is_reachable()
        online.setattr(constants, "ENDPOINT", "https://nowhere.invalid")
        online.setattr(hub, "getproxies", lambda: {"https": f"127.0.0.1:{port}"})
        assert hub.hub_is_reachable()


def test_the_environment_s_word_on_staying_offline_is_taken(monkeypatch):
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    monkeypatch.setattr(socket, "create_connection", None)  # would fail if it were called
    assert not hub.hub_is_reachable()


def test_a_folder_asks_nobody(online, tmp_path):
    online.setattr(hub, "hub_is_reachable", None)
    with pytest.raises(ModelLoadError, match=r"there is no config\.json in this folder"):
        load_config(tmp_path)
    with pytest.raises(ModelLoadError, match="there is no tokenizer in this folder"):
        load_tokenizer(tmp_path)
