"""Where in a document the tokens of an answer are stated: what guided heads should look at."""

from collections.abc import Callable

import numpy as np

from training.facts import Fact

Span = tuple[int, int]
NOWHERE: Span = (0, 0)


class Guide:
    """Finds the statements of facts in token ids.

    Args:
        encode: gives the ids of a text, without a start token.
        space: the id of a space alone, which comes before digits.
    """

    def __init__(self, encode: Callable[[str], list[int]], space: int) -> None:
        self.encode = encode
        self.space = space

    def sources(self, fact: Fact, answer: list[int], ids: list[int]) -> list[Span]:
        """Return where in the ids of a start token and a document each token of the answer is.

        It is the token itself, but the whole statement for the first two tokens of a value whose
        key comes after it: only the end of such a statement knows both. The start token is where
        to look for what the document does not say.
        """
        if not fact.stated:
            return [(0, 1), *[NOWHERE] * (len(answer) - 1)]
        start, end = self.statement(fact, ids)
        if not end:
            return [NOWHERE] * len(answer)
        value, after = _find(answer, ids[start:end])
        if not after:  # in JSON the value's first token is another than after a space
            value, after = _find(answer[1:], ids[start:end])
            value -= 1
        if not after:
            return [(start, end)] * len(answer)
        found = [(place, place + 1) for place in range(start + value, start + value + len(answer))]
        if value_first(fact):
            known = min(len(answer), 2 + (answer[0] == self.space))
            found[:known] = [(start, end)] * known
        return found

    def statement(self, fact: Fact, ids: list[int]) -> Span:
        """Return where the fact is stated; nowhere if it is not, or twice."""
        start, end = _find(self.encode(f" {fact.statement}")[1:], ids)
        return (start - 1, end) if end else NOWHERE  # its first token may be without the space

    def ends(self, fact: Fact, ids: list[int]) -> list[tuple[int, int, int]]:
        """Return, for a value before its key, each of its statement's last two places, and the
        first place of the value and its tokens: the end alone knows the key, and should know how
        the value begins."""
        start, end = self.statement(fact, ids)
        value = self.encode(f" {fact.value}")
        value = value[value[0] == self.space :]
        first, after = _find(value, ids[start:end])
        if not after or not value_first(fact):
            return []
        first += start
        return [(place, first, len(value)) for place in (end - 2, end - 1) if place > first]


def value_first(fact: Fact) -> bool:
    """Return whether a statement has its value before a part of its key."""
    before, _, after = fact.statement.lower().partition(fact.value.lower())
    words = (fact.attribute.lower(), fact.owner.lower())
    return any(word and word in after and word not in before for word in words)


def _find(wanted: list[int], ids: list[int]) -> Span:
    """Return where the wanted ids begin and end; nowhere if they are not there, or twice."""
    text, part = (np.array(some, np.uint16).tobytes() for some in (ids, wanted))
    found = []
    at = text.find(part) if part else -1
    while at >= 0:
        if at % 2 == 0:
            found.append(at // 2)
        at = text.find(part, at + 1)
    return (found[0], found[0] + len(wanted)) if len(found) == 1 else NOWHERE
