"""The clients that people have work as they come: OpenAI's, LangChain's, LlamaIndex's, litellm."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from tests.serve.conftest import STORY
from tests.serve.test_chat import ARGUMENTS, TOOL

QUESTION = f"{STORY}\n\nQuestion: What is the height of the mill?"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def answer(llm):
    return llm.generate(MESSAGES).text


@pytest.fixture
def openai(server):
    openai = pytest.importorskip("openai", reason="this client is not installed")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai(openai, answer):
    assert [model.id for model in openai.models.list()] == ["bundled"]
    asked = {"model": "bundled", "messages": MESSAGES}
    whole = openai.chat.completions.create(**asked)
    assert whole.choices[0].message.content == answer
    options = {"include_usage": True}
    *chunks, last = openai.chat.completions.create(**asked, stream=True, stream_options=options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
    assert last.usage.total_tokens == whole.usage.total_tokens
    text = openai.completions.create(model="bundled", prompt=QUESTION + "\nAnswer:", stop="\n")
    assert text.choices[0].text.strip()


async def test_openai_async(server, answer):
    openai = pytest.importorskip("openai", reason="this client is not installed")
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="bundled", messages=MESSAGES, stream=True
        )
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(parts) == answer


def test_openai_parses_schemas_and_calls_tools(openai):
    pydantic = pytest.importorskip("pydantic", reason="of the client, which is not installed")

    class Mill(pydantic.BaseModel):
        height: int

    parsed = openai.chat.completions.parse(model="bundled", messages=MESSAGES, response_format=Mill)
    assert isinstance(parsed.choices[0].message.parsed, Mill)
    called = openai.chat.completions.create(
        model="bundled",
        messages=MESSAGES,
        tools=[TOOL],
        max_tokens=80,
        tool_choice={"type": "function", "function": {"name": "look_up"}},
    )
    (call,) = called.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["key"] in ARGUMENTS["properties"]["key"]["enum"]


def test_openai_uploads_files_and_asks_about_them(openai):
    file = openai.files.create(file=("mill.txt", STORY.encode()), purpose="user_data")
    content = [
        {"type": "file", "file": {"file_id": file.id}},
        {"type": "text", "text": "What is the height of the old mill?"},
    ]
    asked = openai.chat.completions.create(
        model="bundled", messages=[{"role": "user", "content": content}]
    )
    assert asked.choices[0].evidence[0]["title"] == "mill"
    assert file.id in [kept.id for kept in openai.files.list()]
    assert openai.files.content(file.id).text == STORY
    assert openai.files.delete(file.id).deleted


def test_openai_raises_its_own_errors(openai):
    import openai as library

    long = [{"role": "user", "content": "a long word " * 20000}]
    with pytest.raises(library.BadRequestError) as refused:
        openai.chat.completions.create(model="bundled", messages=long)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.body["excess"] > 0
    with pytest.raises(library.NotFoundError):
        openai.chat.completions.create(model="gpt-4", messages=MESSAGES)


def test_langchain_openai(server, answer):
    langchain_openai = pytest.importorskip(
        "langchain_openai", reason="this client is not installed"
    )
    chat = langchain_openai.ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="none", model="bundled", stream_usage=True
    )
    assert chat.invoke(QUESTION).text == answer
    parts = list(chat.stream(QUESTION))
    assert "".join(part.text for part in parts) == answer
    assert sum(p.usage_metadata["output_tokens"] for p in parts if p.usage_metadata) > 0
    schema = {"title": "Mill", "type": "object", "properties": {"height": {"type": "integer"}}}
    schema |= {"required": ["height"], "additionalProperties": False}
    structured = chat.with_structured_output(schema, method="json_schema")
    assert isinstance(structured.invoke(QUESTION)["height"], int)
    called = chat.bind_tools([TOOL], tool_choice="look_up", max_tokens=80).invoke(QUESTION)
    assert called.tool_calls[0]["name"] == "look_up"


def test_llama_index_openai_like(server, answer):
    openai_like = pytest.importorskip(
        "llama_index.llms.openai_like", reason="this client is not installed"
    )
    llm = openai_like.OpenAILike(
        api_base=f"{server.url}/v1", api_key="none", model="bundled", is_chat_model=True
    )
    assert str(llm.complete(QUESTION)) == answer
    assert list(llm.stream_complete(QUESTION))[-1].text == answer


def test_litellm(server, answer):
    litellm = pytest.importorskip("litellm", reason="this client is not installed")
    given = {"model": "openai/bundled", "api_base": f"{server.url}/v1", "api_key": "none"}
    whole = litellm.completion(messages=MESSAGES, **given)
    assert whole.choices[0].message.content == answer
    parts = litellm.completion(messages=MESSAGES, stream=True, **given)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == answer


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server, answer):
    body = json.dumps({"model": "bundled", "messages": MESSAGES})
    address = f"{server.url}/v1/chat/completions"
    sent = ["curl", "-sS", address, "-H", "Content-Type: application/json", "-d", body]
    printed = subprocess.run(sent, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed)["choices"][0]["message"]["content"] == answer
