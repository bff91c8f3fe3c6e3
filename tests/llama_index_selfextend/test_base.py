"""The language model: LlamaIndex's interface on one core model, with the core's own answers."""

from __future__ import annotations

import asyncio
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import llama_index.core
import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionInProgressEvent,
)
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.node_parser import SentenceSplitter

from llama_index.llms.selfextend import SelfExtendLLM
from selfextend_rag import ContextBudgetExceeded, GenerationSettings
from tests.tiny import byte_tokenizer

PROMPT = "abc abd abe"
HELLO = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hi")]


def run(coroutine):
    return asyncio.run(coroutine)


async def agathered(stream):
    return [piece async for piece in stream]


def test_every_call_has_the_types_of_a_stock_model(chat_llm):
    """Each of the eight calls returns what LlamaIndex's own mock returns, and so do its parts."""
    mock = MockLLM(max_tokens=4, is_chat_model=True)
    for name, given in (("complete", PROMPT), ("chat", HELLO)):
        assert type(getattr(chat_llm, name)(given)) is type(getattr(mock, name)(given))
        awaited = run(getattr(chat_llm, f"a{name}")(given))
        assert type(awaited) is type(getattr(mock, name)(given))
        ours = list(getattr(chat_llm, f"stream_{name}")(given))
        theirs = list(getattr(mock, f"stream_{name}")(given))
        assert {type(piece) for piece in ours} == {type(piece) for piece in theirs}

        async def streamed(name=name, given=given):
            return await agathered(await getattr(chat_llm, f"astream_{name}")(given))

        assert {type(piece) for piece in run(streamed())} == {type(piece) for piece in theirs}


def test_all_ways_of_completing_give_the_core_s_answer(llm, core):
    expected = core.generate(PROMPT, max_new_tokens=6).text
    pieces = list(llm.stream_complete(PROMPT))

    async def streamed():
        return await agathered(await llm.astream_complete(PROMPT))

    apieces = run(streamed())
    assert llm.complete(PROMPT).text == expected
    assert run(llm.acomplete(PROMPT)).text == expected
    for each in (pieces, apieces):
        assert "".join(piece.delta for piece in each) == expected
        assert each[-1].text == expected
        assert [p.text for p in each[:-1]] == [
            "".join(p.delta for p in each[: i + 1]) for i in range(len(each) - 1)
        ]


def test_all_ways_of_chatting_give_the_core_s_answer(chat_llm, chat_core):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    expected = chat_core.generate(messages, max_new_tokens=6).text
    pieces = list(chat_llm.stream_chat(HELLO))

    async def streamed():
        return await agathered(await chat_llm.astream_chat(HELLO))

    apieces = run(streamed())
    assert chat_llm.chat(HELLO).message.content == expected
    assert run(chat_llm.achat(HELLO)).message.content == expected
    for each in (pieces, apieces):
        assert "".join(piece.delta for piece in each) == expected
        assert each[-1].message.content == expected
        assert each[-1].message.role == "assistant"


def test_metadata_have_the_extended_window(llm, chat_llm, core):
    assert llm.metadata.context_window == core.planner.extended_window > 128
    assert llm.metadata.num_output == 6
    assert SelfExtendLLM(core).metadata.num_output == core.budget.max_new_tokens
    assert (llm.metadata.is_chat_model, chat_llm.metadata.is_chat_model) == (False, True)
    assert llm.metadata.is_function_calling_model
    assert llm.metadata.model_name == "LlamaForCausalLM"


def test_a_model_without_a_chat_template_is_none_for_chats_and_takes_them_all_the_same(bundled):
    """In the plain form; asking for the chat form is an error."""
    llm = SelfExtendLLM(bundled, max_new_tokens=12)
    assert not llm.metadata.is_chat_model
    said = [
        ChatMessage(role="system", content="The pass key is 48213."),
        ChatMessage(role="user", content="What is the pass key?"),
    ]
    assert llm.chat(said).message.content == "48213"
    with pytest.raises(ValueError, match="needs a chat template, and the tokenizer has none"):
        SelfExtendLLM.bundled(prompt_form="chat")


def test_a_response_has_its_figures_in_raw(llm):
    whole = llm.complete(PROMPT)
    last = list(llm.stream_complete(PROMPT))[-1]
    for response in (whole, last):
        usage = response.raw["usage"]
        assert usage["prompt_tokens"] == len(PROMPT) + 1  # bytes, and the start token
        assert usage["completion_tokens"] == 6
        assert response.additional_kwargs["total_tokens"] == usage["total_tokens"]
        assert response.raw["finish_reason"] == "length"
        assert response.raw["plan"]["pretraining_window"] == 128


def test_the_framework_s_token_counter_counts_what_the_model_read(chat_core):
    counter = TokenCountingHandler()
    llm = SelfExtendLLM(chat_core, max_new_tokens=3, callback_manager=CallbackManager([counter]))
    llm.chat(HELLO)
    list(llm.stream_chat(HELLO))
    messages = [{"role": m.role.value, "content": m.content} for m in HELLO]
    read = len(chat_core.prompts.prompt(messages))
    assert [c.prompt_token_count for c in counter.llm_token_counts] == [read, read]
    assert counter.completion_llm_token_count == 6


def test_callbacks_and_events_fire_for_every_call(chat_core):
    class Kept(BaseEventHandler):
        seen: list = []  # noqa: RUF012 - a field of pydantic

        def handle(self, event, **kwargs):
            self.seen.append(type(event))

    kept, debug = Kept(), LlamaDebugHandler(print_trace_on_end=False)
    llm = SelfExtendLLM(chat_core, max_new_tokens=2, callback_manager=CallbackManager([debug]))
    root = get_dispatcher()
    root.add_event_handler(kept)
    try:
        llm.chat(HELLO)
        list(llm.stream_complete(PROMPT))
        run(llm.achat(HELLO))
    finally:
        root.event_handlers.remove(kept)
    assert kept.seen.count(LLMChatStartEvent) == kept.seen.count(LLMChatEndEvent) == 2
    assert kept.seen.count(LLMCompletionEndEvent) == 1
    assert kept.seen.count(LLMCompletionInProgressEvent) >= 2
    assert len(debug.get_llm_inputs_outputs()) == 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_tokens": 2}, {"max_new_tokens": 2}),
        ({"max_new_tokens": 3}, {"max_new_tokens": 3}),
        ({"temperature": 0.8, "seed": 3}, {"temperature": 0.8, "seed": 3, "max_new_tokens": 6}),
        ({"stop": ["z"]}, {"stop": "z", "max_new_tokens": 6}),
    ],
)
def test_an_option_of_a_call_comes_before_that_of_the_instance(llm, core, options, expected):
    assert llm.complete(PROMPT, **options).text == core.generate(PROMPT, **expected).text


def test_options_of_the_instance_hold_for_every_call(core):
    llm = SelfExtendLLM(core, temperature=0.9, seed=5, max_new_tokens=8)
    expected = core.generate(PROMPT, temperature=0.9, seed=5, max_new_tokens=8).text
    assert llm.complete(PROMPT).text == expected
    assert llm.complete(PROMPT, temperature=0.0).text != expected


def test_stops_of_a_chat_are_added_to_those_of_the_plain_form(llm, core, monkeypatch):
    """Stops of one's own once replaced the line end, and base models asked themselves on."""
    seen, answers = [], core.engine.answers

    def watched(prompts, **options):
        seen.extend(prompt.options.stop for prompt in prompts)
        return answers(prompts, **options)

    monkeypatch.setattr(core.engine, "answers", watched)
    llm.chat([ChatMessage(role="user", content="Hi")], stop="END")
    llm.over(core.read("abc")).complete("Hi", stop=["END"])
    llm.complete("Hi", stop="END")
    assert seen == [("END", "\n"), ("END", "\n"), ("END",)]


def test_options_that_are_not_known_are_refused_by_name(llm, core):
    with pytest.raises(TypeError, match=r"unknown option tempratur; a call takes .*temperature"):
        llm.complete(PROMPT, tempratur=1)
    with pytest.raises(
        TypeError, match=r"unknown option foo; known are .* those of LongContextLLM"
    ):
        SelfExtendLLM(core, foo=1)
    with pytest.raises(ValueError, match="temperature must be 0 or a positive number"):
        SelfExtendLLM(core, temperature=-1)


def test_every_generation_setting_is_an_option(llm):
    for name in GenerationSettings.__dataclass_fields__:
        assert name in type(llm).model_fields or name == "stop_token_ids"


def test_completion_to_prompt_frames_what_is_not_formatted(core):
    llm = SelfExtendLLM(core, max_new_tokens=6, completion_to_prompt=lambda text: f"<{text}>")
    assert llm.complete("a").text == core.generate("<a>", max_new_tokens=6).text
    assert llm.complete("a", formatted=True).text == core.generate("a", max_new_tokens=6).text


def test_what_does_not_fit_is_refused_at_the_call_in_every_form(llm):
    long = "abc " * 10_000
    for call in (llm.complete, llm.stream_complete):
        with pytest.raises(ContextBudgetExceeded):
            call(long)
    for call in (llm.acomplete, llm.astream_complete):
        with pytest.raises(ContextBudgetExceeded):
            run(call(long))


def test_an_error_in_the_middle_of_a_stream_reaches_the_reader(llm, core, monkeypatch):
    decode, calls = core.prompts.codec.decode, []

    def failing(ids):
        calls.append(ids)
        if len(calls) > 3:
            raise RuntimeError("the wire was cut")
        return decode(ids)

    monkeypatch.setattr(core.prompts.codec, "decode", failing)
    pieces = llm.stream_complete(PROMPT)
    with pytest.raises(RuntimeError, match="the wire was cut"):
        list(pieces)
    calls.clear()

    async def streamed():
        return await agathered(await llm.astream_complete(PROMPT))

    with pytest.raises(RuntimeError, match="the wire was cut"):
        run(streamed())


def test_a_stream_that_is_closed_early_frees_the_model(llm):
    pieces = llm.stream_complete(PROMPT, max_tokens=40)
    next(pieces)
    pieces.close()
    assert llm.complete(PROMPT, max_tokens=1).text


def test_threads_get_their_own_answers(llm, core):
    prompts = [f"{letter} " * 9 for letter in "abcdefgh"]
    expected = [core.generate(prompt, max_new_tokens=6).text for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        assert [r.text for r in pool.map(llm.complete, prompts)] == expected


def test_tasks_get_their_own_answers(llm, core):
    prompts = [f"{letter} " * 9 for letter in "abcdefgh"]
    expected = [core.generate(prompt, max_new_tokens=6).text for prompt in prompts]

    async def together():
        return await asyncio.gather(*map(llm.acomplete, prompts))

    assert [response.text for response in run(together())] == expected


def test_the_event_loop_goes_on_during_a_long_prefill(bundled):
    """A prefill in the loop leaves two ticks; how many a busy machine loses is another matter."""
    llm = SelfExtendLLM(bundled, max_new_tokens=1)
    text = "The grass is green. The sky is blue. " * 130
    ticks = []

    async def ticker():
        loop = asyncio.get_running_loop()
        while True:
            ticks.append(loop.time())
            await asyncio.sleep(0.01)

    async def main():
        beside = asyncio.create_task(ticker())
        started = asyncio.get_running_loop().time()
        await agathered(await llm.astream_chat([ChatMessage(role="user", content=text)]))
        beside.cancel()
        return asyncio.get_running_loop().time() - started

    seconds = run(main())
    assert seconds > 0.2
    assert len(ticks) > 0.1 * seconds / 0.01


def test_instances_by_name_share_weights_and_others_settings():
    one, same = SelfExtendLLM.bundled(), SelfExtendLLM("bundled")
    other = SelfExtendLLM.bundled(max_group_size=4)
    assert one.core is same.core
    assert other.core is not one.core
    assert other.core.model is one.core.model
    assert other.metadata.context_window < one.metadata.context_window


def test_what_was_serialised_is_the_same_model_again():
    llm = SelfExtendLLM.bundled(max_group_size=4, temperature=0.5, system_prompt="Hm.")
    for again in (
        SelfExtendLLM.from_dict(llm.to_dict()),
        SelfExtendLLM.from_json(llm.to_json()),
        pickle.loads(pickle.dumps(llm)),
    ):
        assert again.to_dict() == llm.to_dict()
        assert again.core is llm.core
    assert llm.to_dict()["class_name"] == "SelfExtendLLM"


def test_copies_share_the_same_weights(llm):
    deep = copy.deepcopy(llm)
    assert deep.core is llm.core
    assert deep.complete(PROMPT).text == llm.complete(PROMPT).text


def test_a_loaded_model_can_be_used_and_not_pickled(model, core):
    llm = SelfExtendLLM(model, tokenizer=byte_tokenizer(), max_new_tokens=6, max_group_size=4)
    assert llm.complete(PROMPT).text == core.generate(PROMPT, max_new_tokens=6).text
    assert llm.core.planner.max_group_size == 4
    with pytest.raises(TypeError, match="give it a folder or hub id instead"):
        pickle.dumps(llm)


def test_options_that_do_not_go_with_a_loaded_model_are_refused(model, core):
    with pytest.raises(TypeError, match="needs its tokenizer; give tokenizer="):
        SelfExtendLLM(model)
    with pytest.raises(TypeError, match=r"dtype, max_group_size can't be changed .* loaded"):
        SelfExtendLLM(core, dtype="float16", max_group_size=3)
    with pytest.raises(TypeError, match="tokenizer goes with a loaded model"):
        SelfExtendLLM("bundled", tokenizer=byte_tokenizer())


@pytest.mark.parametrize(
    "option",
    [
        {"dtype": "float64"},
        {"device_map": "auto"},
        {"full_attention": True},
        {"model_options": {"revision": "main"}},
    ],
    ids=lambda option: next(iter(option)),
)
def test_a_loaded_model_refuses_the_options_of_loading_by_name(model, core, option):
    refused = f"{next(iter(option))} can't be changed on a model that is loaded"
    with pytest.raises(TypeError, match=refused):
        SelfExtendLLM(core, **option)
    with pytest.raises(TypeError, match=refused):
        SelfExtendLLM(model, tokenizer=byte_tokenizer(), **option)


def test_the_first_model_s_tokenizer_becomes_what_the_framework_counts_with(llm):
    assert Settings.tokenizer("abc") == llm.tokenize("abc") == llm.core.prompts.codec.text("abc")


def test_the_framework_s_own_default_tokenizer_is_replaced(core):
    SentenceSplitter()  # counts, so LlamaIndex sets its default
    assert llama_index.core.global_tokenizer is not None
    llm = SelfExtendLLM(core)
    assert llama_index.core.global_tokenizer == llm.tokenize


def test_a_tokenizer_that_somebody_chose_stays(core, caplog):
    Settings.tokenizer = str.split
    with caplog.at_level("INFO"):
        SelfExtendLLM(core)
    assert Settings.tokenizer is str.split
    assert "Settings.tokenizer = llm.tokenize" in caplog.text
