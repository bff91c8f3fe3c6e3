"""Pictures that are sent to a server: in messages and as files, and refused by a model of text."""

from __future__ import annotations

import base64
from functools import partial

import pytest

from selfextend_rag.llm import LongContextLLM
from selfextend_rag.serve import ServerSettings, create_app
from tests.serve.conftest import Listening
from tests.zoo import vision

png = partial(vision.png, 60, 50)


def url(seed: int) -> str:
    return "data:image/png;base64," + base64.b64encode(png(seed)).decode("ascii")


def image(address: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": address}}


def asked(client, *parts: dict[str, object], **more: object):
    content = [*parts, {"type": "text", "text": "What is it?"}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 4}
    return client.post("/v1/chat/completions", json={**body, **more})


@pytest.fixture(scope="module")
def seeing():
    processor = vision.processor("llava")
    llm = LongContextLLM(
        vision.model("llava"), processor.tokenizer, processor=processor, pretraining_window=128
    )
    app = create_app(llm, ServerSettings(model_name="tiny"))
    with Listening(app) as server, server.client() as client:
        yield client


def test_a_message_with_pictures_is_answered(seeing):
    alone = asked(seeing).json()["usage"]["prompt_tokens"]
    response = asked(seeing, image(url(1)), image(url(2)))
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["prompt_tokens"] == alone + 2 * 16
    assert response.json()["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a.png", "file:///etc/hostname"])
def test_nothing_is_fetched(seeing, address):
    response = asked(seeing, image(address))
    assert response.status_code == 400
    assert "is not fetched from" in response.json()["error"]["message"]


def test_a_picture_is_a_file_too_and_one_of_equal_name_is_another(seeing):
    ids = [
        seeing.post("/v1/files", files={"file": ("page.png", png(seed))}).json()["id"]
        for seed in (1, 2)
    ]
    assert len(set(ids)) == 2
    response = asked(seeing, *({"type": "file", "file": {"file_id": x}} for x in ids))
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["prompt_tokens"] > 2 * 16
    mixed = asked(seeing, image(url(3)), {"type": "file", "file": {"file_id": ids[0]}})
    assert mixed.status_code == 400
    assert "attach each picture as a file" in mixed.json()["error"]["message"]


def test_a_model_of_text_refuses_them_with_what_can_be_done(client):
    response = asked(client, image(url(1)), model="bundled")
    assert response.status_code == 400
    assert "load a vision model" in response.json()["error"]["message"]
    sent = client.post("/v1/files", files={"file": ("page.png", png(1))})
    assert sent.status_code == 400
    assert "for a vision model read it" in sent.json()["error"]["message"]
