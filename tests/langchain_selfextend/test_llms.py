"""The completion model."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ContextOverflowError

from langchain_selfextend import SelfExtendLLM
from tests.langchain_selfextend.conftest import SMALL


@pytest.fixture
def llm(chat):
    return SelfExtendLLM(**SMALL)


def test_a_text_goes_on_where_it_ends(llm, chat):
    assert llm.llm is chat.llm
    direct = llm.llm.generate("In the beginning", max_new_tokens=8)
    assert llm.invoke("In the beginning") == direct.text


def test_streamed_blocking_and_awaited_texts_are_the_same(llm):
    async def awaited():
        pieces = [piece async for piece in llm.astream("In the beginning")]
        return await llm.ainvoke("In the beginning"), "".join(pieces)

    text = llm.invoke("In the beginning")
    assert "".join(llm.stream("In the beginning")) == text
    assert asyncio.run(awaited()) == (text, text)


def test_several_prompts_give_several_texts_with_the_tokens_of_all(llm):
    result = llm.generate(["In the beginning", "And God said"])
    one, other = (generation[0] for generation in result.generations)
    assert (one.text, other.text) == (llm.invoke("In the beginning"), llm.invoke("And God said"))
    assert one.generation_info["finish_reason"] == "length"
    counted = [g.generation_info["usage_metadata"]["output_tokens"] for g in (one, other)]
    assert result.llm_output["token_usage"]["completion_tokens"] == sum(counted) == 16
    assert asyncio.run(llm.agenerate(["In the beginning"])).generations[0][0].text == one.text


def test_stop_texts_and_options_of_a_call(llm):
    text = llm.invoke("In the beginning")
    assert llm.invoke("In the beginning", stop=[text[3]]) == text[: text.index(text[3])]
    assert llm.get_num_tokens(llm.invoke("In the beginning", max_tokens=2)) <= 2


def test_callbacks_hear_the_pieces_of_a_stream(llm):
    class Tokens(BaseCallbackHandler):
        def __init__(self):
            self.text = ""

        def on_llm_new_token(self, token, **kwargs):
            self.text += token

    heard = Tokens()
    text = "".join(llm.stream("In the beginning", {"callbacks": [heard]}))
    assert heard.text == text
    heard = Tokens()
    assert SelfExtendLLM(**SMALL, streaming=True).invoke("In the", {"callbacks": [heard]})
    assert heard.text
    heard = Tokens()
    llm.invoke("In the beginning", {"callbacks": [heard]})
    assert heard.text == ""


def test_an_overflow_is_the_frameworks_error(llm):
    with pytest.raises(ContextOverflowError):
        llm.invoke("word " * 5000)
