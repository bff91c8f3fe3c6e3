"""A page's letters, as pdfium finds them, to text: hyphens, doubles, spaces, and their order.

``pdf_pages.py`` imports this as a file: it imports nothing of the package. Claims about pdfium were
read in its ``cpdf_textpage.cpp``.
"""

from __future__ import annotations

import ctypes
import math
import re
import statistics
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import cycle, pairwise, repeat

import pypdfium2 as pdfium
import pypdfium2.raw as raw

Box = tuple[float, float, float, float]
_DELETED = "\0"
_OUTER = (min, max, min, max)  # what left, right, bottom and top of several boxes are
_NO_LETTER = re.compile("[\x01-\x09\x0b-\x1f\x7f-\x9f\ue000-\uf8ff\ufdd0-\ufdef\ufff0-\uffff]")
# The marks of lists in Microsoft's symbol fonts, the hyphen that U+00AD shows, and white space.
_MARKS = {0xF0B7: "•", 0xF0A7: "▪", 0xF0D8: "➢", 0xF0FC: "✓", 0xAD: "-", 9: " ", 13: " ", 0: None}
# Three letters or two words in a row twice, as where text is drawn twice to look bold.
_DOUBLED = re.compile(r"(?:([^\W\d_])\1){3}|\b(\w{2,}) \2 (\w+) \3\b")
_SPACED = re.compile(r"(?<!\S)(?:\S{1,2} ){4,}\S{1,2}(?!\S)")  # S e r i a l
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
# Kinds of Unicode's directions: letters that are read to the right and left, numbers, signs that
# separate them or are a part of them, and the minus, which does so in Hebrew alone.
_KINDS = {"L": "l", "R": "r", "AL": "r", "EN": "n", "AN": "n", "CS": "s", "ET": "e", "ES": "m"}
# What is read to the right in a line that is read to the left: words with numbers after them, and
# numbers.
_LEFT_TO_RIGHT = re.compile("l(?:[ln]|[^lnr]+(?=[ln]))*|e*n(?:n|[sm](?=n))*e*|.")


def fillings(boxes: Sequence[Box]) -> list[float]:
    """Return how high runs are that fill gaps in the one before, as letters of another font do.

    Args:
        boxes: left, bottom, right and top of each run, in the order in which they are drawn.
    """
    found = []
    host = (0.0, 0.0, 0.0, 0.0)
    for left, bottom, right, top in boxes:
        height = min(top - bottom, host[3] - host[1])
        alike = min(top, host[3]) - max(bottom, host[1]) > 0.5 * max(top - bottom, height)
        if alike and host[0] + 0.3 * height < left < host[2] - 0.3 * height:
            found.append((bottom + top) / 2)
        elif right - left > 0.01:
            host = left, bottom, right, top
    return found


def text_of(page: pdfium.PdfTextPage, filled: Sequence[float]) -> tuple[str, int]:
    """Return the text of a page, its lines in pdfium's order, and how many places of letters are
    known by their marks alone, so that a space there may be missing or too many.

    Args:
        page: what pdfium reads on it.
        filled: the heights of lines whose letters are to be ordered by their places.
    """
    count = raw.FPDFText_CountChars(page)
    buffer = (ctypes.c_ushort * (2 * count + 2))()
    size = raw.FPDFText_GetText(page, 0, count, buffer)
    text = bytes(buffer)[: 2 * max(size - 1, 0)].decode("utf-16-le", "replace")
    # This one call leaves out codes that no table of the font explains: then they are asked for.
    chars = list(text if len(text) == count else map(_character, repeat(page), range(count)))
    errors = map(raw.FPDFText_HasUnicodeMapError, repeat(page), range(count))
    for index in [index for index, error in enumerate(errors) if error == 1]:
        chars[index] = "\ufffd"
    text = "".join(chars)
    for match in re.finditer("[\x02\ufffe]", text):  # pdfium's mark for hyphens at line ends
        if raw.FPDFText_IsHyphen(page, match.start()) == 1:
            chars[match.start()] = "-\n"
    for match in re.finditer("(?<=[^\x02\ufffe\n])\r\n(?=[^\r])", text):
        _join_lines(page, chars, match.start())
    lines = [line for line in text.split("\r\n") if len(line) > 3]
    doubled = _DOUBLED.search(text)
    twice = bool(doubled and doubled[1])
    if not twice and (doubled or len(lines) != len(set(lines))):
        # Most of these say a thing twice, as tables do: letters that start words show it sooner.
        twice = len(_doubles(page, text, r"\S+")) > 1
    for index in _doubles(page, text, r"[^\s\0]") if twice else ():
        chars[index] = _DELETED
    for match in _SPACED.finditer(text):
        if 2 * len(re.findall(r"\w", match[0])) > len(match[0].replace(" ", "")):  # no dot leaders
            _join_letters(page, chars, *match.span())
    leftward = len(_RIGHT_TO_LEFT.findall(text))
    rightward = leftward < len(re.findall(r"[^\W\d_]", text)) / 2
    spans, broken = [match.span() for match in re.finditer("[^\r\n]+", text)], set[int]()
    if any(map(_is_mark, set(text))):
        spans = [part for span in spans for part in _lines_in(page, chars, text, *span)]
        broken = _join_marked(page, text, spans)
    unsure = 0
    for start, end in spans if filled or leftward or broken else ():
        _, _, bottom, height = _box(page, start)
        gaps = any(bottom < middle < bottom + height for middle in filled)
        if gaps or start in broken or _RIGHT_TO_LEFT.search(text[start:end]):
            unsure += _put_in_order(page, chars, start, end, rightward)
    text = "".join(chars).replace("\r\n", "\n").translate(_MARKS)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = _NO_LETTER.sub("\ufffd", text)
    return re.sub(" *\n[ \n]*", "\n", re.sub("  +", " ", text)).strip(), unsure


def _character(page: pdfium.PdfTextPage, index: int) -> str:
    code = raw.FPDFText_GetUnicode(page, index)
    if code == 0:  # lost text, unless the font gives it no width
        return "\ufffd" if _width(page, index) > 0.01 else _DELETED
    return chr(code) if code < 0x110000 else "\ufffd"


def _box(page: pdfium.PdfTextPage, index: int) -> tuple[float, float, float, float]:
    box = raw.FS_RECTF()
    raw.FPDFText_GetLooseCharBox(page, index, box)
    return box.left, box.right, box.bottom, max(box.top - box.bottom, 0.01)


def _doubles(page: pdfium.PdfTextPage, text: str, visible: str) -> list[int]:
    """Return which characters are drawn again at nearly the same place, to look bold or shaded."""
    seen: dict[tuple[str, int, int], tuple[float, float]] = {}
    found = []
    for match in re.finditer(visible, text):
        left, _, bottom, height = _box(page, match.start())
        near = 0.15 * height  # narrower than any letter, so that "ll" stays
        char, column, row = match[0][0], round(left / near), round(bottom / near)
        for cell in ((char, column + i, row + j) for i in (0, -1, 1) for j in (0, -1, 1)):
            x, y = seen.get(cell, (math.inf, math.inf))
            if abs(x - left) < near and abs(y - bottom) < near:
                found.append(match.start())
                break
        else:
            seen[char, column, row] = left, bottom
    return found


def _join_lines(page: pdfium.PdfTextPage, chars: list[str], index: int) -> None:
    """Take out a line break after which the line goes on: for a small number, or another column."""
    _, right, bottom, height = _box(page, index - 1)
    left, _, next_bottom, next_height = _box(page, index + 2)
    common = min(bottom + height, next_bottom + next_height) - max(bottom, next_bottom)
    small = min(height, next_height)
    if common > 0.5 * small and -0.2 * small < left - right:
        chars[index : index + 2] = [" " if left - right > 0.1 * small else _DELETED, _DELETED]


def _is_mark(char: str) -> bool:
    return unicodedata.category(char[:1] or " ") == "Mn"


def _join_marked(page: pdfium.PdfTextPage, text: str, spans: list[tuple[int, int]]) -> set[int]:
    """Join the parts of lines that end where a mark is set higher or lower than the letters.

    Some programs place each vowel sign of Arabic or Hebrew by itself. Joined are parts that pdfium
    has one after another, if they are side by side and about as high.

    Args:
        spans: where lines begin and end; those of a line that was broken become one.

    Returns:
        where these begin.
    """
    lines: list[tuple[int, int]] = []
    broken = set()
    extents: list[float] = []  # of the last line: left, right, lowest and highest base line
    tall = 0.0
    for start, end in spans:
        edges, heights = [], [0.0]
        for index in range(start, end):
            left, right, _, height = _box(page, index)
            if right - left > 0.01:
                edges.append((left, right, *[_origin(page, index)[1]] * 2))
                heights.append(height)
        if not edges:
            continue
        sides = list(map(lambda f, *of: f(of), _OUTER, *edges))
        height = max(heights)
        joins = (
            extents
            and max(sides[0], extents[0]) - min(sides[1], extents[1]) < 0.5 * max(height, tall)
            and max(sides[2], extents[2]) - min(sides[3], extents[3]) < 0.45 * max(height, tall)
            and any(map(_is_mark, text[lines[-1][0] : end]))
        )
        if joins:
            start = lines.pop()[0]
            broken.add(start)
            sides = list(map(lambda f, *of: f(of), _OUTER, sides, extents))
            height = max(height, tall)
        lines.append((start, end))
        extents, tall = sides, height
    spans[:] = lines
    return broken


def _lines_in(
    page: pdfium.PdfTextPage, chars: list[str], text: str, start: int, end: int
) -> Iterator[tuple[int, int]]:
    """Yield where the lines begin and end that pdfium takes for one, after a mark that is high."""
    letters = [i for i in range(start, end) if not (text[i].isspace() or _is_mark(text[i]))]
    for one, other in pairwise(letters):
        if text[other - 1] != " ":
            continue
        tall = max(_box(page, one)[3], _box(page, other)[3])
        if abs(_origin(page, one)[1] - _origin(page, other)[1]) > tall:
            chars[other - 1] = "\n"
            yield start, other - 1
            start = other
    yield start, end


def _width(page: pdfium.PdfTextPage, index: int) -> float:
    left, right, _, _ = _box(page, index)
    return right - left


def _origin(page: pdfium.PdfTextPage, index: int) -> tuple[float, float]:
    """Return where a character is on its base line."""
    x, y = ctypes.c_double(), ctypes.c_double()
    raw.FPDFText_GetCharOrigin(page, index, x, y)
    return round(x.value, 2), round(y.value, 2)


def _put_in_order(
    page: pdfium.PdfTextPage, chars: list[str], start: int, end: int, rightward: bool
) -> int:
    """Order the letters of a line by their places, where pdfium has them in another order.

    And return how many places are those of marks, see `text_of`.

    That is so of runs that fill gaps in others; and in lines of Arabic or Hebrew of Latin words
    and numbers, brackets, and the letters of a ligature.
    """
    parts: dict[tuple[float, ...], list[tuple[float, float, float, str]]] = {}  # of each glyph
    for index in range(start, end):
        left, right, bottom, height = _box(page, index)
        unseen = raw.FPDFText_IsGenerated(page, index) or right - left < 0.01
        if chars[index] != _DELETED and not (chars[index].isspace() and unseen):
            glyph = *_origin(page, index), round(bottom, 2), round(right - left, 2)
            parts.setdefault(glyph, []).append((left, right, height, chars[index]))
    glyphs, marks, unsure = [], [], 0
    base = statistics.mode(origin[1] for origin in parts) if parts else 0.0
    tall = max((of[0][2] for of in parts.values()), default=0.0)
    for (_, y, *_), of in parts.items():
        lefts, rights, heights, texts = zip(*of, strict=True)
        if all(map(_is_mark, texts)):
            marks += [((lefts[0] + rights[0]) / 2, text) for text in texts]
            continue
        gap = 0.12 * heights[0]
        if min(lefts) < max(lefts):  # several characters with boxes as narrow as what is drawn
            unsure += y != base  # what is drawn is the mark alone
            gap = 0.2 * tall if y == base else 0.4 * tall
        glyphs.append([min(lefts), max(rights), _glyph_text(of), gap])
    glyphs.sort(key=lambda glyph: glyph[0])
    bases = [glyph for glyph in glyphs if glyph[2] != " "] or glyphs
    marks.sort(key=lambda mark: unicodedata.combining(mark[1][0]))
    for middle, mark in marks if glyphs else ():
        min(bases, key=lambda glyph: _distance(glyph, middle))[2] += mark
    seen: list[str] = []
    for before, (left, _, text, gap) in zip([None, *glyphs], glyphs, strict=False):
        if before and " " not in (before[2], text) and left - before[1] > max(gap, before[3]):
            seen.append(" ")
        seen.append(text)
    line = "".join(_as_read(seen, rightward))
    line = _paired(line) if _RIGHT_TO_LEFT.search(line) else line
    chars[start:end] = [line, *[_DELETED] * (end - start - 1)]
    return unsure


def _glyph_text(parts: Sequence[tuple[float, float, float, str]]) -> str:
    """Return the text of a glyph that is several characters, as they are read.

    Args:
        parts: left, right and height of each, and itself, in pdfium's order. Where it has shared
            the glyph out between them, they are from right to left, unless a mark would be first.
    """
    texts = [part[3] for part in sorted(parts, key=lambda part: -part[0])]
    leftward = bool(_RIGHT_TO_LEFT.match(texts[0]))
    if _is_mark(texts[0]) or (len({part[0] for part in parts}) == 1 and leftward):
        texts.reverse()
    texts.sort(key=lambda text: unicodedata.combining(text[0]) if _is_mark(text) else 0)
    return "".join(texts)


def _distance(glyph: Sequence[float], middle: float) -> tuple[float, float]:
    """Return how far a mark's middle is from a glyph, and from the glyph's own middle."""
    left, right = glyph[:2]
    return max(left - middle, middle - right, 0.0), abs(left + right - 2 * middle)


def _as_read(seen: list[str], rightward: bool) -> list[str]:
    """Return letters and signs, which are seen from left to right, as they are read.

    Args:
        seen: each, with its marks.
        rightward: most of the text reads to the right, and words of another direction are in it.
    """
    types = [unicodedata.bidirectional(text[0]) for text in seen]
    kinds = "".join(_KINDS.get(kind, "-") for kind in types)
    if "AL" in types:  # where a sign between numbers parts them, and one after them is apart
        kinds = kinds.translate({ord("e"): "-", ord("m"): "-"})
    if rightward:
        parts = re.finditer("r(?:[^l]*r)?|.", kinds)
        runs = [(kinds[part.start()], seen[part.start() : part.end()]) for part in parts]
        return [
            text for kind, run in runs for text in (_as_read(run, False) if kind == "r" else run)
        ]
    spans = [part.span() for part in _LEFT_TO_RIGHT.finditer(kinds)]
    return [text for start, end in reversed(spans) for text in seen[start:end]]


def _paired(line: str) -> str:
    """Return a line whose brackets open before they close.

    In text that is read to the left pdfium mirrors them, as their shapes are; but some programs
    write which they are in place of how they look.
    """
    for pair in ("()", "[]", "{}", "«»"):
        unpaired = "".join(char for char in line if char in pair)
        turned = cycle(pair) if len(unpaired) % 2 == 0 else iter(unpaired)
        while pair in unpaired:
            unpaired = unpaired.replace(pair, "")
        if unpaired:
            line = "".join(next(turned) if char in pair else char for char in line)
    return line


def _join_letters(page: pdfium.PdfTextPage, chars: list[str], start: int, end: int) -> None:
    """Take out the spaces that pdfium puts between letters drawn one by one, wide apart.

    Letters are joined where the gaps between them are alike and those between words clearly wider;
    a row of single letters or digits, evenly spaced, stays as it is.
    """
    boxes = {i: _box(page, i) for i in range(start, end) if chars[i] != " "}
    gaps = [(boxes[j][0] - boxes[i][1]) / boxes[i][3] for i, j in pairwise(boxes)]
    usual = sorted(gaps)[len(gaps) // 2]
    widest = usual + max(0.12, 0.5 * usual)
    if usual > 0.5 or (usual > 0.17 and max(gaps) <= widest):
        return
    for (i, j), gap in zip(pairwise(boxes), gaps, strict=True):
        for k in range(i + 1, j):
            if gap <= widest and raw.FPDFText_IsGenerated(page, k) == 1:
                chars[k] = _DELETED
