"""The chat model: what LangChain's suites do not ask, and what is ours alone."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time

import pytest
from langchain_core.exceptions import ContextOverflowError, ModelTimeoutError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, trim_messages
from langchain_core.runnables import ConfigurableField

from langchain_selfextend import ChatSelfExtend, ContextWindowExceeded
from selfextend_rag import ContextBudgetExceeded, LongContextLLM, ModelLoadError
from selfextend_rag.bundled import FOLDER
from selfextend_rag.engine import decode, run
from selfextend_rag.llm import library
from tests.langchain_selfextend.conftest import PASSKEY, SMALL, count_calls


def collected(chunks):
    first, *others = chunks
    for chunk in others:
        first += chunk
    return first


# --- construction ------------------------------------------------------------------------------


def test_instances_of_one_model_share_its_weights(chat):
    same = ChatSelfExtend(**SMALL)
    other = ChatSelfExtend.bundled(max_group_size=2, temperature=0.5)
    assert same.llm is chat.llm  # and with it what it has read
    assert other.llm is not chat.llm
    assert other.llm.model is chat.llm.model
    assert ChatSelfExtend(model="bundled", dtype="float64").llm.model is not chat.llm.model


def test_weights_are_released_with_the_last_instance():
    gc.collect()  # what earlier tests left behind is not to go in between
    alone = ChatSelfExtend(model=str(FOLDER), chunk_size=77)
    count = len(library._opened)
    del alone
    gc.collect()
    assert len(library._opened) == count - 1


def test_every_way_to_name_a_model_gives_the_same_answer(chat):
    model, tokenizer = chat.llm.model, chat.llm.tokenizer
    made = [
        chat,
        ChatSelfExtend(model=model, tokenizer=tokenizer, max_tokens=8),
        ChatSelfExtend(llm=LongContextLLM(model, tokenizer), max_tokens=8),
        ChatSelfExtend(model=FOLDER, max_tokens=8),
        ChatSelfExtend.bundled(max_new_tokens=8),
    ]
    assert {each.invoke(PASSKEY).content for each in made} == {"48213"}


def test_options_of_the_core_are_taken_as_they_are():
    chat = ChatSelfExtend(**{**SMALL, "max_group_size": 2, "neighbor_window": 64, "chunk_size": 99})
    assert (chat.llm.planner.max_group_size, chat.llm.planner.neighbor_window) == (2, 64)
    assert chat.llm.engine.chunk_size == 99


def test_precision_and_options_of_loading_reach_transformers():
    chat = ChatSelfExtend(model="bundled", dtype="float64")
    assert str(chat.llm.model.dtype) == "torch.float64"
    assert ChatSelfExtend(model="bundled", dtype=chat.llm.model.dtype).llm is chat.llm
    with pytest.raises(ModelLoadError, match="can't load the model"):
        ChatSelfExtend(model="bundled", model_options={"attn_implementation": "no such"})
    with pytest.raises(ModelLoadError, match="quant"):
        ChatSelfExtend(model="bundled", quantization_config={"quant_method": "no such"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no model was named; give model="),
        ({"model": object()}, "a model that is loaded needs its tokenizer"),
        (
            {"model": "bundled", "temprature": 1},
            "unknown option temprature; known are .*temperature",
        ),
        ({"model": "bundled", "temperature": -1}, "temperature must be 0 or a positive number"),
        ({"model": "bundled", "max_tokens": 0}, "max_new_tokens must be a positive integer"),
        ({"llm": "some"}, "llm must be a ChatSelfExtend, a SelfExtendLLM, a LongContextLLM or a"),
    ],
)
def test_what_can_not_be_is_refused_at_once(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ChatSelfExtend(**options)


@pytest.mark.parametrize(
    "option",
    [
        {"dtype": "float64"},
        {"device_map": "auto"},
        {"full_attention": True},
        {"model_options": {"revision": "main"}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
    ],
    ids=lambda option: next(iter(option)),
)
def test_a_loaded_model_refuses_the_options_of_loading_by_name(tiny, option):
    """They were ignored without a word, but for two, and a model ran in another precision."""
    refused = rf"{next(iter(option))} can't be changed on a model that is loaded"
    with pytest.raises(ValueError, match=refused):
        ChatSelfExtend(llm=tiny, **option)
    with pytest.raises(ValueError, match=refused):
        ChatSelfExtend(model=tiny.model, tokenizer=tiny.tokenizer, **option)


def test_an_option_of_another_way_to_give_the_model_is_refused(tiny):
    with pytest.raises(ValueError, match="group_size can't be changed on a model that is loaded"):
        ChatSelfExtend(llm=tiny, group_size=4)
    with pytest.raises(ValueError, match="tokenizer can't be changed on a model that is loaded"):
        ChatSelfExtend(llm=tiny, tokenizer=tiny.tokenizer)
    with pytest.raises(ValueError, match="tokenizer goes with a loaded model"):
        ChatSelfExtend(model="bundled", tokenizer=tiny.tokenizer)


def test_fields_may_be_configured_per_call(chat):
    """A model by name, its precision and its window are kept; options were refused once."""
    made = ChatSelfExtend(**SMALL, dtype="float64", neighbor_window=64)
    fields = {name: ConfigurableField(id=name) for name in ("max_tokens", "dtype")}
    configurable = made.configurable_fields(**fields)
    short, _ = configurable.with_config(configurable={"max_tokens": 2}).prepare()
    assert (short.llm, short.max_tokens, short.model) == (made.llm, 2, "bundled")
    other, _ = configurable.with_config(configurable={"dtype": "float32"}).prepare()
    assert str(other.llm.model.dtype) == "torch.float32"
    assert other.llm.planner.neighbor_window == 64


def configured(chat, **values):
    fields = {name: ConfigurableField(id=name) for name in values}
    found, _ = chat.configurable_fields(**fields).with_config(configurable=values).prepare()
    return found


def test_a_configured_model_is_the_one_that_answers_with_its_own_profile(chat):
    other = configured(chat, model=str(FOLDER), max_tokens=4)
    assert other.llm.name == str(FOLDER)
    message = other.invoke(PASSKEY)
    assert message.response_metadata["model_name"] == str(FOLDER)
    assert message.usage_metadata["output_tokens"] == 4
    assert other.profile["max_output_tokens"] == 4
    given = ChatSelfExtend(**SMALL, profile={"max_input_tokens": 7})
    assert configured(given, max_tokens=4).profile == {"max_input_tokens": 7}
    with pytest.raises(ValueError, match="llm not found"):
        chat.configurable_fields(llm=ConfigurableField(id="llm"))


def test_the_model_of_the_fields_answers_also_where_a_copy_or_a_field_was_changed(chat):
    assert str(chat.model_copy(update={"dtype": "float64"}).llm.model.dtype) == "torch.float64"
    changed = ChatSelfExtend(**SMALL)
    changed.context_options = {"max_group_size": 2}
    assert changed.llm.planner.max_group_size == 2
    assert changed.llm.model is chat.llm.model


def test_a_loaded_model_may_be_configured_and_is_never_another_one(tiny):
    """A model's name was taken and the old one answered; a context option ended in an error."""
    options = {"tokenizer": tiny.tokenizer, "max_group_size": 2, "max_tokens": 4}
    live = ChatSelfExtend(model=tiny.model, **options)
    assert configured(live, temperature=0.5).llm is live.llm
    for values, message in (
        ({"model": "bundled"}, "model 'bundled' can't be had of an instance that was made of"),
        ({"dtype": "float16"}, "dtype can't be changed on a model that is loaded"),
        ({"context_options": {"max_group_size": 3}}, "max_group_size can't be changed"),
    ):
        with pytest.raises(ValueError, match=message):
            configured(live, **values)
        with pytest.raises(ValueError, match=message):
            _ = live.model_copy(update=values).llm
    with pytest.raises(ValueError, match="model 'bundled' can't be had"):
        ChatSelfExtend(model="bundled", llm=tiny)


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        (
            {
                "model_id": "bundled",
                "task": "text-generation",
                "pipeline_kwargs": {"max_new_tokens": 5, "do_sample": False},
                "model_kwargs": {"torch_dtype": "float64"},
            },
            {"max_tokens": 5, "temperature": 0.0, "dtype": "float64", "model": "bundled"},
        ),
        ({"model_name": "bundled", "request_timeout": 9}, {"timeout": 9.0, "model": "bundled"}),
    ],
)
def test_options_of_huggingface_pipeline_are_taken_under_our_names(options, taken):
    made = ChatSelfExtend(**options)
    assert {name: getattr(made, name) for name in taken} == taken


def test_what_another_class_takes_is_refused_with_what_to_use(tiny):
    with pytest.raises(ValueError, match=r"pipeline.* model=pipeline.model and tokenizer="):
        ChatSelfExtend(pipeline=tiny)
    with pytest.raises(ValueError, match="max_tokens is given twice"):
        ChatSelfExtend(model="bundled", max_tokens=3, max_new_tokens=4)
    with pytest.raises(TypeError, match="a model of transformers goes to model="):
        ChatSelfExtend(llm=tiny.model)
    with pytest.raises(ValueError, match="temperature must be 0 or a positive number, got '1'"):
        ChatSelfExtend(llm=tiny).invoke("a", temperature="1")
    for name, value in (("temperature", "0"), ("max_tokens", "9"), ("seed", True)):
        with pytest.raises(ValueError, match=f"{name} must be a number, got {value!r}"):
            ChatSelfExtend(model="bundled", **{name: value})


def test_any_part_of_a_conversation_can_be_counted_and_trimmed(chat, tiny):
    """Models without a chat template, and templates that are strict, refused most parts."""
    said = [
        SystemMessage("Be brief."),
        AIMessage("Hello, who is there?"),
        HumanMessage("The sky is blue."),
        AIMessage("It is."),
        HumanMessage("And the grass?"),
    ]
    for model in (chat, ChatSelfExtend(llm=tiny)):
        whole = model.get_num_tokens_from_messages(said)
        for start in range(len(said)):
            assert 0 < model.get_num_tokens_from_messages(said[start:-1] or said[:1]) <= 2 * whole
        kept = trim_messages(
            said, max_tokens=whole - 1, token_counter=model, strategy="last", include_system=True
        )
        assert kept[0] == said[0]
        assert kept[-1] == said[-1]
        assert len(kept) < len(said)
        assert model.get_num_tokens_from_messages(kept) < whole


def test_a_model_that_is_not_there_is_named():
    with pytest.raises(ModelLoadError, match="/no/such/folder"):
        ChatSelfExtend(model="/no/such/folder")


# --- answers -----------------------------------------------------------------------------------


def test_the_answer_with_its_usage_and_its_end(chat):
    message = chat.invoke(PASSKEY)
    assert message.content == "48213"
    assert message.response_metadata["finish_reason"] == "stop"
    assert message.response_metadata["model_name"] == "bundled"
    usage = message.usage_metadata
    assert usage["input_tokens"] == chat.get_num_tokens_from_messages([HumanMessage(PASSKEY)])
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_streamed_blocking_and_awaited_answers_are_the_same(chat):
    async def awaited():
        streamed = [chunk async for chunk in chat.astream(PASSKEY)]
        return await chat.ainvoke(PASSKEY), collected(streamed)

    blocking, streamed = chat.invoke(PASSKEY), collected(chat.stream(PASSKEY))
    for message in (streamed, *asyncio.run(awaited())):
        assert message.content == blocking.content
        assert message.usage_metadata["input_tokens"] == blocking.usage_metadata["input_tokens"]
        assert message.usage_metadata["output_tokens"] == blocking.usage_metadata["output_tokens"]
        assert message.response_metadata["finish_reason"] == "stop"


def test_pieces_come_one_by_one(chat):
    chunks = list(chat.stream(PASSKEY))
    assert len([chunk for chunk in chunks if chunk.content]) > 2
    assert [bool(chunk.usage_metadata) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_a_prompt_that_was_read_before_is_counted_as_such(chat):
    prompt = "Of what was read before, nothing is read again. " * 4 + "What is the pass key?"
    chat.invoke(prompt)
    usage = chat.invoke(prompt).usage_metadata
    assert 0 < usage["input_token_details"]["cache_read"] < usage["input_tokens"]


def test_batches_keep_their_order(chat):
    prompts = [PASSKEY.replace("48213", key) for key in ("48213", "90517", "26374")]
    answers = [message.content for message in chat.batch(prompts)]
    assert answers == [chat.invoke(prompt).content for prompt in prompts]
    assert answers == [message.content for message in asyncio.run(chat.abatch(prompts))]


def test_the_length_of_an_answer_is_bounded_per_call(chat):
    for name in ("max_tokens", "max_new_tokens", "max_completion_tokens"):
        message = chat.invoke(PASSKEY, **{name: 2})
        assert message.usage_metadata["output_tokens"] == 2
        assert message.response_metadata["finish_reason"] == "length"


def test_sampling_is_repeatable_with_a_seed(chat):
    hot = chat.bind(temperature=5.0, top_p=0.9, top_k=50, seed=7, max_tokens=6)
    assert hot.invoke("Hello").content == hot.invoke("Hello").content
    assert hot.invoke("Hello").content != chat.invoke("Hello", max_tokens=6).content


@pytest.mark.parametrize("stop", [["82"], "82"])
def test_stop_texts_end_the_answer_per_call_and_per_instance(chat, stop):
    assert chat.invoke(PASSKEY, stop=stop).content == "4"
    own = ChatSelfExtend(**SMALL, stop=stop)
    assert own.invoke(PASSKEY).content == "4"
    assert own.invoke(PASSKEY, stop=["2"]).content == "48"[:1]


def test_a_stop_text_does_not_take_the_place_of_the_models_own_end(chat):
    """In the plain form an answer ends with its line; a stop text once removed that end."""
    message = chat.invoke(PASSKEY, stop=["no such text"], max_tokens=30)
    assert message.content == "48213"


def test_an_unknown_option_of_a_call_is_refused_by_name(chat):
    with pytest.raises(TypeError, match="unknown option temprature; a call takes max"):
        chat.invoke("Hello", temprature=1)


def test_an_answer_out_of_time_is_broken_off():
    slow = ChatSelfExtend(**{**SMALL, "timeout": 1e-6})
    with pytest.raises(ModelTimeoutError, match="more than the timeout of 1e-06 seconds"):
        slow.invoke("Hello " * 300)
    assert ChatSelfExtend(**SMALL, timeout=60).invoke(PASSKEY).content == "48213"


def test_leaving_a_stream_frees_the_model(chat):
    stream = chat.stream("Hello", max_tokens=300, stop=["no such text"])
    next(stream)
    stream.close()
    assert chat.invoke(PASSKEY).content == "48213"


def test_a_call_may_name_another_model(chat):
    message = chat.invoke(PASSKEY, model=str(FOLDER))
    assert (message.content, message.response_metadata["model_name"]) == ("48213", str(FOLDER))


# --- the window --------------------------------------------------------------------------------


def test_the_profile_has_the_longest_prompt_that_is_accepted(chat, monkeypatch):
    longest = chat.profile["max_input_tokens"]
    assert longest > 512  # beyond what the model was trained on
    frame = chat.get_num_tokens_from_messages([HumanMessage("a")]) - chat.get_num_tokens("a")
    text = " a" * (longest - frame)
    prompt = [HumanMessage(text)]
    while chat.get_num_tokens_from_messages(prompt) > longest:
        prompt = [HumanMessage(prompt[0].content[:-2])]
    assert chat.get_num_tokens_from_messages(prompt) == longest
    calls = count_calls(monkeypatch, chat.llm)
    assert chat.invoke(prompt).usage_metadata["input_tokens"] == longest
    with pytest.raises(ContextWindowExceeded):
        chat.invoke([HumanMessage(prompt[0].content + " a")])
    assert len(calls) == 2


def test_an_overflow_is_the_frameworks_error_and_ours_with_the_figures(chat):
    with pytest.raises(ContextOverflowError) as caught:
        chat.invoke("word " * 5000)
    error = caught.value
    assert isinstance(error, ContextBudgetExceeded)
    assert error.needed > error.available
    assert error.excess == error.needed - error.available
    assert str(error) == str(error.__cause__)
    assert "exceeds the extended window" in str(error)


async def test_an_overflow_is_the_same_error_when_awaited(chat):
    with pytest.raises(ContextOverflowError):
        await chat.ainvoke("word " * 5000)
    with pytest.raises(ContextOverflowError):
        async for _ in chat.astream("word " * 5000):
            pass


def test_tokens_are_counted_by_the_models_own_tokenizer(chat):
    text = "In the beginning 12345"
    ids = chat.get_token_ids(text)
    assert ids == chat.llm.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert chat.get_num_tokens(text) == len(ids)


def test_a_chat_template_gets_system_and_user_messages(tiny):
    chat = ChatSelfExtend(llm=tiny, max_tokens=1)
    messages = [SystemMessage("S"), HumanMessage([{"type": "text", "text": "U"}])]
    expected = "<|start|>system\nS<|end|>\n<|start|>user\nU<|end|>\n<|start|>assistant\n"
    count = len(tiny.tokenizer("<bos>" + expected, add_special_tokens=False)["input_ids"])
    assert chat.get_num_tokens_from_messages(messages) == count
    assert chat.invoke(messages).usage_metadata["input_tokens"] == count


def test_a_model_without_a_chat_template_is_asked_in_the_plain_form(chat):
    """So are messages of the system and of tools; asking for the chat form is an error."""
    said = [SystemMessage("The pass key is 48213."), HumanMessage("What is the pass key?")]
    assert chat.invoke(said).content == "48213"
    plain = "The pass key is 48213.\n\nQuestion: What is the pass key?\nAnswer:"
    assert chat.get_num_tokens_from_messages(said) == chat.get_num_tokens(plain) + 1  # the start
    with pytest.raises(ValueError, match="needs a chat template, and the tokenizer has none"):
        ChatSelfExtend(**SMALL, prompt_form="chat")


# --- the event loop ----------------------------------------------------------------------------


def slow_down(monkeypatch, seconds):
    """Let every forward of an engine take so much longer, outside Python."""
    forward = run.forward

    def slowly(*args, **options):
        time.sleep(seconds)
        return forward(*args, **options)

    for module in (run, decode):
        monkeypatch.setattr(module, "forward", slowly)


async def test_the_event_loop_stays_free_while_a_prompt_is_read(chat, monkeypatch):
    """A prefill of a second, most of it outside Python, as that of a real model is."""
    slow_down(monkeypatch, 1)
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticker = asyncio.create_task(tick())
    message = await chat.ainvoke("Free as a loop?", max_tokens=1)
    ticker.cancel()
    assert message.usage_metadata["output_tokens"] == 1
    assert ticks > 50  # of 100; a loop that is held has none


async def test_cancelling_a_task_frees_the_model(chat, monkeypatch):
    slow_down(monkeypatch, 0.05)
    task = asyncio.create_task(chat.ainvoke("Hello", max_tokens=400, stop=["no such text"]))
    await asyncio.sleep(0.15)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await asyncio.wait_for(chat.ainvoke(PASSKEY), 60)).content == "48213"


def test_without_the_framework_the_import_says_which_extra_to_install():
    code = "import sys; sys.modules['langchain_core'] = None; import langchain_selfextend"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'selfextend-rag[langchain]'" in done.stderr
