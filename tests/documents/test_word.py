"""What a Word file says is in its text, or in a remark."""

from __future__ import annotations

import io
import re
import sys
import zipfile

import pytest

from selfextend_rag.documents import Document, DocumentError
from tests.documents.files import written
from tests.documents.office_files import (
    CHART,
    CHART_TEXT,
    DIAGRAM,
    EQUATION,
    NAMESPACES,
    docx,
    paragraph,
    zipped,
)

BOX = f"<w:txbxContent>{paragraph('In a box')}</w:txbxContent>"
GRAPHIC = "<a:graphic><a:graphicData>{}</a:graphicData></a:graphic>"
CELLS = "<w:tr><w:tc><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:tc><w:tc>{}</w:tc></w:tr>"


def anchored(graphic, alternative=""):
    label = f'<wp:docPr id="1" name="x" descr="{alternative}"/>'
    anchor = f"<wp:anchor>{label}{GRAPHIC.format(graphic)}</wp:anchor>"
    return paragraph(f"<w:r><w:drawing>{anchor}</w:drawing></w:r>")


def read(tmp_path, data):
    return Document.from_file(written(tmp_path, "a.docx", data))


def kinds(document):
    return {remark.kind: (remark.severity, remark.count) for remark in document.remarks}


def test_the_body_keeps_its_structure(tmp_path):
    table = CELLS.format("Part", paragraph("Cost")) + CELLS.format("Seal", paragraph("12.50"))
    body = paragraph("Pump log", "Title1") + paragraph("The seal.") + f"<w:tbl>{table}</w:tbl>"
    document = read(tmp_path, docx(body))
    assert document.text == "# Pump log\n\nThe seal.\n\nPart | Cost\nSeal | 12.50"
    assert (document.title, document.metadata) == ("Pump log", {"format": "docx"})
    assert document.remarks == ()


FIELD = (
    '<w:r><w:fldChar w:fldCharType="begin"><w:ffData><w:ddList><w:result w:val="1"/>'
    '<w:listEntry w:val="Red"/><w:listEntry w:val="Chosen green"/></w:ddList></w:ffData>'
    '</w:fldChar><w:instrText>FORMDROPDOWN</w:instrText><w:fldChar w:fldCharType="end"/></w:r>'
)
MODERN, OLD = f"<wps:txbx>{BOX}</wps:txbx>", f"<v:shape><v:textbox>{BOX}</v:textbox></v:shape>"
RUN = "<w:r><w:t>{}</w:t></w:r>"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (paragraph(EQUATION), "(velocity^2+1)/length"),
        (paragraph(f"<m:oMathPara>{EQUATION}</m:oMathPara>"), "(velocity^2+1)/length"),
        (anchored(MODERN), "In a box"),
        (paragraph(f"<w:r><w:pict>{OLD}</w:pict></w:r>"), "In a box"),
        (paragraph('<w:r><w:pict><v:shape><v:textpath string="Draft"/></v:shape></w:pict></w:r>'),
         "Draft"),
        (paragraph(f"<w:fldSimple w:instr='REF a'>{RUN.format('Figure 7')}</w:fldSimple>"),
         "Figure 7"),
        (paragraph(f"<w:bdo w:val='rtl'>{RUN.format('abjad')}</w:bdo>"), "abjad"),
        (paragraph(f"<w:hyperlink r:id='gone'>{RUN.format('a link')}</w:hyperlink>"), "a link"),
        (paragraph("<w:r><w:t>one</w:t><w:cr/><w:t>two</w:t></w:r>"), "one\ntwo"),
        (paragraph('<w:r><w:t>one</w:t><w:br w:type="page"/><w:t>two</w:t></w:r>'), "one\ntwo"),
        (paragraph("<w:r><w:rPr><w:dstrike/></w:rPr><w:t>old</w:t></w:r>"), "~~old~~"),
        (paragraph("<w:r><w:t>one</w:t><w:ptab/><w:t>two</w:t></w:r>"), "one two"),
        (paragraph(FIELD), "Chosen green"),
        (f"<w:sdt><w:sdtContent>{paragraph('A control')}</w:sdtContent></w:sdt>", "A control"),
        (anchored('<c:chart r:id="chart"/>'), CHART_TEXT),
        (anchored('<dgm:relIds r:dm="diagram"/>'), "Plan then build"),
        (anchored("<pic:pic/>", "A worn seal"), "A worn seal"),
    ],
)  # fmt: skip
def test_text_outside_plain_paragraphs_is_read_once(tmp_path, body, said):
    """Of all but the text boxes mammoth, which makes the HTML, says nothing."""
    parts = {"word/chart.xml": CHART, "word/diagram.xml": DIAGRAM}
    to = {"chart": "chart chart.xml", "diagram": "diagramData diagram.xml"}
    document = read(tmp_path, docx(paragraph("Start") + body, parts, **to))
    assert [line for line in document.text.split("\n") if line] == ["Start", *said.split("\n")]
    assert all(remark.kind == "pictures" for remark in document.remarks)


def test_of_alternative_forms_one_is_read(tmp_path):
    choice = f'<mc:Choice Requires="wps"><w:drawing>{MODERN}</w:drawing></mc:Choice>'
    fallback = f"<mc:Fallback><w:pict>{OLD}</w:pict></mc:Fallback>"
    both = f"<w:r><mc:AlternateContent>{choice}{fallback}</mc:AlternateContent></w:r>"
    document = read(tmp_path, docx(paragraph(both)))
    assert document.text == "In a box"


def test_notes_comments_and_page_margins_are_read(tmp_path):
    note = f'<w:{{0}}s {NAMESPACES}><w:{{0}} w:id="2">{{1}}</w:{{0}}></w:{{0}}s>'
    margin = f"<w:{{0}} {NAMESPACES}>{{1}}</w:{{0}}>"
    parts = {
        "word/footnotes.xml": note.format("footnote", paragraph("Below the page")),
        "word/endnotes.xml": note.format("endnote", paragraph("After the end")),
        "word/comments.xml": note.format("comment", paragraph("Is it so?")),
        "word/header1.xml": margin.format("hdr", paragraph("Confidential draft")),
        "word/header2.xml": margin.format("hdr", paragraph("Confidential draft")),
        "word/footer1.xml": margin.format("ftr", paragraph("Pump works")),
    }
    marks = "".join(f'<w:{kind}Reference w:id="2"/>' for kind in ("footnote", "endnote", "comment"))
    to = {re.sub(r"\W", "", name): f"{re.findall('[a-z]+', name)[1]} {name[5:]}" for name in parts}
    document = read(tmp_path, docx(paragraph(f"<w:r><w:t>Text</w:t>{marks}</w:r>"), parts, **to))
    for said in ("Below the page", "After the end", "Is it so?", "Page footer:\nPump works"):
        assert document.text.count(said) == 1
    assert document.text.count("Page header:\nConfidential draft") == 1
    assert "↑" not in document.text
    assert document.remarks == ()


def test_what_is_left_out_is_remarked(tmp_path):
    body = (
        paragraph(
            f"<w:ins>{RUN.format('new')}</w:ins><w:del><w:r><w:delText>old</w:delText></w:r></w:del>"
        )
        + paragraph(
            "<w:r><w:object><v:shape><v:imagedata/></v:shape><o:OLEObject/></w:object></w:r>"
        )
        + anchored("<pic:pic/>")
        + '<w:altChunk r:id="x"/>'
        + paragraph('<w:r><w:sym w:font="Own" w:char="F001"/></w:r>')
    )
    document = read(tmp_path, docx(body))
    assert document.text == "new"
    assert kinds(document) == {
        "insertions": ("note", 1),
        "deletions": ("warning", 1),
        "embedded objects": ("warning", 1),
        "pictures": ("warning", 2),
        "inserted files": ("loss", 1),
        "symbols": ("loss", 1),
    }


def test_words_that_do_not_come_out_are_counted(tmp_path):
    """A note to which nothing in the body refers is in no HTML of mammoth's."""
    note = f'<w:footnote w:id="2">{paragraph("Lost to all")}</w:footnote>'
    notes = f"<w:footnotes {NAMESPACES}>{note}</w:footnotes>"
    data = docx(
        paragraph("Text for all"), {"word/footnotes.xml": notes}, n="footnotes footnotes.xml"
    )
    assert kinds(read(tmp_path, data)) == {"words": ("loss", 3)}
    with pytest.raises(DocumentError, match="3 words of the file did not come out"):
        Document.from_file(tmp_path / "a.docx", strict=True)


def test_columns_that_a_row_leaves_out_stay_empty(tmp_path):
    rows = (
        CELLS.format("A", paragraph("B"))
        + "<w:tr><w:trPr><w:gridBefore w:val='1'/></w:trPr><w:tc>"
        + paragraph("b2") + "</w:tc></w:tr>"
    )  # fmt: skip
    assert read(tmp_path, docx(f"<w:tbl>{rows}</w:tbl>")).text == "A | B\n | b2"


def test_readings_of_ideographs_follow_them_in_brackets(tmp_path):
    reading = f"<w:rt>{RUN.format('kan')}</w:rt>"
    ruby = f"<w:r><w:ruby>{reading}<w:rubyBase>{RUN.format('漢')}</w:rubyBase></w:ruby></w:r>"
    document = read(tmp_path, docx(paragraph(ruby + RUN.format("字"))))
    assert (document.text, document.remarks) == ("漢(kan)字", ())


def test_the_code_of_a_field_is_not_read_nor_what_is_in_it(tmp_path):
    def mark(kind):
        return f'<w:r><w:fldChar w:fldCharType="{kind}"/></w:r>'

    inner = mark("begin") + mark("separate") + RUN.format("7") + mark("end")
    body = mark("begin") + inner + mark("separate") + RUN.format("even") + mark("end")
    assert read(tmp_path, docx(paragraph(body))).text == "even"
    cut = mark("begin") + RUN.format("Text") + mark("begin")  # no code is known to end
    assert read(tmp_path, docx(paragraph(cut))).text == "Text"


def test_accents_of_equations_are_kept(tmp_path):
    of = "<m:e><m:r><m:t>{}</m:t></m:r></m:e>"
    accent = f'<m:acc><m:accPr><m:chr m:val="\u20d7"/></m:accPr>{of.format("v")}</m:acc>'
    mean = f"<m:bar>{of.format('x')}</m:bar>"
    document = read(tmp_path, docx(paragraph(f"<m:oMath>{accent}{mean}</m:oMath>")))
    assert document.text == "v\u20d7x\u0305"


def test_pictures_that_fill_shapes_controls_and_hidden_text_are_remarked(tmp_path):
    fill = '<wps:wsp><a:blipFill><a:blip r:embed="x"/></a:blipFill></wps:wsp>'
    old = '<w:r><w:pict><v:rect><v:fill r:id="x"/></v:rect></w:pict></w:r>'
    hidden = "<w:r><w:rPr><w:vanish/></w:rPr><w:t>secret </w:t></w:r>"
    body = (
        paragraph(hidden + RUN.format("seen"))
        + anchored(fill)
        + paragraph(old)
        + paragraph("<w:r><w:object><w:control r:id='x'/></w:object></w:r>")
        + '<w:p><w:subDoc r:id="x"/></w:p>'
    )
    document = read(tmp_path, docx(body))
    assert document.text == "secret seen"
    assert kinds(document) == {
        "hidden text": ("note", 1),
        "form controls": ("warning", 1),
        "pictures": ("warning", 2),
        "inserted files": ("loss", 1),
    }


def test_the_main_part_may_have_another_name(tmp_path):
    """Word on the web writes ``document2.xml``: such files were taken for plain archives."""
    with zipfile.ZipFile(io.BytesIO(docx(paragraph("Text")))) as archive:
        parts = {
            name.replace("document.", "document2."): archive.read(name).replace(
                b"/document.xml", b"/document2.xml"
            )
            for name in archive.namelist()
        }
    assert read(tmp_path, zipped(parts)).text == "Text"


def test_letters_of_symbol_fonts_are_counted(tmp_path):
    assert kinds(read(tmp_path, docx(paragraph("\uf0b7 Text")))) == {"symbols": ("loss", 1)}


def test_words_cut_by_markup_are_not_lost(tmp_path):
    high = '<w:r><w:rPr><w:vertAlign w:val="superscript"/></w:rPr><w:t>3</w:t></w:r>'
    runs = f"{RUN.format('re')}{RUN.format('placed 10')}{high}{RUN.format('times co­op')}"
    document = read(tmp_path, docx(paragraph(runs)))
    assert (document.text, document.remarks) == ("replaced 10^3times coop", ())


def test_a_file_that_mammoth_cannot_convert_is_read_as_lines(tmp_path):
    body = paragraph("Text") + paragraph('<w:r><w:footnoteReference w:id="9"/></w:r>')
    document = read(tmp_path, docx(body + paragraph("More")))
    assert document.text == "Text\nMore"
    assert kinds(document) == {"layout": ("warning", 1)}


def test_without_the_extra_the_refusal_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mammoth", None)
    with pytest.raises(DocumentError, match=re.escape('pip install "selfextend-rag[office]"')):
        read(tmp_path, docx(paragraph("Text")))


def test_a_file_without_text_is_refused_with_its_pictures_counted(tmp_path):
    with pytest.raises(DocumentError, match=r"no text, but 1 picture was left out"):
        read(tmp_path, docx(anchored("<pic:pic/>")))
