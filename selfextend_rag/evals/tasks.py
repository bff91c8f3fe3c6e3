"""Questions about a fact in long prose, as token ids of an exact length.

Every prompt is ``<bos>`` + document + ``\\n\\nQuestion: ...\\nAnswer:``; the answer follows. The
same seed gives the same prompt. Wordings and names are drawn from ``data/words.json``, which the
training data's generator does not use.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from importlib.resources import files

from transformers import PreTrainedTokenizerBase

from selfextend_rag.evals.prose import Prose, encode, leading_tokens

_DATA = files("selfextend_rag.evals") / "data" / "words.json"
WORDS: dict[str, list[str]] = json.loads(_DATA.read_text("utf-8"))


@dataclass(frozen=True)
class LookupTask:
    """One prompt and what should follow it.

    Attributes:
        prompt_ids: the prompt, as long as asked.
        answer: the expected answer, without the space before it.
        statement: the sentence that holds the answer.
        statement_start: offset of its first token in ``prompt_ids``.
        question: the question as it is in the prompt.
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
    tokenizer: PreTrainedTokenizerBase, prose: Prose, *, length: int, depth: float, seed: int
) -> LookupTask:
    """Return a prompt that hides one pass key of five digits in prose.

    Args:
        tokenizer: a transformers tokenizer.
        prose: the text around; a part of it is drawn by the seed.
        length: tokens of the whole prompt.
        depth: from 0 to 1, the place of the statement.
        seed: fixes the key and the prose.

    Raises:
        ValueError: the length has no space for the statement, or exceeds the prose.
    """
    rng = random.Random(f"passkey {seed}")
    key = str(rng.randint(10000, 99999))
    form = "The pass key is {v}. Remember it. {v} is the pass key."
    statements = [(depth, form.format(v=key))]
    return _assemble(
        tokenizer, prose, statements, "What is the pass key?", key, form, length=length, rng=rng
    )


def lookup_task(
    tokenizer: PreTrainedTokenizerBase,
    prose: Prose,
    *,
    length: int,
    depth: float,
    seed: int,
    distractors: int = 4,
) -> LookupTask:
    """Return a prompt that asks for one of several facts, in one of several wordings.

    Half of the distractors state the same attribute of another owner, half another attribute of the
    same owner; they are at random depths. Values are numbers, words or names.

    Args and errors as in ``passkey_task``.
    """
    rng = random.Random(f"lookup {seed}")
    attributes = [
        *WORDS["number_attributes"],
        *WORDS["name_attributes"],
        *WORDS["word_attributes"],
    ]
    attribute, *other_attributes = rng.sample(attributes, 1 + distractors)
    owner, *other_owners = _different(rng, 1 + distractors)
    form = _draw(rng, "statements")
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
        statements.append((rng.random(), _state(_draw(rng, "statements"), *key, other)))
    question = f"What is the {attribute} of {owner}?"
    return _assemble(tokenizer, prose, statements, question, value, form, length=length, rng=rng)


def _draw(rng: random.Random, kind: str) -> str:
    return rng.choice(WORDS[kind])


def _place(rng: random.Random) -> str:
    return _draw(rng, "place_starts") + _draw(rng, "place_ends")


def _owner(rng: random.Random) -> str:
    place = _place(rng)
    return rng.choice(
        (
            _draw(rng, "given"),
            f"{_draw(rng, 'given')} {_draw(rng, 'family')}",
            place,
            f"the {_draw(rng, 'ordinals')} {_draw(rng, 'things')}",
            f"the {_draw(rng, 'things')} of {place}",
            f"the {_draw(rng, 'nouns')}",
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
    if attribute in WORDS["number_attributes"]:
        return str(rng.randint(10 ** rng.randint(1, 5), 999999))
    if attribute in WORDS["name_attributes"]:
        person = f"{_draw(rng, 'given')} {_draw(rng, 'family')}"
        return rng.choice((person, _place(rng)))
    return _draw(rng, "nouns")


def _state(form: str, attribute: str, owner: str, value: str) -> str:
    text = form.format(x=attribute, y=owner, p=f"{owner}'s", v=value)
    return text if text.startswith(value) else text[0].upper() + text[1:]


def _assemble(
    tokenizer: PreTrainedTokenizerBase,
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
    space = length - len(head) - len(tail) - sum(len(ids) for _, ids, _ in encoded)
    if space < 0:
        raise ValueError(
            f"a prompt of {length} tokens has no space for its facts: {-space} too few"
        )
    body, borders = prose.run(space, rng.random())
    ids = list(head)
    done = start = 0
    for depth, statement_ids, text in sorted(encoded, key=lambda entry: entry[0]):
        border = min([*borders, space], key=lambda place: abs(place - depth * space))
        ids += body[done:border]
        done = border
        if text == wanted:
            start = len(ids)
        ids += statement_ids
    ids += body[done:] + tail
    return LookupTask(tuple(ids), answer, wanted, start, question, first_depth, form)
