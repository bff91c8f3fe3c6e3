"""Files through LlamaIndex: what is known of them, there and back."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle

import pytest
from llama_index.core import Document, SimpleDirectoryReader
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import MetadataMode

from llama_index.llms.selfextend import FileReader, FullDocumentQueryEngine, SelfExtendLLM
from llama_index.llms.selfextend.documents import core_document, whole_node
from selfextend_rag import Document as CoreDocument
from selfextend_rag import DocumentError
from tests.documents.files import FRENCH, pdf_bytes, written
from tests.documents.scans import fake_recogniser

KEY = "The pass key is 48213. Remember it. 48213 is the pass key."
FILLER = "The grass is green. The sky is blue."
QUESTION = "What is the pass key?"


@pytest.fixture
def scan(tmp_path):
    """A PDF of four pages: the second is a picture, the third has the key."""
    pages = (FILLER, "", f"{FILLER}\n{KEY}\n{FILLER}", FILLER)
    return written(tmp_path, "scan.pdf", pdf_bytes(*pages))


@pytest.fixture(scope="module")
def llm(bundled):
    return SelfExtendLLM(bundled, max_new_tokens=12)


WAYS = {
    "as it is": lambda document: document,
    "copied": copy.deepcopy,
    "pickled": lambda document: pickle.loads(pickle.dumps(document)),
    "as JSON": lambda document: Document.from_json(document.to_json()),
    "as a node": whole_node,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_file_comes_back_with_its_remarks_and_pages(scan, way):
    (loaded,) = FileReader().load_data(scan)
    file, again = CoreDocument.from_file(scan), core_document(way(loaded))
    assert again == file
    assert again.remarks == file.remarks
    assert again.locations == file.locations
    assert json.loads(json.dumps(loaded.metadata)) == loaded.metadata


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_sources_name_their_page(llm, scan, way):
    loaded = [way(document) for document in FileReader().load_data(scan)]
    engine = FullDocumentQueryEngine.from_documents([*loaded, Document(text=FILLER)], llm=llm)
    response = engine.query(QUESTION)
    assert str(response) == "48213"
    best = response.source_nodes[0].node
    assert best.metadata["location"] == "page 3"
    assert best.metadata["file_path"] == str(scan)
    assert best.metadata["remarks"] == loaded[0].metadata["remarks"]
    assert "locations" not in best.metadata  # they count in the whole text
    assert "page 3" in best.get_content(MetadataMode.LLM)
    assert "remarks" not in best.get_content(MetadataMode.LLM)
    (planned,) = response.metadata["plan"]["remarks"]
    assert planned["severity"] == "loss"


def test_sources_of_streams_conversations_and_saved_readings_do_too(llm, scan, tmp_path):
    engine = FullDocumentQueryEngine.from_documents(
        FileReader().load_data(scan), llm=llm, streaming=True
    )
    streamed = engine.query(QUESTION)
    assert "".join(streamed.response_gen) == "48213"
    chatted = engine.as_chat_engine().chat(QUESTION)
    awaited = asyncio.run(engine.as_chat_engine().achat(QUESTION))
    engine.reading.save(tmp_path / "scan.kv")
    loaded = FullDocumentQueryEngine(llm, llm.core.load(tmp_path / "scan.kv")).query(QUESTION)
    for response in (streamed, chatted, awaited, loaded):
        best = response.source_nodes[0].node
        assert best.metadata["location"] == "page 3"
        assert "remarks" not in best.get_content(MetadataMode.LLM)


def test_pages_of_other_readers_are_named(llm):
    """As LlamaIndex's PDFReader gives them: one document each, with its label."""
    texts = (FILLER, f"{FILLER}\n{KEY}", FILLER)
    pages = [
        Document(text=text, metadata={"page_label": str(number), "file_name": "a.pdf"})
        for number, text in enumerate(texts, 1)
    ]
    response = FullDocumentQueryEngine.from_documents(pages, llm=llm).query(QUESTION)
    assert response.source_nodes[0].node.metadata["location"] == "page 2"


def test_the_frameworks_own_directory_reader_takes_it(scan):
    reader = SimpleDirectoryReader(
        scan.parent, file_extractor={".pdf": FileReader()}, raise_on_error=True
    )
    (loaded,) = reader.load_data()
    assert loaded.metadata["file_name"] == "scan.pdf"
    assert core_document(loaded).locations == CoreDocument.from_file(scan).locations


def test_neither_models_nor_embeddings_are_given_what_is_known_of_a_file(scan):
    (loaded,) = FileReader().load_data(scan)
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert "locations" not in loaded.get_content(mode)
    parts = SentenceSplitter(chunk_size=60, chunk_overlap=0).get_nodes_from_documents([loaded])
    assert len(parts) > 1
    for part in parts:
        assert core_document(part).locations == ()  # it copied those of the whole text
        assert core_document(part).remarks == core_document(loaded).remarks


def test_equal_files_have_ids_of_their_own(tmp_path):
    paths = [written(tmp_path, name, "The sky is blue.") for name in ("a.txt", "b.txt", "c.txt")]
    ids = [document.node_id for document in FileReader().lazy_load_data(*paths)]
    first = CoreDocument.from_file(paths[0]).id
    assert ids == [first, f"{first}-2", f"{first}-3"]


def test_the_reader_takes_an_encoding_more_metadata_and_may_be_strict(scan, tmp_path):
    french = written(tmp_path, "a.txt", FRENCH.encode("cp1252"))
    reader = FileReader(encoding="cp1252", strict="warning")
    (given,) = reader.load_data(french, extra_info={"year": 1900})
    assert (given.text, given.metadata["year"]) == (FRENCH, 1900)
    (awaited,) = asyncio.run(FileReader().aload_data(french))
    assert awaited.metadata["remarks"][0]["severity"] == "warning"
    with pytest.raises(DocumentError, match="is not read whole"):
        FileReader(strict=True).load_data(scan)


@pytest.mark.parametrize("ocr", [False, True])
def test_scans_are_recognised_on_request(scan, tmp_path, monkeypatch, ocr):
    fake_recogniser(tmp_path, monkeypatch, [(9, 9, "The sea is red.", 0.99)])
    (document,) = FileReader(ocr=ocr).load_data(scan)
    assert ("The sea is red." in document.text) == ocr
    assert document.metadata["pages_without_text"] == ([] if ocr else [2])
    assert core_document(document) == CoreDocument.from_file(scan, ocr=ocr)


def test_folders_are_read_and_what_is_skipped_is_named(scan, caplog):
    written(scan.parent, "a.txt", "The sky is blue.")
    written(scan.parent, "photo.png", b"\x89PNG\r\n\x1a\n...")
    reader = FileReader()
    for _ in range(2):
        loaded = reader.load_data(scan.parent)
        assert [document.metadata["file_path"] for document in loaded] == [
            str(scan.parent / "a.txt"),
            str(scan),
        ]
        (skip,) = reader.skipped
        assert (skip.source, skip.kind) == (str(scan.parent / "photo.png"), "unsupported")
        assert skip.message in caplog.text
    assert core_document(loaded[1]).locations == CoreDocument.from_file(scan).locations
    (only,) = FileReader(glob="*.txt").load_data(scan.parent)
    assert only.text == "The sky is blue."


def test_pages_that_are_read_are_reported(scan):
    told = []
    FileReader(progress=lambda *at: told.append(at)).load_data(scan)
    assert told == [(page, 4) for page in range(5)]
