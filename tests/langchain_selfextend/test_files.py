"""Files through LangChain: what is known of them, there and back."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumps, loads
from langchain_text_splitters import RecursiveCharacterTextSplitter

from langchain_selfextend import FileLoader, FullDocumentRetriever, create_full_document_chain
from langchain_selfextend.documents import core_document, whole_documents
from selfextend_rag import Document as CoreDocument
from selfextend_rag import DocumentError
from tests.documents.files import FRENCH, pdf_bytes, written
from tests.documents.scans import fake_recogniser

KEY = "The pass key is 48213. Remember it. 48213 is the pass key."
FILLER = "The grass is green. The sky is blue."
QUESTION = {"input": "What is the pass key?"}


@pytest.fixture
def scan(tmp_path):
    """A PDF of four pages: the second is a picture, the third has the key."""
    pages = (FILLER, "", f"{FILLER}\n{KEY}\n{FILLER}", FILLER)
    return written(tmp_path, "scan.pdf", pdf_bytes(*pages))


def validated(document):
    return Document.model_validate(json.loads(document.model_dump_json()))


WAYS = {
    "as it is": lambda document: document,
    "copied": copy.deepcopy,
    "pickled": lambda document: pickle.loads(pickle.dumps(document)),
    "as JSON": validated,
    "serialised": lambda document: loads(dumps(document), allowed_objects=[Document]),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_file_comes_back_with_its_remarks_and_pages(scan, way):
    (loaded,) = FileLoader(scan).load()
    file, again = CoreDocument.from_file(scan), core_document(way(loaded))
    assert again == file
    assert again.remarks == file.remarks
    assert again.locations == file.locations
    assert again.location(again.text.index(KEY), again.text.index(KEY) + 3) == "page 3"


def test_metadata_is_plain_values(scan, tmp_path):
    (loaded,) = FileLoader(scan).load()
    (lost,) = (remark for remark in loaded.metadata["remarks"] if remark["severity"] == "loss")
    assert lost["kind"] == "pages without text"
    assert {"start": 0, "name": "page 1", "row": None} in loaded.metadata["locations"]
    assert json.loads(json.dumps(loaded.metadata)) == loaded.metadata
    (plain,) = FileLoader(written(tmp_path, "a.txt", "The sky is blue.")).load()
    assert (plain.metadata["remarks"], plain.metadata["locations"]) == ([], [])


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_chain_names_the_page_of_its_evidence(chat, scan, way):
    (loaded,) = FileLoader(scan).load()
    chain = create_full_document_chain(chat, [way(loaded), Document(FILLER)])
    result = chain.invoke(QUESTION)
    assert result["answer"] == "48213"
    best = result["evidence"][0].metadata
    assert best["location"] == "page 3"
    assert best["source"] == str(scan)
    assert best["remarks"] == loaded.metadata["remarks"]
    assert "locations" not in best  # they count in the whole text
    assert result["context"][0].metadata["locations"]
    (planned,) = result["plan"]["remarks"]
    assert planned["severity"] == "loss"
    (*_, end) = chain.stream(QUESTION)
    assert end["evidence"] == result["evidence"]
    assert asyncio.run(chain.ainvoke(QUESTION))["evidence"] == result["evidence"]


def test_a_text_without_places_has_no_location(chat):
    result = create_full_document_chain(chat, [Document(KEY)]).invoke(QUESTION)
    assert {passage.metadata["location"] for passage in result["evidence"]} == {None}


def pages_of_a_loader(**more):
    texts = (FILLER, FILLER, f"{FILLER}\r\n{KEY}", FILLER)
    return [
        Document(text, metadata={"source": "a.pdf", "page": page, **more})
        for page, text in enumerate(texts)
    ]


def test_pages_of_other_loaders_are_named(chat):
    """As PyPDFLoader gives them: counted from 0, one document each."""
    retriever = FullDocumentRetriever(documents=whole_documents(pages_of_a_loader(total_pages=4)))
    result = create_full_document_chain(chat, retriever).invoke(QUESTION)
    assert len(result["context"]) == 1
    assert result["evidence"][0].metadata["location"] == "page 3"
    alone = create_full_document_chain(chat, pages_of_a_loader()).invoke(QUESTION)
    assert len(alone["context"]) == 4
    assert alone["evidence"][0].metadata["location"] == "page 3"
    assert alone["evidence"][0].metadata["page"] == 2


def test_parts_that_a_splitter_made_claim_no_page(scan):
    """It copies the metadata of the whole text, whose characters are others."""
    splitter = RecursiveCharacterTextSplitter(chunk_size=80, chunk_overlap=10)
    (loaded,) = FileLoader(scan).load()
    parts = [core_document(part) for part in splitter.split_documents([loaded])]
    assert len(parts) > 2
    assert [part.locations for part in parts] == [()] * len(parts)
    assert {part.remarks for part in parts} == {core_document(loaded).remarks}


def test_the_loader_takes_an_encoding_and_may_be_strict(scan, tmp_path):
    french = written(tmp_path, "a.txt", FRENCH.encode("cp1252"))
    (guessed,) = FileLoader(french).load()
    assert guessed.metadata["remarks"][0]["severity"] == "warning"
    (given,) = FileLoader(french, encoding="cp1252", strict="warning").load()
    assert (given.page_content, given.metadata["remarks"]) == (FRENCH, [])
    assert FileLoader(french, strict=True).load()
    for strict, path in (("warning", french), (True, scan), ("loss", scan)):
        with pytest.raises(DocumentError, match="is not read whole"):
            FileLoader(path, strict=strict).load()


@pytest.mark.parametrize("ocr", [False, True])
def test_scans_are_recognised_on_request(scan, tmp_path, monkeypatch, ocr):
    fake_recogniser(tmp_path, monkeypatch, [(9, 9, "The sea is red.", 0.99)])
    (document,) = FileLoader(scan, ocr=ocr).load()
    assert ("The sea is red." in document.page_content) == ocr
    assert document.metadata["pages_without_text"] == ([] if ocr else [2])
    assert core_document(document) == CoreDocument.from_file(scan, ocr=ocr)


def test_folders_are_read_and_what_is_skipped_is_named(scan, caplog):
    written(scan.parent, "a.txt", "The sky is blue.")
    written(scan.parent, "photo.png", b"\x89PNG\r\n\x1a\n...")
    reader = FileLoader(scan.parent)
    for _ in range(2):
        loaded = reader.load()
        assert [document.metadata["source"] for document in loaded] == [
            str(scan.parent / "a.txt"),
            str(scan),
        ]
        (skip,) = reader.skipped
        assert (skip.source, skip.kind) == (str(scan.parent / "photo.png"), "unsupported")
        assert skip.message in caplog.text
    assert core_document(loaded[1]).locations == CoreDocument.from_file(scan).locations
    (only,) = FileLoader(scan.parent, glob="*.txt").load()
    assert only.page_content == "The sky is blue."


def test_pages_that_are_read_are_reported(scan):
    told = []
    FileLoader(scan, progress=lambda *at: told.append(at)).load()
    assert told == [(page, 4) for page in range(5)]
