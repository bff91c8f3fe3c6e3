"""Lists and headings have the numbers that a program shows, whatever the file leaves to count."""

from __future__ import annotations

import pytest

from selfextend_rag.documents import Document
from selfextend_rag.documents.html import numeral
from tests.documents.files import written
from tests.documents.office_files import (
    NAMESPACES,
    docx,
    edited,
    opendocument,
    paragraph,
    pptx,
    shape,
    slide,
)

LEGAL = [("decimal", "Article %1"), ("decimal", "%1.%2"), ("lowerLetter", "(%3)")]


def lines(document):
    return [line for line in document.text.split("\n") if line]


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        ("1", ["1", "4", "28", "1994"]),
        ("01", ["01", "04", "28", "1994"]),
        ("a", ["a", "d", "ab", "bxr"]),
        ("aa", ["a", "d", "bb", "r" * 77]),
        ("I", ["I", "IV", "XXVIII", "MCMXCIV"]),
        ("", [""] * 4),
    ],
)
def test_numerals(form, shown):
    assert [numeral(number, form) for number in (1, 4, 28, 1994)] == shown
    assert numeral(0, form) in ("0", "00", "")


def numbering(*levels, more="", nums=""):
    nodes = "".join(
        f'<w:lvl w:ilvl="{n}"><w:start w:val="1"/><w:numFmt w:val="{form}"/>'
        f'<w:lvlText w:val="{text}"/>{more}</w:lvl>'
        for n, (form, text) in enumerate(levels)
    )
    return (
        f'<w:numbering {NAMESPACES}><w:abstractNum w:abstractNumId="5">{nodes}</w:abstractNum>'
        f'<w:num w:numId="1"><w:abstractNumId w:val="5"/></w:num>{nums}</w:numbering>'
    )


def item(text, level=0, number=1):
    place = f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>'
    return paragraph(f"<w:pPr>{place}</w:pPr><w:r><w:t>{text}</w:t></w:r>")


def word(tmp_path, body, part):
    data = docx(body, {"word/numbering.xml": part}, n="numbering numbering.xml")
    return Document.from_file(written(tmp_path, "a.docx", data))


def test_items_of_word_have_their_numbers_through_levels_and_gaps(tmp_path):
    """mammoth, which makes the HTML, counts anew after each gap, in 1, 2, 3 on every level."""
    body = (
        item("Scope") + item("Parts", 1) + item("seal", 2) + item("shaft", 2) + paragraph("Between")
        + item("Costs", 1) + item("oil", 2) + item("Term") + item("Start", 1)
    )  # fmt: skip
    document = word(tmp_path, body, numbering(*LEGAL))
    assert lines(document) == [
        "Article 1 Scope", "  1.1 Parts", "    (a) seal", "    (b) shaft", "Between",
        "  1.2 Costs", "    (a) oil", "Article 2 Term", "  2.1 Start",
    ]  # fmt: skip
    assert document.remarks == ()


def test_lists_of_word_that_share_a_kind_go_on_or_start_again(tmp_path):
    start = '<w:lvlOverride w:ilvl="0"><w:startOverride w:val="7"/></w:lvlOverride>'
    nums = '<w:num w:numId="2"><w:abstractNumId w:val="5"/></w:num>'
    nums += f'<w:num w:numId="3"><w:abstractNumId w:val="5"/>{start}</w:num>'
    body = "".join(item("x", 0, number) for number in (1, 2, 3, 3, 1))
    document = word(tmp_path, body, numbering(("upperRoman", "%1."), nums=nums))
    assert lines(document) == ["I. x", "II. x", "VII. x", "VIII. x", "IX. x"]


def test_items_of_word_without_a_number_have_none(tmp_path):
    assert lines(word(tmp_path, item("x"), numbering(("none", "")))) == ["x"]
    assert lines(word(tmp_path, item("x"), numbering(("bullet", "\u2022")))) == ["- x"]
    document = word(tmp_path, item("x"), numbering(("chineseCounting", "%1)")))
    assert lines(document) == ["1) x"]
    assert [(r.kind, r.message) for r in document.remarks] == [
        ("list numbers", "1 number of lists in an unusual form is written 1, 2, 3")
    ]


@pytest.mark.parametrize("of_style", [True, False])
def test_headings_of_word_have_their_numbers(tmp_path, of_style):
    number = '<w:numPr><w:numId w:val="1"/></w:numPr>'
    body = paragraph("Liability", "Title1") + paragraph("Text") + paragraph("Costs", "Title1")
    data = docx(body, {"word/numbering.xml": numbering(*LEGAL)}, n="numbering numbering.xml")
    if of_style:
        name = '<w:name w:val="heading 1"/>'
        data = edited(data, "word/styles.xml", name, f"{name}<w:pPr>{number}</w:pPr>")
    else:
        data = edited(data, "word/document.xml", "</w:pPr>", f"{number}</w:pPr>")
    document = Document.from_file(written(tmp_path, "a.docx", data))
    assert lines(document) == ["# Article 1 Liability", "Text", "# Article 2 Costs"]


def level(number, form, before="", after="", **more):
    attributes = "".join(f' text:{k.replace("_", "-")}="{v}"' for k, v in more.items())
    return (
        f'<text:list-level-style-number text:level="{number}" style:num-format="{form}" '
        f'style:num-prefix="{before}" style:num-suffix="{after}"{attributes}/>'
    )


def listed(*items, attributes='text:style-name="L1"'):
    inside = "".join(f"<text:list-item>{text}</text:list-item>" for text in items)
    return f"<text:list {attributes}>{inside}</text:list>"


def test_lists_of_opendocument_have_their_numbers(tmp_path):
    """Lists in lists had dashes, as had those whose style is in the other file of styles."""
    style = f"{level(1, 'I', after='.', start_value=4)}{level(2, 'a', '(', ')')}"
    style += level(3, "1", after=".", display_levels=3)
    style = f'<text:list-style style:name="L1">{style}</text:list-style>'
    inner = listed("<text:p>three</text:p>", attributes="")
    inner = listed("<text:p>two</text:p>" + inner, "<text:p>four</text:p>", attributes="")
    on = 'text:style-name="L1" text:continue-numbering="true"'
    body = (
        listed("<text:p>one</text:p>" + inner) + "<text:p>gap</text:p>"
        + listed("<text:p>five</text:p><text:p>more</text:p>", attributes=on)
        + listed("<text:p>six</text:p>") + listed("<text:p>seven</text:p>", attributes="")
    )  # fmt: skip
    expected = ["IV. one", "  (a) two", "    IV.a.1. three", "  (b) four", "gap", "V. five",
                "more", "IV. six", "- seven"]  # fmt: skip
    for where in ({"styles": style}, {"margins": f"<style:x>{style}</style:x>"}):
        data = opendocument(f"<office:text>{body}</office:text>", **where)
        assert lines(Document.from_bytes(data, "a.odt")) == expected


def test_chapters_of_opendocument_have_their_numbers(tmp_path):
    """They were lost without a remark."""
    outline = '<text:outline-level-style text:level="{}" style:num-format="1" {}/>'
    style = outline.format(1, 'style:num-suffix=")"') + outline.format(2, 'text:display-levels="2"')
    heads = ((1, "A", ""), (2, "B", ""), (1, "C", ""), (2, "D", 'text:is-list-header="true"'))
    body = "".join(
        f'<text:h text:outline-level="{n}" {more}>{text}</text:h>' for n, text, more in heads
    )
    data = opendocument(
        f"<office:text>{body}</office:text>",
        margins=f"<text:outline-style>{style}</text:outline-style>",
    )
    document = Document.from_bytes(data, "a.odt")
    assert lines(document) == ["# 1) A", "## 1.1 B", "# 2) C", "## D"]


def test_levels_that_a_damaged_file_states_take_no_time():
    """Counting up to them took for ever."""
    deep = 10**9
    data = docx(
        item("x", deep), {"word/numbering.xml": numbering(*LEGAL)}, n="numbering numbering.xml"
    )
    assert lines(Document.from_bytes(data, "a.docx")) == ["x"]
    outline = f'<text:outline-level-style text:level="{deep}" style:num-format="1" ' \
        f'text:display-levels="{deep}"/>'  # fmt: skip
    data = opendocument(
        f'<office:text><text:h text:outline-level="{deep}">x</text:h></office:text>',
        margins=f"<text:outline-style>{outline}</text:outline-style>",
    )
    assert Document.from_bytes(data, "a.odt").text.endswith("x")


def test_paragraphs_of_slides_have_their_numbers(tmp_path):
    def point(text, kind, level=0, more=""):
        mark = f'<a:buAutoNum type="{kind}" {more}/>' if kind else ""
        return f'<a:p><a:pPr lvl="{level}">{mark}</a:pPr><a:r><a:t>{text}</a:t></a:r></a:p>'

    points = (
        point("one", "arabicPeriod") + point("sub", "alphaUcParenBoth", 1)
        + point("two", "arabicPeriod") + point("plain", "") + point("again", "arabicPeriod")
        + point("five", "romanLcParenR", more='startAt="5"')
    )  # fmt: skip
    document = Document.from_bytes(pptx(slide(shape(points))), "a.pptx")
    assert lines(document)[1:] == [
        "1. one", "(A) sub", "2. two", "plain", "1. again", "v) five",
    ]  # fmt: skip


def test_lists_of_web_pages_have_the_numbers_that_they_ask_for():
    page = (
        "<!doctype html><ol type=a start=27><li>x</ol><ol type=I><li>y<li value=9>z</ol>"
        "<ol style='list-style-type: lower-roman'><li>r</ol><ol reversed start=2><li>p<li>q</ol>"
    )
    document = Document.from_bytes(page.encode(), "a.html")
    assert lines(document) == ["aa. x", "I. y", "IX. z", "i. r", "2. p", "1. q"]
    document = Document.from_bytes(b"<!doctype html><ol reversed><li>p<li>q</ol>", "a.html")
    assert lines(document) == ["- p", "- q"]
    assert [remark.kind for remark in document.remarks] == ["reversed lists"]
