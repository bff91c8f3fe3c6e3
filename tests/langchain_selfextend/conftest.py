"""The bundled model behind LangChain's interfaces, its weights loaded once."""

from __future__ import annotations

import pytest

from langchain_selfextend import ChatSelfExtend
from selfextend_rag import LongContextLLM
from tests.tiny import byte_tokenizer, tiny_llama

SMALL = {"model": "bundled", "max_tokens": 8, "max_group_size": 4}
PASSKEY = "The pass key is 48213. Remember it. 48213 is the pass key.\n\nWhat is the pass key?"


@pytest.fixture(scope="session")
def _weights():
    return ChatSelfExtend(**SMALL)


@pytest.fixture
def chat(_weights):
    """The bundled model, its window stretched to little, so that tests of its end are quick."""
    return ChatSelfExtend(**SMALL)


@pytest.fixture(scope="session")
def tiny():
    """A random model with a chat template, one token a byte."""
    return LongContextLLM(tiny_llama(window=128), byte_tokenizer(chat=True), chunk_size=64)


def count_calls(monkeypatch, llm):
    """Count what reaches the model."""
    calls = []
    stream = llm.stream
    monkeypatch.setattr(llm, "stream", lambda *a, **k: calls.append(k) or stream(*a, **k))
    return calls
