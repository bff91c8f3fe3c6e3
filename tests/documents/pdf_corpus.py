"""PDF files of many kinds whose words are known, made by three libraries and by hand."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pikepdf
import pytest
from fpdf import FPDF
from pikepdf import Array, Dictionary, Name
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    Frame,
    PageBreak,
    PageTemplate,
    Paragraph,
    SimpleDocTemplate,
    Table,
    TableStyle,
)

SENTENCES = (
    "The pump must be checked twice before it is started again because water may have entered "
    "during a longer pause. Two people sign the record and keep one copy for ten years. Costs of "
    "the work are 12.50 for each hour and 84 for each new seal as agreed in clause 4711 of the "
    "contract between both parties. Where a part is worn the supplier sends another without charge."
)
WORDS = SENTENCES.split()


@dataclass(frozen=True)
class Sample:
    """A PDF, the text of each of its pages, and the kinds of remarks that it deserves."""

    kind: str
    data: bytes
    pages: list[str]
    remarks: frozenset[str] = frozenset()


def words(count: int, start: int = 0) -> str:
    """Words in an order that differs from start to start."""
    return " ".join(WORDS[(start * 7 + i * (1 + start % 3)) % len(WORDS)] for i in range(count))


def deja_vu(name: str = "DejaVuSans") -> Path:
    matplotlib = pytest.importorskip("matplotlib", reason="it brings the fonts")
    return Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")


def drawn(draw: Callable[[Canvas], None], **options: object) -> bytes:
    out = io.BytesIO()
    canvas = Canvas(out, pagesize=A4, **options)
    canvas.setFont("Helvetica", 11)
    draw(canvas)
    canvas.save()
    return out.getvalue()


def by_hand(*contents: str, font: dict | None = None, **page: object) -> bytes:
    """A PDF of these content streams, with the font /F1."""
    pdf = pikepdf.new()
    fonts = {"/F1": pdf.make_indirect(Dictionary(font or HELVETICA))}
    for content in contents:
        pdf.add_blank_page(page_size=(612, 792))
        pdf.pages[-1].Contents = pdf.make_stream(content.encode("latin-1"))
        pdf.pages[-1].Resources = Dictionary(Font=Dictionary(fonts))
        for key, value in page.items():
            pdf.pages[-1][f"/{key}"] = value
    return saved(pdf)


HELVETICA = {
    "/Type": Name.Font,
    "/Subtype": Name.Type1,
    "/BaseFont": Name.Helvetica,
    "/Encoding": Name.WinAnsiEncoding,
}


def saved(pdf: pikepdf.Pdf, **options: object) -> bytes:
    out = io.BytesIO()
    pdf.save(out, **options)
    return out.getvalue()


def saved_again(data: bytes, **options: object) -> bytes:
    with pikepdf.open(io.BytesIO(data)) as pdf:
        return saved(pdf, **options)


def shown(text: str) -> str:
    escaped = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    return f"({escaped}) Tj"


def at(x: float, y: float, operators: str, size: float = 12, angle: float = 0) -> str:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    matrix = f"{cos:.5f} {sin:.5f} {-sin:.5f} {cos:.5f} {x:.3f} {y:.3f}"
    return f"BT /F1 {size} Tf {matrix} Tm {operators} ET\n"


def letters(
    text: str, gap: float = 0, size: float = 12, x: float = 72, y: float = 700, angle: float = 0
) -> str:
    """Each letter drawn alone, spaces not at all, with a gap after each in ems."""
    out, along = "", 0.0
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    for letter in text:
        if letter != " ":
            out += at(x + along * cos, y + along * sin, shown(letter), size, angle)
        along += pdfmetrics.stringWidth(letter, "Helvetica", size) + gap * size
    return out


def flowing(pages: list[str], size: int = 11, **options: object) -> bytes:
    pdf = FPDF(**options)
    pdf.set_font("helvetica", size=size)
    for text in pages:
        pdf.add_page()
        pdf.multi_cell(0, 6, text)
    return bytes(pdf.output())


def plain() -> Iterator[Sample]:
    for size in (7, 11, 24):
        pages = [words(120, size + i) for i in range(3)]
        yield Sample("flowing text", flowing(pages, size), pages)
    pages = [words(200, i) for i in range(2)]
    pdf = FPDF()
    pdf.set_font("times", size=12)
    for text in pages:
        pdf.add_page()
        pdf.multi_cell(0, 6, text, align="J")
    yield Sample("justified text", bytes(pdf.output()), pages)
    styles = getSampleStyleSheet()
    out = io.BytesIO()
    story = []
    for text in pages:
        story += [
            Paragraph("Chapter", styles["Heading1"]),
            Paragraph(text, styles["BodyText"]),
            PageBreak(),
        ]
    SimpleDocTemplate(out).build(story)
    yield Sample("headings", out.getvalue(), [f"Chapter {text}" for text in pages])
    yield Sample("landscape", flowing(pages, orientation="landscape"), pages)


def unicode_fonts() -> Iterator[Sample]:
    texts = {
        "latin": "Zażółć gęślą jaźń; Größe, naïve façade, smørrebrød — “quoted” 12 €.",
        "greek": "Η αντλία πρέπει να ελέγχεται δύο φορές πριν ξεκινήσει.",
        "cyrillic": "Насос нужно проверить дважды, прежде чем снова запустить.",
        "ligatures": "oﬃce aﬄuent ﬁnds ﬂoor eﬀect",
        "hebrew": "המשאבה נבדקת פעמיים לפני הפעלה",
    }
    for name, text in texts.items():
        pdf = FPDF()
        pdf.add_font("dejavu", fname=deja_vu())
        pdf.set_font("dejavu", size=12)
        pdf.add_page()
        logical = text.replace("ﬃ", "ffi").replace("ﬄ", "ffl").replace("ﬁ", "fi").replace("ﬂ", "fl")
        pdf.multi_cell(0, 8, text[::-1] if name == "hebrew" else text)
        yield Sample(f"embedded font {name}", bytes(pdf.output()), [logical.replace("ﬀ", "ff")])
    columns = ["First comes this column", "then follows the one left of it", "and then the last"]
    pdf = FPDF()
    pdf.add_font("dejavu", fname=deja_vu())
    pdf.set_font("dejavu", size=12)
    pdf.add_page()
    for number, column in enumerate(columns):
        pdf.text(150 - 8 * number, 20, column)
    with pikepdf.open(io.BytesIO(bytes(pdf.output()))) as file:
        for item in file.objects:
            if isinstance(item, Dictionary) and item.get("/Subtype") == Name.Type0:
                item.Encoding = Name("/Identity-V")
        yield Sample("vertical columns", saved(file), [" ".join(columns)])
    pdfmetrics.registerFont(TTFont("DejaVu", str(deja_vu("DejaVuSerif"))))
    text = texts["latin"] + " " + texts["greek"]

    def draw(canvas: Canvas) -> None:
        canvas.setFont("DejaVu", 12)
        canvas.drawString(72, 700, texts["latin"])
        canvas.drawString(72, 680, texts["greek"])

    yield Sample("embedded subset", drawn(draw), [text])


def cjk() -> Iterator[Sample]:
    texts = {
        "HeiseiMin-W3": "ポンプは二回点検しなければならない。",
        "HeiseiKakuGo-W5": "契約書の第四条に従い費用を支払う。",
        "STSong-Light": "水泵必须检查两次才能再次启动。",
        "MSung-Light": "水泵必須檢查兩次才能再次啟動。",
        "HYSMyeongJo-Medium": "펌프는 두 번 점검해야 한다",
    }
    for font, text in texts.items():
        pdfmetrics.registerFont(UnicodeCIDFont(font))

        def draw(canvas: Canvas, font: str = font, text: str = text) -> None:
            for number in range(3):
                canvas.setFont(font, 12)
                canvas.drawString(72, 700, text)
                canvas.drawString(72, 680, f"{number} {text}")
                canvas.showPage()

        yield Sample(f"CJK {font}", drawn(draw), [f"{text} {n} {text}" for n in range(3)])
    for encoding, ordering, codec, text in (
        ("90ms-RKSJ-H", "Japan1", "cp932", "ポンプは二回点検する。"),
        ("EUC-H", "Japan1", "euc_jp", "費用を支払う。"),
        ("90ms-RKSJ-V", "Japan1", "cp932", "縦書きの文書を読む。"),
        ("UniGB-UCS2-V", "GB1", "utf-16-be", "直排的中文文件"),
        ("GBK-EUC-H", "GB1", "gbk", "水泵必须检查两次"),
        ("ETen-B5-H", "CNS1", "big5", "水泵必須檢查兩次"),
        ("KSC-EUC-H", "Korea1", "euc_kr", "펌프는 두번 점검 "),
    ):
        data = text.encode(codec).hex()
        columns = "".join(at(300 - 20 * n, 700, f"<{data}> Tj") for n in range(2))
        yield Sample(
            f"CMap {encoding}", by_hand(columns, font=cid_font(encoding, ordering)), [text * 2]
        )


def cid_font(encoding: str, ordering: str) -> dict:
    inner = Dictionary(
        Type=Name.Font,
        Subtype=Name.CIDFontType0,
        BaseFont=Name.Test,
        DW=1000,
        CIDSystemInfo=Dictionary(Registry="Adobe", Ordering=ordering, Supplement=2),
        FontDescriptor=Dictionary(
            Type=Name.FontDescriptor,
            FontName=Name.Test,
            Flags=4,
            FontBBox=[0, -200, 1000, 900],
            ItalicAngle=0,
            Ascent=900,
            Descent=-200,
            CapHeight=700,
            StemV=80,
        ),
    )
    return {
        "/Type": Name.Font,
        "/Subtype": Name.Type0,
        "/BaseFont": Name.Test,
        "/Encoding": Name(f"/{encoding}"),
        "/DescendantFonts": Array([inner]),
    }


def layout() -> Iterator[Sample]:
    styles = getSampleStyleSheet()
    out = io.BytesIO()
    document = BaseDocTemplate(out, pagesize=A4)
    frames = [Frame(60 + 240 * i, 60, 220, 700, id=f"column{i}") for i in range(2)]
    document.addPageTemplates(PageTemplate(frames=frames))
    story = [f"Paragraph {n} of two columns says {words(25, n)}" for n in range(20)]
    document.build([Paragraph(text, styles["BodyText"]) for text in story])
    yield Sample("two columns", out.getvalue(), [" ".join(story)])
    rows = [[f"Item {n}", f"{n * 12}.50", f"seal number {n}"] for n in range(30)]
    out = io.BytesIO()
    table = Table(rows, style=TableStyle([("GRID", (0, 0), (-1, -1), 0.5, "black")]))
    SimpleDocTemplate(out, pagesize=A4).build([table])
    flat = " ".join(" ".join(row) for row in rows)
    yield Sample("table", out.getvalue(), [flat])
    pdf = FPDF()
    pdf.set_font("helvetica", size=10)
    pdf.add_page()
    with pdf.table() as made:
        for row in rows[:20]:
            made.row(row)
    yield Sample(
        "table of fpdf", bytes(pdf.output()), [" ".join(" ".join(row) for row in rows[:20])]
    )

    class Headed(FPDF):
        def header(self) -> None:
            self.set_font("helvetica", size=8)
            self.cell(0, 10, f"Handbook page {self.page_no()}")
            self.ln(15)

        def footer(self) -> None:
            self.set_y(-15)
            self.cell(0, 10, "Confidential")

    pdf = Headed()
    pages = [words(100, i) for i in range(4)]
    for text in pages:
        pdf.add_page()
        pdf.set_font("helvetica", size=11)
        pdf.multi_cell(0, 6, text)
    known = [f"Handbook page {n} {text} Confidential" for n, text in enumerate(pages, 1)]
    yield Sample("headers and footers", bytes(pdf.output()), known)
    lines = [words(8, n) for n in range(10)]
    content = "".join(at(72, 700 - 14 * n, shown(line)) for n, line in enumerate(lines))
    hyphens = ["The tempera", "ture of the pump de", "pends on the wa", "ter"]
    content += "".join(
        at(72, 500 - 14 * n, shown(part + ("-" if n < 3 else ""))) for n, part in enumerate(hyphens)
    )
    yield Sample("hyphenation", by_hand(content), [" ".join([*lines, "".join(hyphens)])])


def rotated() -> Iterator[Sample]:
    lines = [words(7, n) for n in range(12)]
    for angle in (90, 180, 270):
        data = by_hand(
            *["".join(at(72, 700 - 14 * n, shown(s)) for n, s in enumerate(lines))] * 2,
            Rotate=angle,
        )
        yield Sample(f"page rotated {angle}", data, [" ".join(lines)] * 2)
    for angle in (90, 180, 270, 30):
        radians = math.radians(angle - 90)
        content = "".join(
            at(
                300 + 14 * n * math.cos(radians),
                400 + 14 * n * math.sin(radians),
                shown(s),
                8,
                angle,
            )
            for n, s in enumerate(lines)
        )
        yield Sample(f"text rotated {angle}", by_hand(content), [" ".join(lines)])
    upright = at(200, 100, shown("Upright text as well"))
    side = "".join(letters("Sidewards it goes", 0, 12, 300, 300, n) for n in (90, 180, 270))
    yield Sample(
        "letters rotated",
        by_hand(upright + side),
        ["Upright text as well" + " Sidewards it goes" * 3],
    )


def spacing() -> Iterator[Sample]:
    text = words(9, 2)
    parts = "".join(f"({word})-280" for word in text.split())
    yield Sample("TJ offsets for spaces", by_hand(at(72, 700, f"[{parts}] TJ")), [text])
    spaced = at(72, 700, f"3 Tc {shown(text)}", 8) + at(72, 680, f"0 Tc 12 Tw {shown(text)}", 8)
    yield Sample("character and word spacing", by_hand(spaced), [f"{text} {text}"])
    moved, x = "", 72.0
    for word in text.split():
        moved += at(x, 700, shown(word), 8)
        x += pdfmetrics.stringWidth(word + " ", "Helvetica", 8)
    yield Sample("words drawn one by one", by_hand(moved), [text])
    for gap in (0, 0.05, 0.15, 0.3):
        yield Sample(f"letters drawn one by one {gap}", by_hand(letters(text, gap, 7)), [text])
    scaled = f"q 0.05 0 0 0.05 0 0 cm {letters(text, 0, 160, 1400, 14000)} Q"
    yield Sample("letters in scaled coordinates", by_hand(scaled), [text])
    kerned = "".join(f"({letter}){20 if n % 2 else -30}" for n, letter in enumerate(text))
    yield Sample("kerning", by_hand(at(72, 700, f"[{kerned}] TJ")), [text])
    soft = at(72, 700, "(The pump\\255station is checked) Tj")
    yield Sample("soft hyphens", by_hand(soft), ["The pump-station is checked"])


def twice() -> Iterator[Sample]:
    lines = [words(6, n) for n in range(8)]
    for offset in (0.2, 0.5, 1.0):
        content = "".join(
            at(72 + dx, 700 - 16 * n, shown(line))
            for n, line in enumerate(lines)
            for dx in (0, offset)
        )
        yield Sample(f"fake bold {offset}", by_hand(content), [" ".join(lines)])
    page = "".join(at(72, 700 - 16 * n, shown(line)) for n, line in enumerate(lines))
    yield Sample("page drawn twice", by_hand(page + page), [" ".join(lines)])
    bold = letters(lines[0]) + letters(lines[0], x=73.2)
    yield Sample("letters drawn twice", by_hand(bold), [lines[0]])
    yield Sample("invisible text", by_hand(at(72, 700, f"3 Tr {shown(lines[1])}")), [lines[1]])


def interactive() -> Iterator[Sample]:
    def form(canvas: Canvas) -> None:
        canvas.drawString(72, 720, "Account")
        canvas.acroForm.textfield(
            name="a", value="DE00 1234 5678", x=150, y=710, width=200, height=20
        )
        canvas.drawString(72, 690, "Owner")
        canvas.acroForm.textfield(name="b", value="Anna Berg", x=150, y=680, width=200, height=20)
        canvas.acroForm.choice(
            name="c",
            value="Monthly",
            options=["Monthly", "Yearly"],
            x=150,
            y=640,
            width=90,
            height=20,
        )

    yield Sample("form", drawn(form), ["Account DE00 1234 5678 Owner Anna Berg Monthly"])

    def comment(pdf: pikepdf.Pdf, **annotation: object) -> None:
        pdf.pages[0].Annots = Array(
            [
                pdf.make_indirect(
                    Dictionary(Type=Name.Annot, Rect=[100, 100, 300, 150], **annotation)
                )
            ]
        )

    base = by_hand(at(72, 700, shown("Contract draft")))
    with pikepdf.open(io.BytesIO(base)) as pdf:
        comment(pdf, Subtype=Name.FreeText, Contents="Approved with changes", DA="/Helv 12 Tf 0 g")
        yield Sample(
            "note without appearance", saved(pdf), ["Contract draft Approved with changes"]
        )
        comment(pdf, Subtype=Name.Highlight, Contents="Why?", QuadPoints=[0] * 8)
        yield Sample("comment", saved(pdf), ["Contract draft"], frozenset({"comments"}))
        field = dict(Subtype=Name.Widget, FT=Name.Tx, T="h", V="secret", F=2)
        comment(pdf, **field)
        pdf.Root.AcroForm = Dictionary(Fields=pdf.pages[0].Annots)
        yield Sample("hidden field", saved(pdf), ["Contract draft"], frozenset({"comments"}))
    with pikepdf.open(io.BytesIO(base)) as pdf:
        pdf.attachments["annex.txt"] = b"more"
        yield Sample("attachment", saved(pdf), ["Contract draft"], frozenset({"attached files"}))
    pdf = FPDF()
    pdf.set_font("helvetica", size=12)
    pdf.add_page()
    pdf.cell(text="Contract draft")
    pdf.free_text_annotation("Seen and agreed", x=20, y=60, w=80, h=10)
    pdf.text_annotation(x=100, y=130, text="A remark")
    known = ["Contract draft Seen and agreed"]
    yield Sample("annotations of fpdf", bytes(pdf.output()), known, frozenset({"comments"}))


def containers() -> Iterator[Sample]:
    pages = [words(90, n) for n in range(5)]
    data = flowing(pages)
    objects = pikepdf.ObjectStreamMode.generate
    yield Sample("object streams", saved_again(data, object_stream_mode=objects), pages)
    yield Sample("linearised", saved_again(data, linearize=True), pages)
    for revision in (3, 4, 6):
        lock = pikepdf.Encryption(
            owner="o", user="", R=revision, aes=revision > 3, metadata=revision > 3
        )
        yield Sample(f"encrypted {revision}", saved_again(data, encryption=lock), pages)
    yield Sample(
        "uncompressed",
        saved_again(
            data, stream_decode_level=pikepdf.StreamDecodeLevel.all, compress_streams=False
        ),
        pages,
    )
    cut = data[: data.rindex(b"startxref")]
    yield Sample("no startxref", cut, pages, frozenset({"departures from the format"}))
    blank = flowing([pages[0], "", pages[1], ""])
    yield Sample(
        "blank pages", blank, [pages[0], "", pages[1], ""], frozenset({"pages without text"})
    )
    with pikepdf.open(io.BytesIO(data)) as pdf:
        form = pdf.make_stream(
            pdf.pages[0].Contents.read_bytes(), Type=Name.XObject, Subtype=Name.Form
        )
        form.BBox, form.Resources = [0, 0, 612, 842], pdf.pages[0].Resources
        pdf.pages[0].Contents = pdf.make_stream(b"q /X1 Do Q")
        pdf.pages[0].Resources = Dictionary(XObject=Dictionary(X1=form))
        yield Sample("text in a form object", saved(pdf), pages)


MAKERS = (plain, unicode_fonts, cjk, layout, rotated, spacing, twice, interactive, containers)
