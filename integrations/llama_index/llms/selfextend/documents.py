"""Documents of LlamaIndex whole: as the core's, as nodes, and never split by the framework."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal

from llama_index.core import Settings
from llama_index.core.indices.prompt_helper import ChatPromptHelper, PromptHelper
from llama_index.core.llms.llm import LLM
from llama_index.core.node_parser import NodeParser, TokenTextSplitter
from llama_index.core.readers.base import BaseReader
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    TextNode,
)
from llama_index.core.schema import Document as LlamaDocument

from llama_index.llms.selfextend.base import SelfExtendLLM
from llama_index.llms.selfextend.messages import JsonObject
from selfextend_rag import Document, Picture, SkippedFile, frameworks, read_documents

_NEVER_REACHED = 2**62
_TEXT_TEMPLATE = TextNode.model_fields["text_template"].default


def core_document(node: BaseNode) -> Document:
    """Return a document or node as the core takes it, under its own id.

    From its metadata come the title (``title`` or the file's name), the remarks and locations of
    `FileReader`, and the page of a reader of pages; a model does not read it otherwise.

    Raises:
        DocumentError: it has neither text nor picture, or a picture that can't be read.
    """
    metadata = node.metadata
    source = metadata.get("file_path")
    title = metadata.get("title") or metadata.get("file_name")
    return frameworks.core_document(
        node.get_content(MetadataMode.NONE),
        metadata,
        _pictures(node),
        title=str(title or (PurePath(str(source)).name if source else "")),
        source=None if source is None else str(source),
        id=node.node_id,
    )


def whole_node(document: BaseNode, node_id: str | None = None) -> TextNode:
    """Return a document as one node, under its own id or another, its picture with it."""
    image = _image(document)
    return (ImageNode if image else TextNode)(
        **image,
        id_=document.node_id if node_id is None else node_id,
        text=document.get_content(MetadataMode.NONE),
        metadata=dict(document.metadata),
        excluded_embed_metadata_keys=list(document.excluded_embed_metadata_keys),
        excluded_llm_metadata_keys=list(document.excluded_llm_metadata_keys),
        metadata_template=document.metadata_template,
        metadata_separator=document.metadata_separator,
        text_template=getattr(document, "text_template", _TEXT_TEMPLATE),
        relationships={NodeRelationship.SOURCE: document.as_related_node_info()},
    )


def _image(node: BaseNode) -> dict[str, Any]:
    """Return the picture of a document or node, in the fields of an `ImageNode`; empty for none."""
    if isinstance(node, ImageNode):
        names = ("image", "image_path", "image_url", "image_mimetype")
        found = {name: getattr(node, name) for name in names if getattr(node, name)}
        return found if found.keys() - {"image_mimetype"} else {}
    resource = getattr(node, "image_resource", None)
    if resource is None or not (resource.data or resource.path or resource.url):
        return {}
    named = {
        "image": None if resource.data is None else resource.data.decode("ascii"),
        "image_path": None if resource.path is None else str(resource.path),
        "image_url": None if resource.url is None else str(resource.url),
        "image_mimetype": resource.mimetype,
    }
    return {name: value for name, value in named.items() if value}


def _pictures(node: BaseNode) -> list[Picture]:
    """Return the picture that a node or document of LlamaIndex is, or has besides its text."""
    image = _image(node)
    if not image:
        return []
    name = str(node.metadata.get("file_name") or image.get("image_path") or "the picture")
    if "image" in image:
        return [frameworks.picture(base64.b64decode(image["image"]), name)]
    if "image_path" in image:
        return [frameworks.picture(Path(image["image_path"]).read_bytes(), name)]
    return [frameworks.picture(image["image_url"], name)]


def framework_document(document: Document) -> LlamaDocument:
    """Return a document of the core as LlamaIndex's, under its own id."""
    named = {"title": document.title, "file_path": document.source}
    metadata = {name: value for name, value in named.items() if value} | dict(document.metadata)
    if document.remarks or document.locations or document.pictures:
        metadata |= frameworks.file_notes(document)
    hidden = [name for name in frameworks.FILE_NOTES if name in metadata]
    return LlamaDocument(
        id_=document.id,
        text=document.text,
        metadata=metadata,
        excluded_llm_metadata_keys=hidden,
        excluded_embed_metadata_keys=hidden,
    )


def source_nodes(
    evidence: Sequence[JsonObject], documents: Mapping[str, BaseNode]
) -> list[NodeWithScore]:
    """Return the passages that an answer rests on, from the ``evidence`` of its ``raw``."""
    nodes = []
    for found in evidence:
        document = documents[found["document_id"]]
        names = ("location", "picture", "region")
        where = {name: found[name] for name in names if found.get(name) is not None}
        node = TextNode(
            id_=f"{found['document_id']}:{found['start']}-{found['end']}",
            text=found["text"],
            metadata={**frameworks.of_a_passage(document.metadata), **where},
            excluded_llm_metadata_keys=list(document.excluded_llm_metadata_keys),
            excluded_embed_metadata_keys=list(document.excluded_embed_metadata_keys),
            start_char_idx=found["start"],
            end_char_idx=found["end"],
            relationships={NodeRelationship.SOURCE: document.as_related_node_info()},
        )
        nodes.append(NodeWithScore(node=node, score=found["score"]))
    return nodes


class FileReader(BaseReader):
    """Reads files whole, one document each, also those in folders and ZIP archives.

    What is found there and can't be read is logged, and is in ``skipped``, with the reason.
    ``SimpleDirectoryReader(..., file_extractor={".pdf": FileReader()})`` takes it, too.

    Args:
        glob: which files of folders and archives to read, such as ``*.pdf``; all by default.
        encoding: character encoding of the files; found out by default.
        ocr: recognise the text of pages that are pictures; off by default.
        strict: refuse a file with remarks as severe as this; see the core's ``Document.from_file``.
        progress: called with pages read and pages in all, of each PDF.
        pages: ``"auto"`` or ``"images"`` to have pages, and files that are pictures, as pictures
            for a vision model; they are in the metadata. See the core's ``Document.from_file``.
    """

    def __init__(
        self,
        *,
        glob: str | None = None,
        encoding: str | None = None,
        ocr: bool = False,
        strict: bool | Literal["note", "warning", "loss"] = False,
        progress: Callable[[int, int], None] | None = None,
        pages: Literal["text", "auto", "images"] = "text",
    ) -> None:
        self._options: Any = {
            **{"glob": glob, "encoding": encoding, "ocr": ocr, "strict": strict},
            **{"progress": progress, "pages": pages},
        }
        self.skipped: list[SkippedFile] = []

    def lazy_load_data(
        self, *paths: str | os.PathLike[str], extra_info: Mapping[str, object] | None = None
    ) -> Iterator[LlamaDocument]:
        """Yield the documents in files.

        Their metadata has ``file_path``, ``title``, what the core knows of the file, and, neither
        for a model nor for embeddings, the ``remarks`` on what the text does not say, the
        ``locations`` it comes from and the ``pictures`` it has, as JSON values. A document's id is
        that of its text and pictures.

        Args:
            paths: files, folders and archives; see ``selfextend_rag.read_documents``.
            extra_info: more metadata.

        Raises:
            DocumentError: a file can't be read, or has no text; while loading.
        """
        known: Counter[str] = Counter()
        self.skipped = []
        for path in paths:
            found = read_documents(path, **self._options)
            self.skipped += found.skipped
            for file in found.documents:
                document = framework_document(file)
                known[file.id] += 1
                if known[file.id] > 1:  # ids of a framework's documents differ
                    document.id_ = f"{file.id}-{known[file.id]}"
                document.metadata |= extra_info or {}
                yield document


class FullDocumentParser(NodeParser):
    """Makes one node of each document, where LlamaIndex's default makes chunks of 1,024 tokens."""

    @classmethod
    def class_name(cls) -> str:
        return "FullDocumentParser"

    def _parse_nodes(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: object
    ) -> list[BaseNode]:
        return [whole_node(node, self.id_func(0, node)) for node in nodes]


class FullDocumentPromptHelper(PromptHelper):
    """Puts all texts into one prompt, uncut, for a model that refuses what does not fit.

    LlamaIndex's own splits what is too long, by an estimate that keeps 500 tokens free, and has
    the answer refined chunk by chunk.
    """

    @classmethod
    def class_name(cls) -> str:
        return "FullDocumentPromptHelper"

    def get_text_splitter_given_prompt(self, *args: object, **kwargs: object) -> TokenTextSplitter:
        """Return a splitter that never splits; repacking and truncating go through it."""
        return TokenTextSplitter(
            chunk_size=_NEVER_REACHED,
            chunk_overlap=0,
            keep_whitespaces=True,
            tokenizer=lambda text: [],
        )


class FullDocumentChatPromptHelper(ChatPromptHelper):
    """Does for messages what `FullDocumentPromptHelper` does for texts."""

    @classmethod
    def class_name(cls) -> str:
        return "FullDocumentChatPromptHelper"

    async def _aget_available_chunk_size(self, *args: object, **kwargs: object) -> int:
        return _NEVER_REACHED


def use_full_documents(llm: SelfExtendLLM) -> None:
    """Have all of LlamaIndex hand whole documents to this model.

    Sets the model, its tokenizer, `FullDocumentParser` and `FullDocumentPromptHelper` in
    ``llama_index.core.Settings``, over what was set there. Indexes and query engines that are made
    afterwards neither split nor cut documents: they are in one prompt, or `ContextBudgetExceeded`
    is raised before the model runs.

    Raises:
        TypeError: it is another model, which may not refuse what is too long.
    """
    if not isinstance(llm, SelfExtendLLM):
        raise TypeError(f"use_full_documents needs a SelfExtendLLM, got {type(llm).__name__}")
    Settings.llm = llm
    Settings.tokenizer = llm.tokenize
    Settings.node_parser = FullDocumentParser()
    Settings.transformations = [Settings.node_parser]
    Settings.prompt_helper = FullDocumentPromptHelper.from_llm_metadata(llm.metadata)
    Settings.chat_prompt_helper = FullDocumentChatPromptHelper.from_llm_metadata(llm.metadata)


def selfextend_llm(llm: LLM | None) -> SelfExtendLLM:
    """Return the model to use, ``Settings.llm`` for None.

    Raises:
        TypeError: it is another kind of model.
    """
    if llm is None:
        llm = Settings._llm  # not its property, which would look for a hosted model
    if not isinstance(llm, SelfExtendLLM):
        raise TypeError(
            f"reading whole documents needs a SelfExtendLLM, got {type(llm).__name__}; give llm=, "
            "or call use_full_documents(llm) once"
        )
    return llm
