"""Training rows: exact length, weights on the answers alone, repeats that repeat."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer
from training_words import WORDS

from selfextend_rag.bundled import FOLDER
from training.curriculum import CHOICE_WEIGHT, PROSE_WEIGHT, Stage
from training.documents import Prose
from training.facts import Fact, FactMaker
from training.guide import NOWHERE
from training.samples import SampleMaker
from training.train import LOSS_PLACES, make_batch
from training.wordings import NOT_STATED

TEXT = "The river ran low in summer. Nobody knew why. The mill stood still, and bread grew dear. "


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture
def maker(tokenizer):
    ids, sentences, paragraphs = [], [], []
    for paragraph in range(400):
        paragraphs.append(len(ids))
        for sentence in range(3):
            sentences.append(len(ids))
            text = f"{' ' if sentence else ''}Line {paragraph} says {TEXT.split('. ')[sentence]}."
            ids += tokenizer.encode(text, add_special_tokens=False).ids
        ids += tokenizer.encode("\n\n", add_special_tokens=False).ids
    prose = Prose(np.array(ids), np.array(sentences), np.array(paragraphs))
    rng = random.Random(11)
    return SampleMaker(tokenizer, prose, FactMaker(WORDS, rng), rng)


STAGES = [
    Stage(length=64, facts=1, rows=4, repeats=0.5, dense=0.0, plain=True),
    Stage(length=256, facts=4, rows=4, repeats=0.5, dense=0.5),
    Stage(length=512, facts=8, rows=4, repeats=0.5, dense=0.3),
]
PROSE_ONLY = replace(STAGES[1], dense=0.0)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: str(stage.length))
def test_a_row_fills_the_length(maker, stage):
    for _ in range(60):
        ids, targets, weights, spans, _ = maker.row(stage)
        assert len(ids) == len(targets) == len(weights) == len(spans) == stage.length
        assert ids[0] == maker.bos
        assert all(0 <= token < maker.vocabulary_size for token in ids)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: str(stage.length))
def test_targets_are_the_next_tokens_but_for_the_end_of_answers(maker, stage):
    for _ in range(60):
        ids, targets, weights, *_ = maker.lookups.lookup(stage)
        for place, target in enumerate(targets[:-1]):
            if target != ids[place + 1]:
                assert target == maker.eos
                # After an answer, or after an end token already there, where nothing is learned.
                assert weights[place] >= 1 or (ids[place] == maker.eos and weights[place] == 0)
        assert targets[-1] == maker.eos


def test_the_weighted_targets_are_answers_that_the_document_states(maker, tokenizer):
    for _ in range(100):
        ids, targets, weights, *_ = maker.lookups.lookup(PROSE_ONLY)
        answers = [t for t, w in zip(targets, weights, strict=True) if w >= 1]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        document = text.split("\n\nQuestion:")[0]
        assert set(weights) <= {0.0, PROSE_WEIGHT, 1.0, CHOICE_WEIGHT}
        given = tokenizer.decode(answers, skip_special_tokens=False).split("<eos>")
        assert given[-1] == ""
        assert all(answer.strip() in document for answer in given[:-1])


def test_each_answer_has_one_choice_and_it_is_no_lone_space(maker, tokenizer):
    for _ in range(100):
        _, targets, weights, *_ = maker.lookups.lookup(PROSE_ONLY)
        choices = [t for t, w in zip(targets, weights, strict=True) if w == CHOICE_WEIGHT]
        ends = [t for t, w in zip(targets, weights, strict=True) if w == 1 and t == maker.eos]
        assert len(choices) == len(ends)
        assert maker.space not in choices


def test_questions_without_an_answer_are_answered_so(maker, tokenizer):
    stage = replace(STAGES[1], unstated=0.5)
    texts = [tokenizer.decode(maker.lookups.lookup(stage)[0]) for _ in range(60)]
    assert sum(f"Answer: {NOT_STATED}" in text for text in texts) > 15
    assert all(NOT_STATED not in text.split("\n\nQuestion:")[0] for text in texts)


def test_of_a_json_object_the_value_alone_is_learned(maker, tokenizer):
    stage = replace(STAGES[1], objects=1.0)
    for _ in range(60):
        ids, targets, weights, *_ = maker.lookups.lookup(stage)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        document, *asked = text.split("\n\nQuestion:")
        for part in asked[:-1]:  # the last one ends where the row does
            written = json.loads(part.split("\nAnswer:")[1])
            (value,) = written.values()
            assert str(value) in document
        learned = tokenizer.decode([t for t, w in zip(targets, weights, strict=True) if w >= 1])
        assert ":" not in learned
        assert "{" not in learned


def test_plain_facts_keep_to_the_plainest_wordings(maker, tokenizer):
    for _ in range(40):
        ids, *_ = maker.lookups.lookup(STAGES[0])
        text = tokenizer.decode(ids)
        assert "As for" not in text
        assert "they say" not in text.lower()


def test_a_batch_takes_the_loss_at_every_answer_and_some_prose(maker):
    stage = replace(STAGES[2], repeats=0.2)  # long copies alone would fill the places
    for _ in range(20):
        ids, places, targets, weights, spans, ends, branches = make_batch(maker, stage, maker.rng)
        assert ids.shape == branches.shape == (stage.rows, stage.length)
        assert not branches.any()
        assert len(places) == len(targets) == len(weights) == int(LOSS_PLACES * ids.size)
        assert spans.shape == (len(places), 2)
        assert ends.shape[1:] == (4,)
        assert np.all(ends[:, 0] < stage.rows)
        assert np.all(ends[:, 2] < ends[:, 1])
        assert len(set(places.tolist())) == len(places)
        following = np.append(ids.ravel(), 0)[places + 1]
        assert np.all((targets == following) | (targets == maker.eos) | (weights == PROSE_WEIGHT))
        assert (weights >= 1).any()
        assert (weights == np.float32(PROSE_WEIGHT)).any()


BRANCHED = replace(STAGES[2], branched=1024, unstated=0.3, objects=0.3)


def test_questions_apart_fill_a_row_and_never_pass_the_window(maker):
    for _ in range(30):
        (ids, targets, weights, spans, _), branches = maker.lookups.branched(BRANCHED)
        sizes = [len(some) for some in (ids, targets, weights, spans, branches)]
        assert sizes == [BRANCHED.branched] * 5
        assert branches == sorted(branches)
        document = branches.count(0)
        questions = [branches.count(number) for number in range(1, branches[-1] + 1)]
        assert len(questions) > 12
        assert document + max(questions) <= BRANCHED.length
        assert document > BRANCHED.length - 100


def test_each_question_apart_ends_with_its_answer_and_is_learned_alone(maker, tokenizer):
    kinds = set()
    for _ in range(30):
        (ids, targets, weights, spans, _), branches = maker.lookups.branched(BRANCHED)
        text = tokenizer.decode(ids[: branches.count(0)], skip_special_tokens=True)
        for number in range(1, branches[-1] + 1):
            places = [place for place, branch in enumerate(branches) if branch == number]
            assert [ids[place] for place in places[1:]] == [targets[p] for p in places[:-1]]
            asked = tokenizer.decode([ids[place] for place in places])
            assert asked.startswith("\n\nQuestion: ")
            *answer, end = [targets[place] for place in places if weights[place] >= 1]
            answer = tokenizer.decode(answer)
            assert asked.endswith(answer)
            kind = "object" if "{" in asked else "plain"
            assert (end == maker.eos) == (kind == "plain")
            kinds |= {kind, answer.strip() == NOT_STATED}
            assert answer.strip() in text or answer.strip() == NOT_STATED
            assert all(end <= branches.count(0) for _, end in (spans[place] for place in places))
            choices = [place for place in places if weights[place] == CHOICE_WEIGHT]
            assert len(choices) == 1
    assert kinds == {"object", "plain", True, False}


def test_a_batch_of_questions_apart_says_which_is_which(maker):
    seen = set()
    for _ in range(12):
        ids, *_, branches = make_batch(maker, BRANCHED, maker.rng)
        assert ids.shape == branches.shape
        seen.add((ids.shape[1], bool(branches.any())))
    assert seen == {(512, False), (1024, True)}


def test_later_questions_follow_in_one_document(maker, tokenizer):
    counts = set()
    for _ in range(60):
        ids, *_ = maker.lookups.lookup(STAGES[2])
        counts.add(tokenizer.decode(ids).count("\n\nQuestion:"))
    assert {1, 2, 3} <= counts


def test_the_weighted_part_of_a_repeat_stood_there_before(maker):
    for _ in range(100):
        ids, targets, weights, *_ = maker.repeat(128)
        places = [place for place, weight in enumerate(weights) if weight == 1]
        assert places
        for place in places:  # the target follows an earlier copy of the two tokens before it
            pair, target = ids[place - 1 : place + 1], targets[place]
            earlier = [ids[i + 2] for i in range(place - 2) if ids[i : i + 2] == pair]
            assert target in earlier


def stated_tokens(tokenizer, ids, spans):
    """Return the text at each span of one token, and the longer ones."""
    ones = [(place, span[0]) for place, span in enumerate(spans) if span[1] - span[0] == 1]
    longer = [tokenizer.decode(ids[start:end]) for start, end in spans if end - start > 1]
    return ones, longer


@pytest.mark.parametrize("kind", ["repeat", "associations", "restated", "lookup"])
def test_the_guide_leads_to_the_token_to_copy_or_to_its_statement(maker, tokenizer, kind):
    exact = 0
    for _ in range(60):
        drawn = {
            "repeat": lambda: maker.repeat(128),
            "associations": lambda: maker.associations(PROSE_ONLY),
            "restated": lambda: maker.restated(PROSE_ONLY),
            "lookup": lambda: maker.lookups.lookup(PROSE_ONLY),
        }
        ids, targets, weights, spans, _ = drawn[kind]()
        ones, longer = stated_tokens(tokenizer, ids, spans)
        for place, source in ones:
            assert source < place
            assert ids[source] == targets[place]
            assert weights[place] >= 1 or kind == "repeat"
        assert all(text.strip().endswith(".") for text in longer)
        exact += len(ones)
    assert exact > 100


def test_a_value_whose_key_follows_it_is_chosen_by_its_whole_statement(maker, tokenizer):
    fact = Fact("height", "the mill", "485", "485 is the height of the mill.", "?")
    other = Fact("height", "the well", "93", "The height of the well is 93.", "?")
    ids = [maker.bos, *maker.encode(f"{other.statement} {fact.statement} It ran.")]
    answer = maker.encode(" 485")
    spans = maker.lookups.guide.sources(fact, answer, ids)
    assert [tokenizer.decode(ids[start:end]).strip() for start, end in spans[:3]] == [
        fact.statement
    ] * 3
    assert tokenizer.decode(ids[slice(*spans[3])]) == "5"
    spans = maker.lookups.guide.sources(other, maker.encode(" 93"), ids)
    assert [tokenizer.decode(ids[start:end]).strip() for start, end in spans] == ["", "9", "3"]


def test_the_end_of_such_a_statement_leads_to_its_value(maker, tokenizer):
    first = Fact("height", "the mill", "48", "48 is the height of the mill.", "?")
    done = Fact("keeps", "the mill", "The dean", "The dean keeps the mill.", "?")
    last = Fact("height", "the well", "93", "The height of the well is 93.", "?")
    by = Fact("keeps", "the well", "the cook", "The well is kept by the cook.", "?")
    facts = (first, last, done, by)
    ids = [maker.bos, *maker.encode(" ".join(fact.statement for fact in facts))]
    for fact, value, size in ((first, "4", 2), (done, "The", len(maker.encode(" The dean")))):
        (_, *known), (place, start, tokens) = maker.lookups.guide.ends(fact, ids)
        assert known == [start, tokens]
        assert tokens == size
        assert start < place
        assert tokenizer.decode([ids[place]]) == "."
        assert fact.value.startswith(tokenizer.decode([ids[start]]).strip())
        assert tokenizer.decode([ids[start]]).strip()[0] == value[0]
    assert maker.lookups.guide.ends(last, ids) == maker.lookups.guide.ends(by, ids) == []


def test_what_no_text_says_leads_to_the_start_token(maker):
    asked = Fact("height", "the mill", NOT_STATED, "", "?")
    answer = maker.encode(f" {NOT_STATED}")
    spans = maker.lookups.guide.sources(
        asked, answer, [maker.bos, *maker.encode("The well is deep.")]
    )
    assert spans == [(0, 1)] + [NOWHERE] * (len(answer) - 1)


def test_the_same_seed_gives_the_same_rows(tokenizer):
    rows = []
    for _ in range(2):
        rng = random.Random(3)
        ids = np.array(tokenizer.encode(TEXT * 200, add_special_tokens=False).ids)
        prose = Prose(ids, np.arange(0, len(ids) - 1, 7), np.array([0]))
        maker = SampleMaker(tokenizer, prose, FactMaker(WORDS, rng), rng)
        rows.append(json.dumps([maker.row(STAGES[0]) for _ in range(5)]))
    assert rows[0] == rows[1]


def test_questions_that_bring_their_text_are_answered_from_it_alone(maker, tokenizer):
    """Rows had all facts before the question, and the model took none that came in it."""
    stage = replace(STAGES[2], unstated=0.3, inside=1.0)
    seen = set()
    for _ in range(20):
        ids, targets, weights, spans, ends = maker.row(stage)
        assert len(ids) == len(targets) == len(weights) == len(spans) == stage.length
        assert not ends
        for asked in tokenizer.decode(ids, skip_special_tokens=False).split("<eos>")[:-1]:
            text, _, answer = asked.rpartition("\nAnswer:")
            stated = answer.strip() in text
            assert stated != (answer.strip() == NOT_STATED)
            seen |= {("stated", stated), ("tool", "Result of" in text)}
        for target, weight in zip(targets, weights, strict=True):
            assert weight > 0 or target != maker.eos
    assert len(seen) == 4
