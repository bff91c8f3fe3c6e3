"""How much memory encoding one picture takes, besides reading its tokens; arithmetic only.

A picture is encoded alone, before its first chunk is run: decoded, processed, and run through the
vision tower and its projector, whose output is what is kept. Its tiles are run as one batch. The
bound is the sum of

* the picture as pixels, and as the numbers that the processor makes of it;
* the hidden states of all layers of the tower, which many families keep;
* the work of one layer: its projections, its feed-forward, norms in float32, and masks; without
  fused attention scores too;
* what projectors make of patches, and what puts it among the embeddings of the prompt.

Tests check it against the allocations that encoding makes, family by family.
"""

from __future__ import annotations

from dataclasses import dataclass

_CHANNELS = 3
_SPECIAL = 8  # tokens of a tile that are no patches, at most
_FLOAT32 = 4
_DECODED = 12  # bytes of a pixel: as it is, upright, on white, and resized
_PROCESSED = 16  # bytes of a number: scaled and normalised in float32, and stacked
_FIXED = 1 << 20


@dataclass(frozen=True, slots=True)
class VisionShape:
    """Sizes of a vision tower, and of the decoder that it sees for."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    patch: int  # pixels of a patch's side
    decoder_hidden: int
    connector: int = 0  # inner numbers of a patch between the two, where there is more than a map
    fused: bool = True  # attention is; otherwise it makes all scores at once


@dataclass(frozen=True, slots=True)
class PictureWork:
    """What a processor makes of a picture of some size.

    Args:
        pixels: of the picture itself.
        numbers: that the model is given for it.
        tiles: that these are divided into, each seen by itself.
        tokens: of a prompt.
    """

    pixels: int
    numbers: int
    tiles: int
    tokens: int


def encoding_bytes(
    shape: VisionShape, work: PictureWork, itemsize: int, *, host: bool = False
) -> int:
    """Return an upper bound, in bytes, of what encoding a picture allocates at a time.

    Args:
        shape: of the model.
        work: of the picture.
        itemsize: bytes of a number in the model's precision.
        host: the picture is decoded and processed in the same memory.
    """
    patches = -(-work.numbers // (_CHANNELS * shape.patch**2 * work.tiles)) + _SPECIAL
    seen = patches * work.tiles
    given = work.numbers * (_FLOAT32 + 3 * itemsize)  # as they came, converted, and by patches
    states = (shape.layers + 2) * seen * shape.hidden * itemsize
    layer = seen * (8 * shape.hidden + 3 * shape.feed_forward) * itemsize
    layer += 3 * seen * shape.hidden * _FLOAT32
    pairs = patches**2 * work.tiles
    attention = pairs * (2 * itemsize + _FLOAT32 + 1)
    if not shape.fused:
        attention += pairs * shape.heads * (2 * itemsize + 2 * _FLOAT32)
    made = (seen + work.tokens) * shape.decoder_hidden * (6 * itemsize + 2 * _FLOAT32)
    made += seen * (4 * shape.hidden + 4 * shape.connector) * itemsize
    total = given + states + max(layer + attention, made) + _FIXED
    return total + (work.pixels * _DECODED + work.numbers * _PROCESSED if host else 0)
