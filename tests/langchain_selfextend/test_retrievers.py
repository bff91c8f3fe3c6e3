"""Whole documents in a stable order; what does not fit is an error, or is named."""

from __future__ import annotations

import asyncio
import sys

import pytest
from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_selfextend import ContextWindowExceeded, FullDocumentRetriever
from langchain_selfextend.documents import core_document, whole_documents
from langchain_selfextend.retrievers import by_relevance
from selfextend_rag import ContextBudgetExceeded
from selfextend_rag.documents import DocumentError

RIVERS = Document("The second river is Gihon. " * 10, metadata={"source": "rivers.txt"})
TREES = Document("The tall tree is a cedar. " * 10, metadata={"source": "trees.txt"})
STARS = Document("The bright star is Sirius. " * 10, metadata={"source": "stars.txt"})
ALL = [RIVERS, TREES, STARS]


class Letters(Embeddings):
    """Counts of letters: texts of the same words are near."""

    def embed_query(self, text):
        return [text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"]

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


class Pages(BaseLoader):
    def __init__(self, source, texts):
        self.source, self.texts = source, texts

    def lazy_load(self):
        for page, text in enumerate(self.texts):
            yield Document(text, metadata={"source": self.source, "page": page, "author": "ann"})


def hits_of(pieces):
    store = InMemoryVectorStore(Letters())
    store.add_documents(pieces)
    return store.as_retriever(search_kwargs={"k": 2})


def too_much_for(chat):
    return [
        Document(f"{text} " * 60, metadata={"source": text})
        for text in ("alpha beta gamma", "delta epsilon", "zeta eta theta iota", "kappa")
    ]


def test_all_documents_come_whole_and_in_order_whatever_the_question():
    retriever = FullDocumentRetriever(documents=ALL)
    assert retriever.invoke("Which star?") == ALL
    assert asyncio.run(retriever.ainvoke("Which river?")) == ALL


def test_the_most_relevant_keep_their_order():
    retriever = FullDocumentRetriever(documents=ALL)
    assert retriever.invoke("Which star is bright and which river is second?", k=2) == [
        RIVERS,
        STARS,
    ]
    assert FullDocumentRetriever(documents=ALL, k=1).invoke("Which star is bright?") == [STARS]


def test_pages_of_a_loader_become_one_document():
    loaders = [Pages("a.pdf", ["one", "two"]), Pages("b.pdf", ["three"])]
    retriever = FullDocumentRetriever.from_loaders(loaders)
    one, other = retriever.invoke("x")
    assert one.page_content == "one\n\ntwo"
    assert (one.metadata["source"], one.metadata["author"]) == ("a.pdf", "ann")
    assert "page" not in one.metadata
    assert [core_document(one).location(at, at + 3) for at in (0, 5)] == ["page 1", "page 2"]
    assert other.metadata == {"source": "b.pdf", "page": 0, "author": "ann"}
    assert FullDocumentRetriever.from_loaders(loaders[1]).documents == [other]
    by_author = FullDocumentRetriever.from_loaders(loaders, source_key="author")
    assert [each.page_content for each in by_author.documents] == ["one\n\ntwo\n\nthree"]


def test_documents_without_a_source_are_not_joined():
    assert len(whole_documents([Document("a"), Document("b")])) == 2


def test_hits_of_another_retriever_give_their_whole_documents():
    pieces = [Document(text[:26], metadata=each.metadata) for each in ALL
              for text in (each.page_content, each.page_content[27:])]  # fmt: skip
    retriever = FullDocumentRetriever(documents=ALL, retriever=hits_of(pieces))
    assert retriever.invoke("The bright star is Sirius.") == [STARS]
    assert asyncio.run(retriever.ainvoke("The tall tree is a cedar.")) == [TREES]


def test_hits_may_name_their_document_by_its_id():
    whole = [Document("one two", id="1"), Document("three four", id="2")]
    pieces = [Document("one", metadata={"parent": "1"}), Document("four", metadata={"parent": "2"})]
    inner = hits_of(pieces)
    retriever = FullDocumentRetriever(documents=whole, retriever=inner, source_key="parent")
    assert retriever.invoke("four") == whole  # in the order of the documents


def test_a_hit_without_its_document_is_an_error():
    inner = hits_of([Document("moon", metadata={"source": "moons.txt"})])
    retriever = FullDocumentRetriever(documents=ALL, retriever=inner)
    with pytest.raises(ValueError, match=r"source 'moons.txt' .* none of the 3 whole documents"):
        retriever.invoke("moon")


def test_too_much_for_the_model_is_an_error_by_default(chat):
    documents = too_much_for(chat)
    retriever = FullDocumentRetriever(documents=documents, llm=chat)
    with pytest.raises(ContextWindowExceeded) as caught:
        retriever.invoke("epsilon?")
    assert caught.value.excess > 0
    with pytest.raises(ContextWindowExceeded):
        asyncio.run(retriever.ainvoke("epsilon?"))
    assert FullDocumentRetriever(documents=documents[:1], llm=chat).invoke("epsilon?")


@pytest.mark.parametrize("embeddings", [None, Letters()])
def test_the_most_relevant_whole_documents_that_fit_are_kept_on_request(chat, embeddings):
    documents = too_much_for(chat)
    retriever = FullDocumentRetriever(
        documents=documents, llm=chat.llm, overflow="rank", embeddings=embeddings
    )
    found = retriever.invoke("delta epsilon?")
    texts = [document.page_content for document in found]
    assert documents[1].page_content in texts
    assert 1 <= len(found) < len(documents)
    assert texts == [each.page_content for each in documents if each.page_content in texts]
    left_out = found[0].metadata["left_out"]
    kept = {document.metadata["source"] for document in found}
    assert kept.isdisjoint(out["source"] for out in left_out)
    assert len(kept) + len(left_out) == len(documents)
    assert all(out["tokens"] > 50 for out in left_out)
    assert "left_out" not in documents[1].metadata
    core = [core_document(document) for document in found]
    assert chat.llm.plan(core, question="delta epsilon?")  # they do fit
    smallest = min(left_out, key=lambda out: out["tokens"])
    (dropped,) = (each for each in documents if each.metadata["source"] == smallest["source"])
    with pytest.raises(ContextBudgetExceeded):  # and nothing more would have
        chat.llm.plan([*core, core_document(dropped)], question="delta epsilon?")
    assert asyncio.run(retriever.ainvoke("delta epsilon?")) == found


def test_nothing_is_said_of_left_out_documents_when_all_fit(chat):
    retriever = FullDocumentRetriever(documents=[TREES, STARS], llm=chat, overflow="rank")
    assert retriever.invoke("Which star?") == [TREES, STARS]


def test_one_document_that_does_not_fit_is_an_error_also_when_ranking(chat):
    huge = Document("word " * 5000, metadata={"source": "huge"})
    retriever = FullDocumentRetriever(documents=[huge], llm=chat, overflow="rank")
    with pytest.raises(ContextWindowExceeded):
        retriever.invoke("word?")
    both = FullDocumentRetriever(documents=[huge, STARS], llm=chat, overflow="rank")
    (found,) = both.invoke("word?")  # the relevant one is too large, the other is not
    assert found.page_content == STARS.page_content


def test_another_retrievers_order_decides_what_is_kept(chat):
    documents = too_much_for(chat)
    pieces = [Document(d.page_content[:16], metadata=d.metadata) for d in documents]
    store = InMemoryVectorStore(Letters())
    store.add_documents(pieces)
    inner = store.as_retriever(search_kwargs={"k": 4})
    retriever = FullDocumentRetriever(
        documents=documents, retriever=inner, llm=chat, overflow="rank"
    )
    first = inner.invoke("kappa kappa")[0].metadata["source"]
    found = retriever.invoke("kappa kappa")
    assert first == "kappa"
    assert first in [document.metadata["source"] for document in found]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "there are no documents"),
        ({"documents": ALL, "overflow": "rank"}, "needs to know how much fits; give llm="),
        ({"documents": ALL, "k": 0}, "greater than or equal to 1"),
        ({"documents": ALL, "overfow": "rank"}, "overfow"),
    ],
)
def test_what_can_not_be_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        FullDocumentRetriever(**options)


def test_another_kind_of_model_is_refused():
    with pytest.raises(TypeError, match=r"llm must be a ChatSelfExtend, .* got str"):
        FullDocumentRetriever(documents=ALL, llm="gpt").invoke("x")


def test_a_document_keeps_its_names():
    document = core_document(
        Document("text", id="7", metadata={"source": "a/b.txt", "title": "Book", "year": 1})
    )
    assert (document.id, document.title, document.source) == ("7", "Book", "a/b.txt")
    assert document.metadata["year"] == 1
    assert core_document(Document("text", metadata={"source": "a/b.txt"})).title == "b.txt"
    with pytest.raises(DocumentError, match=r"b\.txt has no text"):
        core_document(Document(" ", metadata={"source": "b.txt"}))


def test_ranking_by_words():
    texts = ["the cat sat", "a dog ran", "dogs and a cat", ""]
    assert by_relevance("Where is a DOG?", texts)[0] == 1
    assert by_relevance("unknown words", texts) == [0, 1, 2, 3]
    assert by_relevance("", texts) == [0, 1, 2, 3]
    assert by_relevance("日本", ["中国の都", "日本の山", "アメリカ"])[0] == 1


def test_ranking_by_embeddings():
    texts = ["zzz", "abc", ""]
    assert by_relevance("cab", texts, Letters())[0] == 1
    assert sorted(by_relevance("cab", texts, DeterministicFakeEmbedding(size=4))) == [0, 1, 2]


def test_without_the_ranking_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match="pip install bm25s"):
        by_relevance("a", ["a", "b"])
