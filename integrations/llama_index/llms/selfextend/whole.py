"""Keeps LlamaIndex from splitting documents and from cutting prompts before the model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core import Settings
from llama_index.core.indices.prompt_helper import ChatPromptHelper, PromptHelper
from llama_index.core.llms.llm import LLM
from llama_index.core.node_parser import NodeParser, TokenTextSplitter
from llama_index.core.schema import BaseNode

from llama_index.llms.selfextend.base import SelfExtendLLM
from llama_index.llms.selfextend.documents import whole_node

_NEVER_REACHED = 2**62


class FullDocumentParser(NodeParser):
    """Makes one node of each document, where LlamaIndex's default makes pieces of 1,024 tokens."""

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialised instances carry."""
        return "FullDocumentParser"

    def _parse_nodes(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any
    ) -> list[BaseNode]:
        return [whole_node(node, self.id_func(0, node)) for node in nodes]


class FullDocumentPromptHelper(PromptHelper):
    """Puts all texts into one prompt, uncut, for a model that refuses what does not fit.

    LlamaIndex's own splits what is too long, by an estimate that keeps 500 tokens free, and has
    the answer refined piece by piece.
    """

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialised instances carry."""
        return "FullDocumentPromptHelper"

    def get_text_splitter_given_prompt(self, *args: Any, **kwargs: Any) -> TokenTextSplitter:
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
        """Return the name that serialised instances carry."""
        return "FullDocumentChatPromptHelper"

    async def _aget_available_chunk_size(self, *args: Any, **kwargs: Any) -> int:
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
