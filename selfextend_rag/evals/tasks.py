"""Questions about a fact in long prose, as token ids of an exact length.

Every prompt is ``<bos>`` + document + ``\\n\\nQuestion: ...\\nAnswer:``; the answer follows. The
same seed gives the same prompt. Wordings, names and numbers are drawn here, apart from the training
data's generator.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from selfextend_rag.evals.prose import Prose, encode, leading_tokens


def _words(text: str) -> list[str]:
    return text.split("|")


_GIVEN = _words(
    "Alaric|Bettina|Cosmo|Delphine|Edmund|Fiona|Gideon|Hester|Ivor|Jocasta|Kenelm|Lavinia|Magnus"
    "|Nerissa|Osbert|Petra|Quentin|Rosalind|Silas|Tabitha|Ulric|Verity|Wilfred|Yolanda"
)
_FAMILY = _words(
    "Ashdown|Barlow|Crowther|Dunmore|Ellery|Farnham|Gresham|Hallam|Ingram|Jessop|Kirkby|Langley"
    "|Mowbray|Norland|Oakes|Penrose|Quill|Ramsden|Selwyn|Thornby|Upton|Wexford|Yardley"
)
_PLACE_STARTS = _words("Bram|Cor|Dun|Elm|Fen|Glen|Har|Kel|Lor|Mar|Nor|Ost|Pen|Rav|Sel|Tor|Val|Win")
_PLACE_ENDS = _words("holt|wick|dale|mere|stead|ford|burn|gate|moor|worth|by|ley|combe|fell")
_NOUNS = _words(
    "anchor|barrel|candle|desk|engine|fiddle|granary|hammer|island|kettle|ladder|mirror|needle"
    "|orchard|pillar|quarry|rudder|saddle|telescope|umbrella|violin|wagon"
)
_ORDINALS = _words("first|second|third|fourth|fifth|sixth|seventh|eighth")
_THINGS = _words("river|harbor|tower|bridge|garden|library|vault|station|mill|lighthouse")
_NUMBER_ATTRIBUTES = _words(
    "access code|serial number|price|height|room number|secret number|weight|reference number"
)
_NAME_ATTRIBUTES = _words("owner|keeper|founder|captain|name|capital|guardian")
_WORD_ATTRIBUTES = _words("symbol|favourite food|password|emblem|cargo")
_STATEMENTS = (
    "The {x} of {y} is {v}.",
    "{p} {x} is {v}.",
    "Remember: the {x} of {y} is {v}.",
    "{v} is the {x} of {y}.",
    "As for {y}, its {x} is {v}.",
    "The {x} for {y} was set to {v}.",
    "The {x} of {y}, as everyone knows, is {v}.",
)


@dataclass(frozen=True)
class LookupTask:
    """One prompt and what should follow it.

    Attributes:
        prompt_ids: the prompt, as long as asked.
        answer: the expected answer, without the space before it.
        statement: the sentence that holds the answer.
        statement_start: offset of its first token in ``prompt_ids``.
        question: the question as it stands in the prompt.
        depth: where the statement was asked to be, 0 the document's start and 1 its end.
        form: the wording's template.
    """

    prompt_ids: tuple[int, ...]
    answer: str
    statement: str
    statement_start: int
    question: str
    depth: float
    form: str


def passkey_task(
    tokenizer: Any, prose: Prose, *, length: int, depth: float, seed: int
) -> LookupTask:
    """Return a prompt that hides one pass key of five digits in prose.

    Args:
        tokenizer: a transformers tokenizer.
        prose: the text around; a part of it is drawn by the seed.
        length: tokens of the whole prompt.
        depth: from 0 to 1, the place of the statement.
        seed: fixes the key and the prose.

    Raises:
        ValueError: the length has no room for the statement, or exceeds the prose.
    """
    rng = random.Random(f"passkey {seed}")
    key = str(rng.randint(10000, 99999))
    form = "The pass key is {v}. Remember it. {v} is the pass key."
    statements = [(depth, form.format(v=key))]
    return _assemble(
        tokenizer, prose, statements, "What is the pass key?", key, form, length=length, rng=rng
    )


def lookup_task(
    tokenizer: Any, prose: Prose, *, length: int, depth: float, seed: int, distractors: int = 4
) -> LookupTask:
    """Return a prompt that asks for one of several facts, in one of several wordings.

    Half of the distractors state the same attribute of another owner, half another attribute of the
    same owner; they stand at random depths. Values are numbers, words or names.

    Args and errors as in ``passkey_task``.
    """
    rng = random.Random(f"lookup {seed}")
    attributes = [*_NUMBER_ATTRIBUTES, *_NAME_ATTRIBUTES, *_WORD_ATTRIBUTES]
    attribute, *other_attributes = rng.sample(attributes, 1 + distractors)
    owner, *other_owners = _different(rng, 1 + distractors)
    form = rng.choice(_STATEMENTS)
    value = _value(rng, attribute)
    statements = [(depth, _state(form, attribute, owner, value))]
    for number in range(distractors):
        same_attribute = number % 2 == 0
        key = (
            (attribute, other_owners[number])
            if same_attribute
            else (other_attributes[number], owner)
        )
        other = _value(rng, key[0])
        while other == value:
            other = _value(rng, key[0])
        statements.append((rng.random(), _state(rng.choice(_STATEMENTS), *key, other)))
    question = f"What is the {attribute} of {owner}?"
    return _assemble(tokenizer, prose, statements, question, value, form, length=length, rng=rng)


def _owner(rng: random.Random) -> str:
    place = rng.choice(_PLACE_STARTS) + rng.choice(_PLACE_ENDS)
    return rng.choice(
        (
            rng.choice(_GIVEN),
            f"{rng.choice(_GIVEN)} {rng.choice(_FAMILY)}",
            place,
            f"the {rng.choice(_ORDINALS)} {rng.choice(_THINGS)}",
            f"the {rng.choice(_THINGS)} of {place}",
            f"the {rng.choice(_NOUNS)}",
        )
    )


def _different(rng: random.Random, count: int) -> list[str]:
    """Return owners of which none is part of another, so that questions have one answer."""
    owners: list[str] = []
    while len(owners) < count:
        owner = _owner(rng)
        if not any(owner in known or known in owner for known in owners):
            owners.append(owner)
    return owners


def _value(rng: random.Random, attribute: str) -> str:
    if attribute in _NUMBER_ATTRIBUTES:
        return str(rng.randint(10 ** rng.randint(1, 5), 999999))
    if attribute in _NAME_ATTRIBUTES:
        person = f"{rng.choice(_GIVEN)} {rng.choice(_FAMILY)}"
        return rng.choice((person, rng.choice(_PLACE_STARTS) + rng.choice(_PLACE_ENDS)))
    return rng.choice(_NOUNS)


def _state(form: str, attribute: str, owner: str, value: str) -> str:
    text = form.format(x=attribute, y=owner, p=f"{owner}'s", v=value)
    return text if text.startswith(value) else text[0].upper() + text[1:]


def _assemble(
    tokenizer: Any,
    prose: Prose,
    statements: list[tuple[float, str]],
    question: str,
    answer: str,
    form: str,
    *,
    length: int,
    rng: random.Random,
) -> LookupTask:
    """Return the task whose prompt holds the statements at the borders nearest to their depths."""
    head = leading_tokens(tokenizer)
    tail = encode(tokenizer, f"\n\nQuestion: {question}\nAnswer:")
    first_depth, wanted = statements[0]
    encoded = [(depth, encode(tokenizer, f" {text}"), text) for depth, text in statements]
    room = length - len(head) - len(tail) - sum(len(ids) for _, ids, _ in encoded)
    if room < 0:
        raise ValueError(f"a prompt of {length} tokens has no room for its facts: {-room} too few")
    body, borders = prose.run(room, rng.random())
    ids = list(head)
    done = start = 0
    for depth, statement_ids, text in sorted(encoded, key=lambda entry: entry[0]):
        border = min([*borders, room], key=lambda place: abs(place - depth * room))
        ids += body[done:border]
        done = border
        if text == wanted:
            start = len(ids)
        ids += statement_ids
    ids += body[done:] + tail
    return LookupTask(tuple(ids), answer, wanted, start, question, first_depth, form)
