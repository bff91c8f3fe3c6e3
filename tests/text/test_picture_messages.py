"""Pictures in messages: in their place in the prompt, and refused where they can't be looked at."""

from __future__ import annotations

import base64

import pytest

from selfextend_rag.documents import DocumentError, Picture
from selfextend_rag.text.messages import question_and_history
from selfextend_rag.text.picture_prompts import PicturePrompts
from selfextend_rag.text.pictures import tokenizer_of
from selfextend_rag.text.prompts import PromptBuilder
from tests.zoo import vision

TEXT = {"type": "text", "text": "See"}


def as_url(data: bytes) -> dict[str, object]:
    url = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return {"type": "image_url", "image_url": {"url": url}}


def prompts_of(name: str, **options: object) -> PicturePrompts:
    own = vision.processor(name)
    return PicturePrompts(tokenizer_of(own, own.tokenizer), processor=own, **options)


@pytest.mark.parametrize("name", ["llava", "idefics3", "lighton_ocr"])
def test_a_conversation_is_what_the_processor_makes_of_the_chat_template(name):
    prompts, own = prompts_of(name), vision.processor(name)
    one, other = vision.png(50, 40, 1), vision.png(64, 90, 2)
    built = prompts.prompt(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image", "image": one}, {**TEXT, "text": "?"}]},
            {"role": "assistant", "content": "A seal."},
            {"role": "user", "content": [TEXT, as_url(other), {**TEXT, "text": "there."}]},
        ]
    )
    tokens = list(built.tokens)
    for placed in reversed(built.media):
        size = placed.picture.width, placed.picture.height
        tokens[placed.start : placed.stop] = prompts.pictures.tokens_of_size(*size)
    image = {"type": "image"}
    written = [
        ("system", [{**TEXT, "text": "Be brief."}]),
        ("user", [image, {**TEXT, "text": "?"}]),
        ("assistant", [{**TEXT, "text": "A seal."}]),
        ("user", [TEXT, image, {**TEXT, "text": "there."}]),
    ]
    text = own.tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in written],
        chat_template=own.chat_template, tokenize=False, add_generation_prompt=True,
    )  # fmt: skip
    images = [Picture(x, *size).image() for x, size in ((one, (50, 40)), (other, (64, 90)))]
    made = own(text=[text], images=images, add_special_tokens=False)["input_ids"][0]
    assert tokens == list(made)
    assert prompts.count([{"role": "user", "content": [TEXT, as_url(one)]}]) == len(
        prompts.prompt([{"role": "user", "content": [TEXT, as_url(one)]}])
    )


def test_the_plain_form_and_tools_keep_pictures_where_they_are():
    own = vision.processor("llava")
    own.chat_template = None
    prompts = PicturePrompts(tokenizer_of(own, own.tokenizer), processor=own)
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    built = prompts.prompt([{"role": "user", "content": [TEXT, as_url(vision.png(9, 9))]}], [tool])
    (placed,) = built.media
    before = own.tokenizer.decode(list(built.tokens[: placed.start]))
    assert '"name": "look"' in before
    assert before.endswith("Question: See")
    assert own.tokenizer.decode(list(built.tokens[placed.stop :])) == "\nAnswer:"


def test_messages_that_make_no_prompt_are_counted_with_their_pictures():
    prompts = prompts_of("llava")
    picture = {"type": "image", "image": vision.png(50, 40)}
    said = [{"role": "tool", "content": ""}, {"role": "assistant", "content": "Well."}]
    own = vision.processor("llava")
    own.chat_template = None
    plain = PicturePrompts(tokenizer_of(own, own.tokenizer), processor=own)
    alone = plain.count(said)
    more = plain.count([*said, {"role": "user", "content": [picture]}, said[1]])
    assert more >= alone + 16
    assert prompts.count([{"role": "user", "content": [picture]}]) > 16


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "not fetched"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "not fetched"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}, "is damaged"),
        ({"type": "image", "image": b"no picture"}, "a damaged or unusual picture"),
        ({"type": "image_url"}, "a picture is"),
        ({"type": "video"}, "must be text and pictures, got a part of type 'video'"),
    ],
)
def test_what_is_no_picture_is_refused(part, says):
    with pytest.raises(ValueError, match=says):
        prompts_of("llava").prompt([{"role": "user", "content": [TEXT, part]}])


def test_pictures_are_a_users():
    content = [{"type": "image", "image": vision.png(9, 9)}]
    with pytest.raises(DocumentError, match="put it into a message of role 'user'"):
        prompts_of("llava").prompt([{"role": "system", "content": content}])


def test_a_model_of_text_refuses_before_it_decodes():
    content = [TEXT, {"type": "image", "image": b"whatever"}]
    builder = PromptBuilder(vision.tokenizer())
    asked = [{"role": "user", "content": content}]
    for refused in (builder.prompt, builder.count, question_and_history):
        with pytest.raises(DocumentError, match="text alone is read here; load a vision model"):
            refused(asked)
