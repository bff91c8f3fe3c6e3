"""Tables, notebooks, and texts that are kept as they are with their format said."""

from __future__ import annotations

import contextlib
import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfextend_rag.documents import Document, DocumentError
from selfextend_rag.documents.notebook import read_notebook
from selfextend_rag.documents.tables import read_table
from tests.documents.files import written


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.csv", 'n,name\n1,"Seal, big"\n2,x\n', "n | name\n1 | Seal, big\n2 | x"),
        ("a.csv", 'n,note\r\n1,"two\r\nlines"\r\n2,\r\n', "n | note\n1 | two lines\n2 |"),
        ("a.csv", "Nr;Preis\n1;12,50\n2;3,10\n", "Nr | Preis\n1 | 12,50\n2 | 3,10"),
        ("a.csv", "1;1,50\n2;2,50\n", "1 | 1,50\n2 | 2,50"),
        ("a.csv", "a|b\n1|2\n", "a | b\n1 | 2"),
        ("a.csv", "sep=;\na;b\n1;2\n", "a | b\n1 | 2"),
        ("a.csv", '5" pipe,12\n3" pipe,10\n', '5" pipe | 12\n3" pipe | 10'),
        ("a.csv", 'a,b\n"say ""no""",2\n', 'a | b\nsay "no" | 2'),
        ("a.csv", "Year 2024\n\na,b\n" + "1,2\n" * 9 + ",\n3,4\n", None),
        # A quote after a space moved what is behind its commas into other columns.
        ("a.csv", 'a, "b, c"\n1, "2, 3"\n', "a | b, c\n1 | 2, 3"),
        ("a.csv", "\ufeff\ufeffa,b\n1,2\n", "a | b\n1 | 2"),
        ("a.tsv", "a\tb, c\n1\t2, 3\n", "a | b, c\n1 | 2, 3"),
    ],
)
def test_a_table_has_a_line_for_each_row(tmp_path, name, data, text):
    document = Document.from_file(written(tmp_path, name, data))
    if text is None:
        text = "Year 2024\n\na | b\n" + "1 | 2\n" * 9 + "\n3 | 4"
    assert document.text == text
    assert document.metadata["format"] == "csv"
    assert not document.remarks


@pytest.mark.parametrize(
    "data",
    [
        "A report, in prose.\nIt has lines, some with commas, and some, here, with more.\nNo.\n",
        'a,b\n"a quote that does not close,1\n2,3\n4,5\n',
        "one\ntwo\n",
        '"a"b,c\n1,2\n',
    ],
)
def test_what_is_no_sure_table_is_kept_as_it_is(tmp_path, data):
    document = Document.from_file(written(tmp_path, "a.csv", data))
    assert document.text == data
    assert [remark.kind for remark in document.remarks] == ["table kept as it is"]
    assert document.locations == ()


def test_a_place_in_a_table_is_its_row_whatever_its_cells_hold(tmp_path):
    rows = [["n", "note"], *([str(n), f"first line\nsecond, of {n}"] for n in range(2, 200))]
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    document = Document.from_file(written(tmp_path, "a.csv", out.getvalue()))
    for n in (2, 57, 199):
        start = document.text.index(f"second, of {n}")
        assert document.location(start, start + 5) == f"table, row {n}"


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)


@settings(max_examples=50)
@given(st.lists(st.tuples(cells, cells, cells), min_size=2), st.sampled_from(",;\t|"))
def test_the_cells_of_any_quoted_table_are_in_its_text(rows, delimiter):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    lines = read_table(out.getvalue(), "a.csv").text.split("\n")
    assert lines == [" | ".join(c.strip() for c in row).rstrip() for row in rows]


def notebook(*cells, **more):
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5, **more})


def code(source, *outputs):
    return {"cell_type": "code", "source": source, "outputs": outputs}


def shown(**data):
    return {
        "output_type": "display_data",
        "data": {k.replace("_", "/"): v for k, v in data.items()},
    }


PICTURE = "iVBORw0KGgoAAAANSUhEUg=="


def test_a_notebook_is_its_cells_and_their_outputs_without_pictures(tmp_path):
    stream = {"output_type": "stream", "name": "stdout", "text": ["\x1b[31m12", ".5\x1b[0m\n"]}
    error = {"output_type": "error", "ename": "E", "traceback": ["\x1b[0;31mE\x1b[0m", "line 3"]}
    data = notebook(
        {
            "cell_type": "markdown",
            "source": ["# Plan\n", "Check it."],
            "attachments": {"a.png": {}},
        },
        code("f(1)", stream, shown(text_plain="<Figure 1>", image_png=PICTURE), error),
        {"cell_type": "code", "source": "", "outputs": [shown(image_png=PICTURE)]},
        code("g()", shown(application_json={"a": 1})),
        code(
            "h()", shown(text_plain="<IPython.core.display.HTML object>", text_html="<b>bold</b>")
        ),
        {"cell_type": "raw", "source": "the end"},
    )
    document = Document.from_file(written(tmp_path, "plan.ipynb", data))
    assert document.text == (
        "# Plan\nCheck it.\n\n```\nf(1)\n```\n\n12.5\n\n<Figure 1>\n\nE\nline 3\n\n```\n\n```\n\n"
        "```\ng()\n```\n\n```\nh()\n```\n\nbold\n\nthe end"
    )
    assert document.title == "Plan"
    assert {remark.kind: remark.count for remark in document.remarks} == {
        **{"attached files": 1, "pictures": 2, "outputs without text": 1}
    }
    start = document.text.index("f(1)")
    assert document.location(start, start + 3) == "cell 2"
    assert document.location(start, document.text.index("g()")) == "cells 2-4"


def test_outputs_that_name_an_object_show_what_it_shows():
    """The tables of pandas' styles and errors without a traceback were lost without a remark."""
    styled = "<pandas.io.formats.style.Styler at 0x7f1a2b>"
    error = {"output_type": "error", "ename": "ValueError", "evalue": "too long", "traceback": []}
    data = notebook(
        code("a", shown(text_plain=styled, text_html="<table><tr><td>Cost<td>12</table>")),
        code("b", shown(text_plain="<object object at 0x7f1a2b>")),
        code("c", error),
    )
    content = read_notebook(data, "a")
    said = [part for part in content.text.split("\n\n") if not part.startswith("```")]
    assert said == ["Cost | 12", "<object object at 0x7f1a2b>", "ValueError: too long"]
    assert content.remarks == ()


def test_a_notebook_of_the_former_format_is_read():
    cell = {
        "cell_type": "code",
        "input": "1+1",
        "outputs": [{"output_type": "pyout", "text": ["2"]}],
    }
    heading = {"cell_type": "heading", "level": 2, "source": "Sums"}
    book = {"worksheets": [{"cells": [heading, cell]}], "nbformat": 3}
    assert read_notebook(json.dumps(book), "a").text == "## Sums\n\n```\n1+1\n```\n\n2"


def test_a_notebook_is_known_by_its_content(tmp_path):
    data = notebook({"cell_type": "raw", "source": "read me"})
    document = Document.from_file(written(tmp_path, "a.json", data))
    assert (document.text, document.metadata["format"]) == ("read me", "ipynb")
    assert document.remarks[0].kind == "misnamed"


@pytest.mark.parametrize(
    "data", ["{", "[]", "{}", '{"cells": 3}', '{"cells": [3]}', '{"cells": [{}]}', "[" * 100_000]
)
def test_a_damaged_notebook_is_refused(tmp_path, data):
    with pytest.raises(DocumentError, match=r"is a damaged notebook .*; open it in Jupyter"):
        Document.from_file(written(tmp_path, "a.ipynb", data))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.lists(st.fixed_dictionaries({"cell_type": values, "source": values, "outputs": values})))
def test_any_cells_are_read_or_refused(cells):
    with contextlib.suppress(DocumentError):
        read_notebook(notebook(*cells), "a.ipynb")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("a.json", "json"), ("a.xml", "xml"), ("a.rst", "rst"), ("a.tex", "latex")),
        *(("a.srt", "srt"), ("a.vtt", "vtt"), ("a.py", "python"), ("a.JS", "javascript")),
        *(("a.log", "text"), ("README", "text"), ("a.txt", "text")),
    ],
)
def test_other_texts_are_kept_as_they_are_with_their_format(tmp_path, name, kind):
    text = '<doc><p n="1">x &amp; y</p>\n\n  {"a": [1, 2]} \\section{A}\n</doc>\n'
    document = Document.from_file(written(tmp_path, name, text))
    assert (document.text, document.metadata["format"]) == (text, kind)
    assert not document.remarks


def test_xml_is_read_in_the_encoding_that_it_declares(tmp_path):
    text = '<?xml version="1.0" encoding="koi8-r"?>\n<a>Насос</a>'
    document = Document.from_file(written(tmp_path, "a.xml", text.encode("koi8-r")))
    assert document.text == text
    assert document.metadata["encoding_from"] == "declaration"


def test_a_page_named_like_a_table_is_read_as_the_page_it_is(tmp_path):
    page = "<html><body><table><tr><td>1<td>2</table></body></html>"
    document = Document.from_file(written(tmp_path, "a.csv", page))
    assert (document.text, document.metadata["format"]) == ("1 | 2", "html")
    assert document.remarks[0].kind == "misnamed"
