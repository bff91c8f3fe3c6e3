"""Each word that a browser shows is in a page's text, once, or counted in a remark."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from selfextend_rag.documents.html import read_html

BLOCKS = ("p", "div", "section", "blockquote", "h1", "h3", "li", "ul", "ol", "details", "form")
INLINE = ("b", "a", "span", "sub", "sup", "del", "ins", "q", "label", "font", "x-card")
COUNTED = {"nav": ("menus", "menus with text"), "template": ("in templates",)}


class Walker(HTMLParser):
    """The words of a page by where they are: nothing but the standard library's parser."""

    def __init__(self, markup):
        super().__init__()
        self.inside, self.words = Counter(), Counter()
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "template" and "shadowrootmode" in values:
            tag = "shadow"
        self.inside[tag] += 1
        for name in ("alt", "value", "placeholder", "srcdoc"):
            self.handle_data(values.get(name) or "")

    def handle_endtag(self, tag):
        tag = "shadow" if tag == "template" and self.inside["shadow"] else tag
        self.inside[tag] -= 1

    def handle_data(self, text):
        outer = ("script", "style", *COUNTED, *(() if self.inside["svg"] > 0 else ("title",)))
        where = next((tag for tag in outer if self.inside[tag] > 0), "shown")
        self.words.update((where, word) for word in re.findall(r"w\d+w", text))


@st.composite
def pages(draw):
    count = 0

    def word():
        nonlocal count
        count += 1
        return f"w{count}w"

    def cell(depth):
        spans = draw(st.sampled_from(("", " rowspan=2", " colspan=3", " rowspan=0 colspan=2")))
        return f"<td{spans if depth < 2 else ''}>{content(depth + 1)}"

    def table(depth):
        size = st.integers(1, 3)
        rows = ["<tr>" + "".join(cell(depth) for _ in range(draw(size))) for _ in range(draw(size))]
        return f"<table><caption>{word()}</caption>{''.join(rows)}</table>"

    def element(depth):
        kind = draw(st.integers(0, 9))
        inside = content(depth + 1) if depth < 4 else word()
        if kind < 3:
            tag = draw(st.sampled_from(BLOCKS))
            return f"<{tag}>{inside}</{tag}>"
        if kind < 5:
            tag = draw(st.sampled_from(INLINE))
            return f" <{tag}>{inside}</{tag}> "
        if kind == 5 and depth < 3:
            return table(depth)
        return draw(
            st.sampled_from(
                (
                    f"<nav><a>{word()}</a> {word()}</nav>",
                    f"<template><p>{word()}</template>",
                    f" <x-a><template shadowrootmode=open>{word()}</template></x-a> ",
                    f"<script>var a = '{word()}'</script><style>{word()}</style>",
                    f"<!-- {word()} --><br><hr><wbr>",
                    f"<img alt='{word()}'><input value={word()}><input placeholder={word()}>",
                    f"<select><option>{word()}<option selected>{word()}</select>",
                    f"<textarea>{word()}\n{word()}</textarea><button>{word()}</button>",
                    f"<svg><title>{word()}</title><text>{word()}</text><path/></svg>",
                    f"<dl><dt>{word()}<dd>{word()}<dd>{word()}</dl>",
                    f"<iframe srcdoc='<p>{word()}<p>{word()}'></iframe>",
                    f"<pre>{word()}<br>  {word()}</pre>",
                    f" <noscript>{word()}</noscript><div hidden>{word()}</div>",
                    f"<b style='display:block'>{word()}</b><s>{word()}</s> ",
                )
            )
        )

    def content(depth):
        parts = draw(st.lists(st.booleans(), max_size=3))
        return "".join(element(depth) if deep else f" {word()} " for deep in parts)

    return f"<html><title>{word()}</title>{word()} {content(0)}{content(0)}</html>{content(3)}"


@settings(max_examples=400, deadline=None)
@given(pages())
def test_words_that_a_browser_shows_are_read_once_or_counted(markup):
    content = read_html(markup, "page.html")
    read = Counter(re.findall(r"\bw\d+w\b", content.text))
    walked = Walker(markup).words
    shown = {word for where, word in walked if where == "shown"}
    assert set(read) == shown
    if "rowspan" not in markup:
        assert set(read.values()) == {1}
    counts = {remark.kind: remark.count for remark in content.remarks}
    for tag, kinds in COUNTED.items():
        left_out = sum(count for (where, _), count in walked.items() if where == tag)
        assert sum(counts.get(kind, 0) for kind in kinds) == left_out


@settings(max_examples=100, deadline=None)
@given(pages(), st.randoms(use_true_random=False))
def test_a_page_cut_anywhere_loses_no_word_before_the_cut(markup, random):
    """A download that ended early: what came is read, but for a tag or comment that it cut."""
    cut = markup[: random.randrange(len(markup))]
    content = read_html(cut, "page.html", may_be_empty=True)
    whole = {word for where, word in Walker(cut).words if where == "shown"}
    if "cut off" not in {remark.kind for remark in content.remarks}:
        assert whole <= set(re.findall(r"\bw\d+w\b", content.text))


@given(st.text(alphabet="<>/!-=\"' &;abdtrlp\0\n\ud800[]?", max_size=80))
def test_no_markup_is_too_odd(markup):
    assert isinstance(read_html(markup, "odd.html", may_be_empty=True).text, str)
