"""Plain attention and SelfExtend: the whole prompt is read, by the product's own readings."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property

from selfextend_rag.documents import Document
from selfextend_rag.evals.access import HuggingFaceModel
from selfextend_rag.evals.benchmarks.items import Item, Question
from selfextend_rag.evals.methods.base import (
    Answered,
    Input,
    LoadedModel,
    MethodOptions,
    Predicted,
)
from selfextend_rag.llm import LongContextLLM
from selfextend_rag.maps import map_to_dict
from selfextend_rag.planning import ContextPlan
from selfextend_rag.planning.planner import Extension
from selfextend_rag.text.frame import FramedPicturePrompts, FramedPrompts, FramedQuestion


class FramedLLM(LongContextLLM):
    """A model whose prompts are a benchmark's own."""

    prompt_builder = FramedPrompts
    picture_prompt_builder = FramedPicturePrompts


class Windowed:
    """Reads a document whole, plain or extended as the planner chooses for its longest question.

    Args:
        name: of the method.
        loaded: the model.
        options: of methods.
        extension: as of `ContextBudgetPlanner`.
        inputs: in which form prompts are given to it.
    """

    def __init__(
        self,
        name: str,
        loaded: LoadedModel,
        options: MethodOptions,
        extension: Extension,
        inputs: tuple[Input, ...],
    ) -> None:
        self.name, self.inputs = name, inputs
        self._loaded, self._options, self._extension = loaded, options, extension

    def identity(self) -> Mapping[str, object]:
        """Return the planner's settings and the precision of keys and values."""
        planner = {name: str(value) for name, value in asdict(self._plain.planner).items()}
        more = {"kv_bits": self._options.kv_bits, "likelihood": self._options.likelihood}
        return {"method": self.name, **more, **planner}

    def answers(self, item: Item) -> list[Answered]:
        """Return the answers to all questions on an item, the document read once."""
        llm = self.llm_for(item)
        document, questions = framed(llm.prompts, item)
        wanted = [self._wanted(llm.prompts.chat, question) for question in item.questions]
        most, reserve = self._space(llm, item, questions, wanted)
        reading = llm.read(document, max_new_tokens=most, question_reserve=reserve)
        asked = [
            {"question": text, "max_new_tokens": question.max_new_tokens}
            for text, question in zip(questions, item.questions, strict=True)
        ]
        answers = reading.ask_batch(asked, at_once=self._options.at_once)
        settings = settings_of(reading.plan)
        nlls = [
            [tuple(reading.answer_nll(text, answer)) for answer in each]
            for text, each in zip(questions, wanted, strict=True)
        ]
        return [
            Answered(
                text=answer.text,
                finish_reason=answer.finish_reason,
                prompt_tokens=answer.usage.prompt_tokens,
                new_tokens=answer.usage.completion_tokens,
                seconds=answer.usage.prefill_seconds + answer.usage.decode_seconds,
                read_seconds=reading.seconds,
                settings=settings,
                gold_nlls=measured[0] if measured else (),
                other_nlls=tuple(measured[1:]),
            )
            for answer, measured in zip(answers, nlls, strict=True)
        ]

    def plan(self, item: Item) -> ContextPlan:
        """Return the plan of an item's document and the longest of its questions and answers."""
        llm = self.llm_for(item)
        document, questions = framed(llm.prompts, item)
        wanted = [self._wanted(llm.prompts.chat, question) for question in item.questions]
        most, reserve = self._space(llm, item, questions, wanted)
        return llm.plan(document, max_new_tokens=most, question_reserve=reserve)

    @staticmethod
    def _space(
        llm: FramedLLM,
        item: Item,
        questions: Sequence[FramedQuestion],
        wanted: Sequence[Sequence[str]],
    ) -> tuple[int, int]:
        """Return the tokens of the longest answer, measured ones included, and question."""
        measured = (len(llm.prompts.codec.text(x)) + 2 for each in wanted for x in each)
        most = max(*(question.max_new_tokens for question in item.questions), *measured, 0)
        return most, max(len(llm.prompts.question(question)) for question in questions)

    def _wanted(self, chat: bool, question: Question) -> list[str]:
        """Return the answers whose likelihood is asked for, as they would follow the question.

        The right one is the first.
        """
        if not self._options.likelihood or not question.answer:
            return []
        ends = (question.text + question.begin)[-1:]
        after_space = ends.isspace() or (chat and not question.begin)
        return [
            answer if after_space or answer[:1].isspace() else f" {answer}"
            for answer in (question.answer, *question.others)
        ]

    def llm_for(self, item: Item) -> FramedLLM:
        """Return the model with the form of prompts that an item has."""
        return self._chat if item.chat else self._plain

    def predicted(self, item: Item) -> Predicted:
        """Return the likelihoods of the first tokens of an item's text."""
        loaded, count = self._loaded, item.predict_tokens
        tokens = loaded.encode(item.before + item.document)[:count]
        plan = self._plain.planner.plan(len(tokens), 0)
        started = time.perf_counter()
        adapter = HuggingFaceModel(loaded.model, plan.settings, kv_bits=self._options.kv_bits)
        nlls = adapter.token_nll(tokens)
        seconds = time.perf_counter() - started
        words = len(loaded.decode(tokens).split())
        return Predicted(tuple(nlls), words, seconds, settings_of(plan))

    @cached_property
    def _plain(self) -> FramedLLM:
        return self._llm("plain")

    @cached_property
    def _chat(self) -> FramedLLM:
        return self._llm("chat") if self._loaded.tokenizer.chat_template else self._plain

    def _llm(self, form: str) -> FramedLLM:
        options, extended = self._options, self._extension != "never"
        return FramedLLM(
            self._loaded.model,
            self._loaded.tokenizer,
            pretraining_window=self._loaded.window,
            prompt_form="chat" if form == "chat" else "plain",
            extension=self._extension,
            group_size=options.group_size if extended else None,
            neighbor_window=options.neighbor_window if extended else None,
            trained_fraction=options.trained_fraction if extended else None,
            kv_bits=options.kv_bits,
            prefix_cache_bytes=0,
            processor=self._loaded.processor,
        )


def framed(prompts: object, item: Item) -> tuple[Document, list[FramedQuestion]]:
    """Return an item's document and questions, white space between them where tokens need it."""
    assert isinstance(prompts, FramedPrompts)
    whole, texts = item.before + item.document, [question.text for question in item.questions]
    document, _ = prompts.split(whole, texts[0])
    moved = document[len(whole) :]
    if not all(text.startswith(moved) and text != moved for text in texts):
        document, moved = whole, ""
    questions = [
        FramedQuestion(question.text[len(moved) :], question.begin) for question in item.questions
    ]
    begun = len(item.before)
    pictures = tuple(replace(x, start=begun + x.start) for x in item.pictures)
    return Document(document, "", item.id, pictures=pictures), questions


def settings_of(plan: ContextPlan) -> dict[str, object]:
    """Return what a plan chose, as JSON values; empty for plain attention."""
    return {} if plan.settings is None else map_to_dict(plan.settings)


def plain(loaded: LoadedModel, options: MethodOptions) -> Windowed:
    """Return plain attention: prompts cut by the benchmark's rule, and whole past the window."""
    return Windowed("plain", loaded, options, "never", ("cut", "whole"))


def self_extend(loaded: LoadedModel, options: MethodOptions) -> Windowed:
    """Return SelfExtend; what fits the window runs plain, unless a group size is given."""
    extension: Extension = "auto" if options.group_size is None else "always"
    return Windowed("selfextend", loaded, options, extension, ("whole",))
