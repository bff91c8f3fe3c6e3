"""Files of many kinds say their words, each on its page, and what they lose is remarked."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

import pytest

from selfextend_rag.documents import Document
from tests.documents.files import written
from tests.documents.pdf_corpus import MAKERS, flowing

WORDS = re.compile(r"[぀-ヿ㐀-鿿]|[^\W぀-ヿ㐀-鿿]+")


def words_of(text: str) -> list[str]:
    """Return words and Chinese or Japanese characters; a word broken at a line's end is one."""
    return WORDS.findall(text.replace("-\n", ""))


def test_the_corpus_is_as_wide_as_it_says():
    pytest.importorskip("matplotlib", reason="it brings the fonts")
    kinds = [sample.kind for make in MAKERS for sample in make()]
    assert len(kinds) >= 60
    assert len({re.sub(r"[\d. ]+$", "", kind) for kind in kinds}) >= 20


@pytest.mark.parametrize("make", MAKERS)
def test_known_words_come_out_in_order_on_their_page_with_the_remarks_due(tmp_path, make):
    for sample in make():
        document = Document.from_file(written(tmp_path, "a.pdf", sample.data))
        assert {remark.kind for remark in document.remarks} == sample.remarks, sample.kind
        assert document.metadata["pages"] == len(sample.pages)
        starts = {location.name: location.start for location in document.locations}
        ends = dict(zip(starts, [*sorted(starts.values())[1:], len(document.text)], strict=True))
        for number, text in enumerate(sample.pages, 1):
            page, known = f"page {number}", words_of(text)
            found = words_of(document.text[starts[page] : ends[page]] if page in ends else "")
            blocks = SequenceMatcher(None, known, found, autojunk=False).get_matching_blocks()
            common = sum(block.size for block in blocks)
            assert common >= 0.99 * max(len(known), len(found)), (sample.kind, found, known)


def test_a_passage_is_on_the_page_that_says_it(tmp_path):
    pages = [f"Clause {n * n} of this contract is on one page. " * 9 for n in range(1, 51)]
    document = Document.from_file(written(tmp_path, "a.pdf", flowing(pages)))
    for number in range(1, 51):
        start = document.text.index(f"Clause {number * number} of")
        assert document.location(start, start + 20) == f"page {number}"
