"""Several questions about one reading, answered together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfextend_rag.engine import BatchGeneration, BatchPrompt, CachedPrefix, GenerationSettings
from selfextend_rag.engine.engine import Cancelled, Claim, Progress
from selfextend_rag.llm.runner import TextRunner, whole_answer
from selfextend_rag.llm.stream import Answer
from selfextend_rag.output.reader import OutputFormat, TextReader
from selfextend_rag.planning import ContextPlan

BatchQuestion = str | Mapping[str, Any]
"""A question, or the arguments that ``Reading.ask`` would take for it, the question among them."""

_SHARED = ("evidence", "progress", "cancelled")  # arguments of ``ask`` that the batch has once


@dataclass(frozen=True, slots=True)
class Asked:
    """One question with all that is needed to answer it, checked.

    Args:
        tokens: the whole prompt, the reading included.
        settings: of the answer.
        plan: the settings it runs under.
        form: what the answer is held to.
    """

    tokens: tuple[int, ...]
    settings: GenerationSettings
    plan: ContextPlan
    form: OutputFormat


def arguments_of(
    questions: Sequence[BatchQuestion], shared: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return for each question the arguments to ask it with; its own win over the shared ones.

    Raises:
        TypeError: ``questions`` are one text, or one of them is neither a text nor arguments.
    """
    if isinstance(questions, str | Mapping):
        raise TypeError(
            f"questions must be a list of questions, got one {type(questions).__name__}; "
            "use ask for a single question"
        )
    return [_arguments(i, question, shared) for i, question in enumerate(questions)]


def _arguments(index: int, question: BatchQuestion, shared: Mapping[str, Any]) -> dict[str, Any]:
    own = {"question": question} if isinstance(question, str) else question
    if not isinstance(own, Mapping) or not isinstance(own.get("question"), str):
        raise TypeError(
            f"question {index + 1} must be a text, or a dict with the text under 'question', got "
            f"{question!r}"
        )
    for name in _SHARED:
        if name in own:
            raise TypeError(
                f"question {index + 1} has {name!r} of its own; pass it once, to the whole batch"
            )
    return {**shared, **own}


def answers_of(
    runner: TextRunner,
    asked: Sequence[Asked],
    prefix: CachedPrefix,
    *,
    at_once: int,
    progress: Progress | None,
    cancelled: Cancelled,
    claim: Claim,
) -> list[Answer]:
    """Return the answers, in the order of the questions, decoded together.

    Raises:
        ConstraintError: an answer could not be kept to its schema.
    """
    prompts = [
        BatchPrompt(
            x.tokens, x.settings, None if x.form.grammar is None else x.form.grammar.start()
        )
        for x in asked
    ]
    readers = [TextReader(runner.prompts, x.settings, x.form, framed=True) for x in asked]
    pieces: list[list[str]] = [[] for _ in asked]
    generation = BatchGeneration(
        runner.engine,
        prompts,
        prefix,
        at_once=at_once,
        chunk_size=min((x.plan.chunk_size for x in asked if x.plan.chunk_size), default=None),
        progress=progress,
        cancelled=cancelled,
        claim=claim,
    )
    with generation:
        for index, token in generation:
            pieces[index].append(readers[index].push(token))
            if readers[index].stopped:
                generation.stop(index)
    answers = []
    for index, (question, reader) in enumerate(zip(asked, readers, strict=True)):
        pieces[index].append(reader.finish())
        answers.append(
            whole_answer(
                reader,
                pieces[index],
                generation.finish_reason(index),
                generation.usage(index),
                question.plan,
            )
        )
    return answers


class QuestionsProgress:
    """Tells the progress of questions that are asked one after another as that of a batch.

    Args:
        asked: the questions.
        cached: tokens of the reading, which all prompts begin with.
        progress: called with the tokens of the questions read so far and of all.
    """

    def __init__(self, asked: Sequence[Asked], cached: int, progress: Progress) -> None:
        self._cached, self._progress = cached, progress
        self._lengths = [len(x.tokens) - cached for x in asked]

    def of(self, index: int) -> Progress:
        """Return what to call while one question is read."""
        before, total = sum(self._lengths[:index]), sum(self._lengths)
        return lambda done, _: self._progress(before + done - self._cached, total)
