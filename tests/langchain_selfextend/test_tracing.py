"""What tracers and callbacks hear of the chain over whole documents: its model's run."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tracers import BaseTracer

from langchain_selfextend import (
    ChatSelfExtend,
    ContextWindowExceeded,
    FullDocumentRetriever,
    SelfExtendLLM,
    create_full_document_chain,
)
from tests.langchain_selfextend.conftest import SMALL

KEY = Document("The pass key is 48213. Remember it. 48213 is the pass key.")
QUESTION = {"input": "What is the pass key?"}


class Kept(BaseTracer):
    """LangChain's own tracer, which keeps what it would send."""

    def __init__(self):
        super().__init__(_schema_format="original+chat")
        self.roots = []

    def _persist_run(self, run):
        self.roots.append(run)

    @property
    def model_run(self):
        (root,) = self.roots
        (found,) = [run for run in root.child_runs if run.run_type == "chat_model"]
        return found


@pytest.fixture(params=["invoke", "ainvoke", "stream", "astream"])
def ask(request):
    """Ask a chain in each of the ways there are."""

    def asked(chain, given, config):
        answer = getattr(chain, request.param)(given, config)
        if request.param == "stream":
            return list(answer)
        if request.param == "astream":

            async def taken():
                return [chunk async for chunk in answer]

            return asyncio.run(taken())
        return asyncio.run(answer) if request.param == "ainvoke" else answer

    return asked


@pytest.mark.parametrize("kind", [ChatSelfExtend, SelfExtendLLM])
def test_a_tracer_sees_the_models_run_with_its_question_answer_and_tokens(kind, ask):
    kept = Kept()
    chain = create_full_document_chain(kind(**SMALL), [KEY])
    history = [HumanMessage("Is there one?"), AIMessage("Yes.")]
    ask(chain, {**QUESTION, "chat_history": history}, {"callbacks": [kept], "tags": ["t"]})
    run = kept.model_run
    assert (run.name, run.error) == ("ChatSelfExtend", None)
    assert run.extra["metadata"]["ls_model_name"] == "bundled"
    assert "t" in run.tags
    said = [message["kwargs"]["content"] for message in run.inputs["messages"][0]]
    assert said == ["Is there one?", "Yes.", "What is the pass key?"]
    message = run.outputs["generations"][0][0]["message"]["kwargs"]
    assert message["content"] == "48213"
    assert message["usage_metadata"]["output_tokens"] > 0
    assert message["response_metadata"]["evidence"][0]["text"] in KEY.page_content
    assert kept.roots[0].outputs["answer"] == "48213"


def test_tokens_are_counted_by_usage_callbacks_and_in_the_result():
    chain = create_full_document_chain(ChatSelfExtend(**SMALL), [KEY])
    for _ in range(2):
        with get_usage_metadata_callback() as seen:
            result = chain.invoke(QUESTION)
        assert seen.usage_metadata == {"bundled": result["usage"]}
        assert result["usage"]["input_tokens"] == result["plan"]["prompt_tokens"]
    assert result["usage"]["input_token_details"]["cache_read"] > 0


async def test_events_have_the_models_start_its_text_and_its_end():
    chain = create_full_document_chain(ChatSelfExtend(**SMALL), [KEY])
    events = [event async for event in chain.astream_events(QUESTION, version="v2")]
    of_model = [event for event in events if event["event"].startswith("on_chat_model")]
    assert of_model[0]["event"] == "on_chat_model_start"
    assert of_model[-1]["event"] == "on_chat_model_end"
    parts = [e["data"]["chunk"].text for e in of_model if e["event"] == "on_chat_model_stream"]
    assert "".join(parts) == "48213"
    assert len(parts) > 2
    assert of_model[-1]["data"]["output"].usage_metadata["output_tokens"] > 0
    (chain_id,) = {e["run_id"] for e in events if e["name"] == "full_document_chain"}
    assert {tuple(event["parent_ids"]) for event in of_model} == {(chain_id,)}


def test_the_reading_of_the_documents_is_within_the_models_run(monkeypatch):
    """A trace has to show where the time went."""
    chat, events = ChatSelfExtend(**SMALL), []
    read = chat.llm.read

    class Heard(Kept):
        def on_chat_model_start(self, *given, **more):
            events.append("model")
            return super().on_chat_model_start(*given, **more)

    monkeypatch.setattr(chat.llm, "read", lambda *a, **k: events.append("read") or read(*a, **k))
    create_full_document_chain(chat, [KEY]).invoke(QUESTION, {"callbacks": [Heard()]})
    assert events == ["model", "read"]


def test_what_does_not_fit_is_an_error_of_the_models_run(ask):
    kept = Kept()
    chain = create_full_document_chain(ChatSelfExtend(**SMALL), [Document("word " * 5000)])
    with pytest.raises(ContextWindowExceeded):
        ask(chain, QUESTION, {"callbacks": [kept]})
    assert "exceeds the extended window" in kept.model_run.error


def test_a_retriever_is_a_run_of_its_own_before_the_models(ask):
    kept = Kept()
    chain = create_full_document_chain(
        ChatSelfExtend(**SMALL), FullDocumentRetriever(documents=[KEY])
    )
    ask(chain, QUESTION, {"callbacks": [kept]})
    assert [run.run_type for run in kept.roots[0].child_runs] == ["retriever", "chat_model"]


def test_spans_of_opentelemetry_have_the_models_run_with_its_tokens():
    """By OpenInference's instrumentation of LangChain, where it is installed."""
    reason = "needs openinference-instrumentation-langchain and opentelemetry-sdk"
    instrumentation = pytest.importorskip("openinference.instrumentation.langchain", reason=reason)
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason=reason)
    export = pytest.importorskip("opentelemetry.sdk.trace.export", reason=reason)
    memory = pytest.importorskip(
        "opentelemetry.sdk.trace.export.in_memory_span_exporter", reason=reason
    )
    exporter, provider = memory.InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    instrumentor = instrumentation.LangChainInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        chain = create_full_document_chain(ChatSelfExtend(**SMALL), [KEY])
        usage = chain.invoke(QUESTION)["usage"]
    finally:
        instrumentor.uninstrument()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    model, whole = spans["ChatSelfExtend"], spans["full_document_chain"]
    assert model.parent.span_id == whole.context.span_id
    assert model.attributes["openinference.span.kind"] == "LLM"
    assert model.attributes["llm.model_name"] == "bundled"
    assert model.attributes["llm.token_count.prompt"] == usage["input_tokens"]
    assert model.attributes["llm.token_count.completion"] == usage["output_tokens"]
    assert "48213" in str(model.attributes["output.value"])
