"""Tokens of pictures: counted before anything runs, and where the pictures are in the text."""

from __future__ import annotations

import io

import numpy as np
import pytest

from selfextend_rag.documents import Document, DocumentError, Picture
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.text.picture_prompts import PicturePrompts
from selfextend_rag.text.pictures import PictureProcessor, tokenizer_of
from tests.zoo import vision

SIZES = [(1, 1), (1, 150), (3, 500), (333, 217), (10_000, 60), (60, 10_000)]
IMAGES_FIRST = (
    "{% for message in messages %}{{ message.role | upper }}: "
    "{% for part in message.content | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
    "{% endfor %}{% for part in message.content | selectattr('type', 'equalto', 'text') %}"
    "{{ part.text }}{% endfor %} {% endfor %}ASSISTANT:"
)


def picture(width: int, height: int, start: int = 0, seed: int = 0) -> Picture:
    out = io.BytesIO()
    vision.picture(width, height, seed).save(out, "PNG", compress_level=0)
    return Picture(out.getvalue(), width, height, start, f"page {seed}")


@pytest.mark.parametrize("name", vision.FAMILIES)
def test_as_many_tokens_are_counted_by_the_size_as_a_picture_makes(name):
    """``arguments`` compares every token with what was counted for the size alone."""
    processor = PictureProcessor(vision.processor(name))
    for width, height in SIZES if name != "lighton_ocr" else SIZES[:1] + SIZES[3:4]:
        made = processor.arguments(picture(width, height))["input_ids"][0].tolist()
        assert tuple(made) == processor.tokens_of_size(width, height)


def test_a_size_that_a_processor_does_not_take_is_refused():
    """Its longest side would be so short that the other one has no pixel."""
    processor = PictureProcessor(vision.processor("lighton_ocr"))
    with pytest.raises(DocumentError, match="does not take a picture of 3 x 500 pixels"):
        processor.tokens_of_size(3, 500)


@pytest.mark.slow
def test_the_largest_pictures_are_counted():
    processor = PictureProcessor(vision.processor("llava_next"))
    big = picture(10_000, 10_000)
    assert len(processor.arguments(big)["input_ids"][0]) == len(
        processor.tokens_of_size(10_000, 10_000)
    )


def test_pictures_too_thin_for_a_processor_are_refused():
    """Enlarged to a fixed shorter side, one of 1 x 10,000 pixels would have 8 billion of them."""
    processor = PictureProcessor(vision.processor("llava"))
    with pytest.raises(DocumentError, match="over 200 times as long as wide"):
        processor.tokens_of_size(1, 10_000)


def test_a_picture_that_makes_other_tokens_than_planned_is_refused():
    processor = PictureProcessor(vision.processor("internvl"))
    lies = Picture(picture(60, 60).data, 300, 60)
    with pytest.raises(DocumentError, match=r"of its size .300 x 60. was planned to make others"):
        processor.arguments(lies)


def test_the_numbers_of_a_picture_are_its_own():
    processor = PictureProcessor(vision.processor("llava"))
    one, other = picture(50, 40, seed=1), picture(50, 40, seed=2)
    numbers = processor.numbers(one)
    assert len(set(numbers)) == len(numbers) == len(processor.tokens_of_size(50, 40))
    assert max(numbers) < 0
    assert min(numbers) >= -(2**63)
    assert processor.numbers(picture(50, 40, start=7, seed=1)) == numbers
    assert set(processor.numbers(other)).isdisjoint(numbers)


@pytest.mark.parametrize("name", ["llava", "idefics3", "internvl", "ovis2", "lighton_ocr"])
def test_a_prompt_is_what_the_processor_makes_of_the_chat_template(name):
    own = vision.processor(name)
    prompts = PicturePrompts(
        tokenizer_of(own, own.tokenizer), processor=own, instruction="Be brief."
    )
    sizes = [(50, 40), (64, 90)]
    pictures = [
        picture(*size, start, seed)
        for seed, (size, start) in enumerate(zip(sizes, (10, 15), strict=True))
    ]
    document = Document.from_text("First one, then another. <image>?", pictures=pictures)
    built = prompts.documents([document])
    tokens = list(built.tokens) + list(prompts.question("What is it?").tokens)
    for placed in reversed(built.media):
        size = placed.picture.width, placed.picture.height
        tokens[placed.start : placed.stop] = prompts.pictures.tokens_of_size(*size)
    text = own.tokenizer.apply_chat_template(
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "First one,"},
                    {"type": "image"},
                    {"type": "text", "text": " then"},
                    {"type": "image"},
                    {"type": "text", "text": " another. ZQ?\n\nBe brief.\n\nQuestion: What is it?"},
                ],
            }
        ],
        chat_template=own.chat_template, tokenize=False, add_generation_prompt=True,
    )  # fmt: skip
    images = [x.image() for x in pictures]
    made = own(text=[text], images=images, add_special_tokens=False, return_tensors="pt")
    made = made["input_ids"][0].tolist()
    place = own.tokenizer.encode("ZQ", add_special_tokens=False)
    said = own.tokenizer.encode("<image>", add_special_tokens=False, split_special_tokens=True)
    start = next(i for i in range(len(made)) if made[i : i + len(place)] == place)
    # what a document says is text, whatever it reads like
    assert tokens == [*made[:start], *said, *made[start + len(place) :]]


@pytest.mark.parametrize("form", ["chat", "plain"])
@pytest.mark.parametrize("name", ["llava", "idefics3"])
def test_what_tokens_hold_of_documents_is_their_text_and_their_pictures(name, form):
    own = vision.processor(name)
    prompts = PicturePrompts(tokenizer_of(own, own.tokenizer), processor=own, form=form)
    pictures = [picture(50, 40, 10, 1), picture(64, 90, 10, 2), picture(50, 40, 24, 3)]
    documents = [
        Document.from_text("First one,  <image> é another.\nEnd.", title="A", pictures=pictures),
        Document.from_text("Only text."),
        Document.from_text("", title="C", pictures=[picture(30, 30, 0, 4)]),
    ]
    built = prompts.documents(documents)
    ranges, placed = built.ranges, iter(built.media)
    for index, document in enumerate(documents):
        text = (ranges.document == index) & (ranges.picture < 0)
        held = zip(ranges.start[text], ranges.end[text], strict=True)
        assert "".join(document.text[start:end] for start, end in held) == document.text
        for number, each in enumerate(document.pictures):
            at = next(placed)
            assert at.picture == each
            found = (ranges.document == index) & (ranges.picture == number)
            assert np.flatnonzero(found).tolist() == list(range(at.start, at.stop))


def test_pictures_stay_in_their_place_where_a_template_writes_them_first():
    own = vision.processor("llava")
    own.chat_template = IMAGES_FIRST
    prompts = PicturePrompts(tokenizer_of(own, own.tokenizer), processor=own, instruction="")
    document = Document.from_text("One. Two.", pictures=[picture(50, 40, 4)])
    built = prompts.documents([document])
    (placed,) = built.media
    decode = own.tokenizer.decode
    assert decode(list(built.tokens[: placed.start])) == "USER: One."
    assert decode(list(built.tokens[placed.stop :])).startswith("\n Two.")


def test_the_plain_form_has_pictures_too():
    own = vision.processor("llava")
    own.chat_template = None
    prompts = PicturePrompts(tokenizer_of(own, own.tokenizer), processor=own)
    built = prompts.documents([Document.from_text("One. Two.", pictures=[picture(50, 40, 4)])])
    (placed,) = built.media
    assert own.tokenizer.decode(list(built.tokens[1 : placed.start])) == "One."
    assert all(token < 0 for token in built.tokens[placed.start : placed.stop])


def test_documents_without_pictures_make_the_prompt_of_a_text_model():
    own = vision.processor("llava")
    prompts = PicturePrompts(tokenizer_of(own, own.tokenizer), processor=own)
    built = prompts.documents([Document.from_text("One. Two.")])
    assert built.ranges is not None
    assert built.media == ()
    assert prompts.picture_tokens(Document.from_text("One.")) == 0


def test_processors_and_templates_without_pictures_are_refused():
    own = vision.processor("llava")
    own.chat_template = "{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
    with pytest.raises(UnsupportedModelError, match="template writes no picture"):
        PicturePrompts(tokenizer_of(own, own.tokenizer), processor=own)
    own.image_token = "never"
    with pytest.raises(UnsupportedModelError, match="no token in a text"):
        PictureProcessor(own)
