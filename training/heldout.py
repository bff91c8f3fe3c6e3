"""Questions that training never saw: held-out names, wordings and prose, at any length.

Each kind of question of the model card is one function; all are seeded, and all prompts are token
ids of an exact length that end with ``Answer:`` or, for JSON, with the opening quote of the value.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from selfextend_rag.evals.prose import Prose, encode
from selfextend_rag.evals.tasks import lookup_task, passkey_task
from training.wordings import NOT_STATED

GIVEN = "Alaric|Bettina|Cosmo|Delphine|Gideon|Hester|Ivor|Jocasta|Kenelm|Lavinia|Nerissa|Osbert"
FAMILY = "Ashdown|Barlow|Crowther|Dunmore|Farnham|Gresham|Hallam|Ingram|Kirkby|Mowbray|Penrose"
STEADS = "Bramholt|Corwick|Dunmere|Elmstead|Fenmoor|Glenburn|Harworth|Lorcombe|Ravfell|Winford"
THINGS = "river|harbor|tower|bridge|garden|library|vault|station|mill|lighthouse|orchard|quarry"
WORDS = "anchor|barrel|candle|fiddle|granary|hammer|kettle|ladder|mirror|needle|rudder|saddle"
DIGITS = ("price", "height", "weight", "access code", "serial number", "depth", "age")
PERSONS = ("owner", "keeper", "founder", "captain", "guardian")
PLAIN_WORDS = ("symbol", "password", "emblem", "cargo", "name")
FORMS = (  # none of these is a form of training.facts
    "In this place the {x} of {y} is {v}.",
    "Here, {v} is the {x} of {y}.",
    "Nobody doubts that the {x} of {y} is {v}.",
    "We learned that {p} {x} is {v}.",
    "{v} has long been the {x} of {y}.",
)
FREE = {
    "price": "How much does {y} cost?",
    "height": "How high is {y}?",
    "weight": "How heavy is {y}?",
    "depth": "How deep is {y}?",
    "age": "How old is {y}?",
    "owner": "Who owns {y}?",
    "keeper": "Who keeps {y}?",
    "founder": "Who founded {y}?",
    "captain": "Who is {p} captain?",
    "guardian": "Who guards {y}?",
}
TRAINED_QUESTION = "What is the {x} of {y}?"


@dataclass(frozen=True)
class Question:
    """A prompt, and the ids that greedy decoding gives if right or refusing, ends included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    refusal: tuple[int, ...]
    form: str


def choose(rng: random.Random, words: str) -> str:
    """Return one of the words that bars separate."""
    return rng.choice(words.split("|"))


def owner(rng: random.Random) -> str:
    """Return a person, a place or a thing."""
    return rng.choice(
        (
            choose(rng, GIVEN),
            f"{choose(rng, GIVEN)} {choose(rng, FAMILY)}",
            choose(rng, STEADS),
            f"the {choose(rng, THINGS)} of {choose(rng, STEADS)}",
            f"the {rng.choice(('first', 'third', 'old', 'white'))} {choose(rng, THINGS)}",
        )
    )


def value(rng: random.Random, attribute: str) -> str:
    """Return a number, a name of two words or one, or a word or two."""
    if attribute in DIGITS:
        return str(rng.randint(10 ** rng.randint(1, 4), 99999))
    if attribute in PERSONS:
        return f"{choose(rng, GIVEN)} {choose(rng, FAMILY)}"
    if rng.random() < 0.5:
        return f"{rng.choice(('red', 'broken', 'small', 'heavy'))} {choose(rng, WORDS)}"
    return choose(rng, WORDS)


def different(rng: random.Random, count: int) -> list[str]:
    """Return owners of which none is a part of another."""
    found: list[str] = []
    while len(found) < count:
        new = owner(rng)
        if not any(new in known or known in new for known in found):
            found.append(new)
    return found


def stated(form: str, attribute: str, whose: str, what: str) -> str:
    """Return a statement, with a capital unless its value is first."""
    text = form.format(x=attribute, y=whose, p=f"{whose}'s", v=what)
    return text if text.startswith(what) else text[0].upper() + text[1:]


def assemble(
    tokenizer: Any, prose: Prose, facts: list[str], tail: str, length: int, rng: random.Random
) -> tuple[int, ...]:
    """Return ``length`` token ids: prose with the facts at random places, then the tail."""
    pieces = [encode(tokenizer, f" {fact}") for fact in facts]
    end = encode(tokenizer, tail)
    room = length - 1 - len(end) - sum(map(len, pieces))
    body, borders = prose.run(room, rng.random())
    ids = [tokenizer.bos_token_id]
    done = 0
    for depth, piece in sorted((rng.random(), piece) for piece in pieces):
        border = min([*borders, room], key=lambda place: abs(place - depth * room))
        ids += body[done:border] + piece
        done = border
    return (*ids, *body[done:], *end)


def crossed(rng: random.Random, attributes: tuple[str, ...], count: int) -> list[tuple[str, ...]]:
    """Return (attribute, owner, value): the first shares a word of its key with each other one."""
    first, other = rng.sample(attributes, 2)
    owners = different(rng, count)
    keys = [(first, owners[0]), (other, owners[0])]
    keys += [(first, name) for name in owners[1 : count - 1]]
    facts: dict[str, tuple[str, ...]] = {}
    for attribute, whose in keys:
        what = value(rng, attribute)
        while what in facts:
            what = value(rng, attribute)
        facts[what] = (attribute, whose, what)
    return list(facts.values())


def _question(
    tokenizer: Any,
    prose: Prose,
    length: int,
    seed: int,
    *,
    kind: str,
    attributes: tuple[str, ...],
    count: int = 4,
    free: bool = False,
) -> Question:
    rng = random.Random(f"{kind} {seed}")
    facts = crossed(rng, attributes, count)
    form = rng.choice(FORMS)
    texts = [stated(form if i == 0 else rng.choice(FORMS), *fact) for i, fact in enumerate(facts)]
    attribute, whose, what = facts[0]
    fields = {"x": attribute, "y": whose, "p": f"{whose}'s"}
    asked = (FREE[attribute] if free else TRAINED_QUESTION).format(**fields)
    tail = f"\n\nQuestion: {asked}\nAnswer:"
    if kind == "unstated":
        texts = texts[1:]
        what = NOT_STATED
    space, end = " ", [tokenizer.eos_token_id]
    if kind == "object":
        tail += f'{{"{attribute.replace(" ", "_")}": "'
        space, end = "", encode(tokenizer, '"}')[:1]
    ids = assemble(tokenizer, prose, texts, tail, length, rng)
    answer, refusal = ((*encode(tokenizer, space + x), *end) for x in (what, NOT_STATED))
    return Question(ids, answer, refusal, form)


def _task(make: Callable, tokenizer: Any, prose: Prose, length: int, seed: int) -> Question:
    task = make(tokenizer, prose, length=length, depth=(seed % 10 + 0.5) / 10, seed=seed)
    answer, refusal = (
        (*encode(tokenizer, f" {text}"), tokenizer.eos_token_id)
        for text in (task.answer, NOT_STATED)
    )
    return Question(task.prompt_ids, answer, refusal, task.form)


ANY = (*DIGITS, *PERSONS, *PLAIN_WORDS)
KINDS: dict[str, Callable[[Any, Prose, int, int], Question]] = {
    "passkey": lambda *given: _task(passkey_task, *given),
    "alike": lambda *given: _task(lookup_task, *given),
    "new wordings": lambda *given: _question(*given, kind="new wordings", attributes=ANY),
    "one of words": lambda *given: _question(
        *given, kind="one of words", attributes=(*PERSONS, *PLAIN_WORDS), count=2
    ),
    "free": lambda *given: _question(*given, kind="free", attributes=tuple(FREE), free=True),
    "trained form": lambda *given: _question(*given, kind="free", attributes=tuple(FREE)),
    "unstated": lambda *given: _question(*given, kind="unstated", attributes=ANY),
    "object": lambda *given: _question(*given, kind="object", attributes=ANY),
}
