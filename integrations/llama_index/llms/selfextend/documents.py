"""LlamaIndex's documents as the core's, and the evidence of an answer as source nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from llama_index.core.schema import (
    BaseNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    TextNode,
)
from llama_index.core.schema import Document as LlamaDocument

from selfextend_rag import Document

_TEXT_TEMPLATE = TextNode.model_fields["text_template"].default


def core_document(node: BaseNode) -> Document:
    """Return a document or node as the core takes it, under its own id.

    The title comes from ``title`` or the file's name in the metadata, which is not read otherwise.

    Raises:
        DocumentError: it has no text.
    """
    metadata = node.metadata
    source = metadata.get("file_path")
    title = metadata.get("title") or metadata.get("file_name")
    return Document.from_text(
        node.get_content(MetadataMode.NONE),
        title=str(title or (PurePath(str(source)).name if source else "")),
        source=None if source is None else str(source),
        id=node.node_id,
        metadata=metadata,
    )


def whole_node(document: BaseNode, node_id: str | None = None) -> TextNode:
    """Return a document as one node, which the framework takes where it takes pieces.

    Args:
        document: the document.
        node_id: what to call the node; by default as the document.
    """
    return TextNode(
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


def framework_document(document: Document) -> BaseNode:
    """Return a document of the core as LlamaIndex's, under its own id."""
    named = {"title": document.title, "file_path": document.source}
    more = {name: value for name, value in named.items() if value}
    metadata = {**more, **document.metadata}
    return LlamaDocument(id_=document.id, text=document.text, metadata=metadata)


def source_nodes(
    evidence: Sequence[Mapping[str, Any]], documents: Mapping[str, BaseNode]
) -> list[NodeWithScore]:
    """Return the passages that an answer rests on.

    Args:
        evidence: as in the ``raw`` of a response.
        documents: the documents that were read, by id.
    """
    nodes = []
    for found in evidence:
        document = documents[found["document_id"]]
        node = TextNode(
            id_=f"{found['document_id']}:{found['start']}-{found['end']}",
            text=found["text"],
            metadata=dict(document.metadata),
            start_char_idx=found["start"],
            end_char_idx=found["end"],
            relationships={NodeRelationship.SOURCE: document.as_related_node_info()},
        )
        nodes.append(NodeWithScore(node=node, score=found["score"]))
    return nodes
