"""No silent cut: whole documents in one prompt, or a typed error before the model runs."""

from __future__ import annotations

import asyncio

import pytest
import torch
from llama_index.core import Document, SummaryIndex, get_response_synthesizer
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine

from llama_index.llms.selfextend import (
    FullDocumentParser,
    FullDocumentPromptHelper,
    FullDocumentQueryEngine,
    FullDocumentRetriever,
    SelfExtendLLM,
    use_full_documents,
)
from selfextend_rag import ContextBudgetExceeded, LongContextLLM
from tests.tiny import byte_tokenizer, tiny_llama

QUESTION = "What?"


def summary(llm, documents):
    return SummaryIndex.from_documents(documents).as_query_engine(llm=llm)


def compact(llm, documents):
    retriever = FullDocumentRetriever(documents)
    return RetrieverQueryEngine.from_args(retriever, llm=llm, response_mode="compact")


def compact_of_chunks(llm, documents):
    retriever = SummaryIndex.from_documents(documents).as_retriever()
    return RetrieverQueryEngine.from_args(retriever, llm=llm, response_mode="compact")


def tree(llm, documents):
    return SummaryIndex.from_documents(documents).as_query_engine(
        llm=llm, response_mode="tree_summarize"
    )


def simple(llm, documents):
    return SummaryIndex.from_documents(documents).as_query_engine(
        llm=llm, response_mode="simple_summarize"
    )


def ours(llm, documents):
    return FullDocumentQueryEngine.from_documents(documents, llm=llm, question_reserve=20)


WAYS = [summary, compact, compact_of_chunks, tree, simple, ours]


@pytest.fixture
def calls(monkeypatch):
    """The token ids of every prompt that reaches the model."""
    seen = []
    make = LongContextLLM.__init__

    def watched(self, *args, **options):
        make(self, *args, **options)
        run, read = self.engine.answers, self.engine.prefill

        def counted(prompts, **kwargs):
            seen.extend(list(prompt.tokens) for prompt in prompts)
            return run(prompts, **kwargs)

        self.engine.answers = counted
        self.engine.prefill = lambda tokens, *a, **k: (
            seen.append(list(tokens)),
            read(tokens, *a, **k),
        )[1]

    monkeypatch.setattr(LongContextLLM, "__init__", watched)
    return seen


def stretched_llm(chat):
    """A tiny model of window 256, stretched so far that templates fit the tenth that is left."""
    model = tiny_llama(window=256, dtype=torch.float32)
    core = LongContextLLM(model, byte_tokenizer(chat=chat), max_group_size=40, trained_fraction=1.0)
    llm = SelfExtendLLM(core, max_new_tokens=2)
    use_full_documents(llm)
    return llm


@pytest.fixture(params=[False, True], ids=["plain", "chat"])
def stretched(request, calls):
    return stretched_llm(request.param)


@pytest.fixture
def stretched_chat(calls):
    return stretched_llm(chat=True)


def documents_of(tokens):
    """Three documents of that many bytes, so tokens, together; no two parts of them are alike."""
    words = "".join(f"{number} " for number in range(tokens))
    size = -(-tokens // 3)
    texts = [words[i * size : (i + 1) * size].replace(" ", "-") for i in range(3)]
    return [Document(text=text, id_=f"d{i}") for i, text in enumerate(texts)]


@pytest.mark.parametrize("way", WAYS)
def test_documents_of_nine_tenths_of_the_window_are_in_one_prompt_uncut(stretched, calls, way):
    window = stretched.metadata.context_window
    documents = documents_of(int(0.9 * window))
    way(stretched, documents).query(QUESTION)
    if way is ours:
        read, asked = calls
        assert asked[: len(read)] == read  # read once, and the question goes on from there
    else:
        (asked,) = calls
    prompt = bytes_of(asked)
    for document in documents:
        assert prompt.count(document.text) == 1


@pytest.mark.parametrize("way", WAYS)
def test_documents_of_eleven_tenths_of_the_window_are_refused_before_any_call(
    stretched, calls, way
):
    """Refine takes a ValueError for an answer it can't parse, and answered "Empty Response"."""
    documents = documents_of(int(1.1 * stretched.metadata.context_window))
    with pytest.raises(ContextBudgetExceeded, match="exceeds the extended window"):
        way(stretched, documents).query(QUESTION)
    assert calls == []


@pytest.mark.parametrize("way", [summary, tree, ours])
def test_they_are_refused_in_streams_and_when_awaited_too(stretched, calls, way):
    documents = documents_of(int(1.1 * stretched.metadata.context_window))
    with pytest.raises(ContextBudgetExceeded):
        asyncio.run(way(stretched, documents).aquery(QUESTION))
    index = SummaryIndex.from_documents(documents)
    streamed = index.as_query_engine(llm=stretched, streaming=True).query(QUESTION)
    with pytest.raises(ContextBudgetExceeded):
        list(streamed.response_gen)
    assert calls == []


def bytes_of(ids):
    tokenizer = byte_tokenizer()
    return tokenizer.decode(ids, skip_special_tokens=True)


def test_without_global_settings_the_parts_do_the_same(llm, calls):
    core = LongContextLLM(llm.core.model, byte_tokenizer(), max_group_size=32)
    llm = SelfExtendLLM(core, max_new_tokens=4)
    document = Document(text="".join(f"{n} " for n in range(300)))
    index = SummaryIndex.from_documents([document], transformations=[FullDocumentParser()])
    synthesizer = get_response_synthesizer(llm=llm, prompt_helper=FullDocumentPromptHelper())
    index.as_query_engine(llm=llm, response_synthesizer=synthesizer).query(QUESTION)
    assert len(calls) == 1
    assert document.text.strip() in bytes_of(calls[0])


def test_the_parser_keeps_what_belongs_to_a_document(llm):
    document = Document(
        text=" one\n\ntwo ", id_="d", metadata={"a": 1, "b": 2}, excluded_llm_metadata_keys=["b"]
    )
    (node,) = FullDocumentParser().get_nodes_from_documents([document])
    assert node.text == document.text
    assert node.ref_doc_id == "d"
    assert (node.start_char_idx, node.end_char_idx) == (0, len(document.text))
    assert node.get_content("llm") == document.get_content("llm")


def test_an_index_sees_which_documents_have_changed(llm):
    """Nodes under the ids of their documents made every refresh an insertion."""
    documents = [Document(text="one", id_="a"), Document(text="two", id_="b")]
    index = SummaryIndex.from_documents(documents, transformations=[FullDocumentParser()])
    assert index.refresh([documents[0], Document(text="new", id_="b")]) == [False, True]


def test_messages_of_multimodal_synthesis_are_kept_whole(stretched_chat, calls):
    index = SummaryIndex.from_documents(documents_of(600))
    index.as_query_engine(llm=stretched_chat, multimodal=True).query(QUESTION)
    assert len(calls) == 1


def test_only_a_model_that_refuses_what_is_too_long_may_be_used_so():
    with pytest.raises(TypeError, match="needs a SelfExtendLLM, got MockLLM"):
        use_full_documents(MockLLM())


def test_the_framework_s_memory_counts_with_the_extended_window(stretched):
    from llama_index.core.memory import ChatMemoryBuffer

    memory = ChatMemoryBuffer.from_defaults(llm=stretched)
    assert memory.token_limit == int(0.75 * stretched.metadata.context_window)
    memory.put(ChatMessage(role="user", content="abc"))
    assert memory._token_count_for_messages(memory.get_all()) == 3
