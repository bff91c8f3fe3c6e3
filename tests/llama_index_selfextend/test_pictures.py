"""Pictures in LlamaIndex: image documents and nodes, files, retrieved whole, and in messages."""

from __future__ import annotations

import base64
from functools import partial

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.schema import ImageDocument, ImageNode

from llama_index.llms.selfextend import (
    FileReader,
    FullDocumentQueryEngine,
    FullDocumentRetriever,
    SelfExtendLLM,
)
from llama_index.llms.selfextend.documents import core_document
from selfextend_rag import LongContextLLM
from selfextend_rag.errors import ContextBudgetExceeded, DocumentError
from tests.zoo import vision

png = partial(vision.png, 64, 64)


def as_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def seeing_llm(**options) -> LongContextLLM:
    processor = vision.processor("llava")
    options = {"pretraining_window": 256, **options}
    return LongContextLLM(
        vision.model("llava"), processor.tokenizer, processor=processor, **options
    )


@pytest.fixture(scope="module")
def seeing():
    return SelfExtendLLM(llm=seeing_llm(), max_new_tokens=5)


def test_image_documents_and_nodes_become_pictures(tmp_path):
    path = tmp_path / "page.png"
    path.write_bytes(png(1))
    kinds = (
        ImageDocument(image=as_text(png(1)), text="A page."),
        ImageDocument(image_path=str(path), text="A page."),
        ImageNode(image=as_text(png(1)), text="A page."),
        ImageNode(image_path=str(path), text="A page."),
        ImageNode(image_url=f"data:image/png;base64,{as_text(png(1))}", text="A page."),
    )
    for document in kinds:
        found = core_document(document)
        assert found.text == "A page."
        assert [x.data for x in found.pictures] == [png(1)]
    with pytest.raises(DocumentError, match="is not fetched"):
        core_document(ImageNode(image_url="http://127.0.0.1:9/a.png", text="A page."))


def test_an_engine_looks_at_what_a_retriever_hands_on_whole(seeing, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    files = FileReader(pages="auto").load_data(tmp_path)
    documents = [*files, ImageDocument(image=as_text(png(7)), id_="seven")]
    found = FullDocumentRetriever(documents, llm=seeing).retrieve("What is it?")
    handed = [core_document(x.node) for x in found]
    assert [x.pictures[0].data for x in handed] == [png(0), png(1), png(2), png(7)]
    engine = FullDocumentQueryEngine.from_documents([x.node for x in found], llm=seeing)
    response = engine.query("What is it?")
    assert response.metadata["plan"]["prompt_tokens"] > 4 * 16
    regions = [x.node.metadata.get("region") for x in response.source_nodes]
    assert all(regions)


def test_what_does_not_fit_is_refused_or_ranked_by_its_pictures(seeing):
    tight = SelfExtendLLM(
        llm=seeing_llm(pretraining_window=200, max_group_size=1), max_new_tokens=5
    )
    pages = [ImageDocument(image=as_text(png(x)), text=f"Page {x}.", id_=f"{x}") for x in range(8)]
    with pytest.raises(ContextBudgetExceeded):
        FullDocumentRetriever(pages, llm=tight).retrieve("Which?")
    found = FullDocumentRetriever(pages, llm=tight, overflow="rank").retrieve("Which page?")
    assert 0 < len(found) < 8


def test_messages_with_pictures_are_answered(seeing):
    text = TextBlock(text="What is it?")
    answer = seeing.chat([ChatMessage(blocks=[text, ImageBlock(image=png(1))])])
    alone = seeing.chat([ChatMessage(blocks=[text])])
    counts = [x.additional_kwargs["prompt_tokens"] for x in (answer, alone)]
    assert counts[0] == counts[1] + 16
