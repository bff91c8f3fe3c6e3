"""Pictures in LangChain: loaded, retrieved whole, asked about by a chain and in messages."""

from __future__ import annotations

import base64
from functools import partial

import pytest
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage

from langchain_selfextend import (
    ChatSelfExtend,
    FileLoader,
    FullDocumentRetriever,
    create_full_document_chain,
)
from selfextend_rag import LongContextLLM
from selfextend_rag.errors import DocumentError
from tests.zoo import vision

png = partial(vision.png, 64, 64)


@pytest.fixture(scope="module")
def seeing():
    processor = vision.processor("llava")
    llm = LongContextLLM(
        vision.model("llava"), processor.tokenizer, processor=processor, pretraining_window=256
    )
    return ChatSelfExtend(llm=llm, max_tokens=5)


@pytest.fixture
def pages(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    return FileLoader(tmp_path, pages="auto").load()


def test_a_chain_looks_at_the_pictures_that_a_retriever_hands_on_whole(seeing, pages):
    retriever = FullDocumentRetriever(documents=pages, llm=seeing)
    chain = create_full_document_chain(seeing, retriever, stop=None)
    given = chain.invoke({"input": "What is it?"})
    assert given["plan"]["prompt_tokens"] > 4 * 16
    assert [document.metadata["pictures"] for document in given["context"]] == [
        document.metadata["pictures"] for document in pages
    ]
    seen = [x.metadata for x in given["evidence"] if "picture" in x.metadata]
    assert all(x["source"].endswith(".png") and x["region"] for x in seen)
    alone = create_full_document_chain(seeing, pages[:1]).invoke({"input": "What is it?"})
    assert alone["plan"]["prompt_tokens"] < given["plan"]["prompt_tokens"] - 3 * 16


def test_what_does_not_fit_is_ranked_by_its_pictures_too(seeing, pages):
    llm = seeing.llm
    tight = LongContextLLM(
        llm.model, llm.tokenizer, processor=llm.prompts.pictures.processor,
        pretraining_window=200, max_group_size=1,
    )  # fmt: skip
    chat = ChatSelfExtend(llm=tight, max_tokens=5)
    more = [x.model_copy(update={"id": f"{n}"}) for n, x in enumerate(pages * 3)]
    retriever = FullDocumentRetriever(documents=more, llm=chat, overflow="rank")
    found = retriever.invoke("What is it?")
    assert 0 < len(found) < 12
    assert all(x["tokens"] > 16 for x in found[0].metadata["left_out"])


def test_a_model_of_text_refuses_documents_of_pictures(tiny, pages):
    with pytest.raises(DocumentError, match="load a vision model"):
        create_full_document_chain(tiny, pages).invoke({"input": "What is it?"})


def test_messages_with_pictures_are_answered(seeing):
    url = "data:image/png;base64," + base64.b64encode(png(1)).decode("ascii")
    text = {"type": "text", "text": "What is it?"}
    with_picture = HumanMessage([text, {"type": "image_url", "image_url": {"url": url}}])
    answer = seeing.invoke([with_picture])
    alone = seeing.invoke([HumanMessage([text])])
    more = answer.usage_metadata["input_tokens"] - alone.usage_metadata["input_tokens"]
    assert more == 16
    assert seeing.profile["image_inputs"] is True
    counted = seeing.get_num_tokens_from_messages([with_picture])
    assert counted == answer.usage_metadata["input_tokens"]


def test_documents_of_other_loaders_are_as_they_were():
    """Pictures are taken from the metadata that this package's loader wrote, from no other."""
    chain_of = Document(page_content="Text.", metadata={"pictures": ["a.png"]})
    from langchain_selfextend.documents import core_document

    assert core_document(chain_of).pictures == ()
