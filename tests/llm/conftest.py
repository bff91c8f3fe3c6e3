"""Tiny language models with a byte-level tokenizer, plain and chat."""

from __future__ import annotations

import pytest

from selfextend_rag.llm import LongContextLLM
from tests.tiny import byte_tokenizer, tiny_llama

WINDOW = 128


@pytest.fixture(scope="session")
def model():
    return tiny_llama(window=WINDOW)


@pytest.fixture
def llm(model):
    return LongContextLLM(model, byte_tokenizer(), chunk_size=50)


@pytest.fixture
def chat_llm(model):
    return LongContextLLM(model, byte_tokenizer(chat=True), instruction="Be brief.", chunk_size=50)
