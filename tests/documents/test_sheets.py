"""Every cell of a workbook comes out as people see it, at its place."""

from __future__ import annotations

import datetime
import io
import random
import sys

import pytest
from openpyxl import Workbook
from openpyxl.chart import BarChart, Reference
from openpyxl.comments import Comment

from selfextend_rag.documents import Document, DocumentError
from tests.documents.files import written
from tests.documents.office_files import RELATIONS, edited

SHEET = "xl/worksheets/sheet1.xml"


def saved(workbook):
    out = io.BytesIO()
    workbook.save(out)
    return out.getvalue()


def workbook_of(*rows):
    workbook = Workbook()
    for row in rows:
        workbook.active.append(row)
    return workbook


def read(tmp_path, data):
    return Document.from_file(written(tmp_path, "a.xlsx", data))


def lines_of(tmp_path, data):
    """The lines below the name of the first sheet."""
    return read(tmp_path, data).text.split("\n")[2:]


def test_known_cells_of_several_sheets_with_gaps_are_found_at_their_rows(tmp_path):
    """Rows and columns without values leave no line, and no value moves."""
    rng, workbook = random.Random(3), Workbook()
    workbook.remove(workbook.active)
    known = {}
    for name in ("Costs", "Plan 2024", "Notes | more"):
        sheet = workbook.create_sheet(name)
        for row in rng.sample(range(1, 400), 40):
            known[name, row] = f"value{row}of{len(known)}"
            sheet.cell(row, rng.randrange(1, 9), known[name, row])
    known["Costs", 17] = "two lines"
    workbook["Costs"].cell(17, 3, "two\r\nlines")
    document = read(tmp_path, saved(workbook))
    for (name, row), text in [(("Costs", 17), "two lines"), *rng.sample([*known.items()], 20)]:
        start = document.text.index(text)
        assert document.location(start, start + len(text)) == f"sheet {name}, row {row}"


def test_a_passage_may_begin_at_the_name_of_a_sheet_or_end_below_its_rows(tmp_path):
    """It was said to come from "rows None-2"."""
    workbook = workbook_of(["Part"], ["Seal"])
    workbook.active["A2"].comment = Comment("Is it so?", "Anna")
    document = read(tmp_path, saved(workbook))
    end = document.text.index("Comment")
    assert document.location(0, end - 2) == "sheet Sheet, rows 1-2"
    assert document.location(0, document.text.index("Part") + 1) == "sheet Sheet, row 1"
    assert document.location(end - 4, end + 4) == "sheet Sheet, row 2"
    assert document.location(0, 4) == "sheet Sheet"


def test_columns_keep_their_places_and_empty_ones_are_left_out(tmp_path):
    rows = ("Part", None, "Cost", None), (None, None, 7), (None,), ("Seal", None, None, None, "x")
    data = saved(workbook_of(*rows))
    assert lines_of(tmp_path, data) == ["Part | Cost", " | 7", "Seal |  | x"]


@pytest.mark.parametrize(
    ("value", "code", "shown"),
    [
        (12.5, "General", "12.5"),
        (0.1 + 0.2, "General", "0.3"),
        (489290024005183000, "General", "489290024005183000"),
        (1e-7, "General", "0.0000001"),
        (1e30, "General", "1e+30"),
        (123456789, "0.00E+00", "123456789"),
        (-3, "General", "-3"),
        (True, "General", "TRUE"),
        ("#N/A", "General", "#N/A"),
        ("=1", "@", "=1"),
        (0.125, "0%", "12.5%"),
        (0.07, "0.00 %", "7 %"),
        (12.5, '#,##0.00\\ "€"', "12.5 €"),
        (-12.5, "[$$-409]#,##0.00;[Red]-[$$-409]#,##0.00", "-$12.5"),
        (-12.5, "0.00;[Red]0.00", "-12.5"),
        (-12.5, "0.00;(0.00)", "(12.5)"),
        (12, '0.0" kg"', "12 kg"),
        (12000, '0," k"', "12 k"),
        (7, "000", "007"),
        (12345, "0.00E+00", "12345"),
        (5, '"five"', "5"),
        # Formats without a digit before the point wrote it twice: 123456789 was .123456789.
        (0.5, ".00", "0.5"),
        (123456789, ".00E+00", "123456789"),
        (5, '"No."0', "No.5"),
        (5, '"a;b "0', "a;b 5"),
        # What is between the places of digits was lost, with half of its brackets.
        (5551234567, "(000) 000-0000", "(555) 123-4567"),
        (12345678, "000-00-0000", "012-34-5678"),
        (2.25, "# ??/16", "2.25"),
        # Of sections with conditions the first was taken.
        (50, '[>=100]"big "0;"small "0', "small 50"),
        (150, '[>=100]"big "0;"small "0', "big 150"),
        (0, '0;-0;0" (none)"', "0 (none)"),
        (datetime.date(2024, 2, 29), "dd/mm/yyyy", "2024-02-29"),
        (datetime.datetime(2024, 2, 29, 13, 5), "d mmm yy h:mm", "2024-02-29 13:05:00"),
        (datetime.time(13, 5), "h:mm AM/PM", "13:05:00"),
        (datetime.timedelta(hours=30), "[h]:mm", "30:00:00"),
        (3e9, "yyyy-mm-dd", "3000000000"),
    ],
)
def test_values_are_as_people_see_them(tmp_path, value, code, shown):
    workbook = workbook_of(["x"])
    cell = workbook.active.cell(2, 1, value)
    cell.number_format = code
    if value == "=1":
        cell.data_type = "s"
    assert lines_of(tmp_path, saved(workbook)) == ["x", shown]


def test_formulas_are_their_values_or_themselves_with_a_remark(tmp_path):
    data = saved(workbook_of([2, "=A1*3", "=A1*4"]))
    document = read(tmp_path, data)
    assert document.text == "# Sheet Sheet\n\n2 | =A1*3 | =A1*4"
    (remark,) = document.remarks
    assert (remark.kind, remark.severity, remark.count) == ("formulas", "warning", 2)
    computed = edited(data, SHEET, "<f>A1*3</f><v></v>", "<f>A1*3</f><v>6</v>")
    assert lines_of(tmp_path, computed) == ["2 | 6 | =A1*4"]
    empty = edited(
        data, SHEET, '<c r="C1"><f>A1*4</f><v></v>', '<c r="C1" t="str"><f>A1*4</f><v></v>'
    )
    assert lines_of(tmp_path, empty) == ["2 | =A1*3"]


def test_a_shared_formula_is_that_of_its_cell(tmp_path):
    data = saved(workbook_of([2, "=A1*3"], [4, "=A2*3"]))
    data = edited(data, SHEET, "<f>A1*3</f>", '<f t="shared" ref="B1:B2" si="0">A1*3</f>')
    data = edited(data, SHEET, "<f>A2*3</f>", '<f t="shared" si="0"/>')
    assert lines_of(tmp_path, data) == ["2 | =A1*3", "4 | =A2*3"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('<dimension ref="A1:B3"/>', '<dimension ref="A1"/>'),
        ('<dimension ref="A1:B3"/>', ""),
        ('<row r="1"><c r="A1" t="n"><v>1</v></c><c r="B1" t="n"><v>2</v></c></row>'
         '<row r="2"><c r="A2" t="n"><v>3</v></c><c r="B2" t="n"><v>4</v></c></row>',
         '<row r="2"><c r="B2" t="n"><v>4</v></c><c r="A2" t="n"><v>3</v></c></row>'
         '<row r="1"><c><v>1</v></c><c><v>2</v></c></row>'),
        ("http://schemas.openxmlformats.org/spreadsheetml/2006/main",
         "http://purl.oclc.org/ooxml/spreadsheetml/main"),
    ],
)  # fmt: skip
def test_cells_that_openpyxl_leaves_out_silently_are_read(tmp_path, old, new):
    data = edited(saved(workbook_of([1, 2], [3, 4], [5, 6])), SHEET, old, new)
    assert lines_of(tmp_path, data) == ["1 | 2", "3 | 4", "5 | 6"]


def test_what_is_not_in_cells_is_read_or_remarked(tmp_path):
    workbook = workbook_of(["Part", "Cost"], ["Seal", 12.5])
    sheet = workbook.active
    sheet["B2"].comment = Comment("Is it\nso?", "Anna")
    sheet.oddHeader.center.text = "Confidential"
    sheet.oddFooter.center.text = "Page &P of &N"
    chart = BarChart()
    chart.title = "Output by year"
    chart.add_data(Reference(sheet, min_col=2, min_row=1, max_row=2), titles_from_data=True)
    sheet.add_chart(chart, "D4")
    workbook.create_sheet("Spare").sheet_state = "veryHidden"
    workbook["Spare"]["A1"] = "kept"
    document = read(tmp_path, saved(workbook))
    assert "Page footer" not in document.text
    for said in ("Comment on B2: Is it so?", "Page header: Confidential", "Output by year"):
        assert document.text.count(said) == 1
        start = document.text.index(said)
        assert document.location(start, start + 4) == "sheet Sheet"
    assert document.text.endswith("# Sheet Spare (hidden)\n\nkept")
    assert [remark.kind for remark in document.remarks] == ["hidden"]
    assert document.metadata["sheets"] == ["Sheet", "Spare"]


def test_hidden_rows_controls_and_titles_taken_from_cells_are_not_lost(tmp_path):
    workbook = workbook_of(["a", "b"], ["c"], [7])
    sheet = workbook.active
    sheet.row_dimensions[2].hidden = sheet.column_dimensions["B"].hidden = True
    chart = BarChart()
    chart.add_data(Reference(sheet, min_col=1, min_row=2, max_row=3), titles_from_data=True)
    sheet.add_chart(chart, "D4")
    cell = "<title><tx><strRef><strCache><pt idx='0'><v>Output</v></pt></strCache></strRef></tx>"
    data = edited(
        saved(workbook), "xl/charts/chart1.xml", "<plotArea>", f"{cell}</title><plotArea>"
    )
    relation = f'<Relationship Id="v" Type="{RELATIONS}/vmlDrawing" Target="/xl/v.vml"/></R'
    control = '<xml><ClientData ObjectType="Note"/><ClientData ObjectType="Checkbox"/></xml>'
    rels = "xl/worksheets/_rels/sheet1.xml.rels"
    document = read(tmp_path, edited(data, rels, "</R", relation, **{"xl/v.vml": control}))
    assert document.text.endswith("c\n7\nOutput")
    assert {remark.kind: remark.message for remark in document.remarks} == {
        "hidden rows": "2 hidden rows or columns are in the text",
        "form controls": "1 form control was left out; labels may be in the text",
    }


def test_merged_cells_hold_their_value_once_and_move_no_other(tmp_path):
    workbook = workbook_of(["North", 2023, 10], [None, 2024, 12])
    workbook.active.merge_cells("A1:A2")
    assert lines_of(tmp_path, saved(workbook)) == ["North | 2023 | 10", " | 2024 | 12"]


def test_strings_are_without_phonetic_readings_and_escapes(tmp_path):
    data = saved(workbook_of(["Part", "a_x000D_b"]))
    part = '<c r="A1" t="inlineStr"><is><t>Part</t></is></c>'
    data = edited(data, SHEET, part, '<c r="A1" t="s"><v>1</v></c>')
    reading = "<r><t>東</t></r><r><t>京</t></r><rPh><t>とうきょう</t></rPh>"
    strings = f"<sst><si><t>other</t></si><si>{reading}</si></sst>"
    relation = f'<Relationship Id="s" Type="{RELATIONS}/sharedStrings" Target="/xl/s.xml"/></R'
    data = edited(data, "xl/_rels/workbook.xml.rels", "</R", relation, **{"xl/s.xml": strings})
    assert lines_of(tmp_path, data) == ["東京 | a b"]


def test_without_values_or_without_the_extra_a_workbook_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DocumentError, match="has no text: leave it out"):
        read(tmp_path, saved(Workbook()))
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DocumentError, match=r"openpyxl; pip install \"selfextend-rag\[office\]\""):
        read(tmp_path, saved(workbook_of(["x"])))
