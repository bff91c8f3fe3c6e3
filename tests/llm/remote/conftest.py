"""Servers that are told how to answer, and models on them."""

from __future__ import annotations

import contextlib

import pytest

pytest.importorskip("httpx2", reason="the extra remote is not installed")

from selfextend_rag import LongContextLLM
from tests.llm.remote.fake import FakeServer
from tests.tiny import byte_tokenizer


@pytest.fixture
def serve():
    """Start a server that does as it is told; it ends with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **told: stack.enter_context(FakeServer(**told))


@pytest.fixture
def connect():
    """Connect to a server, with its own tokenizer in this process unless another is named."""

    def connected(server, **options):
        own = byte_tokenizer(chat=bool(server.tokenizer.chat_template))
        return LongContextLLM.connect(server.url, **{"tokenizer": own, **options})

    return connected
