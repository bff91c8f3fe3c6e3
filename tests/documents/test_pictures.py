"""Documents that are pictures: whole, upright and bounded, or refused."""

from __future__ import annotations

import io
import json
import random
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from selfextend_rag.documents import Document, DocumentError, Picture, read_documents
from tests.documents.files import pdf_bytes

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")
RED, BLUE = (255, 0, 0), (0, 0, 255)


def halves(mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Red on the left and blue on the right."""
    image = Image.new("RGB", size, RED)
    ImageDraw.Draw(image).rectangle((size[0] // 2, 0, *size), fill=BLUE)
    return image.convert(mode)


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def read(data: bytes, name: str = "a", **options: object) -> Document:
    return Document.from_bytes(data, name, **{"pages": "auto", **options})


def seen(document: Document, index: int = 0) -> np.ndarray:
    return np.asarray(document.pictures[index].image()).astype(int)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_file_is_a_document_of_one_picture(kind):
    document = read(file_of(halves(), kind), f"plans.{kind.lower()}")
    (picture,) = document.pictures
    assert (document.text, document.title) == ("", "plans")
    assert (picture.width, picture.height, picture.start) == (40, 20, 0)
    assert document.metadata["format"] == kind.lower()
    assert document.remarks == ()
    for color, column in ((RED, 5), (BLUE, 35)):
        assert np.abs(seen(document)[10, column] - color).max() < 12  # JPEG is lossy


def test_all_pages_of_a_tiff_are_read_in_order_and_thumbnails_are_not():
    pages = [Image.new("1", (9, 7), 1), halves(), Image.new("CMYK", (5, 6), (0, 255, 255, 0))]
    data = file_of(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    document = read(data, "fax.tiff")
    assert [(x.width, x.height, x.name) for x in document.pictures] == [
        (9, 7, "page 1"),
        (40, 20, "page 2"),
        (5, 6, "page 3"),
    ]
    assert seen(document, 2)[2, 2].tolist() == list(RED)
    thumbnail = file_of(halves(), "TIFF", tiffinfo={254: 1})
    with pytest.raises(DocumentError, match="no picture but thumbnails"):
        read(thumbnail)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_upright_as_viewers_show_it(kind):
    """Its size is that of the upright picture, by which its tokens are counted."""
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to the right
    document = read(file_of(halves(), kind, exif=exif))
    (picture,) = document.pictures
    assert (picture.width, picture.height) == (20, 40) == picture.image().size
    assert np.abs(seen(document)[5, 10] - RED).max() < 12


def test_transparent_pixels_are_white_and_16_bits_are_scaled():
    clear = Image.new("RGBA", (4, 4), (*RED, 0))
    assert seen(read(file_of(clear, "PNG")))[2, 2].tolist() == [255, 255, 255]
    deep = Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16))
    assert seen(read(file_of(deep, "PNG")))[2, 2].tolist() == [128, 128, 128]


def test_values_that_are_no_colours_are_refused():
    measured = Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32))
    with pytest.raises(DocumentError, match="'F'"):
        read(file_of(measured, "TIFF"))


def test_other_frames_of_an_animation_are_remarked_on():
    frames = [halves(), halves().rotate(180)]
    document = read(file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    assert [remark.message for remark in document.remarks] == [
        "1 other picture of an animation is not read"
    ]


def bomb(width: int, height: int) -> bytes:
    """A PNG of that size in its head, and a few bytes of content."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    content = zlib.compress(bytes(1 << 16))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*x) for x in ((b"IHDR", head), (b"IDAT", content), (b"IEND", b""))
    )


@pytest.mark.parametrize(
    ("width", "height", "found"),
    [
        (50_000, 50_000, "is too large"),
        (20_001, 1, "longer than 20000 pixels"),
        (20_000, 5_001, "more than 100,000,000"),
    ],
)
def test_huge_pictures_are_refused_by_their_head(width, height, found):
    with pytest.raises(DocumentError, match=found):
        read(bomb(width, height))


def test_a_tiff_of_too_many_pages_is_refused(monkeypatch):
    monkeypatch.setattr("selfextend_rag.documents.pictures.reader._MOST_PAGES", 2)
    data = file_of(halves(), "TIFF", save_all=True, append_images=[halves(), halves()])
    with pytest.raises(DocumentError, match="has 3 pages, and a TIFF file may have 2"):
        read(data, "fax.tiff")
    monkeypatch.setattr("selfextend_rag.documents.pictures.reader._MOST_PAGES", 3)
    monkeypatch.setattr("selfextend_rag.documents.pictures.reader._MOST_IN_ALL", 1600)
    with pytest.raises(DocumentError, match="more than 1,600 pixels up to page 3"):
        read(data, "fax.tiff")


def test_pictures_are_read_only_where_they_are_asked_for():
    png = file_of(halves(), "PNG")
    with pytest.raises(DocumentError, match='for a vision model read it with pages="auto"'):
        Document.from_bytes(png, "a.png")
    with pytest.raises(ValueError, match="pages is one of text, auto, images"):
        read(png, pages="all")
    with pytest.raises(ValueError, match="choose one"):
        read(png, ocr=True)


def test_a_folder_has_its_pictures_where_they_are_asked_for(tmp_path):
    (tmp_path / "a.txt").write_text("Anna.")
    (tmp_path / "b.png").write_bytes(file_of(halves(), "PNG"))
    assert [x.kind for x in read_documents(tmp_path).skipped] == ["unsupported"]
    found = read_documents(tmp_path, pages="auto")
    assert [len(x.pictures) for x in found.documents] == [0, 1]
    assert found.skipped == ()


def test_pages_without_text_are_rendered_where_they_are_in_the_text():
    document = read(pdf_bytes("Anna.", "", "Bob."), "a.pdf")
    (picture,) = document.pictures
    assert document.text == "Anna.\n\nBob."
    assert (picture.name, document.text[: picture.start]) == ("page 2", "Anna.")
    assert 1.9e6 < picture.width * picture.height < 2.1e6
    assert document.metadata["pages_as_pictures"] == [2]
    assert document.remarks == ()


def test_all_pages_are_rendered_with_what_they_show():
    document = read(pdf_bytes("Anna.", "Bob."), "a.pdf", pages="images")
    assert document.text == ""
    assert [x.name for x in document.pictures] == ["page 1", "page 2"]
    assert [seen(document, index).min() < 100 for index in (0, 1)] == [True, True]


def test_a_scan_is_refused_with_what_can_be_done():
    with pytest.raises(DocumentError, match='ocr=True, or with pages="auto" for a vision model'):
        Document.from_bytes(pdf_bytes("", ""), "a.pdf")


def test_a_document_of_pictures_survives_json_and_differs_by_them():
    document = read(pdf_bytes("Anna.", ""), "a.pdf")
    again = Document.from_dict(json.loads(json.dumps(document.to_dict())))
    assert again == document
    assert again.id == document.id
    other = Document.from_text(document.text, title="a", source="a.pdf")
    assert other != document
    assert other.id != document.id
    assert "pictures" not in other.to_dict()


def test_pictures_have_a_size_and_a_place():
    data = file_of(halves(), "PNG")
    with pytest.raises(ValueError, match="has no size"):
        Picture(data, 0, 3)
    with pytest.raises(ValueError, match="not in the order"):
        Document.from_text("Anna.", pictures=[Picture(data, 40, 20, 6)])
    with pytest.raises(DocumentError, match="is a damaged or unusual picture"):
        Picture(data[:50], 40, 20).image()


MUTATED = """
import random, resource, sys
from selfextend_rag.documents import Document, DocumentError
from tests.documents.test_pictures import mutated

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read = refused = 0
for name, data in mutated(200):
    try:
        document = Document.from_bytes(data, name, pages="auto")
        for picture in document.pictures:
            assert picture.image().size == (picture.width, picture.height)
        read += 1
    except DocumentError as error:
        assert str(error).startswith(name) or name in str(error), error
        refused += 1
print(read, refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def mutated(count: int) -> list[tuple[str, bytes]]:
    """Files with bytes changed, cut off, doubled and put elsewhere."""
    dice, image = random.Random(0), halves(size=(64, 48))
    image = Image.blend(image, Image.effect_noise(image.size, 80).convert("RGB"), 0.5)
    tiff = {"save_all": True, "append_images": [halves("L"), halves("P")]}
    options = {"TIFF": {**tiff, "compression": "tiff_lzw"}}
    whole = [(x, file_of(image, x, **options.get(x, {}))) for x in (*FORMATS, "TIFF")]
    found = []
    for number in range(count):
        kind, data = whole[number % len(whole)]
        data = bytearray(data)
        for _ in range(dice.choice((1, 3, 30))):
            place, how = dice.randrange(len(data)), dice.random()
            if how < 0.7:
                data[place] = dice.choice((0, 1, 0x7F, 0xFF, dice.randrange(256)))
            elif how < 0.8:
                del data[max(place, 16) :]
            elif how < 0.9:
                data[place:place] = data[place // 2 : place]
            else:
                data[4:8] = dice.randbytes(4)
        found.append((f"mutated{number}.{kind.lower()}", bytes(data)))
    return found


def test_200_mutated_files_are_read_or_refused_in_bounded_memory():
    """In a process of its own, whose memory nothing else has raised before."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MUTATED)], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    read, refused, grown = map(int, run.stdout.split())
    assert read + refused == 200
    assert min(read, refused) > 20
    unit = 1 if sys.platform == "darwin" else 1024
    assert grown * unit < 600 << 20
