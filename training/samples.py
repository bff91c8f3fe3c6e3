"""Training rows: documents with questions, and repeats that teach copying."""

import json
import random
import re
from functools import lru_cache

from tokenizers import Tokenizer

from training.curriculum import CHOICE_WEIGHT, PROSE_WEIGHT, Row, Stage
from training.documents import DocumentMaker, Prose
from training.facts import Fact, FactMaker
from training.guide import NOWHERE
from training.lookups import LookupMaker


class SampleMaker:
    """Draws rows of exactly the asked length."""

    def __init__(
        self, tokenizer: Tokenizer, prose: Prose, facts: FactMaker, rng: random.Random
    ) -> None:
        self.tokenizer = tokenizer
        self.facts = facts
        self.rng = rng
        self.bos = tokenizer.token_to_id("<bos>")
        self.eos = tokenizer.token_to_id("<eos>")
        self.vocabulary_size = tokenizer.get_vocab_size()
        self._encode = lru_cache(maxsize=4096)(
            lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        )
        self.space = self.encode(" ")[0]
        self.documents = DocumentMaker(self.encode, prose, facts, rng)
        marks = (self.bos, self.eos, self.space)
        self.lookups = LookupMaker(self.encode, self.documents, facts, rng, marks)
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
        return self.lookups.lookup(stage)

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
        return self.documents.run(length)[0]

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
            ids += self.documents.run(gap)[0] + segment
            starts.append(len(ids) - len(segment))
        ids += self.documents.run(gaps[-1])[0]
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
            rest = self.documents.run(length + 1 - len(ids))[0]
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
        ids: list[int] = [self.bos, *self.documents.run(rng.randint(0, length // 3))[0]]
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
        rest = self.documents.run(max(0, length + 1 - len(ids)))[0]
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
                [NOWHERE] * len(before)
                + self.lookups.guide.sources(fact, answer, document)
                + [NOWHERE]
            )
        length, last = stage.length, stage.length + 1
        ends = [pair for fact in facts for pair in self.lookups.guide.ends(fact, document)]
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


def _split(rng: random.Random, total: int, parts: int) -> list[int]:
    """Return ``parts`` random sizes that sum to ``total``."""
    cuts = sorted(rng.randint(0, total) for _ in range(parts - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]
