"""Readings saved and loaded: the same answers, or a refusal that says what differs."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import pytest
import torch

from selfextend_rag.cache import identity
from selfextend_rag.documents import Document, Location, Remark
from selfextend_rag.errors import CacheMismatchError, CorruptReadingError, ReadingFileError
from selfextend_rag.llm import LongContextLLM, saved
from tests.tiny import byte_tokenizer, tiny_llama

SHORT = "The sky is blue."
LONG = "".join(f"Fact {i} is {i * i % 97}. " for i in range(14))
QUESTION = "What is fact 3?"
FREE = {"max_new_tokens": 12, "stop": (), "stop_token_ids": ()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "reading.kv"


@pytest.mark.parametrize("form", ["plain form", "chat form"])
@pytest.mark.parametrize("text", [SHORT, LONG], ids=["plain", "extended"])
def test_a_loaded_reading_answers_as_the_one_that_was_saved(llm, chat_llm, path, form, text):
    llm = llm if form == "plain form" else chat_llm
    reading = llm.read(text, max_new_tokens=12)
    expected = [reading.ask(question, **FREE) for question in (QUESTION, "Why?")]
    reading.save(path)
    loaded = llm.load(path)
    assert loaded.nbytes <= reading.nbytes
    for _ in range(2):
        for question, answer in zip((QUESTION, "Why?"), expected, strict=True):
            again = loaded.ask(question, **FREE)
            assert again.text == answer.text
            assert again.usage.cached_tokens == answer.usage.cached_tokens
    # what memory is free is looked at anew
    plans = [replace(x.plan, memory=None) for x in (loaded, reading)]
    assert plans[0] == plans[1]
    assert loaded.seconds == reading.seconds


def test_documents_travel_with_the_keys(llm, path):
    documents = [
        Document.from_text("Æ one.", title="First", source="a.txt", metadata={"pages": [1, 2]}),
        Document.from_text("Two.", id="second"),
    ]
    llm.read(documents).save(str(path))
    loaded = llm.load(str(path), documents=documents)
    assert loaded.documents == tuple(documents)
    assert [d.metadata for d in loaded.documents] == [{"pages": [1, 2]}, {}]


def test_when_it_was_read_is_kept_and_0_in_a_file_that_does_not_say(llm, path, monkeypatch):
    before = time.time()
    reading = llm.read(PAGES)
    assert before <= reading.created <= time.time()
    reading.save(path)
    assert llm.load(path).created == reading.created
    changed_attachment(monkeypatch, lambda about: about.pop("created"))
    reading.save(path)
    assert llm.load(path).created == 0.0


def test_another_instance_of_the_same_model_loads_it(llm, path):
    reading = llm.read(LONG, max_new_tokens=12)
    reading.save(path)
    twin = LongContextLLM(tiny_llama(window=128), byte_tokenizer(), chunk_size=7)
    assert twin.load(path).ask(QUESTION, **FREE).text == reading.ask(QUESTION, **FREE).text


def nudged():
    """The same model with one element of one tensor changed by the least there is."""
    model = tiny_llama(window=128)
    weight = model.model.layers[1].mlp.up_proj.weight.data
    weight[3, 5] = torch.nextafter(weight[3, 5], weight.new_tensor(9.0))
    return model


def other_tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["zzz"])
    return tokenizer


@pytest.mark.parametrize(
    ("make_model", "make_tokenizer", "options", "part"),
    [
        (nudged, byte_tokenizer, {}, "weights"),
        (lambda: tiny_llama(window=128, dtype=torch.float32), byte_tokenizer, {}, "weights"),
        (lambda: tiny_llama(window=128, rms_norm_eps=1e-3), byte_tokenizer, {}, "configuration"),
        (lambda: tiny_llama(window=128), other_tokenizer, {}, "tokenizer"),
        (
            lambda: tiny_llama(window=128),
            lambda: byte_tokenizer(chat=True),
            {"prompt_form": "chat"},
            "prompt form",
        ),
        (lambda: tiny_llama(window=128), byte_tokenizer, {"pretraining_window": 100}, "pretrain"),
    ],
    ids=["one bit", "dtype", "configuration", "tokenizer", "chat", "window"],
)
def test_what_was_read_otherwise_is_refused_by_what_differs(
    llm, path, make_model, make_tokenizer, options, part
):
    llm.read(LONG).save(path)
    other = LongContextLLM(make_model(), make_tokenizer(), **options)
    with pytest.raises(CacheMismatchError, match=f"{part}.* there, .* here.*read the documents"):
        other.load(path)


@pytest.mark.parametrize(
    "options", [{"instruction": "Be rude."}, {"template_options": {"enable_thinking": False}}]
)
def test_another_instruction_or_template_option_is_refused(chat_llm, path, options):
    chat_llm.read(LONG).save(path)
    other = LongContextLLM(
        chat_llm.model, chat_llm.tokenizer, **{"instruction": "Be brief.", **options}
    )
    with pytest.raises(CacheMismatchError, match=r"prompt form .* there"):
        other.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: setattr(tokenizer, "chat_template", f"New. {tokenizer.chat_template}"),
        lambda tokenizer: tokenizer.add_tokens(["zzz"]),
    ],
    ids=["template", "vocabulary"],
)
def test_a_reading_of_another_template_or_vocabulary_is_neither_asked_nor_saved(
    chat_llm, path, change
):
    """It was saved under the fingerprint of the new one, with tokens that the old one had made."""
    reading = chat_llm.read(SHORT, max_new_tokens=4)
    reading.check_current()
    change(chat_llm.tokenizer)
    for use in (
        reading.check_current,
        lambda: reading.ask("Why?", max_new_tokens=4),
        lambda: reading.ask_batch(["Why?", "When?"], max_new_tokens=4),
        lambda: reading.save(path),
    ):
        with pytest.raises(CacheMismatchError, match="or its chat template have changed since"):
            use()
    assert not path.exists()
    assert chat_llm.read(SHORT).ask("Why?", max_new_tokens=4).usage.cached_tokens > 0


@pytest.mark.parametrize(
    ("options", "would"),
    [
        ({"group_size": 8}, "group_size 8 and neighbor_window 32"),
        ({"neighbor_window": 24}, "neighbor_window 24"),
        ({"extension": "never"}, "plain attention"),
    ],
)
def test_other_settings_than_this_model_would_choose_are_refused(llm, path, options, would):
    reading = llm.read(LONG)
    reading.save(path)
    settings = reading.plan.settings
    other = LongContextLLM(llm.model, llm.tokenizer, **options)
    with pytest.raises(CacheMismatchError) as error:
        other.load(path)
    assert f"read with group_size {settings.group_size} and neighbor" in str(error.value)
    assert would in str(error.value)


def test_a_reading_of_other_documents_is_refused_by_name(llm, path):
    llm.read(Document.from_text(SHORT, title="Sky")).save(path)
    with pytest.raises(CacheMismatchError, match="other documents: Sky, not Sea; read them again"):
        llm.load(path, documents=Document.from_text("The sea is blue.", title="Sea"))
    assert llm.load(path, documents=Document.from_text(SHORT, title="Sky")).documents


def test_metadata_that_are_no_json_values_are_refused_before_anything_is_written(llm, path):
    document = Document.from_text(SHORT, id="sky", metadata={"when": object()})
    with pytest.raises(TypeError, match="metadata of document sky can't be saved"):
        llm.read(document).save(path)
    assert not path.exists()


def changed_attachment(monkeypatch, change):
    """Have readings saved with other values of their documents and plan."""
    made = saved._attachment

    def attachment(read):
        about = json.loads(made(read))
        change(about)
        return json.dumps(about).encode()

    monkeypatch.setattr(saved, "_attachment", attachment)


PAGES = Document.from_text(
    f"{SHORT}\n\n{LONG}",
    title="pages",
    remarks=[Remark("pages without text", "page 3 has no text", "loss", 1, "page 3")],
    locations=[Location(0, "page 1"), Location(len(SHORT) + 2, "page 2")],
)


def test_remarks_and_locations_are_kept(llm, path):
    reading = llm.read(PAGES)
    reading.save(path)
    loaded = llm.load(path)
    assert loaded.documents[0].remarks == PAGES.remarks
    assert loaded.documents[0].locations == PAGES.locations
    assert loaded.plan.remarks == reading.plan.remarks
    assert "pages: page 3 has no text (loss)" in loaded.plan.explain()
    evidence = reading.ask(QUESTION, **FREE).evidence
    assert {passage.location for passage in evidence} <= {"page 1", "page 2", "pages 1-2"}
    assert loaded.ask(QUESTION, **FREE).evidence == evidence


def test_a_reading_that_was_saved_before_there_were_remarks_is_loaded(llm, path, monkeypatch):
    def before(about):
        del about["plan"]["remarks"], about["documents"][0]["remarks"]
        del about["documents"][0]["locations"]

    changed_attachment(monkeypatch, before)
    llm.read(PAGES).save(path)
    loaded = llm.load(path, documents=PAGES)
    assert loaded.documents[0] == PAGES
    assert (loaded.documents[0].remarks, loaded.documents[0].locations) == ((), ())
    assert {p.location for p in loaded.ask(QUESTION, **FREE).evidence} == {None}


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["documents"][0].update(remarks="lost"),
        lambda about: about["documents"][0]["remarks"][0].update(severity="awful"),
        lambda about: about["documents"][0]["locations"][0].update(start="first"),
        lambda about: about["documents"][0]["locations"].reverse(),
        lambda about: about["documents"][0]["locations"][1].update(start=10**6),
        lambda about: about["documents"][0].update(text=None),
        lambda about: about.update(documents=["text"]),
        lambda about: about.update(created="today"),
        lambda about: about["plan"]["remarks"][0].pop("document"),
    ],
)
def test_wrong_values_in_a_file_are_a_corrupt_reading(llm, path, monkeypatch, change):
    changed_attachment(monkeypatch, change)
    llm.read(PAGES).save(path)
    with pytest.raises(CorruptReadingError, match="lacks documents or plan"):
        llm.load(path)


def test_bad_files_are_told_in_one_sentence(llm, path):
    with pytest.raises(ReadingFileError, match=r"can't read .*: No such file"):
        llm.load(path)
    path.write_text("not a reading")
    with pytest.raises(CorruptReadingError, match="damaged or no saved reading"):
        llm.load(path)


def test_a_reading_can_be_saved_while_it_is_asked(llm, path):
    reading = llm.read(LONG, max_new_tokens=60)
    alone = reading.ask(QUESTION, **{**FREE, "max_new_tokens": 60}).text
    found = []
    thread = threading.Thread(
        target=lambda: found.append(reading.ask(QUESTION, **{**FREE, "max_new_tokens": 60}).text)
    )
    thread.start()
    for _ in range(3):
        reading.save(path)
    thread.join()
    assert found == [alone]
    assert llm.load(path).ask(QUESTION, **{**FREE, "max_new_tokens": 60}).text == alone


def test_weights_are_looked_at_once_and_again_when_they_change(monkeypatch):
    model = tiny_llama()
    looked = []
    original = identity._tensor_digest
    monkeypatch.setattr(
        identity, "_tensor_digest", lambda name, x: looked.append(name) or original(name, x)
    )
    first = identity.model_fingerprint(model)
    count = len(looked)
    assert count == len(model.state_dict())
    assert identity.model_fingerprint(model) == first
    assert len(looked) == count
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert identity.model_fingerprint(model)["weights"] != first["weights"]
    assert len(looked) == 2 * count


@pytest.mark.parametrize("name", [name for name, _ in tiny_llama().named_parameters()])
def test_every_weight_matters(name):
    model = tiny_llama()
    before = identity.model_fingerprint(tiny_llama())
    assert identity.model_fingerprint(model) == before
    weight = model.get_parameter(name).data.view(-1)
    weight[-1] = torch.nextafter(weight[-1], weight.new_tensor(9.0))
    assert identity.model_fingerprint(tiny_llama()) == before
    assert identity.model_fingerprint(copy_of(model))["weights"] != before["weights"]


def copy_of(model):
    """A new instance, for which nothing is remembered."""
    other = tiny_llama()
    other.load_state_dict(model.state_dict())
    return other


def test_offloaded_weights_are_refused_with_the_reason():
    model = tiny_llama().to("meta")
    with pytest.raises(ValueError, match=r"are offloaded.*load the model without offload"):
        identity.model_fingerprint(model)


@pytest.mark.slow
def test_another_process_loads_it_and_answers_the_same(tmp_path, path):
    folder = tmp_path / "model"
    tiny_llama(window=128).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    llm = LongContextLLM.from_pretrained(folder)
    reading = llm.read(LONG, max_new_tokens=12)
    reading.save(path)
    source = """
        import sys
        from selfextend_rag import LongContextLLM
        reading = LongContextLLM.from_pretrained(sys.argv[1]).load(sys.argv[2])
        print(reading.ask("Why?", max_new_tokens=12, stop=(), stop_token_ids=()).text.encode())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), str(folder), str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(reading.ask("Why?", **FREE).text.encode())
