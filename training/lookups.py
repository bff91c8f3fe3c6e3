"""Training rows of lookups: a document that states facts, and questions about them."""

import random
from collections.abc import Callable

from training.curriculum import CHOICE_WEIGHT, PROSE_WEIGHT, Row, Stage
from training.documents import DocumentMaker
from training.facts import Fact, FactMaker
from training.guide import NOWHERE, Guide
from training.wordings import NOT_STATED

FEW_NAMES = 0.4  # share of the documents whose facts share a few names and words


class LookupMaker:
    """Draws documents with questions, of exactly the asked length.

    Args:
        encode: gives the ids of a text, without a start token.
        documents: draws the documents.
        facts: draws what they state.
        rng: the source of all choices.
        marks: the ids of the start and of the end token, and of a space alone.
    """

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        documents: DocumentMaker,
        facts: FactMaker,
        rng: random.Random,
        marks: tuple[int, int, int],
    ) -> None:
        self.encode = encode
        self.documents = documents
        self.facts = facts
        self.rng = rng
        self.bos, self.eos, self.space = marks
        self.guide = Guide(encode, self.space)

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
        body = self.documents.document(facts, length - 1 - len(tail))
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
        ids = [self.bos, *self.documents.document(facts, left)]
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

        ``targets[i]`` is what should be at place i; it is the end token after each answer,
        also where the input has another question next.
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
