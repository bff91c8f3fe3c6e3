"""The bundled model behind LangChain's interfaces, its weights loaded once."""

from __future__ import annotations

import pytest

from langchain_selfextend import ChatSelfExtend
from selfextend_rag import LongContextLLM
from tests.tiny import byte_tokenizer, tiny_llama

SMALL = {"model": "bundled", "max_tokens": 8, "max_group_size": 4}


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
