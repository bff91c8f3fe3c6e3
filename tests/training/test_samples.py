"""Training rows: exact length, weights on the answers alone, repeats that repeat."""

import json
import random

import numpy as np
import pytest
from tokenizers import Tokenizer
from training_words import WORDS

from selfextend_rag.bundled import FOLDER
from training.facts import FactMaker
from training.samples import PROSE_WEIGHT, Prose, SampleMaker, Stage

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


STAGES = [Stage(64, 1, 4, 0.5), Stage(256, 4, 4, 0.5), Stage(512, 8, 4, 0.5)]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: str(stage.length))
def test_a_row_fills_the_length(maker, stage):
    for _ in range(60):
        ids, targets, weights = maker.row(stage)
        assert len(ids) == len(targets) == len(weights) == stage.length
        assert ids[0] == maker.bos
        assert all(0 <= token < maker.vocabulary_size for token in ids)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: str(stage.length))
def test_targets_are_the_next_tokens_but_for_the_end_of_answers(maker, stage):
    for _ in range(60):
        ids, targets, weights = maker.lookup(stage)
        for place, target in enumerate(targets[:-1]):
            if target != ids[place + 1]:
                assert target == maker.eos
                # After an answer, or after an end token already there, where nothing is learned.
                assert weights[place] == 1 or (ids[place] == maker.eos and weights[place] == 0)
        assert targets[-1] == maker.eos


def test_the_weighted_targets_are_answers_that_the_document_states(maker, tokenizer):
    for _ in range(100):
        ids, targets, weights = maker.lookup(Stage(256, 4, 1, 0))
        answers = [t for t, w in zip(targets, weights, strict=True) if w == 1]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        document = text.split("\n\nQuestion:")[0]
        assert set(weights) <= {0.0, PROSE_WEIGHT, 1.0}
        given = tokenizer.decode(answers, skip_special_tokens=False).split("<eos>")
        assert given[-1] == ""
        assert all(answer.strip() in document for answer in given[:-1])


def test_later_questions_follow_in_one_document(maker, tokenizer):
    counts = set()
    for _ in range(60):
        ids, _, _ = maker.lookup(Stage(512, 8, 1, 0))
        counts.add(tokenizer.decode(ids).count("\n\nQuestion:"))
    assert {1, 2, 3} <= counts


def test_the_weighted_part_of_a_repeat_stood_there_before(maker):
    for _ in range(100):
        ids, targets, weights = maker.repeat(128)
        places = [place for place, weight in enumerate(weights) if weight == 1]
        assert places
        for place in places:  # the target follows an earlier copy of the two tokens before it
            pair, target = ids[place - 1 : place + 1], targets[place]
            earlier = [ids[i + 2] for i in range(place - 2) if ids[i : i + 2] == pair]
            assert target in earlier


def test_the_same_seed_gives_the_same_rows(tokenizer):
    rows = []
    for _ in range(2):
        rng = random.Random(3)
        ids = np.array(tokenizer.encode(TEXT * 200, add_special_tokens=False).ids)
        prose = Prose(ids, np.arange(0, len(ids) - 1, 7), np.array([0]))
        maker = SampleMaker(tokenizer, prose, FactMaker(WORDS, rng), rng)
        rows.append(json.dumps([maker.row(STAGES[0]) for _ in range(5)]))
    assert rows[0] == rows[1]
