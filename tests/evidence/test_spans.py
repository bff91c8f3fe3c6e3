"""From weights to passages: whole sentences of one document, the heaviest first."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfextend_rag.documents import Document, Location
from selfextend_rag.evidence import Evidence, find_evidence
from selfextend_rag.llm import PromptBuilder
from tests.tiny import byte_tokenizer

BUILDER = PromptBuilder(byte_tokenizer())
BEFORE, FACT, AFTER = (
    "It rained all day.",
    "The key is 48213, under the mat.",
    "Nobody came to look.",
)


def documents(*texts):
    return [Document.from_text(text, title=f"T{n}", id=f"d{n}") for n, text in enumerate(texts)]


def found(docs, weights, **options):
    """The evidence for weights given by (document, phrase) at each of the phrase's characters."""
    packed = BUILDER.documents(docs)
    mass = np.zeros(len(packed.tokens) + 5)
    for (number, phrase), weight in weights.items():
        start = docs[number].text.index(phrase)
        ranges = packed.ranges
        inside = (ranges.start < start + len(phrase)) & (ranges.end > start)
        mass[: len(ranges)][(ranges.document == number) & inside] += weight / len(phrase)
    return find_evidence(mass, packed.ranges, docs, **options)


@pytest.mark.parametrize("phrase", ["The", "48213", "mat.", "key is", "48213, under"])
@pytest.mark.parametrize("gap", [" ", "\n", "\n\n"])
def test_a_word_stands_for_its_sentence(phrase, gap):
    text = gap.join((BEFORE, FACT, AFTER))
    (only,) = found(documents(text), {(0, phrase): 2.0})
    start = text.index(FACT)
    share = pytest.approx(1.0)
    assert only == Evidence("d0", start, start + len(FACT), share, FACT, "T0")


@pytest.mark.parametrize(
    ("text", "word", "sentence"),
    [
        ('He said "no!" Then he left. Good.', "Then", "Then he left."),
        ("It cost 3.14 pounds. Good.", "14", "It cost 3.14 pounds."),
        ("東京は大きい。京都は古い。", "古", "京都は古い。"),
        ("# A title\n\n  Indented text. More.", "text", "Indented text."),
        ("No full stop\nover two lines\n\nNext.", "over", "No full stop\nover two lines"),
    ],
)
def test_where_sentences_end(text, word, sentence):
    (only,) = found(documents(text), {(0, word): 1.0})
    assert only.text == sentence


def test_a_long_sentence_is_cut_at_words():
    text = "word " * 200 + "answer " + "word " * 200
    (only,) = found(documents(text), {(0, "answer"): 1.0})
    assert only.text == "answer"
    (only,) = found(documents("x" * 2000), {(0, "x" * 4): 1.0})
    assert only.text == "xxxx"


def test_the_heaviest_come_first_with_their_shares():
    docs = documents(f"{FACT} {BEFORE} {BEFORE} It rained still.", AFTER)
    passages = found(docs, {(0, "48213"): 5.0, (1, "came"): 4.0, (0, "still"): 1.0})
    assert [p.text for p in passages] == [FACT, AFTER, "It rained still."]
    assert [p.score for p in passages] == [pytest.approx(x) for x in (0.5, 0.4, 0.1)]
    assert [p.document_id for p in passages] == ["d0", "d1", "d0"]
    assert passages[1].title == "T1"
    assert len(found(docs, {(0, "48213"): 5.0, (1, "came"): 4.0}, top=1)) == 1


def test_sentences_that_touch_are_one_passage():
    (only,) = found(documents(f"{BEFORE} {FACT} {AFTER}"), {(0, "day"): 1.0, (0, "key"): 1.1})
    assert only.text == f"{BEFORE} {FACT}"
    assert only.score == pytest.approx(1.0)


def test_no_passage_reaches_into_another_document():
    docs = documents("The end", "The start")
    passages = found(docs, {(0, "end"): 1.0, (1, "start"): 1.0})
    assert [(p.document_id, p.text) for p in passages] == [("d0", "The end"), ("d1", "The start")]


def test_of_equals_the_first_counts():
    docs = documents(AFTER, AFTER)
    assert [p.document_id for p in found(docs, {(0, "came"): 1.0, (1, "came"): 1.0})] == [
        "d0",
        "d1",
    ]
    assert [p.document_id for p in found(docs, {(0, "came"): 1.0, (1, "came"): 1.0}, top=1)] == [
        "d0"
    ]


def test_light_passages_are_left_out():
    docs = documents(FACT, AFTER)
    assert len(found(docs, {(0, "48213"): 11.0, (1, "came"): 1.0})) == 1
    assert len(found(docs, {(0, "48213"): 9.0, (1, "came"): 1.0})) == 2


def test_the_start_of_the_prompt_and_the_question_do_not_count():
    docs = documents(f"{BEFORE} {FACT}")
    packed = BUILDER.documents(docs)
    mass = np.zeros(len(packed.tokens) + 30)
    mass[:2] = 100.0
    mass[len(packed.tokens) :] = 100.0
    assert find_evidence(mass, packed.ranges, docs) == ()
    mass[len(packed.tokens) - 5] = 0.1
    (only,) = find_evidence(mass, packed.ranges, docs)
    assert (only.text, only.score) == (FACT, pytest.approx(1.0))


@pytest.mark.parametrize("byte", [1, 2, 3])
def test_a_token_with_the_rest_of_a_character_stands_for_it(byte):
    """Its range is empty, and its window was once found again without end."""
    docs = documents("🙂" * 600)
    packed = BUILDER.documents(docs)
    mass = np.zeros(len(packed.tokens))
    mass[1 + 4 * 300 + byte] = 1.0
    (only,) = find_evidence(mass, packed.ranges, docs)
    assert (only.start, only.end, only.score) == (300, 301, 1.0)


@pytest.mark.parametrize("space", [" " * 40, "\n\n", "\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n"])
def test_white_space_is_no_passage_of_its_own(space):
    docs = documents(f"{BEFORE}{space}{FACT}")
    passages = found(docs, {(0, space): 1.0, (0, "48213"): 0.5})
    assert passages
    for passage in passages:
        assert passage.text in (BEFORE, FACT, docs[0].text)


crumbs = st.sampled_from(["the ", "a. ", "\n\n", "é", "日本", "🙂", "! ", "e\u0301", "  "])
texts = st.lists(crumbs | st.text(max_size=3), min_size=1, max_size=30).map("".join)


@given(
    docs=st.lists(texts.filter(str.strip), min_size=1, max_size=3).map(lambda t: documents(*t)),
    seed=st.integers(0, 1000),
    peaks=st.integers(0, 4),
)
@settings(max_examples=150, deadline=None)
def test_passages_are_apart_within_their_documents_and_in_order(docs, seed, peaks):
    packed = BUILDER.documents(docs)
    random = np.random.default_rng(seed)
    mass = random.random(len(packed.tokens)) * 0.01
    mass[random.integers(0, len(mass), peaks)] += 1.0
    passages = find_evidence(mass, packed.ranges, docs)
    assert len(passages) <= 3
    scores = [p.score for p in passages]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) <= 1 + 1e-9
    taken = set()
    for passage in passages:
        (document,) = [d for d in docs if d.id == passage.document_id]
        assert passage.text == document.text[passage.start : passage.end]
        assert passage.text.strip()
        characters = {(passage.document_id, n) for n in range(passage.start, passage.end)}
        assert not taken & characters
        taken |= characters
    if bool((packed.ranges.document[2:] >= 0).any()):
        assert passages


@st.composite
def located(draw):
    """A document whose text is cut into pages and tables anywhere."""
    text = draw(texts.filter(str.strip))
    starts = sorted(draw(st.lists(st.integers(0, len(text)), min_size=1, max_size=6)))
    rows = st.none() | st.integers(1, 9)
    locations = [Location(start, f"page {n}", draw(rows)) for n, start in enumerate(starts)]
    return Document.from_text(text, id="d", locations=locations)


@given(document=located(), other=texts.filter(str.strip), seed=st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_a_passage_is_from_one_page_or_row(document, other, seed):
    docs = [document, Document.from_text(other, id="other")]
    packed = BUILDER.documents(docs)
    random = np.random.default_rng(seed)
    mass = random.random(len(packed.tokens)) * 0.01
    mass[random.integers(0, len(mass), 2)] += 1.0
    passages = find_evidence(mass, packed.ranges, docs)
    for passage in passages:
        assert passage.text.strip() == passage.text != ""
        if passage.document_id == "d":
            assert passage.text == document.text[passage.start : passage.end]
            places = {document.location(n, n + 1) for n in range(passage.start, passage.end)}
            assert places == {passage.location}
    ordered = sorted((p.document_id, p.start, p.end) for p in passages)
    for (name, _, end), (following, start, _) in itertools.pairwise(ordered):
        assert name != following or end <= start


@pytest.mark.parametrize(
    "weights", [{"row": 1.0}, {"row": 2.0, "\n": 1.0}, {"row": 1.0, "\n": 3.0}]
)
def test_a_row_of_a_table_is_a_passage_of_its_own(weights):
    """It was as much of the table as a long sentence would be."""
    lines = [f"item {n} | {n * 7} pieces | {n * n}" for n in range(1, 9)]
    lines[3] += " row"
    table = Document.from_text("\n".join(lines), id="t", locations=[Location(0, "sheet A", 2)])
    at = table.text.index("row")
    packed = BUILDER.documents([table])
    mass = np.zeros(len(packed.tokens))
    for word, weight in weights.items():
        place = at if word == "row" else at + 3
        mass[: len(packed.ranges)][
            (packed.ranges.document == 0) & (packed.ranges.start == place)
        ] += weight
    (only,) = find_evidence(mass, packed.ranges, [table])
    assert (only.text, only.location) == (lines[3], "sheet A, row 5")


def test_passages_on_two_pages_are_two():
    text = f"{BEFORE}\n\n{FACT}"
    pages = [Location(0, "page 1"), Location(len(BEFORE) + 2, "page 2")]
    located = Document.from_text(text, id="d", locations=pages)
    plain = Document.from_text(text, id="d")
    weights = {(0, "all day"): 1.0, (0, "48213"): 2.0}
    assert [p.text for p in found([plain], weights)] == [text]
    assert [(p.text, p.location) for p in found([located], weights)] == [
        (FACT, "page 2"),
        (BEFORE, "page 1"),
    ]


def test_evidence_is_json():
    assert Evidence("d", 1, 3, 0.5, "bc", "").to_dict() == {
        "document_id": "d",
        "start": 1,
        "end": 3,
        "score": 0.5,
        "text": "bc",
        "title": "",
        "location": None,
    }


def test_a_passage_knows_the_page_or_row_it_is_from():
    text = "\n\n".join((BEFORE, FACT, AFTER))
    pages = [Location(text.index(part), f"page {n}") for n, part in ((1, BEFORE), (2, FACT))]
    table = [Location(0, "sheet Costs", 40)]
    paged = Document.from_text(text, id="paged", locations=pages)
    rows = Document.from_text(text, id="rows", locations=table)
    plain = Document.from_text(text, id="plain")
    docs = [paged, rows, plain]
    passages = found(docs, {(n, "48213"): 1.0 for n in range(3)})
    where = {passage.document_id: passage.location for passage in passages}
    assert where == {"paged": "page 2", "rows": "sheet Costs, row 42", "plain": None}
    assert next(p for p in passages if p.document_id == "paged").to_dict()["location"] == "page 2"
