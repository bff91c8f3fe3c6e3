"""Prompts in a frame of the caller's: nothing is added, and tokens are those of the whole text."""

import pytest

from selfextend_rag.documents import Document, Picture
from selfextend_rag.llm import LongContextLLM
from selfextend_rag.text.frame import FramedPicturePrompts, FramedPrompts, FramedQuestion
from selfextend_rag.text.pictures import tokenizer_of
from selfextend_rag.text.prompts import PromptBuilder
from tests.tiny import byte_tokenizer, tiny_llama
from tests.zoo import vision

TEXT = "Given: a text.\n\nThe sky is blue."


def whole(prompts, document, question):
    left, right = prompts.split(document, str(question))
    asked = FramedQuestion(right, question.begin)
    parts = prompts.documents([Document(left, "", "1")]), prompts.question(asked)
    return [token for part in parts for token in part.tokens]


def test_a_plain_prompt_is_the_start_token_and_the_text():
    tokenizer = byte_tokenizer()
    prompts = FramedPrompts(tokenizer)
    question = FramedQuestion("\n\nColour?", " It is")
    tokens = whole(prompts, TEXT, question)
    assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokens[1:]) == f"{TEXT}\n\nColour? It is"


def test_a_chat_prompt_is_one_user_message_and_the_beginning_of_the_answer():
    tokenizer = byte_tokenizer(chat=True)
    prompts = FramedPrompts(tokenizer)
    tokens = whole(prompts, TEXT, FramedQuestion("\n\nColour?", "It is"))
    expected = f"<bos><|start|>user\n{TEXT}\n\nColour?<|end|>\n<|start|>assistant\nIt is"
    assert tokenizer.decode(tokens) == expected


def test_control_tokens_in_a_frame_are_text():
    tokenizer = byte_tokenizer(chat=True)
    prompts = FramedPrompts(tokenizer)
    tokens = whole(prompts, "Say <|end|> now.", FramedQuestion(" <|end|>?"))
    assert tokens.count(tokenizer.convert_tokens_to_ids("<|end|>")) == 1


def test_white_space_goes_where_the_vocabulary_joins_it():
    """One that joins a full stop with the line ends after it wants them on the left."""

    class Joins(FramedPrompts):
        def __init__(self, tokenizer, joined):
            super().__init__(tokenizer)
            text = self.codec.text
            marked = lambda s, *, after="": text(s.replace(joined, "\x01"), after=after)  # noqa: E731  one line as a value
            self.codec.text = marked

    left = Joins(byte_tokenizer(), ".\n\n").split("The end.", "\n\nQuestion")
    assert left == ("The end.\n\n", "Question")
    right = Joins(byte_tokenizer(), "\n\nQ").split("The end.", "\n\nQuestion")
    assert right == ("The end.", "\n\nQuestion")


def test_what_a_frame_has_no_form_for_is_refused():
    prompts = FramedPrompts(byte_tokenizer())
    two = [Document("a", "", "1"), Document("b", "", "2")]
    with pytest.raises(ValueError, match="one document, got 2"):
        prompts.documents(two)
    with pytest.raises(ValueError, match="empty"):
        prompts.question(FramedQuestion(""))
    with pytest.raises(ValueError, match="no history"):
        prompts.question("Why?", [("a", "b")])


class Framed(LongContextLLM):
    prompt_builder = FramedPrompts


def test_an_answer_keeps_its_space_and_ends_at_no_line():
    """Code is scored with its indentation; after a colon of our own form the space is dropped."""
    tokenizer = byte_tokenizer()
    assert not FramedPrompts(tokenizer).skips_space
    assert PromptBuilder(tokenizer).skips_space
    llm = Framed(tiny_llama(window=128), tokenizer, prefix_cache_bytes=0)
    reading = llm.read(Document(TEXT, "", "1"), max_new_tokens=40)
    (answer,) = reading.ask_batch([{"question": " x", "max_new_tokens": 40, "stop": ()}])
    tokens = [
        tokenizer.bos_token_id,
        *tokenizer(f"{TEXT} x", add_special_tokens=False)["input_ids"],
    ]
    expected = list(llm.engine.generate(tokens, reading_options(llm, 40)))
    assert answer.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert answer.finish_reason == "length"


def reading_options(llm, most):
    return llm.runner.options({"max_new_tokens": most}, framed=True)


@pytest.mark.parametrize("form", ["chat", "plain"])
def test_a_frame_with_pictures_has_the_tokens_that_the_processor_makes(form):
    processor = vision.processor("llava")
    tokenizer = tokenizer_of(processor, processor.tokenizer)
    prompts = FramedPicturePrompts(tokenizer, processor=processor, form=form)
    pictures = [Picture(vision.png(48, 32, seed), 48, 32, at) for seed, at in ((1, 5), (2, 5))]
    document = Document("Look: here.", "", "1", pictures=pictures)
    start, rest = prompts.documents([document]), prompts.question(FramedQuestion("\nA dog?", " It"))
    tokens = list(start.tokens)
    for placed in start.media:
        size = placed.picture.width, placed.picture.height
        tokens[placed.start : placed.stop] = prompts.pictures.tokens_of_size(*size)
    text = "<bos>Look:<image><image> here.\nA dog?"
    if form == "chat":
        image, said = {"type": "image"}, ("Look:", " here.\nA dog?")
        first, last = ({"type": "text", "text": x} for x in said)
        turns = [{"role": "user", "content": [first, image, image, last]}]
        text = processor.apply_chat_template(turns, add_generation_prompt=True)
    images = [picture.image() for picture in pictures]
    made = processor(text=[f"{text} It"], images=images, add_special_tokens=False)
    assert [*tokens, *rest.tokens] == made["input_ids"][0]
    assert prompts.documents([Document("Text.", "", "1")]).media == ()
    with pytest.raises(ValueError, match="one document, got 2"):
        prompts.documents([document, document])


def test_a_model_whose_prompts_are_other_ones_takes_a_processor_if_it_knows_pictures():
    model, processor = vision.model("llava"), vision.processor("llava")
    with pytest.raises(ValueError, match="Framed reads text alone; leave processor out"):
        Framed(model, processor.tokenizer, processor=processor)
