"""What notebooks show: all text escaped, evidence marked where it is, bars that end."""

from __future__ import annotations

import io
import sys
from html.parser import HTMLParser

import pytest

from selfextend_rag import LongContextLLM, display, progress_bar, support
from tests.tiny import byte_tokenizer, tiny_llama

TRAP = "<script>alert('x')</script> & <b>bold</b>"
TAGS = ("table", "thead", "tbody", "tr", "th", "td")
ALLOWED = {*TAGS, "p", "br", "mark", "blockquote", "small", "div"}


class _Page(HTMLParser):
    """The tags and the text of a page, as a browser sees them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.said, self.marked, self._in_mark = set(), "", "", False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self._in_mark = tag == "mark" or (self._in_mark and tag == "br")

    def handle_endtag(self, tag):
        self._in_mark = self._in_mark and tag != "mark"

    def handle_data(self, data):
        self.said += data
        self.marked += data if self._in_mark else ""


@pytest.fixture(scope="module")
def llm():
    return LongContextLLM(tiny_llama(window=256), byte_tokenizer())


@pytest.fixture(scope="module")
def reading(llm):
    return llm.read(f"{TRAP} " * 4, max_new_tokens=8)


def pages(shown):
    assert shown._repr_html_() == shown._repr_markdown_()
    html = shown._repr_html_()
    assert html.startswith("<div class='tex2jax_ignore"), "or prices would be formulas"
    assert "\n" not in html, "a blank line would end it within Markdown"
    return _Page(html)


def test_an_answer_marks_its_evidence_in_what_is_around_it_and_escapes_all(reading):
    answer = reading.ask(f"What is {TRAP}?")
    page = pages(answer)
    assert page.tags <= ALLOWED
    assert answer.evidence
    assert page.marked == "".join(found.text for found in answer.evidence).replace("\n", "")
    whole = reading.documents[0].text
    for found in answer.evidence:
        around = found.before + found.text + found.after
        assert around in whole
        assert around.replace("\n", "") in page.said
        assert "before" not in found.to_dict()


def test_names_and_titles_are_escaped_too(llm):
    from selfextend_rag import Document

    documents = [Document.from_text("One thing.", title=TRAP), Document.from_text("Two things.")]
    page = pages(llm.read(documents, max_new_tokens=4).ask("What?"))
    assert page.tags <= ALLOWED
    assert TRAP in page.said


def test_a_plan_shows_its_words_and_its_settings(reading):
    page = pages(reading.plan)
    for line in reading.plan.explain().splitlines():
        assert line in page.said
    assert str(reading.plan.total_tokens) in page.said
    assert page.tags <= ALLOWED


def test_a_report_has_a_row_for_each_layer(llm):
    report = support(llm.model)
    html = report._repr_html_()
    assert html.count("<tr>") == 1 + len(report.layers)
    assert all(layer.name in pages(report).said for layer in report.layers)


def test_a_bar_follows_a_run_to_its_end_and_serves_the_next(llm, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    bar = progress_bar("of two")
    for _ in range(2):
        llm.read("abc " * 10, max_new_tokens=4, progress=bar)
    assert shown.getvalue().count("100%") == 2
    assert "of two" in shown.getvalue()


def test_a_run_after_one_that_was_ended_early_has_a_bar_of_its_own(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    bar = progress_bar()
    for done, total in ((50, 100), (10, 100), (100, 100), (3, 7), (7, 7)):
        bar(done, total)
    assert "50/100" in shown.getvalue()
    assert shown.getvalue().count("\n") == 3
    assert shown.getvalue().count("100%") == 2


@pytest.mark.parametrize(("terminal", "seen"), [(False, False), (True, True)])
def test_bars_of_loading_are_drawn_where_somebody_watches(monkeypatch, terminal, seen):
    from transformers.utils import logging

    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    shown = Stream()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    before = logging.is_progress_bar_enabled()  # a command that another test ran turns them off
    logging.enable_progress_bar()
    try:
        LongContextLLM.bundled()
        assert ("Loading weights" in shown.getvalue()) == seen
        assert logging.is_progress_bar_enabled()
    finally:
        if not before:
            logging.disable_progress_bar()


def test_a_notebook_without_widgets_is_watched_by_nobody(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    found = {"ipywidgets": None}
    monkeypatch.setattr(display.importlib.util, "find_spec", found.get)
    assert not display.is_watched()
    found["ipywidgets"] = object()
    assert display.is_watched()
