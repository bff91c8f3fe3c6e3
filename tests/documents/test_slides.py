"""What a show says is in its text, slide by slide, or in a remark."""

from __future__ import annotations

from selfextend_rag.documents import Document
from tests.documents.files import written
from tests.documents.office_files import (
    CHART,
    CHART_TEXT,
    DIAGRAM,
    EQUATION,
    NAMESPACES,
    pptx,
    relations,
    shape,
    slide,
)

PICTURE = '<p:pic><p:nvPicPr><p:cNvPr id="9" name="x" descr="{}"/></p:nvPicPr></p:pic>'


def read(tmp_path, data):
    return Document.from_file(written(tmp_path, "a.pptx", data))


def cell(text):
    return f"<a:tc><a:txBody><a:p><a:r><a:t>{text}</a:t></a:r></a:p></a:txBody></a:tc>"


def test_slides_come_in_the_order_of_the_show_with_their_places(tmp_path):
    one = slide(shape("Output rose by 4 %") + shape("Results", "title"))
    two = slide(shape("Plans", "ctrTitle") + f"<p:grpSp>{shape('In a group')}</p:grpSp>")
    document = read(tmp_path, pptx(one, two))
    assert document.text == (
        "# Slide 1: Results\n\nOutput rose by 4 %\n\n# Slide 2: Plans\n\nIn a group"
    )
    for said, place in (("rose", "slide 1"), ("In a group", "slide 2"), ("Plans", "slide 2")):
        start = document.text.index(said)
        assert document.location(start, start + 3) == place
    assert document.location(0, len(document.text)) == "slides 1-2"
    assert (document.title, document.metadata["slides"]) == ("Results", 2)
    assert document.remarks == ()


def test_tables_charts_diagrams_and_equations_are_text(tmp_path):
    rows = f"<a:tr>{cell('Part')}{cell('Cost')}</a:tr><a:tr>{cell('')}{cell('12.50')}</a:tr>"
    equation = f"<a:p><mc:AlternateContent><mc:Choice>{EQUATION}</mc:Choice><mc:Fallback><a:r>" \
        "<a:t>a picture</a:t></a:r></mc:Fallback></mc:AlternateContent></a:p>"  # fmt: skip
    frames = (
        f"<a:tbl>{rows}</a:tbl>",
        '<c:chart r:id="chart"/>',
        '<dgm:relIds r:dm="diagram"/>',
    )
    body = "".join(f"<p:graphicFrame>{frame}</p:graphicFrame>" for frame in frames)
    parts = {
        "ppt/charts/chart1.xml": CHART,
        "ppt/diagrams/data1.xml": DIAGRAM,
        "ppt/slides/_rels/slide1.xml.rels": relations(
            chart="chart ../charts/chart1.xml", diagram="diagramData /ppt/diagrams/data1.xml"
        ),
    }
    document = read(tmp_path, pptx(slide(body + shape(equation)), parts=parts))
    assert document.text == (
        f"# Slide 1\n\nPart | Cost\n | 12.50\n{CHART_TEXT}\nPlan then build\n(velocity^2+1)/length"
    )


def test_shapes_in_charts_and_titles_of_axes_taken_from_cells_are_text(tmp_path):
    cell = "<c:tx><c:strRef><c:strCache><c:pt><c:v>Year</c:v></c:pt></c:strCache></c:strRef></c:tx>"
    axis = f"<c:plotArea><c:valAx><c:title>{cell}</c:title></c:valAx>"
    label = f"<c:userShapes {NAMESPACES}>{shape('Peak')}</c:userShapes>"
    parts = {
        "ppt/slides/_rels/slide1.xml.rels": relations(c="chart ../charts/chart1.xml"),
        "ppt/charts/chart1.xml": CHART.replace("<c:plotArea>", axis),
        "ppt/charts/_rels/chart1.xml.rels": relations(u="chartUserShapes ../d.xml"),
        "ppt/d.xml": label,
    }
    frame = '<p:graphicFrame><c:chart r:id="c"/></p:graphicFrame>'
    text = read(tmp_path, pptx(slide(frame), parts=parts)).text
    title, values = CHART_TEXT.split("\n")
    assert text == "\n".join(("# Slide 1\n", title, "Year", values, "Peak"))


def test_pictures_behind_text_and_controls_are_counted(tmp_path):
    fill = '<p:bg><p:bgPr><a:blipFill><a:blip r:embed="x"/></a:blipFill></p:bgPr></p:bg>'
    plain = slide(shape("Text").replace('name="x"', 'name="x" hidden="1"'))
    control = '<p:controls><p:control r:id="x"/></p:controls>'
    full = plain.replace("<p:spTree>", f"{fill}<p:spTree>").replace(
        "</p:cSld>", f"</p:cSld>{control}"
    )
    layout = slide(shape("Pump works") + PICTURE.format("Our mark"), "sldLayout")
    parts = {
        "ppt/slides/_rels/slide1.xml.rels": relations(y="slideLayout ../layouts/layout1.xml"),
        "ppt/layouts/layout1.xml": layout,
    }
    document = read(tmp_path, pptx(full, parts=parts))
    assert document.text == "# Slide 1\n\nText\n\nPump works\nOur mark"
    assert {remark.kind: remark.count for remark in document.remarks} == {
        "pictures": 2, "form controls": 1, "hidden text": 1
    }  # fmt: skip


def test_days_of_charts_are_written_as_days(tmp_path):
    days = CHART.replace("strCache>", "numCache>").replace(">North<", ">45351<")
    days = days.replace("<c:pt", "<c:formatCode>dd/mm/yyyy</c:formatCode><c:pt", 2)
    frame = '<p:graphicFrame><c:chart r:id="c"/></p:graphicFrame>'
    rels = relations(c="chart ../charts/chart1.xml")
    parts = {"ppt/charts/chart1.xml": days, "ppt/slides/_rels/slide1.xml.rels": rels}
    assert "2024-02-29 = 4.3" in read(tmp_path, pptx(slide(frame), parts=parts)).text


def test_notes_comments_and_what_is_behind_a_slide_are_text(tmp_path):
    notes = slide(shape("7", "sldNum") + shape("Say why.", "body"), "notes")
    comments = f"<p:cmLst {NAMESPACES}><p:cm><p:text>Is it so?</p:text></p:cm></p:cmLst>"
    layout = slide(shape("Click here", "body") + shape("Confidential"), "sldLayout")
    master = slide(shape("Click here", "title") + shape("Pump works"), "sldMaster")
    parts = {
        "ppt/notesSlides/notes1.xml": notes,
        "ppt/comments/comment1.xml": comments,
        "ppt/layouts/layout1.xml": layout,
        "ppt/masters/master1.xml": master,
        "ppt/layouts/_rels/layout1.xml.rels": relations(m="slideMaster ../masters/master1.xml"),
        "ppt/slides/_rels/slide1.xml.rels": relations(
            n="notesSlide ../notesSlides/notes1.xml",
            c="comments ../comments/comment1.xml",
            y="slideLayout ../layouts/layout1.xml",
        ),
    }
    document = read(tmp_path, pptx(slide(shape("Text")), parts=parts))
    assert document.text == (
        "# Slide 1\n\nText\nNotes:\nSay why.\nComment: Is it so?\n\nConfidential\nPump works"
    )
    start = document.text.index("Pump works")
    assert document.location(start, start + 4) == "slide background"


def test_hidden_slides_are_marked_and_pictures_counted(tmp_path):
    hidden = slide(shape("Spare"), attributes='show="0"')
    silent = slide(PICTURE.format("") + PICTURE.format(""))
    document = read(tmp_path, pptx(hidden, silent, slide(PICTURE.format("A worn seal"))))
    assert document.text == "# Slide 1 (hidden)\n\nSpare\n\n# Slide 2\n\n# Slide 3\n\nA worn seal"
    assert {remark.kind: (remark.severity, remark.count) for remark in document.remarks} == {
        "hidden": ("note", 1),
        "pictures": ("warning", 3),
        "slides without text": ("loss", 1),
    }
