"""Training rows: documents with questions, and repeats that teach copying."""

import json
import random
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from training.facts import Fact, FactMaker
from training.guide import NOWHERE, Guide, Span
from training.wordings import NOT_STATED

PROSE_WEIGHT = 0.1
CHOICE_WEIGHT = 2.0  # of the first token that tells one value from another


FEW_NAMES = 0.4  # share of the documents whose facts share a few names and words


@dataclass(frozen=True)
class Prose:
    """Token ids of the training prose, and where its sentences and paragraphs start."""

    ids: np.ndarray
    sentences: np.ndarray
    paragraphs: np.ndarray

    @classmethod
    def load(cls, folder: Path) -> "Prose":
        """Return what ``training.prepare`` wrote."""
        return cls(
            *(np.load(folder / f"{name}.npy") for name in ("prose", "sentences", "paragraphs"))
        )


@dataclass(frozen=True)
class Stage:
    """One step of the curriculum.

    Attributes:
        length: tokens of a row.
        facts: the most facts in a document of prose.
        rows: rows of a batch.
        repeats: share of rows that are repeats.
        passkeys: share of the documents whose one fact is a pass key.
        associations: share of rows that pair random keys with random values, twice.
        gap: the most tokens between key and value in them.
        restated: share of rows that state facts and then state or ask them again.
        dense: share of the documents that hold facts and hardly any prose.
        plain: whether facts keep to the plainest wordings.
        unstated: share of the questions that the document does not answer.
        objects: share of the answers that are JSON objects.
        quoted: share of rows that list words, and then the same words in quotation marks.
        inside: share of rows whose questions bring their own text.
        branched: tokens of a row whose questions do not see each other; each has the positions
            after the document, so that document and question are at most ``length`` tokens.
    """

    length: int
    facts: int
    rows: int
    repeats: float
    dense: float
    passkeys: float = 0.0
    associations: float = 0.0
    gap: int = 4
    restated: float = 0.0
    plain: bool = False
    unstated: float = 0.0
    objects: float = 0.0
    quoted: float = 0.0
    inside: float = 0.0
    branched: int = 0


Row = tuple[list[int], list[int], list[float], list[Span], list[Span]]
"""Input ids, targets, weights of the loss, where in the row each target is stated, and pairs of
places: a token of a statement's end, and that of its value which it should know."""


class SampleMaker:
    """Draws rows of exactly the asked length."""

    def __init__(
        self, tokenizer: Tokenizer, prose: Prose, facts: FactMaker, rng: random.Random
    ) -> None:
        self.tokenizer = tokenizer
        self.prose = prose
        self.facts = facts
        self.rng = rng
        self.bos = tokenizer.token_to_id("<bos>")
        self.eos = tokenizer.token_to_id("<eos>")
        self.vocabulary_size = tokenizer.get_vocab_size()
        self.paragraph_starts = set(prose.paragraphs.tolist())
        self._encode = lru_cache(maxsize=4096)(
            lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        )
        self.space = self.encode(" ")[0]
        self.guide = Guide(self.encode, self.space)
        self.newlines = frozenset(self.encode("\n"))
        self.digit_ids = [self.encode(str(d))[0] for d in range(10)]
        self.frequent = [  # words that are one token after a space, and one without
            word[1:] for word in tokenizer.get_vocab() if re.fullmatch(r"Ġ[A-Za-z]{3,}", word)
        ]
        self.frequent.sort()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without a start token."""
        return list(self._encode(text))

    def row(self, stage: Stage) -> Row:
        """Return a row of the stage: a repeat, facts restated, or a document with questions."""
        if self.rng.random() < stage.inside:
            return self.inside(stage)
        pick = self.rng.random()
        if pick < stage.repeats:
            return self.repeat(stage.length)
        if pick < stage.repeats + stage.associations:
            return self.associations(stage)
        if pick < stage.repeats + stage.associations + stage.restated:
            return self.restated(stage)
        if self.rng.random() < stage.quoted:
            return self.quoted(stage.length)
        return self.lookup(stage)

    # ---- repeats -------------------------------------------------------------------------------

    def _segment(self, length: int) -> list[int]:
        kind = self.rng.random()
        if kind < 0.35:
            return [self.rng.randrange(3, self.vocabulary_size) for _ in range(length)]
        if kind < 0.5:
            some = self.rng.sample(self.digit_ids, self.rng.randint(3, 10))
            return self.rng.choices(some, k=length)
        if kind < 0.65:
            words = self.rng.choices(self.facts.words["rare_nouns"], k=length)
            return self.encode(" " + " ".join(words))[:length]
        return self._prose_run(length)[0]

    def repeat(self, length: int) -> Row:
        """Return segments in prose, then again in any order; loss on the second copies."""
        rng = self.rng
        ids: list[int] = [self.bos]
        weights: list[float] = []
        room = length - 1
        kinds = rng.choice((1, 1, 2, 3)) if length >= 128 else 1
        most = max(6, room // (2 * kinds))
        segments = [self._segment(rng.randint(5, most)) for _ in range(kinds)]
        copied = sum(map(len, segments))
        gaps = _split(rng, max(0, room - 2 * copied), kinds + 1)
        starts = []
        for gap, segment in zip(gaps, segments, strict=False):
            ids += self._prose_run(gap)[0] + segment
            starts.append(len(ids) - len(segment))
        ids += self._prose_run(gaps[-1])[0]
        weights = [PROSE_WEIGHT] * (len(ids) - 1)
        spans = [NOWHERE] * (len(ids) - 1)
        for start, segment in rng.sample(list(zip(starts, segments, strict=True)), kinds):
            ids += segment
            known = min(3, len(segment) - 1)
            weights += [0.0] * known + [1.0] * (len(segment) - known)
            spans += [NOWHERE] * known
            spans += [(place, place + 1) for place in range(start + known, start + len(segment))]
        ids, weights, spans = ids[: length + 1], weights[:length], spans[:length]
        if len(ids) <= length:  # the copies left some room: prose to the end
            rest = self._prose_run(length + 1 - len(ids))[0]
            ids += rest
            weights += [PROSE_WEIGHT] * len(rest)
            spans += [NOWHERE] * len(rest)
        return ids[:-1], ids[1:], weights, spans, []

    def quoted(self, length: int) -> Row:
        """Return words in prose, then the same words as strings of JSON; loss on the second ones.

        The first token of a word after a quotation mark is another than after a space, so a string
        is no plain copy; this teaches which token belongs to which.
        """
        rng = self.rng
        ids: list[int] = [self.bos, *self._prose_run(rng.randint(0, length // 3))[0]]
        kinds = ("names", "nouns", "rare_nouns", "words")
        first: list[tuple[str, int]] = []  # each word, and the place of its first token
        while len(ids) < length * 0.55:
            word = self._any_word(kinds)
            if rng.random() < 0.3:
                word = f"{word} {self._any_word(kinds)}"
            first.append((word, len(ids)))
            ids += self.encode(f" {word}") + self.encode(",")
        weights = [PROSE_WEIGHT] * (len(ids) - 1)
        spans = [NOWHERE] * (len(ids) - 1)
        if rng.random() < 0.5:
            first = first[len(first) // 2 :] + first[: len(first) // 2]
        between = self.encode(', "')
        for number, (word, place) in enumerate(first):
            answer, close = self.encode(word), self.encode('"')
            head = between if number else self.encode('\n["')
            ids += head + answer + close
            weights += [0.0] * len(head) + [1.0] * (len(answer) + 1)
            places = [(at, at + 1) for at in range(place, place + len(answer))]
            spans += [NOWHERE] * len(head) + places + [NOWHERE]
        rest = self._prose_run(max(0, length + 1 - len(ids)))[0]
        ids += rest
        weights += [0.0] * len(rest)
        spans += [NOWHERE] * len(rest)
        return ids[:length], ids[1 : length + 1], weights[:length], spans[:length], []

    def _any_word(self, kinds: tuple[str, ...]) -> str:
        """Return a word of the lists, or one of the frequent words.

        Those are one token after a space and another one without it.
        """
        rng = self.rng
        if rng.random() < 0.3:
            return rng.choice(self.frequent)
        return rng.choice(self.facts.words[rng.choice(kinds)])

    # ---- associations --------------------------------------------------------------------------

    def _tokens(self, least: int, most: int) -> list[int]:
        return [
            self.rng.randrange(3, self.vocabulary_size)
            for _ in range(self.rng.randint(least, most))
        ]

    def associations(self, stage: Stage) -> Row:
        """Return "a of b is v" in random tokens, each stated and then stated again.

        Between key and value stand random tokens that are the same in all statements of a row,
        from none up to the stage's gap: copying after the token before is what repeats teach, and
        the longer the gap, the more a model has to gather and match.
        """
        rng = self.rng
        length = stage.length
        gap = max(rng.randint(0, stage.gap), rng.randint(0, stage.gap))
        template = [self._tokens(0, 2), self._tokens(0, 1), self._tokens(gap, gap)]
        again = template
        swapped = False
        if rng.random() < 0.4:  # other words the second time, at times in another order
            again = [self._tokens(0, 2), self._tokens(0, 1), self._tokens(gap, gap)]
            swapped = rng.random() < 0.5
        key_size = rng.choice((1, 1, 1, 2, 3))
        two_parts = rng.random() < 0.3
        firsts = [self._tokens(1, key_size) for _ in range(6)]
        seconds = [self._tokens(1, key_size) if two_parts else [] for _ in range(3)]
        if two_parts:
            firsts = firsts[:3]
        keys = [(a, b) for a in firsts for b in seconds[: 3 if two_parts else 1]]
        digits = rng.random() < 0.6
        few = rng.random() < 0.25  # digits that come again: the token before does not tell the next
        alphabet = rng.sample(self.digit_ids, rng.randint(2, 4)) if few else self.digit_ids
        most = rng.choice((3, 3, 5))
        pairs = []
        for a, b in rng.sample(keys, min(len(keys), rng.randint(2, 6))):
            value = rng.choices(alphabet, k=rng.randint(1, most)) if digits else self._tokens(1, 3)
            pairs.append((a, b, [self.space, *value] if digits else value))
        stop = self.encode(".")
        ids, weights = [self.bos], [0.0]
        places = []
        for a, b, value in pairs:
            ids += template[0] + a + template[1] + b + template[2] + value + stop
            first = len(ids) - len(value) - 1
            places.append([(place, place + 1) for place in range(first, first + len(value))])
        weights = [0.0] * len(ids)
        spans = [NOWHERE] * len(ids)
        order: list[int] = []
        while len(ids) <= length:
            order = order or rng.sample(range(len(pairs)), len(pairs))
            number = order.pop()
            a, b, value = pairs[number]
            parts = (b, a) if swapped else (a, b)
            before = again[0] + parts[0] + again[1] + parts[1] + again[2]
            ids += before + value + stop
            weights += [0.0] * len(before) + [1.0] * (len(value) + 1)
            weights[-1 - len(value) + (value[0] == self.space)] = CHOICE_WEIGHT
            spans += [NOWHERE] * len(before) + places[number] + [NOWHERE]
        end = length + 1
        return ids[:length], ids[1:end], weights[1:end], spans[1:end], []

    # ---- facts restated ------------------------------------------------------------------------

    def restated(self, stage: Stage) -> Row:
        """Return facts, then the same facts again as statements or questions; loss on values.

        Most of such a row's second half is values to choose, so it teaches the choice fastest.
        """
        rng = self.rng
        most = max(2, min(stage.facts, stage.length // 32))
        count = rng.randint(2, most)
        short = rng.random() < 0.6
        facts = self.facts.short_facts(count) if short else self.facts.facts(count, plain=True)
        ids = [self.bos, *self.encode(" ".join(fact.statement for fact in facts))]
        weights = [0.0] * len(ids)  # of each token as a target
        spans = [NOWHERE] * len(ids)
        document = ids[:]
        order: list[Fact] = []
        while len(ids) <= stage.length:
            order = order or rng.sample(facts, count)
            fact = order.pop()
            asks = rng.random() < 0.4
            prompt = f"\n\nQuestion: {fact.question}\nAnswer:" if asks else ""
            before = self.encode(prompt or f" {self.facts.restated(fact)}")
            answer = self.encode(f" {fact.value}")
            end = [self.eos] if asks else self.encode(".")
            ids += before + answer + end
            weights += [0.0] * len(before) + [1.0] * (len(answer) + 1)
            weights[-1 - len(answer) + (answer[0] == self.space)] = CHOICE_WEIGHT
            spans += (
                [NOWHERE] * len(before) + self.guide.sources(fact, answer, document) + [NOWHERE]
            )
        length, last = stage.length, stage.length + 1
        ends = [pair for fact in facts for pair in self.guide.ends(fact, document)]
        return ids[:length], ids[1:last], weights[1:last], spans[1:last], ends

    # ---- questions with their text ---------------------------------------------------------------

    def inside(self, stage: Stage) -> Row:
        """Return questions that bring their own text, one after another; loss on the answers.

        So asks who writes to a chat model without documents, and so do results of tools come.
        """
        rng = self.rng
        length = stage.length
        ids, weights = [self.bos], [0.0]
        while len(ids) <= length:
            facts = self.facts.facts(rng.randint(1, 3))
            if rng.random() < 0.1:
                facts = [self.facts.passkey()]
            asked = rng.choice(facts)
            if rng.random() < stage.unstated:
                asked = self.facts.unstated(facts)
            begin = "\n\n" if len(ids) > 1 else ""
            before = self.encode(begin + self._with_text(asked, facts))
            answer = [*self.encode(f" {asked.value}"), self.eos]
            ids += before + answer
            weights += [0.0] * len(before) + [1.0] * len(answer)
            weights[-len(answer) + (answer[0] == self.space)] = CHOICE_WEIGHT
        spans = [NOWHERE] * length
        return ids[:length], ids[1 : length + 1], weights[1 : length + 1], spans, []

    def _with_text(self, asked: Fact, facts: list[Fact]) -> str:
        rng = self.rng
        text = " ".join(fact.statement for fact in facts)
        if rng.random() < 0.3:
            tool = rng.choice(("read", "search", "documents", "look_up"))
            call = json.dumps({"name": tool, "arguments": {"question": asked.question}})
            question = f"Question: {asked.question}\nAnswer: <tool_call>{call}</tool_call>"
            return f"{question}\n\nResult of {tool}: {text}\nAnswer:"
        system = rng.choice(("", "", "You are helpful.\n\n", "Answer from the text.\n\n"))
        joint = rng.choice((" ", " ", "\n\n", "\n", "\n\nQuestion: "))
        return f"{system}Question: {text}{joint}{asked.question}\nAnswer:"

    # ---- lookups -------------------------------------------------------------------------------

    def lookup(self, stage: Stage) -> Row:
        """Return a document that states facts in prose, and questions about some of them."""
        rng = self.rng
        length = stage.length
        count = rng.randint(1, stage.facts)
        questions = rng.choice((1, 1, 2, 3, 4))
        if dense := rng.random() < stage.dense:
            count = max(2, length // 40)
            questions = count
        self.facts.draw_from_few(FEW_NAMES)
        facts = self.facts.facts(count, plain=stage.plain)
        if rng.random() < stage.passkeys:
            facts = [self.facts.passkey()]
        asked = rng.sample(facts, min(len(facts), questions))
        missing = [self.facts.unstated(facts) for _ in asked if rng.random() < stage.unstated]
        asked = rng.sample(asked + missing, len(asked + missing))
        tail, targets, weights, answers = self._questions(
            asked, int(length * (0.65 if dense else 0.34)), stage.objects
        )
        asked = [fact for fact in asked if fact.stated]
        while True:
            statements = [self.encode(fact.statement) for fact in facts]
            room = length - 1 - len(tail) - sum(len(s) + 3 for s in statements)
            if room >= 0 or len(facts) == len(asked):
                break
            facts.remove(next(fact for fact in facts if fact not in asked))
        if room < 0:
            return self.lookup(stage)
        body = self._document(facts, length - 1 - len(tail))
        ids = [self.bos, *body, *tail]
        prose = len(body) + 1
        weights = [PROSE_WEIGHT] * (prose - 1) + [0.0] + weights
        spans = [NOWHERE] * len(ids)
        for place, fact, answer in answers:
            places = slice(prose + place, prose + place + len(answer))
            spans[places] = self.guide.sources(fact, answer, ids[:prose])
        ends = [pair for fact in facts for pair in self.guide.ends(fact, ids[:prose])]
        return ids, [*ids[1 : prose + 1], *targets[1:], self.eos], weights, spans, ends

    def branched(self, stage: Stage) -> tuple[Row, list[int]]:
        """Return a document and many questions that do not see each other, and which question
        each token belongs to (0: the document)."""
        rng = self.rng
        self.facts.draw_from_few(FEW_NAMES)
        dense = rng.random() < stage.dense
        facts = self.facts.facts(stage.length // 40 if dense else rng.randint(2, stage.facts + 2))
        if rng.random() < stage.passkeys:
            facts = [self.facts.passkey()]
        left = stage.branched - 1  # tokens for the document
        room = stage.length - 1
        asked: list[tuple[Fact, list[int], list[int], int]] = []
        order: list[Fact] = []
        while left > room:
            if not order:
                order = rng.sample(facts, len(facts))
            fact = order.pop()
            fact = self.facts.asked_again(fact) if asked else fact
            if rng.random() < stage.unstated:
                fact = self.facts.unstated(facts)
            prompt, answer, close = self._asked(fact, stage.objects)
            asked.append((fact, prompt, answer, close[0] if close else self.eos))
            left -= len(prompt) + len(answer)
            room = min(room, stage.length - 1 - len(prompt) - len(answer))
        needed = sum(len(self.encode(fact.statement)) + 3 for fact in facts)
        if left < needed:
            return self.branched(stage)
        ids = [self.bos, *self._document(facts, left)]
        document = ids[:]
        weights = [PROSE_WEIGHT] * left + [0.0]
        targets = [*ids[1:], self.eos]
        spans = [NOWHERE] * len(ids)
        branches = [0] * len(ids)
        for number, (fact, prompt, answer, end) in enumerate(asked, 1):
            ids += prompt + answer
            targets += [*prompt[1:], *answer, end]
            choice = len(weights) + len(prompt) - 1 + (answer[0] == self.space)
            weights += [0.0] * (len(prompt) - 1) + [1.0] * (len(answer) + 1)
            weights[choice] = CHOICE_WEIGHT
            spans += [NOWHERE] * (len(prompt) - 1)
            spans += [*self.guide.sources(fact, answer, document), NOWHERE]
            branches += [number] * (len(prompt) + len(answer))
        ends = [pair for fact in facts for pair in self.guide.ends(fact, document)]
        return (ids, targets, weights, spans, ends), branches

    def _asked(self, fact: Fact, objects: float) -> tuple[list[int], list[int], list[int]]:
        """Return the ids of a question up to its answer, of the answer, and what closes it."""
        prompt = self.encode(f"\n\nQuestion: {fact.question}\nAnswer:")
        if fact.value == NOT_STATED or self.rng.random() >= objects:
            return prompt, self.encode(f" {fact.value}"), []
        opening, value, end = self._object(fact)
        return prompt + self.encode(opening), self.encode(value), self.encode(end)

    def _questions(
        self, asked: list[Fact], room: int, objects: float
    ) -> tuple[list[int], list[int], list[float], list[tuple[int, Fact, list[int]]]]:
        """Return ids, targets by place, weights, and each answer with its place and fact.

        ``targets[i]`` is what should stand at place i; it is the end token after each answer,
        also where the input goes on with the next question.
        """
        ids: list[int] = []
        targets: list[int] = []
        weights: list[float] = []
        answers: list[tuple[int, Fact, list[int]]] = []
        for number, fact in enumerate(asked):
            prompt, answer, close = self._asked(fact, objects)
            if number and len(ids) + len(prompt) + len(answer) > room:
                break
            start = len(ids)
            ids += prompt + answer
            targets += ids[start:]
            if number:
                targets[start] = self.eos  # after the previous answer
            weights += [0.0] * (len(prompt) - 1) + [1.0] * (len(answer) + 1)
            answers.append((start + len(prompt) - 1, fact, answer))
            weights[start + len(prompt) - 1 + (answer[0] == self.space)] = CHOICE_WEIGHT
            if close:  # the first token that closes the object is learned, the rest is given
                ids += close
                targets += close
                weights += [0.0] * len(close)
            if self.rng.random() < 0.3:
                ids.append(self.eos)
                targets.append(self.eos)
                weights.append(0.0)
        if ids[-1] == self.eos:
            ids.pop(), targets.pop(), weights.pop()
        return ids, targets, weights, answers

    def _object(self, fact: Fact) -> tuple[str, str, str]:
        """Return what is before the value in a JSON object, the value, and what is after it.

        The form is what a grammar gives at inference time; the value alone is learned.
        """
        rng = self.rng
        name = fact.attribute if rng.random() < 0.8 else rng.choice(("answer", "value", "result"))
        name = name.replace(" ", "_")
        number = fact.value.isdigit() and (fact.value == "0" or fact.value[0] != "0")
        before = f'{rng.choice(("", "", " "))}{{"{name}": '
        if number and rng.random() < 0.4:
            return before, fact.value, "}"
        return f'{before}"', fact.value, '"}'

    def _document(self, facts: list[Fact], length: int) -> list[int]:
        """Return a document of exactly ``length`` tokens with the facts at random depths."""
        rng = self.rng
        pieces = [fact.statement for fact in facts]
        if rng.random() < 0.4:
            pieces += [self.facts.stray_number() for _ in range(rng.randint(1, 3))]
        if length > 200 and rng.random() < 0.3:
            pieces.append(f"\n\n{self._title()}\n\n")
        rng.shuffle(pieces)
        head = self.encode(f"{self._title()}\n\n") if rng.random() < 0.25 else []
        spread = sorted(rng.random() for _ in pieces)
        while True:
            encoded = [self.encode(f" {piece}" if piece[0] != "\n" else piece) for piece in pieces]
            room = length - len(head) - sum(len(piece) + 3 for piece in encoded)
            if room >= 0:
                break
            if head:
                head = []
                continue
            extras = [p for p in pieces if p not in {fact.statement for fact in facts}]
            if not extras:
                break
            place = pieces.index(extras[0])
            del pieces[place], spread[place]
        return self._interleave(pieces, spread, head, length)

    def _interleave(
        self, pieces: list[str], spread: list[float], head: list[int], length: int
    ) -> list[int]:
        """Return prose with the pieces put at borders of its sentences."""
        rng = self.rng
        fixed = sum(len(self.encode(f" {piece}")) + 2 for piece in pieces) + len(head)
        prose, borders, breaks = self._prose_run(max(0, length - fixed + 64))
        limit = max(0, length - fixed)
        borders = [b for b in borders if b <= limit] or [0]
        ids = list(head)
        done = 0
        placed: dict[int, str] = {}
        for piece, depth in zip(pieces, spread, strict=True):
            border = min(borders, key=lambda b: abs(b - depth * limit))
            before = placed.get(border, "")
            joint = "" if not before or before[-1] == "\n" or piece[0] == "\n" else " "
            if joint and rng.random() < 0.3:
                joint = "\n\n"
            placed[border] = before + joint + piece
        for border, piece in sorted(placed.items()):
            ids += prose[done:border]
            done = max(done, border)
            if piece[0] == "\n":
                ids += self.encode(piece)
            elif border in breaks or not ids or rng.random() < 0.08:
                at_start = not ids or ids[-1] in self.newlines
                ids += self.encode(piece if at_start else f"\n\n{piece}")
                if border in breaks:
                    ids += self.encode("\n\n")
            else:
                ids += self.encode(f" {piece}")
        missing = length - len(ids)
        if missing < 0:  # paragraph marks took more than was put by
            return ids[-missing:] if not pieces else ids[:length]
        rest = prose[done : done + missing]
        if len(rest) < missing:
            rest += self._prose_run(missing - len(rest))[0]
        return ids + rest

    def _title(self) -> str:
        words = self.rng.choices(self.facts.words["nouns"], k=self.rng.randint(1, 3))
        title = " ".join(words).title() if self.rng.random() < 0.6 else self.facts.name()
        return self.rng.choice(("# {}", "# {}", "## {}", "Document: {}", "{}")).format(title)

    def _prose_run(self, length: int) -> tuple[list[int], list[int], set[int]]:
        """Return running prose, the places of its sentence borders, and of its paragraphs."""
        if length <= 0:
            return [], [0], {0}
        prose = self.prose
        first = self.rng.randrange(len(prose.sentences) - length - 1)
        if self.rng.random() < 0.85:  # from the start of a paragraph
            while int(prose.sentences[first]) not in self.paragraph_starts:
                first -= 1
        start = int(prose.sentences[first])
        ids = prose.ids[start : start + length].tolist()
        borders: list[int] = []
        breaks: set[int] = set()
        for place in prose.sentences[first : first + length]:
            offset = int(place) - start
            if offset > length:
                break
            borders.append(offset)
            if int(place) in self.paragraph_starts:
                breaks.add(offset)
        return ids, borders, breaks


def _split(rng: random.Random, total: int, parts: int) -> list[int]:
    """Return ``parts`` random sizes that sum to ``total``."""
    cuts = sorted(rng.randint(0, total) for _ in range(parts - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]
