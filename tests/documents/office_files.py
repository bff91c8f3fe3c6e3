"""Office files that the tests make themselves, part by part."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

OFFICE = "http://schemas.openxmlformats.org"
RELATIONS = f"{OFFICE}/officeDocument/2006/relationships"
NAMESPACES = " ".join(
    f'xmlns:{prefix}="{uri}"'
    for prefix, uri in {
        "w": f"{OFFICE}/wordprocessingml/2006/main",
        "p": f"{OFFICE}/presentationml/2006/main",
        "a": f"{OFFICE}/drawingml/2006/main",
        "c": f"{OFFICE}/drawingml/2006/chart",
        "dgm": f"{OFFICE}/drawingml/2006/diagram",
        "m": f"{OFFICE}/officeDocument/2006/math",
        "mc": f"{OFFICE}/markup-compatibility/2006",
        "wp": f"{OFFICE}/drawingml/2006/wordprocessingDrawing",
        "pic": f"{OFFICE}/drawingml/2006/picture",
        "r": RELATIONS,
        "wps": "http://schemas.microsoft.com/office/word/2010/wordprocessingShape",
        "v": "urn:schemas-microsoft-com:vml",
        "o": "urn:schemas-microsoft-com:office:office",
    }.items()
)
CHART = f"""<c:chartSpace {NAMESPACES}><c:chart><c:title><c:tx><c:rich><a:p><a:r>
<a:t>Output by year</a:t></a:r></a:p></c:rich></c:tx></c:title><c:plotArea><c:barChart><c:ser>
<c:tx><c:strRef><c:strCache><c:pt idx="0"><c:v>Turbines</c:v></c:pt></c:strCache></c:strRef></c:tx>
<c:cat><c:strRef><c:strCache><c:pt idx="0"><c:v>North</c:v></c:pt><c:pt
idx="1"><c:v>Turbines</c:v></c:pt></c:strCache></c:strRef></c:cat><c:val><c:numRef><c:numCache>
<c:pt idx="0"><c:v>4.2999999999999998</c:v></c:pt><c:pt idx="1"><c:v>7</c:v></c:pt></c:numCache>
</c:numRef></c:val></c:ser></c:barChart></c:plotArea></c:chart></c:chartSpace>"""
CHART_TEXT = "Output by year\nTurbines: North = 4.3; Turbines = 7"
DIAGRAM = f"""<dgm:dataModel {NAMESPACES}><dgm:ptLst><dgm:pt><dgm:t>
<a:p><a:r><a:t>Plan then build</a:t></a:r></a:p></dgm:t></dgm:pt></dgm:ptLst></dgm:dataModel>"""
EQUATION = """<m:oMath><m:f>
<m:num><m:sSup><m:e><m:r><m:t>velocity</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r></m:sup>
</m:sSup><m:r><m:t>+1</m:t></m:r></m:num><m:den><m:r><m:t>length</m:t></m:r></m:den>
</m:f></m:oMath>"""


def zipped(parts: Mapping[str, str | bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return out.getvalue()


def edited(data: bytes, member: str, old: str, new: str, **more: str) -> bytes:
    """A ZIP archive in one member of which some text is replaced, with more members."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts: dict[str, str | bytes] = {name: archive.read(name) for name in archive.namelist()}
    text = bytes(parts[member]).decode()
    assert old in text
    return zipped({**parts, member: text.replace(old, new), **more})


def relations(**to: str) -> str:
    """The relations of a part: by id, a type and a target with a space between."""
    found = "".join(
        f'<Relationship Id="{id}" Type="{RELATIONS}/{kind}" Target="{target}"/>'
        for id, (kind, target) in ((id, text.split(" ", 1)) for id, text in to.items())
    )
    return f'<Relationships xmlns="{OFFICE}/package/2006/relationships">{found}</Relationships>'


def package(main: str, parts: Mapping[str, str | bytes]) -> bytes:
    types = f'<Types xmlns="{OFFICE}/package/2006/content-types"/>'
    root = relations(d=f"officeDocument {main}")
    return zipped({"[Content_Types].xml": types, "_rels/.rels": root, **parts})


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of Word; text that begins with a tag is taken as runs."""
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    runs = text if text.startswith("<") else f"<w:r><w:t>{text}</w:t></w:r>"
    return f"<w:p>{properties}{runs}</w:p>"


def docx(body: str, parts: Mapping[str, str | bytes] | None = None, **to: str) -> bytes:
    """A Word file of this body; parts without a root of their own get one by their name."""
    styles = '<w:style w:type="paragraph" w:styleId="Title1"><w:name w:val="heading 1"/></w:style>'
    own = {"word/styles.xml": f"<w:styles {NAMESPACES}>{styles}</w:styles>", **(parts or {})}
    document = f"<w:document {NAMESPACES}><w:body>{body}</w:body></w:document>"
    rels = relations(styles="styles styles.xml", **to)
    return package(
        "word/document.xml",
        {"word/document.xml": document, "word/_rels/document.xml.rels": rels, **own},
    )


def shape(text: str, place: str = "") -> str:
    """A shape of a slide; text that begins with a tag is taken as paragraphs."""
    fills = f'<p:ph type="{place}"/>' if place else ""
    paragraphs = text if text.startswith("<") else f"<a:p><a:r><a:t>{text}</a:t></a:r></a:p>"
    return (
        f'<p:sp><p:nvSpPr><p:cNvPr id="1" name="x"/><p:nvPr>{fills}</p:nvPr></p:nvSpPr>'
        f"<p:txBody>{paragraphs}</p:txBody></p:sp>"
    )


def slide(shapes: str, kind: str = "sld", attributes: str = "") -> str:
    tree = f"<p:cSld><p:spTree><p:nvGrpSpPr/><p:grpSpPr/>{shapes}</p:spTree></p:cSld>"
    return f"<p:{kind} {NAMESPACES} {attributes}>{tree}</p:{kind}>"


def pptx(*slides: str, parts: Mapping[str, str | bytes] | None = None) -> bytes:
    """A show of these slides, whose members are numbered the other way round."""
    numbers = range(len(slides), 0, -1)
    listed = "".join(f'<p:sldId id="{255 + n}" r:id="s{n}"/>' for n in numbers)
    show = f"<p:presentation {NAMESPACES}><p:sldIdLst>{listed}</p:sldIdLst></p:presentation>"
    to = {f"s{n}": f"slide slides/slide{n}.xml" for n in numbers}
    members = {f"ppt/slides/slide{n}.xml": s for n, s in zip(numbers, slides, strict=True)}
    rels = {"ppt/_rels/presentation.xml.rels": relations(**to)}
    return package(
        "ppt/presentation.xml", {"ppt/presentation.xml": show, **rels, **members, **(parts or {})}
    )


ODF = (
    " ".join(
        f'xmlns:{prefix}="urn:oasis:names:tc:opendocument:xmlns:{uri}:1.0"'
        for prefix, uri in {
            **{"office": "office", "text": "text", "table": "table", "draw": "drawing"},
            **{"style": "style", "presentation": "presentation", "svg": "svg-compatible"},
        }.items()
    )
    + ' xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:dc="http://purl.org/dc/elements/1.1/"'
)


def opendocument(
    body: str, styles: str = "", margins: str = "", parts: Mapping[str, str | bytes] | None = None
) -> bytes:
    content = (
        f"<office:document-content {ODF}><office:automatic-styles>{styles}"
        f"</office:automatic-styles><office:body>{body}</office:body></office:document-content>"
    )
    page = f'<style:master-page style:name="a">{margins}</style:master-page>'
    masters = f"<office:master-styles>{page}</office:master-styles>"
    return zipped(
        {
            "mimetype": "application/vnd.oasis.opendocument.text",
            "content.xml": content,
            "styles.xml": f"<office:document-styles {ODF}>{masters}</office:document-styles>",
            **(parts or {}),
        }
    )
