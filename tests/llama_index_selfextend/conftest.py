"""A tiny random model, the bundled one, and LlamaIndex's global settings put back after a test."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_index.core", reason="llama-index-core is an extra and not installed")

import llama_index.core
from llama_index.core import Settings

from llama_index.llms.selfextend import SelfExtendLLM
from selfextend_rag import LongContextLLM
from tests.tiny import byte_tokenizer, tiny_llama

WINDOW = 128


@pytest.fixture(autouse=True)
def _framework_settings(monkeypatch):
    """What a test sets for the whole process is put back, and nothing is set when it starts."""
    kept = dict(vars(Settings))
    for name in kept:
        setattr(Settings, name, None)
    monkeypatch.setattr(llama_index.core, "global_tokenizer", None)
    yield
    vars(Settings).update(kept)


@pytest.fixture(scope="session")
def model():
    return tiny_llama(window=WINDOW)


@pytest.fixture
def core(model):
    return LongContextLLM(model, byte_tokenizer(), chunk_size=50)


@pytest.fixture
def chat_core(model):
    return LongContextLLM(model, byte_tokenizer(chat=True), chunk_size=50)


@pytest.fixture
def llm(core):
    return SelfExtendLLM(core, max_new_tokens=6)


@pytest.fixture
def chat_llm(chat_core):
    return SelfExtendLLM(chat_core, max_new_tokens=6)


@pytest.fixture(scope="session")
def bundled():
    return LongContextLLM.bundled(max_group_size=8)
