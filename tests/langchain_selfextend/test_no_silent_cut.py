"""Stock chains of LangChain: every token of every document, in one call, or a typed error."""

from __future__ import annotations

import asyncio
import gzip
from functools import cache
from pathlib import Path

import pytest
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.documents import Document
from langchain_core.exceptions import ContextOverflowError
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

import selfextend_rag
from langchain_selfextend import FullDocumentRetriever, create_full_document_chain

PROMPT = ChatPromptTemplate.from_messages([("system", "{context}"), ("human", "{input}")])
QUESTION = {"input": "What is said of water?"}


@cache
def prose():
    data = Path(selfextend_rag.__file__).parent / "evals/data/king-james.txt.gz"
    return gzip.open(data, "rt", encoding="utf-8").read()[:40_000].split("\n\n")


def documents_of(chat, share):
    """Return real prose of about this share of the extended window."""
    wanted, texts, taken = share * chat.llm.planner.extended_window, [], 0
    for text in prose():
        tokens = chat.llm.count_tokens(f"{text}\n\n")
        if taken + tokens > wanted:
            left = int(len(text) * (wanted - taken) / tokens)
            return [Document(each) for each in (*texts, text[:left]) if each.strip()]
        texts.append(text)
        taken += tokens
    raise AssertionError("not enough prose")


def stuff_chain(chat, documents):
    return create_stuff_documents_chain(chat, PROMPT), {**QUESTION, "context": documents}


def retrieval_chain(chat, documents):
    retriever = FullDocumentRetriever(documents=documents)
    return create_retrieval_chain(retriever, create_stuff_documents_chain(chat, PROMPT)), QUESTION


def lcel(chat, documents):
    retriever = FullDocumentRetriever(documents=documents)

    def joined(found):
        return "\n\n".join(document.page_content for document in found)

    context = (lambda given: given["input"]) | retriever | joined
    return (
        {"context": context, "input": lambda given: given["input"]}
        | PROMPT
        | chat
        | StrOutputParser(),
        QUESTION,
    )


def ours(chat, documents):
    return create_full_document_chain(chat, documents), QUESTION


CONSTRUCTIONS = [stuff_chain, retrieval_chain, lcel, ours]


@pytest.fixture
def seen(chat, monkeypatch):
    """The prompts that the model ran: what was read before a question belongs to it."""
    prompts = []
    answers = chat.llm.engine.answers

    def watched(asked, **options):
        prompts.extend(list(prompt.tokens) for prompt in asked)
        return answers(asked, **options)

    monkeypatch.setattr(chat.llm.engine, "answers", watched)
    return prompts


@pytest.mark.parametrize("construct", CONSTRUCTIONS)
def test_what_fits_is_read_whole_in_one_call(chat, seen, construct):
    documents = documents_of(chat, 0.9)
    chain, given = construct(chat, documents)
    chain.invoke(given)
    (prompt,) = seen
    text = chat.llm.prompts.codec.decode(prompt)
    assert len(prompt) > 0.88 * chat.llm.planner.extended_window
    for document in documents:
        assert document.page_content.rstrip() in text


@pytest.mark.parametrize("construct", CONSTRUCTIONS)
def test_what_does_not_fit_is_a_typed_error_and_no_call(chat, seen, construct):
    chain, given = construct(chat, documents_of(chat, 1.1))
    with pytest.raises(ContextOverflowError, match="exceeds the extended window"):
        chain.invoke(given)
    with pytest.raises(ContextOverflowError, match="exceeds the extended window"):
        asyncio.run(chain.ainvoke(given))
    assert not seen
