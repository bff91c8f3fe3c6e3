"""What an OpenDocument file says is in its text, with its places, or in a remark."""

from __future__ import annotations

import pytest

from selfextend_rag.documents import Document, DocumentError
from tests.documents.files import written
from tests.documents.office_files import ODF, opendocument

CELLS, ROWS = "table:number-columns-repeated", "table:number-rows-repeated"


def read(tmp_path, data, name="a.odt"):
    return Document.from_file(written(tmp_path, name, data))


def remarks(document):
    return {remark.kind: (remark.severity, remark.count) for remark in document.remarks}


def p(text):
    return f"<text:p>{text}</text:p>"


def cell(text, attributes=""):
    return f"<table:table-cell {attributes}>{p(text) if text else ''}</table:table-cell>"


def row(*cells, attributes=""):
    return f"<table:table-row {attributes}>{''.join(cells)}</table:table-row>"


def sheet(name, *rows, attributes=""):
    return f'<table:table table:name="{name}" {attributes}>{"".join(rows)}</table:table>'


def test_text_keeps_its_structure(tmp_path):
    items = "".join(f"<text:list-item>{p(text)}</text:list-item>" for text in ("bus", "train"))
    table = sheet("t", row(cell("Part"), cell("Cost")), row(cell("Seal"), cell("12.50")))
    body = (
        '<text:h text:outline-level="2">Pump log</text:h>'
        + p("One<text:s text:c='2'/>two<text:tab/>three<text:line-break/>four &lt;b&gt;")
        + f'<text:list text:style-name="L1">{items}</text:list><text:list>{items}</text:list>'
        + table
    )
    number = 'text:level="1" style:num-format="1" style:num-suffix="."'
    level = f"<text:list-level-style-number {number}/>"
    style = f'<text:list-style style:name="L1">{level}</text:list-style>'
    document = read(tmp_path, opendocument(f"<office:text>{body}</office:text>", style))
    lines = [line for line in document.text.split("\n") if line]
    assert lines[:3] == ["## Pump log", "One two three", "four <b>"]
    assert lines[3:7] == ["1. bus", "2. train", "- bus", "- train"]
    assert lines[7:] == ["Part | Cost", "Seal | 12.50"]
    assert (document.metadata["format"], document.remarks) == ("odt", ())


def test_notes_comments_margins_and_objects_are_read(tmp_path):
    note = (
        "<text:note><text:note-citation>1</text:note-citation><text:note-body>{}</text:note-body>"
    )
    comment = (
        f"<office:annotation><dc:creator>Anna</dc:creator>{p('Is it so?')}</office:annotation>"
    )
    chart = '<draw:frame><draw:object xlink:href="./Object 1"/><draw:image/></draw:frame>'
    body = p(f"Text{note.format(p('Below'))}</text:note> and{comment}") + p(chart)
    margins = (
        f"<style:header>{p('Confidential <text:page-number>1</text:page-number>')}</style:header>"
    )
    inner = f"<office:body>{sheet('local', row(cell('North'), cell('4.3')))}</office:body>"
    parts = {
        "Object 1/content.xml": f"<office:document-content {ODF}>{inner}</office:document-content>"
    }
    data = opendocument(f"<office:text>{body}</office:text>", margins=margins, parts=parts)
    document = read(tmp_path, data)
    assert [line for line in document.text.split("\n") if line] == [
        "Text [Below] and [comment by Anna: Is it so?]",
        "North | 4.3",
        "On pages: Confidential 1",
    ]
    assert document.remarks == ()


def test_what_is_left_out_is_remarked(tmp_path):
    deletion = (
        f"<text:changed-region><text:deletion>{p('old')}</text:deletion></text:changed-region>"
    )
    body = (
        f"<text:tracked-changes>{deletion}</text:tracked-changes>"
        + p("new<draw:frame><draw:image/></draw:frame><draw:frame><draw:plugin/></draw:frame>")
        + p("<draw:frame><draw:object-ole xlink:href='./Object 2'/></draw:frame>")
    )
    style = "<style:style><style:graphic-properties draw:fill='bitmap'/></style:style>"
    document = read(tmp_path, opendocument(f"<office:text>{body}</office:text>", style))
    assert document.text == "new"
    assert remarks(document) == {
        "deletions": ("warning", 1),
        "embedded objects": ("warning", 2),
        "pictures": ("warning", 2),
    }


FORMS = """<office:forms xmlns:f="f"><f:form>
<f:text f:id="a" f:label="Name" f:current-value="Anna"/>
<f:checkbox f:id="b" f:label="Yes" f:current-state="checked"/><f:radio f:id="c" f:label="No"/>
<f:listbox f:id="d"><f:option f:label="Red" f:current-selected="true"/><f:option f:label="Blue"/>
</f:listbox><f:button f:id="e" f:label="Send" f:value="x"/><f:password f:id="g" f:value="secret"/>
</f:form></office:forms>"""


def test_forms_are_read_where_they_are_shown(tmp_path):
    """They were counted, and those of sheets lost without a remark."""
    controls = "".join(f'<draw:control draw:control="{c}"/>' for c in "abcdeg")
    said = "Name Anna [x] Yes [ ] No [x] Red [ ] Blue Send"
    body = f"<office:text>{FORMS}{p(f'Form {controls} end')}</office:text>"
    document = read(tmp_path, opendocument(body))
    assert (document.text, document.remarks) == (f"Form {said} end", ())
    shapes = f"<table:shapes>{controls}</table:shapes>"
    body = f"<office:spreadsheet>{sheet('a', FORMS, shapes)}</office:spreadsheet>"
    assert said in read(tmp_path, opendocument(body), "a.ods").text


def test_what_a_program_hides_is_read_and_noted(tmp_path):
    hidden = (
        '<style:style style:name="H"><style:text-properties text:display="none"/></style:style>'
    )
    body = p('<text:span text:style-name="H">secret</text:span> seen')
    body += f'<text:section text:display="none">{p("aside")}</text:section>'
    document = read(tmp_path, opendocument(f"<office:text>{body}</office:text>", hidden))
    assert document.text == "secret seen\n\naside"
    assert remarks(document) == {"hidden text": ("note", 2)}
    rows = row(cell("a"), attributes='table:visibility="collapse"') + row(cell("b"))
    body = f"<office:spreadsheet>{sheet('s', rows)}</office:spreadsheet>"
    assert remarks(read(tmp_path, opendocument(body), "a.ods")) == {"hidden rows": ("note", 1)}


def test_fields_stay_in_their_line_and_readings_are_in_brackets(tmp_path):
    ruby = "<text:ruby><text:ruby-base>漢</text:ruby-base><text:ruby-text>kan</text:ruby-text>"
    body = p(f"{ruby}</text:ruby> of <text:title>Pumps</text:title> is")
    assert read(tmp_path, opendocument(f"<office:text>{body}</office:text>")).text == (
        "漢(kan) of Pumps is"
    )


def test_margins_are_read_unless_they_only_count_pages(tmp_path):
    number = "<text:page-number>&lt;number&gt;</text:page-number>"
    margins = f"<style:header>{p('2024-17')}</style:header><style:footer>{p(number)}</style:footer>"
    document = read(tmp_path, opendocument(f"<office:text>{p('x')}</office:text>", "", margins))
    assert document.text == "x\n\nOn pages: 2024-17"
    decl = "<presentation:date-time-decl>May 2024</presentation:date-time-decl>"
    body = f"<office:presentation>{decl}<draw:page/></office:presentation>"
    assert "On pages: May 2024" in read(tmp_path, opendocument(body), "a.odp").text


def test_a_formula_alone_is_read(tmp_path):
    formula = (
        '<math xmlns="http://www.w3.org/1998/Math/MathML"><mi>x</mi><mo>+</mo><mn>1</mn></math>'
    )
    data = opendocument("", parts={"content.xml": formula})
    assert read(tmp_path, data, "a.odf").text == "x+1"


def test_slides_come_with_their_titles_notes_and_places(tmp_path):
    def frame(text, attributes=""):
        return f"<draw:frame {attributes}><draw:text-box>{p(text)}</draw:text-box></draw:frame>"

    title = frame("Results", 'presentation:class="title"')
    notes = f"<presentation:notes>{frame('Say why.')}</presentation:notes>"
    hidden = '<style:drawing-page-properties presentation:visibility="hidden"/>'
    style = f'<style:style style:name="dp1">{hidden}</style:style>'
    pages = (
        f"<draw:page>{frame('Output rose')}{title}{notes}</draw:page>"
        f'<draw:page draw:style-name="dp1">{frame("Spare")}</draw:page>'
    )
    body = f"<office:presentation>{pages}</office:presentation>"
    document = read(tmp_path, opendocument(body, style), "a.odp")
    assert document.text == (
        "# Slide 1: Results\n\nOutput rose\n\nSay why.\n\n# Slide 2 (hidden)\n\nSpare"
    )
    assert document.location(document.text.index("Say"), document.text.index("why")) == "slide 1"
    assert document.location(len(document.text) - 1, len(document.text)) == "slide 2"
    assert remarks(document) == {"hidden": ("note", 1)}
    assert document.metadata["format"] == "odp"


def test_sheets_have_rows_values_and_places(tmp_path):
    date = 'office:value-type="date" office:date-value="2024-02-29T00:00:00"'
    formula = 'table:formula="of:=[.A1]*2"'
    costs = sheet(
        "Costs",
        row(cell("Part"), cell("", f'{CELLS}="2"'), cell("Cost")),
        row(cell("", f'{CELLS}="1024"'), attributes=f'{ROWS}="7"'),
        row(cell("29/02/24", date), cell("x", f'{CELLS}="2"'), cell("", formula)),
        row(cell("12 %"), attributes=f'{ROWS}="2"'),
        row(cell(""), attributes=f'{ROWS}="1048000"'),
    )  # fmt: skip
    plan = sheet("Plan", row(cell("late")), attributes='table:style-name="ta1"')
    hidden = '<style:table-properties table:display="false"/>'
    hidden = f'<style:style style:name="ta1">{hidden}</style:style>'
    body = f"<office:spreadsheet>{costs}{plan}</office:spreadsheet>"
    document = read(tmp_path, opendocument(body, hidden), "a.ods")
    assert [line for line in document.text.split("\n") if line] == [
        "# Sheet Costs",
        "Part |  |  | Cost",
        "2024-02-29 | x | x | =[.A1]*2",
        "12 %",
        "12 %",
        "# Sheet Plan (hidden)",
        "late",
    ]
    for said, place in (("2024", "sheet Costs, row 9"), ("late", "sheet Plan, row 1")):
        start = document.text.index(said)
        assert document.location(start, start + 1) == place
    start = document.text.index("12 %\n12 %")
    assert document.location(start, start + 9) == "sheet Costs, rows 10-11"
    assert remarks(document) == {"hidden": ("note", 1), "formulas": ("warning", 1)}


def test_repetitions_are_bounded_and_what_is_left_out_is_counted(tmp_path):
    many = cell("word " * 20, f'{CELLS}="16000"')
    rows = row(many, attributes=f'{ROWS}="1000000"')
    body = f"<office:spreadsheet>{sheet('a', rows)}</office:spreadsheet>"
    document = read(tmp_path, opendocument(body), "a.ods")
    assert 300_000 < len(document.text) < 3_000_000
    assert remarks(document)["repetitions"][0] == "loss"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_flat_file_reads_like_a_zipped_one(tmp_path, encoding):
    chart = "<office:document><office:meta><dc:creator>Ann</dc:creator></office:meta><office:body>"
    body = (
        "<office:text><text:h text:outline-level='1'>Plan</text:h><text:p>Check Größe."
        f"<text:note><text:note-body>{p('a note')}</text:note-body></text:note></text:p>"
        f"<text:p><draw:frame><draw:object>{chart}{p('Costs by year')}</office:body>"
        "</office:document></draw:object><draw:image><office:binary-data>aGVsbG8gd29ybGQ="
        f"</office:binary-data></draw:image></draw:frame></text:p></office:text>"
    )
    margins = f"<style:header>{p('Pump Ltd.')}</style:header>"
    meta = "<office:meta><dc:title>The pump</dc:title></office:meta>"
    flat = (
        f'<?xml version="1.0" encoding="{encoding}"?><office:document {ODF} '
        f'office:mimetype="application/vnd.oasis.opendocument.text">{meta}<office:master-styles>'
        f'<style:master-page style:name="a">{margins}</style:master-page></office:master-styles>'
        f"<office:body>{body}</office:body></office:document>"
    )
    read_flat = read(tmp_path, flat.encode(encoding), "a.fodt")
    assert read_flat.text == read(tmp_path, opendocument(body, margins=margins)).text
    assert read_flat.text.split("\n\n") == [
        *("# Plan", "Check Größe. [a note]", "Costs by year", "On pages: Pump Ltd."),
    ]
    assert (read_flat.title, read_flat.metadata["format"]) == ("The pump", "fodt")
    assert read_flat.remarks == ()


def test_programs_in_a_file_are_remarked(tmp_path):
    module, listed = "Basic/Standard/Module1.xml", "Basic/Standard/script-lb.xml"
    body = f"<office:text>{p('Plan')}</office:text>"
    data = opendocument(body, parts={module: "<module/>", listed: "<library/>"})
    assert remarks(read(tmp_path, data)) == {"macros": ("note", 1)}


def test_an_encrypted_file_is_refused_by_its_password(tmp_path):
    entry = "<m:file-entry><m:encryption-data/></m:file-entry>"
    manifest = f"<m:manifest xmlns:m='urn:m'>{entry}</m:manifest>"
    data = opendocument("<office:text/>", parts={"META-INF/manifest.xml": manifest})
    with pytest.raises(DocumentError, match="password"):
        read(tmp_path, data)
