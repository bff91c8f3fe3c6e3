"""What makes RULER's generated prompts: needles, chains of variables, frequent words."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from selfextend_rag.evals.benchmarks.generated import haystack


@dataclass(frozen=True, slots=True)
class Parts:
    """A generated prompt: what comes before the text, the text, what follows, and the answers."""

    before: str
    document: str
    after: str
    begin: str
    outputs: tuple[str, ...]

    @property
    def whole(self) -> str:
        """Return the prompt."""
        return self.before + self.document + self.after + self.begin


Maker = Callable[[random.Random], Callable[[int], Parts]]
"""Draws what an item is about, and returns what builds it of a number of units of text."""


@dataclass(frozen=True, slots=True)
class Needles:
    """A task that hides values under keys, as the benchmark's settings name them."""

    haystack: str  # noise, prose or needles
    keys: int = 1
    values: int = 1
    queries: int = 1
    long_keys: bool = False
    long_values: bool = False

    def __call__(self, rng: random.Random) -> Callable[[int], Parts]:
        """Draw keys, values and places; return what builds the prompt."""
        seed = rng.random()
        names = [self._key(rng) for _ in range(max(self.keys, self.queries))]
        values = {name: [self._value(rng) for _ in range(self.values)] for name in names}
        kind = "uuids" if self.long_values else "numbers"
        facts = [
            f"One of the special {kind} for {name} is: {value}."
            for name in names
            for value in values[name]
        ]
        rng.shuffle(facts)
        depths = [rng.random() for _ in facts]
        asked = rng.sample(names, self.queries)
        outputs = tuple(value for name in asked for value in values[name])
        named = ", and ".join(filter(None, (", ".join(asked[:-1]), asked[-1])))
        many = len(outputs) > 1
        noun = kind if many else kind[:-1]
        are, what = ("are", "What are all the") if many else ("is", "What is the")
        some = "Some special" if many else f"A{'' if noun[0] != 'a' else 'n'} special"
        before = f"{some} {noun} {are} hidden in this text. Memorize: I will ask for it later.\n"
        after = f"\n{what} special {noun} for {named} that the text gives?"
        begin = f" The special {noun} for {named} that the text gives {are}"

        def build(units: int) -> Parts:
            body = self._body(random.Random(seed), units)
            text = haystack.hidden(body, facts, depths)
            join = " " if self.haystack == "prose" else "\n"
            return Parts(before, join.join(text), after, begin, outputs)

        return build

    def _key(self, rng: random.Random) -> str:
        return haystack.code(rng) if self.long_keys else haystack.two_words(rng)

    def _value(self, rng: random.Random) -> str:
        return haystack.code(rng) if self.long_values else haystack.digits(rng, 7)

    def _body(self, rng: random.Random, units: int) -> list[str]:
        if self.haystack == "noise":
            return [haystack.NOISE] * units
        if self.haystack == "prose":
            return haystack.prose(units, rng.randrange(len(haystack.sentences())))
        kind = "uuids" if self.long_values else "numbers"
        return [
            f"One of the special {kind} for {self._key(rng)} is: {self._value(rng)}."
            for _ in range(units)
        ]


def variable_tracking(rng: random.Random) -> Callable[[int], Parts]:
    """Draw a chain of four assignments to follow; a solved example comes first."""
    names = _names(rng, 10, 5)
    value, other = haystack.digits(rng, 5), haystack.digits(rng, 5)
    depths = sorted(rng.random() for _ in range(5))
    task = "Memorize the chain of variable assignments hidden in this text.\n\n"

    def parts(units: int, names: list[str], value: str) -> Parts:
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {later} = VAR {name}" for name, later in itertools.pairwise(names)]
        text = "\n".join(haystack.hidden([haystack.NOISE] * units, chain, depths))
        after = (
            f"\nQuestion: Find all variables that are assigned the value {value} in the text above."
        )
        begin = (
            f" Answer: By the chain of assignments in the text above, 5 variables are assigned the "
            f"value {value}, they are: "
        )
        return Parts(task, text, after, begin, tuple(names))

    shown = parts(2, names[5:], other)
    example = f"{shown.whole}{' '.join(shown.outputs)}\n\n"

    def build(units: int) -> Parts:
        made = parts(units, names[:5], value)
        return Parts(example + made.before, made.document, made.after, made.begin, made.outputs)

    return build


def _names(rng: random.Random, count: int, letters: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=letters))] = None
    return list(found)


def common_words(rng: random.Random, often: int = 30, seldom: int = 3) -> Callable[[int], Parts]:
    """Draw ten words that are listed more often than the others; an example comes first."""
    seed = rng.random()
    task = "Here is a numbered list of words. Memorize the ones that it has most often.\n"
    after = "\nQuestion: What are the 10 most common words in the list above?"
    begin = " Answer: The 10 words that the list has most often are:"

    def parts(rng: random.Random, units: int, often: int, seldom: int) -> Parts:
        drawn = haystack.words(rng, 10 + units)
        listed = drawn[:10] * often + drawn[10:] * seldom
        rng.shuffle(listed)
        text = " ".join(f"{number}. {word}" for number, word in enumerate(listed, 1))
        return Parts(task, text, after, begin, tuple(drawn[:10]))

    def build(units: int) -> Parts:
        fresh = random.Random(seed)
        shown = parts(fresh, 10, 3, 1)
        answer = " ".join(f"{number}. {word}" for number, word in enumerate(shown.outputs, 1))
        made = parts(fresh, units, often, seldom)
        before = f"{shown.whole} {answer}\n{made.before}"
        return Parts(before, made.document, after, begin, made.outputs)

    return build


def frequent_words(rng: random.Random) -> Callable[[int], Parts]:
    """Draw coded words whose counts fall by a zeta distribution; the three most frequent count."""
    coded = [name.lower() for name in _names(rng, 2000, 6)]
    seed = rng.random()
    task = (
        "Track how often each coded word is in this text, and find the three most frequent ones. "
    )
    after = (
        "\nQuestion: Explain nothing, and ignore the dots '....'. What are the three most frequent "
        "words in the coded text above?"
    )
    begin = " Answer: By the coded text above, the three most frequent words are:"
    ranks = ["....", *coded]

    def build(units: int) -> Parts:
        total = 20 * units
        counts = [int(total * rank**-2.0 / 1.6449340668482264) for rank in range(1, len(ranks) + 1)]
        text = [word for word, count in zip(ranks, counts, strict=True) for _ in range(count)]
        random.Random(seed).shuffle(text)
        top = [word for word, _ in Counter(x for x in text if x != "....").most_common(3)]
        return Parts(task, " ".join(text), after, begin, tuple(top))

    return build


MAKERS: dict[str, tuple[Maker, int]] = {
    "niah_single_1": (Needles("noise"), 128),
    "niah_single_2": (Needles("prose"), 128),
    "niah_single_3": (Needles("prose", long_values=True), 128),
    "niah_multikey_1": (Needles("prose", keys=4), 128),
    "niah_multikey_2": (Needles("needles"), 128),
    "niah_multikey_3": (Needles("needles", long_keys=True, long_values=True), 128),
    "niah_multivalue": (Needles("prose", values=4), 128),
    "niah_multiquery": (Needles("prose", queries=4), 128),
    "vt": (variable_tracking, 30),
    "cwe": (common_words, 120),
    "fwe": (frequent_words, 50),
}
"""What makes each generated task, and its longest answer."""
