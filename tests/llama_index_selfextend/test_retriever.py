"""Whole documents in a stable order, from documents or in place of another retriever's hits."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import MetadataMode, NodeWithScore

from llama_index.llms.selfextend import FullDocumentRetriever, SelfExtendLLM, use_full_documents
from selfextend_rag import ContextBudgetExceeded, LongContextLLM
from tests.tiny import byte_tokenizer, tiny_llama

DOCUMENTS = [
    Document(text="The dean approves travel.", id_="travel", metadata={"page": 3}),
    Document(text="Lunch is at noon. " * 20, id_="lunch"),
    Document(text="The library closes at nine. Ask the dean for a key.", id_="library"),
]
NAMES = ["travel", "lunch", "library"]


class Letters(BaseEmbedding):
    """Counts of letters: texts of the same words are near."""

    def _get_query_embedding(self, query):
        return [float(query.lower().count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"]

    async def _aget_query_embedding(self, query):
        return self._get_query_embedding(query)

    _get_text_embedding = _get_query_embedding


class Pieces(BaseRetriever):
    """Hits in the order, and with the scores, that they were given in."""

    def __init__(self, hits):
        super().__init__()
        self.hits = hits

    def _retrieve(self, query_bundle):
        return self.hits


def pieces_of(documents):
    splitter = SentenceSplitter(chunk_size=8, chunk_overlap=0, include_metadata=False)
    return {document.id_: splitter.get_nodes_from_documents([document]) for document in documents}


@pytest.fixture(scope="module")
def small():
    """A model with space for the framework's template and some 500 bytes."""
    core = LongContextLLM(
        tiny_llama(window=256), byte_tokenizer(), max_group_size=6, trained_fraction=1.0
    )
    return SelfExtendLLM(core, max_new_tokens=2)


def names(found):
    return [hit.node.node_id for hit in found]


def test_all_documents_come_whole_and_in_order_whatever_the_question():
    retriever = FullDocumentRetriever(DOCUMENTS)
    found = retriever.retrieve("Who approves travel?")
    assert names(found) == NAMES
    assert [hit.node.get_content() for hit in found] == [d.text for d in DOCUMENTS]
    assert [hit.score for hit in found] == [None] * 3
    assert found[0].node.metadata == {"page": 3}
    assert found[0].node.ref_doc_id == "travel"
    assert names(asyncio.run(retriever.aretrieve("Lunch?"))) == NAMES


def test_hits_of_another_retriever_are_replaced_by_the_documents_they_come_from():
    pieces = pieces_of(DOCUMENTS)
    hits = [
        NodeWithScore(node=pieces["library"][0], score=0.4),
        NodeWithScore(node=pieces["travel"][0], score=0.3),
        NodeWithScore(node=pieces["library"][-1], score=0.9),
    ]
    retriever = FullDocumentRetriever(DOCUMENTS, retriever=Pieces(hits))
    for found in (retriever.retrieve("key?"), asyncio.run(retriever.aretrieve("key?"))):
        assert names(found) == ["travel", "library"]  # the order of the documents
        assert [hit.score for hit in found] == [0.3, 0.9]
        assert found[1].node.get_content() == DOCUMENTS[2].text


def test_a_hit_that_is_a_whole_document_stands_for_itself():
    hits = [NodeWithScore(node=DOCUMENTS[1], score=1.0)]
    assert names(FullDocumentRetriever(DOCUMENTS, retriever=Pieces(hits)).retrieve("?")) == [
        "lunch"
    ]


def test_a_hit_from_elsewhere_is_refused():
    stranger = pieces_of([Document(text="Stars.", id_="stars")])["stars"][0]
    retriever = FullDocumentRetriever(
        DOCUMENTS, retriever=Pieces([NodeWithScore(node=stranger, score=1.0)])
    )
    with pytest.raises(ValueError, match="comes from document stars, which is none of the 3"):
        retriever.retrieve("?")


def test_what_does_not_fit_the_model_is_an_error_by_default(small):
    retriever = FullDocumentRetriever(
        [*DOCUMENTS, Document(text="x" * 2000, id_="large")], llm=small
    )
    with pytest.raises(ContextBudgetExceeded):
        retriever.retrieve("Who?")
    with pytest.raises(ContextBudgetExceeded):
        asyncio.run(retriever.aretrieve("Who?"))
    assert names(FullDocumentRetriever(DOCUMENTS, llm=small).retrieve("Who?")) == NAMES


@pytest.mark.parametrize("embed_model", [None, Letters()], ids=["words", "embeddings"])
def test_ranking_keeps_the_most_relevant_whole_documents_that_fit(small, embed_model):
    more = [Document(text=f"{word} " * 60, id_=word) for word in ("alpha", "beta", "gamma")]
    documents = [*DOCUMENTS, *more]
    retriever = FullDocumentRetriever(
        documents, llm=small, overflow="rank", embed_model=embed_model
    )
    found = retriever.retrieve("gamma gamma gamma?")
    kept = names(found)
    assert "gamma" in kept
    assert kept == [document.id_ for document in documents if document.id_ in kept]
    left_out = found[0].node.metadata["left_out"]
    assert sorted([*kept, *left_out]) == sorted(document.id_ for document in documents)
    scores = {hit.node.node_id: hit.score for hit in found}
    assert scores["gamma"] == max(scores.values())
    assert "left_out" not in found[0].node.get_content(MetadataMode.LLM)
    assert "left_out" not in DOCUMENTS[0].metadata
    # What was kept fits the stock engine, and with the smallest of the others it would not.
    use_full_documents(small)
    by_id = {document.id_: document for document in documents}
    RetrieverQueryEngine.from_args(retriever, llm=small).query("gamma gamma gamma?")
    smallest = min(left_out, key=lambda name: len(by_id[name].text))
    with pytest.raises(ContextBudgetExceeded):
        SummaryIndex([by_id[name] for name in (*kept, smallest)]).as_query_engine(llm=small).query(
            "gamma gamma gamma?"
        )


def test_the_order_of_hits_decides_what_is_kept(small):
    documents = [Document(text=f"{word} " * 80, id_=word) for word in ("alpha", "beta", "gamma")]
    hits = [NodeWithScore(node=documents[place], score=None) for place in (1, 2, 0)]
    retriever = FullDocumentRetriever(documents, retriever=Pieces(hits), llm=small, overflow="rank")
    found = retriever.retrieve("alpha?")
    assert "beta" in names(found)
    assert found[0].node.metadata["left_out"][-1] == "alpha"


def test_one_document_that_does_not_fit_is_an_error_also_when_ranking(small):
    large = Document(text="x" * 3000, id_="large")
    with pytest.raises(ContextBudgetExceeded):
        FullDocumentRetriever([large], llm=small, overflow="rank").retrieve("x?")
    found = FullDocumentRetriever([large, DOCUMENTS[0]], llm=small, overflow="rank").retrieve("x?")
    assert names(found) == ["travel"]
    assert found[0].node.metadata["left_out"] == ["large"]


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ([], {}, "at least one"),
        ([DOCUMENTS[0], DOCUMENTS[0]], {}, "different ids, got 2 with 1 ids"),
        (DOCUMENTS, {"overflow": "cut"}, '"error" or "rank", got \'cut\''),
        (DOCUMENTS, {"overflow": "rank"}, "needs to know how much fits; give llm="),
    ],
)
def test_parts_that_do_not_go_together_are_refused(documents, options, message):
    with pytest.raises(ValueError, match=message):
        FullDocumentRetriever(documents, **options)
