"""From picture files to pictures: one of PNG, JPEG and WebP, and every page of a TIFF."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from selfextend_rag.documents.content import Content, Remark, remarked
from selfextend_rag.documents.pictures.picture import (
    MOST_PIXELS,
    Picture,
    as_rgb,
    opened,
    size_reason,
)
from selfextend_rag.errors import DocumentError

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_PAGES, _MOST_IN_ALL = 1000, 20 * MOST_PIXELS
_SUBFILE, _THUMBNAIL_OR_MASK = 254, 5  # the tag of a TIFF page that says so, and its bits
_AS_FILE = ("1", "L", "RGB")  # modes that PNG keeps


def read_picture(data: bytes, name: str) -> Content:
    """Return the pictures in a file, decoded once to be sure of them.

    Raises:
        DocumentError: the file is damaged, has a picture that is too large, or too many; or Pillow
            is not installed.
    """
    with opened(data, name) as image:
        kind = str(image.format).lower()
        if kind == "tiff":
            return _pages(image, name)
        frames = int(getattr(image, "n_frames", 1))
        upright = as_rgb(image)
        picture = Picture(data, upright.width, upright.height)
    remarks: tuple[Remark, ...] = ()
    if frames > 1 and kind != "mpo":  # whose other frames are smaller, or for the other eye
        says = "other picture{s} of an animation {are} not read"
        remarks = (remarked("warning", "frames", frames - 1, says),)
    return Content(
        "", metadata={"format": kind, "pictures": 1}, remarks=remarks, pictures=(picture,)
    )


def picture_of(data: bytes, name: str = "the picture") -> Picture:
    """Return the one picture in the bytes of a file.

    Raises:
        DocumentError: it is none, damaged or too large, has several pages or frames, or Pillow is
            not installed.
    """
    content = read_picture(data, name)
    if len(content.pictures) != 1 or content.remarks:
        raise DocumentError(
            f"{name} is {len(content.pictures)} pictures or an animation, where one is expected; "
            "send them one by one"
        )
    return content.pictures[0]


def rendered(png: bytes, name: str, start: int) -> Picture:
    """Return the picture of a page that this package has rendered."""
    with opened(png, name) as image:
        return Picture(png, image.width, image.height, start, name)


def _pages(image: Any, name: str) -> Content:
    count = int(getattr(image, "n_frames", 1))
    if count > _MOST_PAGES:
        raise DocumentError(
            f"{name} has {count} pages, and a TIFF file may have {_MOST_PAGES}; split it"
        )
    pictures: list[Picture] = []
    pixels = smaller = 0
    for index in range(count):
        image.seek(index)
        if int(image.tag_v2.get(_SUBFILE, 0)) & _THUMBNAIL_OR_MASK:
            smaller += 1
            continue
        place = f"page {index + 1}"
        if reason := size_reason(*image.size):
            raise DocumentError(f"{place} of {name} {reason}; make it smaller and read that")
        pixels += image.size[0] * image.size[1]
        if pixels > _MOST_IN_ALL:
            raise DocumentError(
                f"{name} has more than {_MOST_IN_ALL:,} pixels up to {place}; split it"
            )
        page = as_rgb(image) if image.mode not in _AS_FILE else image.copy()
        pictures.append(
            Picture(_png(page), page.width, page.height, name=place if count > 1 else "")
        )
    if not pictures:
        raise DocumentError(f"{name} has no picture but thumbnails or masks; save it as PNG")
    says = "thumbnail{s} or mask{s} {are} not read"
    remarks: tuple[Remark, ...] = ()
    if smaller:
        remarks = (remarked("note", "thumbnails", smaller, says),)
    metadata = {"format": "tiff", "pictures": len(pictures)}
    return Content("", metadata=metadata, remarks=remarks, pictures=tuple(pictures))


def _png(image: Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()
