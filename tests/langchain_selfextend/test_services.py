"""The framework's services: callbacks, caches, rate limits, serialisation."""

from __future__ import annotations

import json
import time

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.load import dumpd, dumps, load
from langchain_core.rate_limiters import InMemoryRateLimiter

from langchain_selfextend import ChatSelfExtend
from tests.langchain_selfextend.conftest import PASSKEY, SMALL, count_calls

LOADED = {"allowed_objects": [ChatSelfExtend], "valid_namespaces": ["langchain_selfextend"]}


class Tokens(BaseCallbackHandler):
    def __init__(self):
        self.seen = []

    def on_llm_new_token(self, token, **kwargs):
        self.seen.append(token)


def test_callbacks_hear_every_piece(chat):
    heard = Tokens()
    text = "".join(chunk.text for chunk in chat.stream(PASSKEY, {"callbacks": [heard]}))
    assert "".join(heard.seen) == text == "48213"
    heard = Tokens()
    ChatSelfExtend(**SMALL, streaming=True).invoke(PASSKEY, {"callbacks": [heard]})
    assert "".join(heard.seen) == "48213"


def test_usage_callbacks_count_by_model_name(chat):
    counted = UsageMetadataCallbackHandler()
    chat.invoke(PASSKEY, {"callbacks": [counted]})
    assert counted.usage_metadata["bundled"]["input_tokens"] > 0


async def test_events_of_a_stream(chat):
    events = [event async for event in chat.astream_events(PASSKEY, version="v2")]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "on_chat_model_start"
    assert kinds[-1] == "on_chat_model_end"
    pieces = [e["data"]["chunk"].text for e in events if e["event"] == "on_chat_model_stream"]
    assert "".join(pieces) == "48213"


def test_the_frameworks_cache_answers_for_the_model(chat, monkeypatch):
    cached = ChatSelfExtend(**SMALL, cache=InMemoryCache())
    calls = count_calls(monkeypatch, cached.llm)
    assert cached.invoke(PASSKEY).content == cached.invoke(PASSKEY).content == "48213"
    assert len(calls) == 1
    cached.invoke(PASSKEY, max_tokens=1)
    assert len(calls) == 2


def test_the_frameworks_cache_keeps_two_loaded_models_apart(tiny, chat):
    """Models that were handed over have no name to tell them by; they shared a key once."""
    cache = InMemoryCache()
    one = ChatSelfExtend(llm=chat.llm, max_tokens=8, cache=cache)
    other = ChatSelfExtend(llm=tiny, max_tokens=8, cache=cache)
    one.invoke(PASSKEY)
    other.invoke(PASSKEY)
    assert len(cache._cache) == 2


def test_the_frameworks_rate_limiter_is_asked(chat):
    limiter = InMemoryRateLimiter(requests_per_second=4, check_every_n_seconds=0.01)
    slow = ChatSelfExtend(**SMALL, rate_limiter=limiter)
    started = time.monotonic()
    slow.batch(["a", "b"], max_tokens=1)
    assert time.monotonic() - started > 0.25


def test_a_named_model_is_serialised_with_its_arguments(chat):
    made = ChatSelfExtend(
        **SMALL, temperature=0.5, stop=["x"], neighbor_window=64, quantization_config=None
    )
    again = load(dumpd(made), **LOADED)
    assert again.llm is made.llm
    assert again.asdict() == made.asdict()
    assert (again.temperature, again.stop, again.max_tokens) == (0.5, ["x"], 8)


def test_a_quantization_config_is_serialised_as_a_dictionary(monkeypatch):
    class Config:
        def to_dict(self):
            return {"load_in_8bit": True}

    made = ChatSelfExtend(**SMALL)
    made.quantization_config = Config()
    assert dumpd(made)["kwargs"]["quantization_config"] == {"load_in_8bit": True}


def test_a_model_that_was_handed_over_is_not_serialised(tiny):
    written = json.loads(dumps(ChatSelfExtend(llm=tiny)))
    assert written["type"] == "not_implemented"
    with pytest.raises(NotImplementedError):
        load(written, **LOADED)
