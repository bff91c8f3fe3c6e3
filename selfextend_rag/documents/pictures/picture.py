"""One picture of a document: the bytes of its file, its size, and where in the text it is."""

from __future__ import annotations

import base64
import hashlib
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from selfextend_rag.errors import DocumentError

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 100_000_000  # of one picture, which then takes 300 MB to decode
LONGEST_SIDE = 20_000  # pixels; processors enlarge the other side of thin pictures in proportion
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")
_WHOLE_BYTES = ("I;16", "I;16L", "I;16B", "I;16N")  # modes of 16 bits, which Pillow would clip
_MAKES_NO_RGB = ("F", "I", "LAB", "HSV")  # of measured values, or in need of a colour profile


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to be looked at by a vision model; equal to another of the same bytes and place.

    Args:
        data: the file, PNG, JPEG or WebP.
        width: pixels, as people see it: after the rotation that the file asks for.
        height: pixels.
        start: the character of the document's text that it comes before.
        name: the place that it shows, such as ``page 3``; may be empty.
        digest: 32 hexadecimal digits of the SHA-256 of the data.

    Raises:
        ValueError: its size or its place is out of range.
    """

    data: bytes = field(repr=False)
    width: int
    height: int
    start: int = 0
    name: str = ""
    digest: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.data, bytes):
            raise TypeError(f"a picture is the bytes of its file, not {type(self.data).__name__}")
        if reason := size_reason(self.width, self.height):
            raise ValueError(f"a picture {reason}")
        if self.start < 0:
            raise ValueError(f"a picture has a place from 0 on, not {self.start}")
        object.__setattr__(self, "digest", hashlib.sha256(self.data).hexdigest()[:32])

    def image(self) -> Image:
        """Return the picture in RGB, upright, on white where it is transparent.

        Raises:
            DocumentError: it is damaged, or Pillow is not installed.
        """
        with opened(self.data, self.name or "a picture") as image:
            return as_rgb(image)

    def to_dict(self) -> dict[str, object]:
        """Return the picture as JSON values, its data in base64."""
        names = ("width", "height", "start", "name")
        data = base64.b64encode(self.data).decode("ascii")
        return {"data": data, **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Picture:
        """Return the picture that ``to_dict`` made these values of.

        Raises:
            ValueError, TypeError: they are values of no picture.
        """
        return cls(**{**values, "data": base64.b64decode(values["data"], validate=True)})


def size_reason(width: int, height: int) -> str:
    """Return why a picture of this size is refused; empty if it is not."""
    if width < 1 or height < 1:
        return f"has no size ({width} x {height} pixels)"
    if max(width, height) > LONGEST_SIDE:
        return f"of {width} x {height} pixels is longer than {LONGEST_SIDE} pixels"
    if width * height > MOST_PIXELS:
        return f"of {width} x {height} pixels has more than {MOST_PIXELS:,} of them"
    return ""


@contextmanager
def opened(data: bytes, name: str) -> Iterator[Image]:
    """Yield a picture file whose head has been read, its size within the limits.

    Raises:
        DocumentError: it is damaged, too large, or of another format; also for what goes wrong
            within the block, where Pillow decodes the picture. Or Pillow is not installed.
    """
    pillow = _pillow(name)
    try:
        with warnings.catch_warnings():
            # Pillow warns of pictures that are within our own limit, and of what it can read.
            warnings.simplefilter("ignore")
            with pillow.open(io.BytesIO(data), formats=FORMATS) as image:
                if reason := size_reason(*image.size):
                    raise DocumentError(f"{name} {reason}; make it smaller and read that")
                yield image
    except DocumentError:
        raise
    except pillow.DecompressionBombError as error:
        raise DocumentError(f"{name} is too large ({error}); make it smaller") from error
    except Exception as error:  # what Pillow raises for damaged files has no limit
        raise DocumentError(
            f"{name} is a damaged or unusual picture ({type(error).__name__}: {error}); open it in "
            "a viewer, save it again as PNG, and read that"
        ) from error


def as_rgb(image: Image) -> Image:
    """Return a decoded picture in RGB, upright, on white where it is transparent.

    Raises:
        ValueError: its values are no colours.
    """
    ops, pillow = import_module("PIL.ImageOps"), import_module("PIL.Image")
    image.load()
    image = ops.exif_transpose(image)
    if image.mode in _WHOLE_BYTES:
        array = import_module("numpy").asarray(image)
        return pillow.fromarray((array >> 8).astype("uint8")).convert("RGB")  # type: ignore[no-any-return]  # loaded by its name
    if image.mode in _MAKES_NO_RGB:
        raise ValueError(f"its pixels are of the kind {image.mode!r}, which has no fixed colours")
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        white = pillow.new("RGBA", shown.size, "white")
        return pillow.alpha_composite(white, shown).convert("RGB")  # type: ignore[no-any-return]  # loaded by its name
    return image.convert("RGB")


def _pillow(name: str) -> Any:
    try:
        return import_module("PIL.Image")
    except ImportError as error:
        raise DocumentError(
            f'{name} is a picture, which needs Pillow ({error}); pip install "selfextend-rag'
            '[vision]"'
        ) from error
