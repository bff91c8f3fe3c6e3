"""Questions that one passage does not answer: two facts, a chain of two, a list, and a count.

Facts of a kind are spread over prose, those that are asked for among as many that are not. Wrong
answers are made of the others, so that a model which finds one fact and not the rest is set apart
from one that finds all; see ``likeliest`` in the results of ``--likelihood``. The wording is this
package's, and that which the bundled model is asked in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from selfextend_rag.evals.benchmarks.generated import haystack
from selfextend_rag.evals.benchmarks.generated.haystack import SyntheticOptions
from selfextend_rag.evals.benchmarks.items import Item, Question, Scores, Task, Tokens
from selfextend_rag.evals.metrics import retrieval
from selfextend_rag.evals.tasks import WORDS

CHAINS = 5  # of which one is asked for
LISTED = 5  # more than the three passages that retrieval brings by default in ``compare``
MOST = 8  # that are counted
_CODES = ("access code", "serial number", "reference number", "secret number")
_ROLES = ("owner", "keeper", "founder", "captain", "guardian")


@dataclass(frozen=True, slots=True)
class Asked:
    """Facts, a question about some of them, its answer, and wrong ones of the same form.

    Args:
        facts: sentences to be spread over a text; of a list, the needed ones first.
        needed: those that the answer rests on.
        question: what is asked.
        parts: what the answer has to name.
        answer: as a model would write it.
        others: wrong answers.
    """

    facts: tuple[str, ...]
    needed: tuple[str, ...]
    question: str
    parts: tuple[str, ...]
    answer: str
    others: tuple[str, ...]


Draw = Callable[[random.Random], Asked]


def tasks(options: SyntheticOptions) -> list[Task]:
    """Return the four tasks at each length."""
    return [
        Task(
            name=f"facts/{name}/{length}",
            metric="first_number" if name == "count" else "string_match_all",
            items=partial(_items, name, length, options),
            score=_score_count if name == "count" else _score_parts,
        )
        for length in options.lengths
        for name in DRAWN
    ]


def two(rng: random.Random) -> Asked:
    """Draw numbers of some people; those of two are asked for at once."""
    attribute, people = rng.choice(_CODES), _people(rng, CHAINS)
    codes = _numbers(rng, CHAINS)
    facts = tuple(
        f"The {attribute} of {who} is {code}." for who, code in zip(people, codes, strict=True)
    )
    first, second, third, fourth, _ = codes
    wrong = ((first, third), (third, second), (second, first), (third, fourth))
    return Asked(
        facts,
        facts[:2],
        f"What are the {attribute}s of {people[0]} and {people[1]}?",
        (first, second),
        _listed((first, second)),
        tuple(_listed(pair) for pair in wrong),
    )


def chain(rng: random.Random) -> Asked:
    """Draw who has to do with places, and these people's numbers; that of a place is asked for."""
    attribute, role = rng.choice(_CODES), rng.choice(_ROLES)
    people, places, codes = _people(rng, CHAINS), _places(rng, CHAINS), _numbers(rng, CHAINS)
    links = [f"The {role} of {x} is {who}." for x, who in zip(places, people, strict=True)]
    ends = [f"The {attribute} of {who} is {x}." for who, x in zip(people, codes, strict=True)]
    return Asked(
        (*links, *ends),
        (links[0], ends[0]),
        f"What is the {attribute} of the {role} of {places[0]}?",
        codes[:1],
        codes[0],
        codes[1:],
    )


def listed(rng: random.Random) -> Asked:
    """Draw people of two places; all of one are asked for, in the order of the text."""
    role, (place, other) = rng.choice(_ROLES), _places(rng, 2)
    people = _people(rng, 2 * LISTED)
    here, there = people[:LISTED], people[LISTED:]
    facts = _members(role, place, here)
    wrong = [[*here[:i], there[i], *here[i + 1 :]] for i in range(LISTED)]
    return Asked(
        (*facts, *_members(role, other, there)),
        facts,
        f"Who are the {role}s of {place}?",
        here,
        _listed(here),
        tuple(_listed(names) for names in wrong),
    )


def count(rng: random.Random) -> Asked:
    """Draw people of two places; how many there are in one is asked for."""
    role, (place, other) = rng.choice(_ROLES), _places(rng, 2)
    number, people = rng.randint(1, MOST), _people(rng, MOST + 1)
    facts = _members(role, place, people[:number])
    return Asked(
        (*facts, *_members(role, other, people[number:])),
        facts,
        f"How many {role}s does {place} have?",
        (str(number),),
        str(number),
        tuple(str(x) for x in range(1, MOST + 1) if x != number),
    )


DRAWN: dict[str, Draw] = {"two": two, "chain": chain, "list": listed, "count": count}
"""What draws each task's questions."""

_LONGEST = {"two": 32, "chain": 16, "list": 64, "count": 8}  # tokens of an answer


def _items(name: str, length: int, options: SyntheticOptions, tokens: Tokens) -> Iterator[Item]:
    size, most = haystack.counted(tokens), _LONGEST[name]
    for sample in range(options.samples):
        rng = random.Random(f"facts {name} {length} {options.seed} {sample}")
        asked = DRAWN[name](rng)
        start = rng.randrange(len(haystack.sentences()))
        after = f"\n\nQuestion: {asked.question}\nAnswer:"
        depths = _depths(rng, asked, in_order=name == "list")

        def text(
            units: int,
            facts: Sequence[str] = asked.facts,
            depths: Sequence[float] = depths,
            start: int = start,
        ) -> str:
            return " ".join(haystack.hidden(haystack.prose(units, start), facts, depths))

        document = haystack.fitted(text, size, length - most - size(after))
        question = Question(
            "0",
            after,
            {"parts": list(asked.parts)},
            most,
            answer=asked.answer,
            query=asked.question,
            evidence=asked.needed,
            others=asked.others,
        )
        groups = {"length": length, "facts": len(asked.needed)}
        yield Item(str(sample), "", document, (question,), groups=groups)


def _depths(rng: random.Random, asked: Asked, *, in_order: bool) -> list[float]:
    """Return a random depth for each fact; those that are needed come first, in order or not."""
    drawn = [rng.random() for _ in asked.facts]
    needed = len(asked.needed) if in_order else 0
    return [*sorted(drawn[:needed]), *drawn[needed:]]


def _members(role: str, place: str, people: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{who} is one of the {role}s of {place}." for who in people)


def _people(rng: random.Random, number: int) -> tuple[str, ...]:
    """Return people of whom no two share a name."""
    given, family = (rng.sample(WORDS[kind], number) for kind in ("given", "family"))
    return tuple(f"{a} {b}" for a, b in zip(given, family, strict=True))


def _places(rng: random.Random, number: int) -> list[str]:
    """Return places of which no two share a word."""
    starts, ends = (rng.sample(WORDS[f"place_{kind}"], number) for kind in ("starts", "ends"))
    return [a + b for a, b in zip(starts, ends, strict=True)]


def _numbers(rng: random.Random, number: int) -> tuple[str, ...]:
    """Return different numbers of five digits, so that answers are as long as one another."""
    return tuple(str(x) for x in rng.sample(range(10000, 100000), number))


def _listed(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _score_parts(question: Question, text: str) -> Scores:
    parts: list[str] = question.gold["parts"]  # type: ignore[assignment]  # as the task made it
    return {"score": 100 * retrieval.string_match_all(text, parts)}


def _score_count(question: Question, text: str) -> Scores:
    parts: list[str] = question.gold["parts"]  # type: ignore[assignment]  # as the task made it
    return {"score": 100 * retrieval.first_number(text, parts[0])}
