"""Facts for lookups: "the X of Y is V" in many wordings, with the question that asks for V.

Attributes X, owners Y and values V are drawn from thousands of words, real names and made-up
ones, so that a model does better to match and copy than to remember.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from training.questions import MEASURES, SPECIAL, VERBS, free_questions
from training.wordings import (
    ASIDES,
    ATTRIBUTES,
    BARE_FORMS,
    BARE_QUESTIONS,
    CAUSES,
    CODAS,
    COLOURS,
    DAYS,
    DEED_FORMS,
    DEED_QUESTIONS,
    DEEDS,
    EVENT_FORMS,
    EVENTS,
    FEW_SHARE,
    FREE_SHARE,
    GOES_ON,
    LEADS,
    MONTHS,
    NOT_STATED,
    ONSETS,
    ORDINALS,
    OWNED_FORMS,
    OWNED_QUESTIONS,
    PEOPLE,
    PLACES,
    PLAIN_FORMS,
    RESTATED_FORMS,
    ROLES,
    SHORT_NAMES,
    TIMES,
    TITLES,
    UNITS,
    VOWELS,
)


@dataclass(frozen=True)
class Fact:
    """One statement, the question that asks for its value, and the value."""

    attribute: str
    owner: str
    value: str
    statement: str
    question: str

    @property
    def stated(self) -> bool:
        """Return whether the text says it."""
        return bool(self.statement)


class FactMaker:
    """Draws facts from word lists.

    Args:
        words: lists named ``nouns``, ``rare_nouns``, ``names`` and ``words``.
        rng: the source of all choices.
    """

    def __init__(self, words: dict[str, list[str]], rng: random.Random) -> None:
        self.words = words
        self.rng = rng
        self.few: dict[str, list[str]] = {}

    def draw_from_few(self, share: float) -> None:
        """Let the facts to come share names and words with each other, or no longer.

        Where "Clara Ford" and "Clara Hall" are in one text, what came after the last "Clara" does
        not tell what comes after this one.
        """
        self.few = {}
        if self.rng.random() < share:
            few = {
                "name": [self.name() for _ in range(self.rng.randint(3, 6))],
                "noun": [self.noun() for _ in range(self.rng.randint(3, 6))],
                "word": [self.word() for _ in range(self.rng.randint(2, 4))],
            }
            self.few = few

    def syllables(self) -> str:
        """Return a made-up, capitalised name."""
        choice = self.rng.choice
        parts = [
            choice(ONSETS) + choice(VOWELS) + choice(CODAS)
            for _ in range(self.rng.choices((1, 2, 3), (1, 6, 3))[0])
        ]
        return "".join(parts).capitalize()

    def name(self) -> str:
        """Return a name of one word, real or made up."""
        if self.few and self.rng.random() < FEW_SHARE:
            return self.rng.choice(self.few["name"])
        return self.syllables() if self.rng.random() < 0.6 else self.rng.choice(self.words["names"])

    def noun(self) -> str:
        """Return a common noun, at times a rare one."""
        if self.few and self.rng.random() < FEW_SHARE:
            return self.rng.choice(self.few["noun"])
        return self.rng.choice(self.words["rare_nouns" if self.rng.random() < 0.3 else "nouns"])

    def word(self) -> str:
        """Return a word that comes before nouns."""
        if self.few and self.rng.random() < FEW_SHARE:
            return self.rng.choice(self.few["word"])
        return self.rng.choice(self.words["words"])

    def attribute(self) -> str:
        """Return an attribute of one or two words."""
        pick = self.rng.random()
        if pick < 0.15:  # those with questions of their own: "How high is ...?"
            return self.rng.choice(tuple(SPECIAL))
        if pick < 0.55:
            return self.rng.choice(ATTRIBUTES)
        if pick < 0.85:
            return self.noun()
        return f"{self.word()} {self.noun()}"

    def owner(self) -> str:
        """Return an owner: a person, a place, a thing; with its article where it needs one."""
        rng = self.rng
        kinds: tuple[Callable[[], str], ...] = (
            self.name,
            self.name,
            lambda: f"{self.name()} {self.name()}",
            lambda: f"{rng.choice(TITLES)} {self.name()}",
            lambda: f"the {rng.choice(ORDINALS)} {rng.choice(PLACES)}",
            lambda: f"the {rng.choice(ORDINALS)} {self.noun()}",
            lambda: f"the {self.noun()}",
            lambda: f"the {self.word()} {self.noun()}",
            lambda: f"the {rng.choice(PLACES)} of {self.name()}",
            lambda: f"the {self.name()} {rng.choice(PLACES)}",
            lambda: f"{rng.choice(PLACES)} {rng.randint(1, 99)}",
        )
        return rng.choice(kinds)()

    def digits(self) -> str:
        """Return one to seven digits, most often five, at times of few different digits."""
        length = self.rng.choices(range(1, 8), (1, 2, 3, 4, 8, 3, 2))[0]
        alphabet = "0123456789"
        if self.rng.random() < 0.25:
            alphabet = "".join(self.rng.sample(alphabet, self.rng.randint(2, 4)))
        return "".join(self.rng.choices(alphabet, k=length))

    def value(self, attribute: str) -> str:
        """Return a value: digits, words, a name, a quantity, a date or a mixed code."""
        rng = self.rng
        if attribute in PEOPLE and rng.random() < 0.6:
            return self.name() if rng.random() < 0.4 else f"{self.name()} {self.name()}"
        if "colo" in attribute and rng.random() < 0.6:
            return rng.choice(COLOURS)
        pick = rng.random()
        if pick < 0.5:
            return self.digits()
        if pick < 0.62:
            return self.name()
        if pick < 0.70:
            return f"{self.name()} {self.name()}"
        if pick < 0.80:
            return self.noun()
        if pick < 0.88:
            return f"{self.word()} {self.noun()}"
        if pick < 0.92:
            return f"{rng.randint(2, 999)} {rng.choice(UNITS)}"
        if pick < 0.96:
            return f"{rng.randint(1, 28)} {rng.choice(MONTHS)} {rng.randint(1500, 2099)}"
        mixed = "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ23456789-", k=rng.randint(3, 6)))
        return mixed.strip("-") or "K7"

    def fact(self, attribute: str, owner: str, *, plain: bool = False) -> Fact:
        """Return a fact about an attribute of an owner; no owner (``""``) is a bare fact.

        ``plain`` keeps to the plainest wordings.
        """
        rng = self.rng
        value = self.value(attribute)
        fields = {
            "x": attribute,
            "y": owner,
            "p": f"{owner}'" if owner.endswith("s") and rng.random() < 0.3 else f"{owner}'s",
            "v": value,
            "aside": rng.choice(ASIDES),
            "cause": rng.choice(CAUSES),
            "goes_on": rng.choice(GOES_ON),
            "lead": rng.choice(LEADS),
        }
        if plain and owner:
            statement = rng.choice(PLAIN_FORMS).format(**fields)
            question = OWNED_QUESTIONS[0].format(**fields)
            return Fact(attribute, owner, value, _sentence_case(statement, value), question)
        statement = rng.choice(OWNED_FORMS if owner else BARE_FORMS).format(**fields)
        question = self._question(attribute, owner, fields["p"])
        if owner and attribute in MEASURES and rng.random() < 0.3:
            statement = rng.choice(MEASURES[attribute]).format(**fields)
        return Fact(attribute, owner, value, _sentence_case(statement, value), question)

    def _question(self, attribute: str, owner: str, possessive: str) -> str:
        rng = self.rng
        if owner and rng.random() < FREE_SHARE:
            form = rng.choice(free_questions(attribute))
        elif attribute in PEOPLE and rng.random() < 0.5:
            form = "Who is the {x} of {y}?" if owner else "Who is the {x}?"
        else:
            form = rng.choice(OWNED_QUESTIONS if owner else BARE_QUESTIONS)
        return form.format(x=attribute, y=owner, p=possessive)

    def asked_again(self, fact: Fact) -> Fact:
        """Return the same fact with another question for it, where there are others."""
        if fact.attribute in VERBS:
            does, done = fact.attribute, VERBS[fact.attribute]
            is_ = "are" if fact.owner.endswith("s") else "is"
            form = self.rng.choice(DEED_QUESTIONS)
            question = _capital(form.format(does=does, done=done, is_=is_, y=fact.owner))
        elif fact.question.startswith(("When", "Where")) or fact.attribute == "pass key":
            return fact
        else:
            question = self._question(fact.attribute, fact.owner, f"{fact.owner}'s")
        return replace(fact, question=question)

    def facts(self, count: int, *, plain: bool = False) -> list[Fact]:
        """Return facts of which no two ask the same, many sharing an attribute or an owner."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.12 and not plain:
            return self.deeds(count)
        if kind < 0.55 and count > 1:
            return self.grid(count, plain=plain)
        keys: list[tuple[str, str]] = []
        bare: set[str] = set()
        used: set[str] = set()
        while len(keys) < count:
            attribute, owner = self._key_like(rng.choice(keys)) if keys else self._key()
            if (attribute, owner) in keys or attribute in bare or (not owner and attribute in used):
                continue
            used.add(attribute)
            if not owner:
                bare.add(attribute)
            keys.append((attribute, owner))
        rng.shuffle(keys)
        return [self.fact(attribute, owner, plain=plain) for attribute, owner in keys]

    def grid(self, count: int, *, plain: bool = False) -> list[Fact]:
        """Return facts that cross few attributes with few owners, so that each word counts."""
        rng = self.rng
        wide = rng.randint(1, min(3, count))
        attributes = self._different(self.attribute, wide)
        needed = max(2, -(-count // wide)) + rng.randint(0, 1)
        near = rng.random() < 0.3
        first = self.owner()
        owners = self._different(lambda: self._near(first) if near else self.owner(), needed)
        keys = [(attribute, owner) for attribute in attributes for owner in owners]
        return [self.fact(*key, plain=plain) for key in rng.sample(keys, min(count, len(keys)))]

    def _different(self, draw: Callable[[], str], count: int) -> list[str]:
        """Return draws of which none is a part of another."""
        found: list[str] = []
        for attempt in range(count * 30):
            new = draw() if attempt < count * 15 else self.owner()
            if not any(new in known or known in new for known in found):
                found.append(new)
            if len(found) == count:
                break
        return found

    def deeds(self, count: int) -> list[Fact]:
        """Return facts about who does what, and when or where something is."""
        rng = self.rng
        verbs = rng.sample(sorted(VERBS), min(len(VERBS), rng.randint(1, 3)))
        things = self._different(self._deed, max(2, -(-count // len(verbs))))
        keys = [(verb, thing) for verb in verbs for thing in things]
        facts = [self._deed_fact(*key) for key in rng.sample(keys, min(count, len(keys)))]
        for place, event in enumerate(rng.sample(EVENTS, min(len(facts), len(EVENTS)))):
            if rng.random() < 0.3:
                facts[place] = self._event_fact(event)
        return facts

    def _deed(self) -> str:
        if self.rng.random() < 0.5:
            return self.rng.choice(DEEDS)
        return f"the {self.rng.choice(PLACES) if self.rng.random() < 0.5 else self.noun()}"

    def _deed_fact(self, verb: str, thing: str) -> Fact:
        rng = self.rng
        pick = rng.random()
        if pick < 0.5:
            value = f"the {rng.choice(ROLES)}"
        elif pick < 0.8:
            value = self.name() if rng.random() < 0.5 else f"{self.name()} {self.name()}"
        else:
            value = f"{rng.choice(TITLES)} {self.name()}"
        plural = thing.endswith("s")
        fields = {
            "does": verb,
            "done": VERBS[verb],
            "is_": "are" if plural else "is",
            "y": thing,
            "v": value,
            "Y": thing[0].upper() + thing[1:],
            "V": value[0].upper() + value[1:],
            "cause": rng.choice(CAUSES),
        }
        form = rng.choice(DEED_FORMS)
        value = fields["V"] if "{V}" in form else value
        question = rng.choice(DEED_QUESTIONS).format(**fields)
        return Fact(verb, thing, value, form.format(**fields), _capital(question))

    def _event_fact(self, event: str) -> Fact:
        rng = self.rng
        when = rng.random() < 0.7
        if when:
            at, value = rng.choice((("at", rng.choice(TIMES)), ("on", rng.choice(DAYS))))
        else:
            at, value = "in", f"the {rng.choice(ORDINALS)} {rng.choice(PLACES)}"
        value = f"{at} {value}"
        fields = {"y": event, "Y": _capital(event), "at": at, "v": value.removeprefix(f"{at} ")}
        statement = rng.choice(EVENT_FORMS).format(cause=rng.choice(CAUSES), **fields)
        question = f"{'When' if when else 'Where'} {rng.choice(('is', 'is', 'will'))} {event}"
        question += " be?" if question.split()[1] == "will" else "?"
        return Fact("time" if when else "place", event, value, statement, question)

    def unstated(self, facts: list[Fact]) -> Fact:
        """Return a question that the facts do not answer, most often of words that they hold."""
        rng = self.rng
        owned = [fact for fact in facts if fact.owner and fact.attribute not in ("time", "place")]
        stated = {(fact.attribute, fact.owner) for fact in facts}
        bare = {fact.attribute for fact in facts if not fact.owner}
        for _ in range(20):
            if owned and rng.random() < 0.8:
                fact = rng.choice(owned)
                if fact.attribute in VERBS:
                    asked = self._deed_fact(rng.choice(sorted(VERBS)), fact.owner)
                elif rng.random() < 0.65:  # both words of the key are there, but not together
                    asked = self.fact(rng.choice(owned).attribute, fact.owner)
                elif rng.random() < 0.5:
                    asked = self.fact(self.attribute(), fact.owner)
                else:
                    asked = self.fact(fact.attribute, self.owner())
            else:
                asked = self.fact(self.attribute(), self.owner())
            if (asked.attribute, asked.owner) in stated or asked.attribute in bare:
                continue
            if asked.attribute in VERBS or not any(
                asked.attribute == fact.attribute
                and (asked.owner in fact.owner or fact.owner in asked.owner)
                for fact in facts
            ):
                return replace(asked, value=NOT_STATED, statement="")
        return replace(self.fact(*self._key()), value=NOT_STATED, statement="")

    def passkey(self) -> Fact:
        """Return the one fact of the passkey test: five digits, stated twice."""
        few = self.rng.sample("0123456789", self.rng.randint(2, 5))  # digits come again: harder
        key = "".join(self.rng.choices(few if self.rng.random() < 0.4 else "0123456789", k=5))
        statement = BARE_FORMS[0].format(x="pass key", v=key)
        return Fact("pass key", "", key, statement, "What is the pass key?")

    def short_facts(self, count: int) -> list[Fact]:
        """Return plain facts of short owners and attributes, with values of a few digits."""
        rng = self.rng
        keys: dict[tuple[str, str], None] = {}
        attributes = rng.sample(ATTRIBUTES, min(count, rng.randint(1, 4)))
        owners = rng.sample(SHORT_NAMES, count)
        while len(keys) < count:
            keys[rng.choice(attributes), rng.choice(owners)] = None
        facts = []
        for attribute, owner in keys:
            value = "".join(rng.choices("0123456789", k=rng.choice((1, 2, 2, 3, 5))))
            fields = {"x": attribute, "y": owner, "p": f"{owner}'s", "v": value}
            statement = _sentence_case(rng.choice(PLAIN_FORMS).format(**fields), value)
            question = OWNED_QUESTIONS[0].format(**fields)
            facts.append(Fact(attribute, owner, value, statement, question))
        return facts

    def restated(self, fact: Fact) -> str:
        """Return the beginning of another statement of the fact, up to its value."""
        if not fact.owner:
            return f"The {fact.attribute} is"
        form = self.rng.choice(RESTATED_FORMS)
        text = form.format(x=fact.attribute, y=fact.owner, p=f"{fact.owner}'s", v="")
        return _sentence_case(text.removesuffix(" ."), "\0")

    def _key(self) -> tuple[str, str]:
        return self.attribute(), "" if self.rng.random() < 0.12 else self.owner()

    def _key_like(self, key: tuple[str, str]) -> tuple[str, str]:
        """Return a new key that often shares the attribute, the owner, or a word of the owner."""
        attribute, owner = key
        pick = self.rng.random()
        if pick < 0.3 and owner:
            return attribute, self.owner()
        if pick < 0.5 and owner:
            return self.attribute(), owner
        if pick < 0.7 and " " in owner:
            return (attribute if self.rng.random() < 0.6 else self.attribute()), self._near(owner)
        return self._key()

    def _near(self, owner: str) -> str:
        """Return an owner with one word of this one exchanged."""
        parts = owner.split()
        place = self.rng.randrange(len(parts))
        old = parts[place]
        if old in ("the", "of"):
            return owner
        if old.isdigit():
            parts[place] = str(self.rng.randint(1, 99))
        elif old in ORDINALS:
            parts[place] = self.rng.choice(ORDINALS)
        else:
            parts[place] = self.name() if old[0].isupper() else self.noun()
        return " ".join(parts)

    def stray_number(self) -> str:
        """Return a sentence with digits that answers nothing."""
        return self.rng.choice(
            (
                "There were {n} of them.",
                "See page {n} for more.",
                "He counted {n} and went on.",
                "The bill came to {n} in the end.",
                "In {n} it was built again.",
                "{n} people saw it.",
            )
        ).format(n=self.digits())


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _sentence_case(statement: str, value: str) -> str:
    """Return the statement with a capital at its start, unless it begins with the value."""
    if statement.startswith(value):
        return statement
    return statement[0].upper() + statement[1:]
