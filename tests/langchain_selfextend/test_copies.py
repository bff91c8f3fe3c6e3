"""Copies and pickles: of models by name, and of what is made of them."""

from __future__ import annotations

import copy
import multiprocessing
import pickle

import pytest
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from pydantic import BaseModel

from langchain_selfextend import (
    ChatSelfExtend,
    FullDocumentRetriever,
    SelfExtendLLM,
    create_full_document_chain,
)
from tests.langchain_selfextend.conftest import PASSKEY, SMALL

KEY = Document("The pass key is 48213. Remember it. 48213 is the pass key.")
QUESTION = {"input": "What is the pass key?"}


class Key(BaseModel):
    """A key."""

    ok: bool


@tool
def ring() -> str:
    """Ring the bell."""
    return "it rings"


def made(kind):
    chat = ChatSelfExtend(**SMALL)
    return {
        "chat": (chat, PASSKEY),
        "completion": (SelfExtendLLM(**SMALL), "In the beginning"),
        "tools": (chat.bind_tools([ring], tool_choice="any").bind(max_tokens=60), PASSKEY),
        "structure": (chat.with_structured_output(Key, max_tokens=60), PASSKEY),
        "raw": (chat.with_structured_output(Key, include_raw=True, max_tokens=60), PASSKEY),
        "prompt": (ChatPromptTemplate.from_messages([("human", "{input}")]) | chat, QUESTION),
        "chain": (create_full_document_chain(chat, [KEY]), QUESTION),
        "retriever": (FullDocumentRetriever(documents=[KEY], llm=chat), "key"),
        "ranking": (
            create_full_document_chain(
                chat, FullDocumentRetriever(documents=[KEY], llm=chat, overflow="rank")
            ),
            QUESTION,
        ),
    }[kind]


KINDS = (
    *("chat", "completion", "tools", "structure", "raw", "prompt", "chain", "retriever"),
    "ranking",
)


def said(answer):
    """What does not differ from one run to the next."""
    if isinstance(answer, dict):
        return answer.get("answer") or answer.get("parsed")
    calls = [(call["name"], call["args"]) for call in getattr(answer, "tool_calls", ())]
    return (answer.content, calls) if hasattr(answer, "content") else answer


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_and_a_pickle_answer_alike(kind):
    one, given = made(kind)
    right = said(one.invoke(given))
    for again in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert said(again.invoke(given)) == right


def test_copies_share_the_weights_and_keep_what_a_chain_has_read(monkeypatch):
    chat = ChatSelfExtend(**SMALL)
    for again in (
        copy.deepcopy(chat),
        pickle.loads(pickle.dumps(chat)),
        chat.model_copy(deep=True),
    ):
        assert again.llm is chat.llm
        assert again == chat
    chain = create_full_document_chain(chat, [KEY])
    chain.invoke(QUESTION)
    monkeypatch.setattr(chat.llm, "read", None)
    assert copy.deepcopy(chain).invoke(QUESTION)["answer"] == "48213"


def answered(one, given):
    return said(one.invoke(given))


def test_another_process_is_handed_models_and_chains_by_name():
    parts = [made("chat"), made("chain")]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(answered, parts[0]) == ("48213", [])
        assert pool.apply(answered, parts[1]) == "48213"


def test_one_made_of_a_loaded_model_says_that_it_can_not_be_pickled(tiny):
    chat = ChatSelfExtend(llm=tiny, max_tokens=2)
    for each in (chat, SelfExtendLLM(model=tiny.model, tokenizer=tiny.tokenizer)):
        assert copy.deepcopy(each).llm is each.llm
        with pytest.raises(TypeError, match="handed over loaded, so it can't be pickled"):
            pickle.dumps(each)
    with pytest.raises(TypeError, match="can't be pickled"):
        pickle.dumps(create_full_document_chain(chat, [KEY]))
