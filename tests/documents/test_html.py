"""Pages keep their text and structure, and lose their machinery."""

from __future__ import annotations

import logging
import warnings

import pytest

from selfextend_rag.documents import Document
from selfextend_rag.documents.html import read_html
from tests.documents.files import written

PAGE = """<!DOCTYPE html><html><head><title> The
 Hand&shy;book </title><style>p {color: red}</style><script>track("you")</script></head><body>
<nav><a href="/">Home</a></nav>
<h1>Travel <em>rules</em></h1>
<p>Anna   approves
travel&nbsp;of <b>all</b> kinds; see H<sub>2</sub>O, 10<sup>3</sup> m.<p>Next<br>line.
<!-- not for you -->
<ul><li>bus<li><p>train</p><ol start=3><li>first class<li>second</ol><li></ul><h2></h2>
<table><tr><th>Way<th>Cost</tr><tr><td><p>Bus</p><td>12</tr><tr><td><td>13</table>
<table><tr><td><h3>Layout</h3><p>left</p></td><td>right</td></tr></table>
<pre>
 def f():
     pass
</pre><script>more()</script></body></html>"""


PAGE_TEXT = """# Travel rules

Anna approves travel of all kinds; see H2O, 10^3 m.

Next
line.

- bus
- train

  3. first class
  4. second

Way | Cost
Bus | 12
 | 13

### Layout

left

right

 def f():
     pass"""


def test_a_page_keeps_its_structure_and_loses_its_machinery(tmp_path):
    document = Document.from_file(written(tmp_path, "page.html", PAGE))
    assert document.text == PAGE_TEXT
    assert document.title == "The Handbook"
    assert document.metadata["format"] == "html"
    assert document.metadata["removed_elements"] == {"style": 1, "script": 2, "nav": 1}


@pytest.mark.parametrize("start", ["<!doctype HTML>", "<!-- saved -->\n<html>", "\n<HTML lang=en>"])
def test_html_is_recognised_under_any_name(tmp_path, start):
    page = f"{start}<body><p>one<p>two</body></html>"
    for name in ("page.txt", "page", "page.md"):
        assert Document.from_file(written(tmp_path, name, page)).text == "one\n\ntwo"


def test_text_named_like_a_page_is_kept_and_the_mismatch_said(tmp_path, caplog):
    document = Document.from_file(written(tmp_path, "page.html", "1 < 2, a <b c> d\n"))
    assert document.metadata["format"] == "html"
    with caplog.at_level(logging.WARNING):
        document = Document.from_file(written(tmp_path, "page.html", "1 < 2 and 3 > 2\n"))
    assert document.text == "1 < 2 and 3 > 2\n"
    assert "named like html but was read as the text it is" in caplog.text


@pytest.mark.parametrize("label", ["iso-8859-1", "windows-1251", "shift_jis", "koi8-r"])
def test_a_declared_encoding_is_used(tmp_path, label):
    word = {"iso-8859-1": "déjà", "shift_jis": "天気"}.get(label, "погода")
    page = f'<html><head><meta charset="{label}"></head><p>{word}</p></html>'
    document = Document.from_file(written(tmp_path, "page.html", page.encode(label)))
    assert document.text == word
    assert document.metadata["encoding"] == label
    assert document.metadata["encoding_from"] == "declaration"


def test_a_wrong_declaration_does_not_spoil_utf8(tmp_path):
    page = '<?xml version="1.0" encoding="latin-1"?><html><body><p>déjà 天気</p></body></html>'
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        document = Document.from_file(written(tmp_path, "page.xhtml", page))
    assert document.text == "déjà 天気"


def test_pages_that_close_nothing_are_read_whole():
    text = read_html("<p>a" * 3000 + "<li>b" * 3000 + "<div>c" * 3000 + "<b>END", "a.html").text
    assert [text.count(c) for c in "abc"] == [3000, 3000, 3000]
    assert text.endswith("END")
