"""Documents with pictures, read by a vision model: kept, saved, and asked many times."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from selfextend_rag.corpus.answering import key_of
from selfextend_rag.documents import Document, DocumentError, Picture
from selfextend_rag.errors import (
    CacheMismatchError,
    ContextBudgetExceeded,
    ModelLoadError,
    UnsupportedModelError,
)
from selfextend_rag.evals.comparison.passages import passages_of
from selfextend_rag.llm import LongContextLLM, frameworks
from selfextend_rag.llm.folder import reading_id
from selfextend_rag.positions import SelfExtend
from tests.model.test_pictures import READ
from tests.zoo import vision

FREE = {"max_new_tokens": 6, "stop_token_ids": ()}
SPACE = {"max_new_tokens": 8, "question_reserve": 80}
QUESTION = "What is on the pages?"


def picture(seed: int, start: int = 0, size: tuple[int, int] = (50, 40)) -> Picture:
    return Picture(vision.png(*size, seed), *size, start, f"page {seed}")


def scan(pages: int = 6, first: int = 0) -> Document:
    pictures = [picture(first + page, 4 * page) for page in range(pages)]
    return Document.from_text("Page" * pages, title=f"scan of {pages}", pictures=pictures)


def opened(model, processor, **options) -> LongContextLLM:
    options = {"pretraining_window": 128, "chunk_size": 50, "instruction": "", **options}
    return LongContextLLM(model, processor.tokenizer, processor=processor, **options)


@pytest.fixture(scope="module")
def processor():
    return vision.processor("llava")


@pytest.fixture(scope="module")
def model():
    return vision.model("llava").double()  # so that equal runs pick equal tokens


@pytest.fixture
def llm(model, processor):
    return opened(model, processor)


def test_pictures_are_planned_without_a_forward_and_read_as_planned(llm, model):
    calls = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
    plan = llm.plan(scan(), **SPACE)
    hook.remove()
    assert calls == []
    assert isinstance(plan.settings, SelfExtend)
    reading = llm.read(scan(), **SPACE)
    assert replace(reading.plan, memory=None) == replace(plan, memory=None)
    assert reading.ask(QUESTION, **FREE).usage.cached_tokens == plan.prompt_tokens
    assert sum(token < 0 for token in reading._prefix.tokens) == 6 * 16


def test_an_answer_is_the_same_in_chunks_of_any_size_and_differs_by_the_pictures(model, processor):
    answers = {
        opened(model, processor, chunk_size=size).read(scan(), **SPACE).ask(QUESTION, **FREE).text
        for size in (7, 50, 5000)
    }
    assert len(answers) == 1
    read = [opened(model, processor).read(scan(first=x), **SPACE) for x in (0, 50)]
    nlls = [reading.answer_nll(QUESTION, "Seals.") for reading in read]
    assert nlls[0] != nlls[1]


def test_a_reading_saved_and_loaded_is_a_fresh_one(llm, model, processor, tmp_path):
    reading = llm.read(scan(), **SPACE)
    expected = [reading.ask(x, **FREE).text for x in (QUESTION, "And who?")]
    reading.save(tmp_path / "scan.kv")
    loaded = opened(model, processor).load(tmp_path / "scan.kv", documents=scan())
    assert loaded.documents == (scan(),)
    assert [loaded.ask(x, **FREE).text for x in (QUESTION, "And who?")] == expected
    with pytest.raises(CacheMismatchError, match="other documents"):
        llm.load(tmp_path / "scan.kv", documents=scan(first=50))


@pytest.mark.coverage
@pytest.mark.parametrize("name", [x for x in READ if x != "llava"])
def test_a_saved_reading_of_every_family_is_a_fresh_one(name, tmp_path):
    made, own = vision.model(name), vision.processor(name)
    document = scan(3)
    asked = {**FREE, "evidence": False}
    reading = opened(made, own, pretraining_window=160).read(document, **SPACE)
    reading.save(tmp_path / "scan.kv")
    expected = reading.answer_nll(QUESTION, "Seals."), reading.ask(QUESTION, **asked).text
    llm = opened(made, vision.processor(name), pretraining_window=160)
    loaded = llm.load(tmp_path / "scan.kv", documents=document)
    assert loaded.ask(QUESTION, **asked).text == expected[1]
    assert loaded.answer_nll(QUESTION, "Seals.") == pytest.approx(expected[0])


def test_a_reading_of_other_pictures_or_another_processor_is_refused(llm, model, tmp_path):
    llm.read(scan(), **SPACE).save(tmp_path / "scan.kv")
    other = vision.processor("llava")
    other.image_processor.image_mean = [0.1, 0.2, 0.3]
    with pytest.raises(CacheMismatchError, match="another processor made tokens"):
        opened(model, other).load(tmp_path / "scan.kv")


def test_questions_in_a_batch_have_the_answers_they_have_alone(llm):
    reading = llm.read(scan(), **SPACE)
    questions = [QUESTION, "Who?", "When was that, and where?"]
    alone = [reading.ask(x, **FREE).text for x in questions]
    assert [x.text for x in reading.ask_batch(questions, **FREE)] == alone
    history = [("Who?", alone[1])]
    assert reading.ask(QUESTION, history=history, **FREE).usage.cached_tokens > 0


def test_evidence_names_the_pictures_that_were_looked_at(llm):
    answer = llm.read(scan(), **SPACE).ask(QUESTION, **FREE)
    pictures = [x for x in answer.evidence if x.picture is not None]
    assert pictures
    assert all(x.location.partition(",")[0] == f"page {x.picture}" for x in pictures)
    assert sum(map(sum, answer.attention)) == pytest.approx(1)


def looking_for_light():
    """A LLaVA whose attention is known: all of it goes to those patches of pictures that are light.

    A patch becomes its lightness, which its key has in a pair of dimensions that hardly rotates;
    all text asks for that, and no layer adds anything.
    """
    made = vision.model("llava").double()
    tower, projector = made.model.vision_tower, made.model.multi_modal_projector
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "norm" not in name:
                weight.zero_()
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
        patches = tower.embeddings.patch_embedding.weight
        patches[0], patches[1] = 1.0, -1.0
        projector.linear_1.weight[0, 0] = projector.linear_2.weight[0, 0] = 1.0
        projector.linear_2.bias[1] = 0.1
        made.get_input_embeddings().weight[:, 2] = 1.0
        for layer in made.model.language_model.layers:
            attention, size = layer.self_attn, layer.self_attn.head_dim
            attention.q_proj.weight[size // 2 - 1 :: size, 2] = 4.0
            attention.k_proj.weight[size // 2 - 1 :: size, 0] = 4.0
    return made


@pytest.mark.parametrize(("row", "column", "words"), [(0, 3, "top right"), (2, 1, "middle")])
def test_evidence_is_where_in_the_picture_a_known_attention_is(processor, row, column, words):
    pages = []
    for page in range(8):
        image = Image.new("RGB", (64, 64), (5, 5, 5))
        if page == 5:
            image.paste((255, 255, 255), (16 * column, 16 * row, 16 * column + 16, 16 * row + 16))
        out = io.BytesIO()
        image.save(out, "PNG")
        pages.append(Picture(out.getvalue(), 64, 64, 0, f"page {page + 1}"))
    reading = opened(looking_for_light(), processor).read(
        Document.from_text("", pictures=pages), **SPACE
    )
    assert reading.plan.extended
    (found,) = reading.ask(QUESTION, **FREE).evidence
    assert (found.picture, found.location) == (5, f"page 6, {words}")
    assert found.region == (16 * column, 16 * row, 16 * column + 16, 16 * row + 16)
    assert found.score > 0.95
    drawn = Image.open(io.BytesIO(found.overlay(reading.documents)))
    assert drawn.size == (64, 64)


def test_documents_that_do_not_fit_are_refused_and_grouped(model, processor):
    llm = opened(model, processor, max_group_size=4)
    documents = [scan(4, first=10 * x) for x in range(3)]
    with pytest.raises(ContextBudgetExceeded):
        llm.read(documents, **SPACE)
    groups = llm.plan_groups(documents, **SPACE)
    assert sorted(x.id for group in groups for x in group.documents) == sorted(
        x.id for x in documents
    )
    for group in groups:
        reading = llm.read(group.documents, **SPACE)
        assert reading.plan.prompt_tokens == group.plan.prompt_tokens


def test_a_plan_says_where_the_processor_cuts_off_margins(llm):
    (remark,) = llm.plan(scan(), **SPACE).remarks
    assert "6 of its pictures lose their margins" in remark.message
    square = Document.from_text("A", pictures=[picture(0, size=(64, 64))])
    assert llm.plan(square, **SPACE).remarks == ()


def test_text_alone_is_read_as_the_stock_model_reads_it(llm, model):
    """Through the same builder of prompts, and with its evidence."""
    reading = llm.read("The seal is in the blue house.", **SPACE)
    answer = reading.ask("Where is the seal?", **FREE)
    tokens = (*reading._prefix.tokens, *llm.prompts.question("Where is the seal?").tokens)
    ids = torch.tensor([tokens])
    with torch.no_grad():
        expected = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    said = expected[0, len(tokens) :].tolist()
    assert answer.text == llm.prompts.codec.decode(said)
    assert answer.evidence


def test_other_families_are_refused_by_name_before_they_read(processor):
    other = vision.processor("gemma3")
    llm = opened(vision.model("gemma3"), other)
    with pytest.raises(UnsupportedModelError, match=r"Gemma3.*both directions"):
        llm.read(scan(), **SPACE)
    assert llm.read("Text alone.", **SPACE).ask("Who?", **FREE).usage.completion_tokens > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("vision")
    made = vision.model("idefics3")
    made.save_pretrained(where)
    vision.processor("idefics3").save_pretrained(where)
    return where


def test_a_folder_is_loaded_with_its_processor(folder):
    llm = LongContextLLM.from_pretrained(folder, pretraining_window=128, instruction="")
    assert type(llm.model).__name__ == "Idefics3ForConditionalGeneration"
    reading = llm.read(scan(3), **SPACE)
    assert reading.plan.extended
    own = opened(vision.model("idefics3"), vision.processor("idefics3")).read(scan(3), **SPACE)
    assert own.ask(QUESTION, **FREE).text == reading.ask(QUESTION, **FREE).text


def test_a_model_of_pictures_without_a_processor_is_refused(folder, tmp_path):
    vision.model("idefics3").save_pretrained(tmp_path)
    vision.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="processor"):
        LongContextLLM.from_pretrained(tmp_path)


def test_a_model_whose_template_writes_no_pictures_reads_text_alone(folder, tmp_path, caplog):
    made = vision.processor("idefics3")
    made.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    vision.model("idefics3").save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    llm = LongContextLLM.from_pretrained(tmp_path, pretraining_window=128)
    assert "reads text alone: the chat template writes no picture" in caplog.text
    assert llm.read("Text.", **SPACE).ask("Who?", **FREE).usage.completion_tokens > 0
    with pytest.raises(DocumentError, match="load a vision model"):
        llm.read(scan(), **SPACE)


def test_the_tokenizer_is_run_by_one_thread_at_a_time(llm):
    """A fast tokenizer that is run by two raises, as it keeps options of the last call."""
    lock = llm.prompts.codec.lock
    seen = []
    processed = llm.prompts.pictures.processor.replace_image_token

    def look(*args: object, **kwargs: object) -> str:
        seen.append(lock.locked())
        return processed(*args, **kwargs)

    llm.prompts.pictures.processor.replace_image_token = look
    try:
        llm.prompts.pictures.arguments(picture(1))
    finally:
        del llm.prompts.pictures.processor.replace_image_token
    assert seen
    assert all(seen)


def test_what_is_kept_for_documents_is_kept_for_their_pictures_too():
    """Under an id of the caller's own, they may differ by their pictures alone."""
    one, other = ([Document("A", "", "mine", pictures=(picture(x),))] for x in (1, 2))
    assert reading_id(one) != reading_id(other)
    assert reading_id([Document("A", "", "mine")]) not in (reading_id(one), reading_id(other))
    asked = SimpleNamespace(options={}, evidence=False)
    assert key_of(one, "Who?", asked, "m") != key_of(other, "Who?", asked, "m")


def test_pictures_are_not_lost_where_text_alone_is_used():
    with pytest.raises(DocumentError, match="scan of 6 has 6 pictures, which"):
        passages_of([scan()], 10)


def test_pictures_pass_through_frameworks_with_their_text_alone():
    document = scan()
    notes = json.loads(json.dumps(frameworks.file_notes(document)))
    back = frameworks.core_document(document.text, notes, title=document.title)
    assert back == document
    with pytest.raises(DocumentError, match="the 6 pictures of another one"):
        frameworks.core_document("Page", notes)
    with pytest.raises(DocumentError, match="12 pictures of documents that are parts of one"):
        frameworks.joined([(document.text, notes)] * 2, "")
    assert "pictures" not in frameworks.of_a_passage(notes)


def asked_about(seed: int, text: str = QUESTION) -> list[dict[str, object]]:
    parts = [{"type": "image", "image": picture(seed + n)} for n in range(6)]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def test_a_conversation_with_pictures_is_answered_in_chunks_and_continued(model, processor):
    """Beyond the window, equal in chunks of any size; what was read of it is not read again."""
    found = [
        opened(model, processor, chunk_size=size).generate(asked_about(0), **FREE)
        for size in (9, 5000)
    ]
    assert found[0].text == found[1].text
    assert found[0].plan.extended
    llm = opened(model, processor)
    first = llm.generate(asked_about(0), **FREE)
    assert first.text == found[0].text
    again = [*asked_about(0), {"role": "assistant", "content": first.text}]
    second = llm.generate([*again, {"role": "user", "content": "And?"}], **FREE)
    assert second.usage.cached_tokens > 6 * 16
    fresh = opened(model, processor, prefix_cache_bytes=0)
    assert second.text == fresh.generate([*again, {"role": "user", "content": "And?"}], **FREE).text


def test_a_conversation_within_the_window_is_the_stock_models(model, processor):
    llm = opened(model, processor, pretraining_window=4096)
    answer = llm.generate(asked_about(7), **FREE)
    prompt = llm.prompts.prompt(asked_about(7))
    tokens = list(prompt.tokens)
    for placed in prompt.media:
        tokens[placed.start : placed.stop] = llm.prompts.pictures.tokens_of_size(50, 40)
    images = [placed.picture.image() for placed in prompt.media]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"].double()
    with torch.no_grad():
        said = model.generate(
            torch.tensor([tokens]), pixel_values=pixels, max_new_tokens=6, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
    assert answer.text == llm.prompts.codec.decode(said[0, len(tokens) :].tolist())


def test_conversations_with_pictures_are_refused_by_families_that_are(processor):
    llm = opened(vision.model("gemma3"), vision.processor("gemma3"))
    with pytest.raises(UnsupportedModelError, match=r"Gemma3.*both directions"):
        llm.generate(asked_about(0), **FREE)
