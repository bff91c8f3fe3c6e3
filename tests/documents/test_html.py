"""Pages keep their text and structure, and what is left out of them is counted."""

from __future__ import annotations

import json
import logging
import threading
import time
import warnings
from html import escape
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from selfextend_rag.documents import Document, DocumentError
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


def read(markup):
    return read_html(markup, "page.html")


def remarks(markup):
    """Severity and count of each remark, by its kind; and the messages."""
    found = read(markup).remarks
    return {remark.kind: (remark.severity, remark.count) for remark in found}


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("Price: <del>120</del><ins>95</ins> EUR", "Price: ~~120~~95 EUR"),
        ("<s>a</s>b<strike>c</strike>", "~~a~~b~~c~~"),
        ("<span style='text-decoration: Line-Through red'>120</span>95", "~~120~~95"),
        ("a<wbr>b long&shy;word <q>so</q>", "ab longword “so”"),
        ("漢<ruby>字<rp>(</rp><rt>ji</rt><rp>)</rp></ruby>", "漢字(ji)"),
        ("a $<div style='display: inline'>5</div> b", "a $5 b"),
        ("<b style='display:block'>a</b><b style='display:block'>b</b>", "a\nb"),
        ("<dl><dt>Mains<dd>230 V<dd>50 Hz</dl>", "Mains\n: 230 V\n: 50 Hz"),
        ("<ol start=2><li>x<li>y<li value=7>z</ol>", "2. x\n3. y\n7. z"),
        ("2<sup>n</sup>, x<sup>n+1</sup>, 10<sup>-6</sup>, end<sup>ii</sup>",
         "2^n, x^n+1, 10^-6, end^ii"),
        ("1<sup>st</sup> 2<sup>e</sup> n<sup>o</sup> Mark<sup>TM</sup>", "1st 2e no MarkTM"),
        ("H<sub>2</sub>O, x<sub>1</sub>, 101<sub>2</sub>, log<sub>10</sub>100, m<sub>2</sub>g",
         "H2O, x1, 101_2, log10 100, m2g"),
        ("<meter>3 of 10</meter>left", "3 of 10 left"),
        ("<ul><li>a<ul><li>b</ul><li>c</ul>", "- a\n  - b\n- c"),
        ("<details><summary>More</summary>inside</details>", "More\n\ninside"),
        ("<noscript><p>For all.</p></noscript>", "For all."),
        ("<p>a</p><![CDATA[1 < 2 & <b>]]><p>c", "a\n\n1 < 2 & <b>\n\nc"),
        ("a<![CDATA[b<p>c", "ac"),
        ("<!-- <![CDATA[ --><p>a<b>b</b>]]>", "ab]]>"),
        ("<noframes></noframes>a", "a"),
        ("<script/>x<b/>y<textarea/>z", "xy z"),
        ("<html><body>a</body></html>b<html><p>c", "a\n\nb\n\nc"),
    ],
)  # fmt: skip
def test_marks_and_words_are_as_people_see_them(markup, text):
    assert read(markup).text == text


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<pre><b>A</b> = Y<br><b>B</b> = 1<br></pre>", "A = Y\nB = 1"),
        ("<pre>  a\n\n    b<br><br>  c</pre>", "  a\n\n    b\n\n  c"),
        ("<div style='white-space: pre-wrap'>  a\n    b</div>", "  a\n    b"),
        ("<textarea>\n a\n b</textarea>", " a\n b"),
        ("<xmp>a <b>\n  c</xmp>", "a <b>\n  c"),
    ],
)
def test_preformatted_lines_are_neither_joined_nor_spaced_out(markup, text):
    assert read(markup).text == text


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ("<td rowspan=2>North<td>2023<td>10<tr><td>2024<td>12",
         "North | 2023 | 10\nNorth | 2024 | 12"),
        ("<td>1<td rowspan=3>Z<tr><td>2<tr><td>3<tr><td>4<td>5", "1 | Z\n2 | Z\n3 | Z\n4 | 5"),
        ("<td rowspan=2 colspan=2>A<td>1<tr><td>2<tr><td>x<td>y<td>3",
         "A |  | 1\nA |  | 2\nx | y | 3"),
        ("<th>R<th colspan=2>Sales<th>T<tr><td>N<td>1<td>2<td>3",
         "R | Sales |  | T\nN | 1 | 2 | 3"),
        ("<td colspan=3>none<td>9<tr><td colspan=4>Group", "none |  |  | 9\nGroup"),
        ("<tbody><tr><td rowspan=0>Z<td>1<tr><td>2<tbody><tr><td>a<td>b", "Z | 1\nZ | 2\na | b"),
        ("<td rowspan=9>Z<td>1<tbody><tr><td>a<td>b", "Z | 1\na | b"),
        ("<td rowspan=2>A<td>1<tr>", "A | 1"),
        ("<th>Who<tr><td>Ann<br>Lee<td><p>12</p><p>13</p>", "Who\nAnn Lee | 12 13"),
        ("<th>A<th>B<tr><td>x<td><ul><li>one<li>two</ul>", "A | B\nx | - one - two"),
        ("<th>A<th>B<tr><td><h3>x</h3><td>y<tr><td>1<td><table><td>2<td>3</table>",
         "A | B\nx | y\n\n1\n\n2 | 3"),
        ("<td colspan=abc>a<td rowspan=-2>b<td colspan=0>c<td>d", "a | b | c | d"),
    ],
)  # fmt: skip
def test_values_stay_in_their_columns(rows, text):
    assert read(f"<table><tr>{rows}</table>").text == text


def test_tables_in_other_words_and_places():
    spans = "".join(f"<span role=cell>{n}</span>" for n in (1, 2))
    assert read(f"<div role=grid><div role=row>{spans}</div></div>").text == "1 | 2"
    assert read("<tr><td>a<td>b</tr>").text == "a | b"  # a fragment
    assert read("<table><caption>Of <b>all</b></caption><td>a<td>b</table>c").text == (
        "Of all\n\na | b\n\nc"
    )
    nested = "<table><tr><td>a<table><tr><td>1<td>2</table>b<td>c<tr><td>d<td>e</table>"
    assert read(nested).text == "a\n\n1 | 2\n\nb\n\nc\n\nd | e"
    mail = "<table role=presentation><tr><td>left<td>right</table>"
    assert read(mail).text == "left\n\nright"


def test_spans_can_not_make_a_page_large():
    page = "<table>" + f"<tr><td colspan=1000 rowspan=60000>{'x' * 900}<td>y" * 2000 + "</table>"
    content = read(page)
    assert len(content.text) < 4 * len(page)
    assert content.text.count("y") == 2000
    assert remarks(page)["spans ignored"][0] == "warning"


def test_forms_show_what_is_filled_in():
    assert read(
        "<form><label>Name <input value='Turbine 7'></label><input placeholder=Place>"
        "<label>Notes <textarea>oil\nchanged</textarea></label>"
        "<input type=checkbox checked>Agreed <input type=radio>By mail"
        "<select><option>Mon<optgroup label=Late><option selected>Fri</select>"
        "<button>Save</button><input type=submit value=Send></form>"
    ).text == (
        "Name Turbine 7 [hint: Place] Notes oil\nchanged [x] Agreed [ ] By mail\n"
        "[ ] Mon\nLate\n[x] Fri\nSave Send"
    )
    secrets = "<input type=hidden value=token><input type=password value=secret>x"
    assert read(secrets).text == "x"
    assert remarks(secrets)["hidden fields"] == ("note", 2)


def test_content_that_is_no_child_of_the_page_is_read():
    assert read("<x-a><template shadowrootmode=open><p>in</p></template></x-a>b").text == "in\n\nb"
    inner = escape("<p>in</p><p>side", quote=True)
    assert read(f"a<iframe srcdoc='{inner}'>no frames</iframe>b").text == "a\n\nin\n\nside\n\nb"
    assert read("<frameset><noframes><p>Old</p></noframes></frameset>").text == "Old"


def test_pictures_and_icons_say_what_they_are_called():
    assert read("<img alt='Inlet  valve'>").text == "[image: Inlet valve]"
    assert read("<a aria-label='Get it'><i></i></a> <svg title=Up></svg>").text == "Get it Up"
    assert read("<a title='not this'>this</a>").text == "this"
    svg = "<title>Chart</title><style>a</style><text>Start</text><text>S<tspan>top</tspan></text>"
    assert read(f"See <svg>{svg}</svg>").text == "See Chart\nStart\nStop"
    page = "x<img src=a.png><img alt=''><svg><path/></svg><canvas></canvas>"
    assert remarks(page)["pictures"] == ("note", 3)


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        ("<math alttext='x^2'><mi>x</mi></math><img alt='x^2'>", "x^2"),
        ("<math><semantics><mi>x</mi><annotation encoding='application/x-tex'>x_1"
         "</annotation></semantics></math><i class='katex-html'>x1</i>", "x_1"),
        ("<math><mfrac><mrow><mi>a</mi><mo>+</mo><mn>1</mn></mrow>\n<mn>2</mn></mfrac></math>",
         "frac(( a + 1 ) 2 )"),
        ("<math><msubsup><mi>x</mi><mn>1</mn><mn>2</mn></msubsup><msqrt><mn>3</mn></msqrt></math>",
         "subsup( x 1 2 ) sqrt( 3 )"),
        ("<script type='math/tex; mode=display'>E=mc^2</script>", "E=mc^2"),
    ],
)  # fmt: skip
def test_formulas_are_written_once_and_their_parts_apart(formula, text):
    assert read(f"<p>so {formula} ok").text == f"so {text} ok"


@pytest.mark.parametrize(
    ("markup", "kind", "remark"),
    [
        ("<p hidden>not <b>seen</b></p>", "hidden", ("warning", 2)),
        ("<p style='Display : None'>a<i hidden>b</i></p>", "hidden", ("warning", 2)),
        ("<p style='opacity:0.5'>a</p><p style=opacity:0>b</p>", "hidden", ("warning", 1)),
        ("<dialog>a b</dialog><dialog open>c</dialog>", "hidden", ("warning", 2)),
        ("<i aria-hidden=true>x</i>", "aria-hidden", ("note", 1)),
        ("a<nav><a>Home</a> <a>About us</a></nav>", "menus", ("note", 3)),
        ("a<nav><p>A long text.</p><a>b</a></nav>", "menus with text", ("warning", 4)),
        ("a<template><p>for a script</template>", "in templates", ("warning", 3)),
        ("a<!-- b --><?php c?>", "comments", ("note", 1)),
        ("a<iframe src=b.html></iframe><frame src=c>", "frames", ("warning", 2)),
        ("a<p class='b>c</p>", "cut off", ("warning", 1)),
        ("a<!-- b", "cut off", ("warning", 1)),
        ("a<script>b", "cut off", ("warning", 1)),
        ("a<textarea>b", "cut off", ("warning", 1)),
        ("<style>.a::before { content: 'Net: ' } .b:after{content:'\\f101'}</style>a",
         "text in styles", ("warning", 1)),
        ("<style>h2 {counter-increment: n} h2::before {content: counter(n) '. '}"
         "ol {list-style: lower-alpha} ul {list-style: none}</style><h2>a</h2>",
         "numbers in styles", ("warning", 2)),
        ("a\ud800b", "lone surrogates", ("loss", 1)),
    ],
)  # fmt: skip
def test_what_is_left_out_or_hidden_is_counted(markup, kind, remark):
    assert remarks(markup)[kind] == remark


def test_a_plain_page_has_no_remark():
    page = "<!DOCTYPE html><html lang=en><head><meta charset=utf-8><title>T</title><base href=x>"
    assert not read(
        page + "<link rel=a title=b><body><p>a<b>b</b><iframe hidden src=c></iframe>"
    ).remarks


def test_hidden_text_is_read_and_text_after_an_unclosed_start_is_not_marked():
    assert read("<p hidden>a<p style='visibility:hidden'>b").text == "a\n\nb"
    assert read("<p>a<textarea>b").text == "a b"
    assert read("<title>b</title>a<title>c").title == "b"


def test_a_page_of_menus_alone_is_read():
    assert read("<nav><ul><li><a>One</a><li><a>Two</a></ul></nav>").text == "- One\n- Two"


ARTICLE = " ".join(
    f"The {n}th pump ran for {n} hours, and no fault was found in it." for n in range(40)
)


def test_an_article_that_only_a_script_has_is_read_with_a_remark():
    data = json.dumps({"@graph": [{"articleBody": f"{ARTICLE}\n\nLast “words”."}]})
    content = read(f"<h1>Loading</h1><script type='application/ld+json'>{data}</script>")
    assert content.text == f"# Loading\n\n{ARTICLE}\n\nLast “words”."
    assert [r.kind for r in content.remarks] == ["script", "articles in scripts"]
    assert content.remarks[1].severity == "warning"
    raw = read(f'<script>{{"articleBody": "{ARTICLE}\nLast"}}</script>')
    assert raw.text == f"{ARTICLE}\n\nLast"
    shown = read(f"<p>{ARTICLE}</p><p>Last “words”.</p><script>{data}</script>")
    assert shown.text.count("The 7th pump") == 1
    assert [r.kind for r in shown.remarks] == ["script"]


@pytest.mark.parametrize("form", ["json", "flight", "markup", "chinese"])
def test_prose_that_only_scripts_have_is_remarked_on(form):
    text = "水泵每天运行，没有发现任何故障。" * 60 if form == "chinese" else ARTICLE
    data = json.dumps({"props": {"body": f"<p>{text}</p>" if form == "markup" else text}})
    if form == "flight":
        data = f"self.__next_f.push([1,{json.dumps(data)}])"
    page = f"<p>Loading</p><script>{data}</script>"
    assert remarks(page)["text in scripts"][0] == "warning"
    assert "text in scripts" not in remarks(f"<p>{text}</p>{page}")
    long = text.replace("h", "H").replace("水", "火") * 3
    assert "text in scripts" not in remarks(f"<p>{long}</p>{page}")
    assert "text in scripts" not in remarks(f"<p>a</p><script>x = '{'dGV4dA/' * 200}'</script>")
    code = "/*! " + "Licensed under the terms of the licence that follows. " * 20 + "*/ var a = 1;"
    assert "text in scripts" not in remarks(f"<p>a</p><script>{code * 3}</script>")


def test_a_page_without_text_is_refused_with_what_it_has_and_a_fragment_may_be_empty():
    with pytest.raises(DocumentError, match=r"without text.*2 script.*a\.html"):
        read("<script></script><script></script><frameset><frame src=a.html></frameset>")
    content = read_html("<img src=cover.png>", "cover", may_be_empty=True)
    assert (content.text, content.title) == ("", "")
    assert content.remarks[0].kind == "pictures"


def test_entities_that_a_page_declares_are_read_but_never_from_a_file():
    """What ends the declarations was read as text, and the entities as they are written."""
    declared = '<!ENTITY maker "Pump works"><!ENTITY x SYSTEM "file:///etc/passwd">'
    declared += '<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">'
    page = f"<?xml version='1.0'?><!DOCTYPE html [{declared}]><p>By &maker; &x; &b; &eacute;"
    assert read(page).text == "By Pump works &x; &b; é"


def test_nothing_outside_the_page_is_opened(tmp_path):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    secret = written(tmp_path, "secret.txt", "SECRET").as_uri()
    for address in (f"http://127.0.0.1:{server.server_port}/x", secret):
        markup = (
            f'<!DOCTYPE html [<!ENTITY e SYSTEM "{address}"><!ENTITY % d SYSTEM "{address}">%d;]>'
            f'<html xmlns:xi="http://www.w3.org/2001/XInclude"><base href="{address}">'
            f'<link rel=import href="{address}"><p>&e;a<xi:include href="{address}" parse="text"/>'
            f'<iframe src="{address}"></iframe><object data="{address}"></object>'
            f'<img src="{address}"><embed src="{address}"><frame src="{address}">'
        )
        assert "SECRET" not in read(markup).text
    server.shutdown()
    server.server_close()
    assert asked == []


def test_frames_in_frames_end():
    page = "<p>x"
    for _ in range(12):
        page = f'<iframe srcdoc="{escape(page)}"></iframe>'
    assert remarks("a" + page)["frames"] == ("warning", 1)


def test_nesting_is_read_whole_or_refused_before_it_takes_long():
    deep = "<div><b>" * 4000 + "END" + "</b></div>" * 4000
    assert read(deep).text == "END"
    assert len(read("<ul><li>x" * 3000).text) < 60 * 3000
    tables = "<table><tr><td>" * 3000 + "<p>x" * 3000
    assert read(tables).text.count("x") == 3000
    start = time.process_time()
    with pytest.raises(DocumentError, match="nests more than 4000 elements"):
        read("<b>" * 100_000 + "</i>" * 300_000)
    assert time.process_time() - start < 10


def test_one_text_of_twelve_megabytes_is_read_whole():
    text = "word " * 2_400_000
    assert read(f"<p>{text}END").text == f"{text}END"


def test_pages_that_close_nothing_are_read_whole():
    text = read_html("<p>a" * 3000 + "<li>b" * 3000 + "<div>c" * 3000 + "<b>END", "a.html").text
    assert [text.count(c) for c in "abc"] == [3000, 3000, 3000]
    assert text.endswith("END")
