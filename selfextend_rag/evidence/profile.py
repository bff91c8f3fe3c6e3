"""How the attention of an answer is spread over the length of each document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfextend_rag.documents import Document
from selfextend_rag.evidence.spans import TokenRanges, Weights, document_weights

Places = NDArray[np.floating[Any]]

SLICES = 200
"""Slices of equal length that a document is divided into."""


def attention_profile(
    mass: Weights, ranges: TokenRanges, documents: Sequence[Document], *, slices: int = SLICES
) -> tuple[tuple[float, ...], ...]:
    """Return the share of the attention to all documents in each slice of each document's text.

    The weight of a token is spread evenly over its characters, so that all shares add up to 1. Of
    a document with pictures, which are at no characters, the slices are of its tokens.

    Args:
        mass: the weight of each token of the prompt; tokens past ``ranges`` do not count.
        ranges: what the prompt's tokens hold of the documents.
        documents: in the order that the ranges count them in.
        slices: how many there are of each text, in characters of equal number, parts included.

    Returns:
        For each document its shares from the beginning to the end; none at all where no document
        was looked at.
    """
    weights = document_weights(mass, ranges)
    total = float(weights.sum())
    if total <= 0.0:
        return ()
    held = np.flatnonzero(ranges.document >= 0)
    borders = np.searchsorted(ranges.document[held], np.arange(len(documents) + 1))
    found = []
    for document, first, last in zip(documents, borders[:-1], borders[1:], strict=True):
        own = held[first:last]
        if document.pictures:
            place = np.arange(len(own) + 1) * (slices / max(1, len(own)))
            found.append(_spread(weights[own] / total, place[:-1], place[1:], slices))
            continue
        start, end = ranges.start[own], ranges.end[own]
        start = np.where(start == end, start - 1, start)  # the rest of the character before it
        scale = slices / len(document.text)
        found.append(_spread(weights[own] / total, start * scale, end * scale, slices))
    return tuple(found)


def _spread(weights: Weights, start: Places, end: Places, slices: int) -> tuple[float, ...]:
    """Return the weight in each slice; starts and ends are in slices, with fractions."""
    first = np.minimum(start.astype(np.int64), slices - 1)
    last = np.clip(np.ceil(end).astype(np.int64) - 1, first, slices - 1)
    within = first == last
    shares = np.bincount(first[within], weights[within], slices).astype(np.float64)
    for token in np.flatnonzero(~within):  # few: a slice has two borders
        touched = np.arange(first[token], last[token] + 1)
        begin, stop = np.maximum(touched, start[token]), np.minimum(touched + 1, end[token])
        shares[touched] += weights[token] * (stop - begin) / (end[token] - start[token])
    return tuple(map(float, shares))
