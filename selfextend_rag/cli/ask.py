"""``selfextend-rag ask``: read documents once, answer questions about them."""

from __future__ import annotations

import argparse
import textwrap
import time
from collections.abc import Sequence
from typing import Any

from selfextend_rag.cli.console import Console
from selfextend_rag.cli.options import (
    BadOption,
    load_llm,
    model_name,
    planner_options,
    read_files,
    user_mistakes,
)
from selfextend_rag.documents import Document
from selfextend_rag.planning import ContextPlan

_QUOTE = 160  # characters of a passage that are shown


def run(args: argparse.Namespace) -> int:
    """Read, or load what was read, ask, and write the answers; return the exit code."""
    console = Console(quiet=args.json)
    if not args.files and args.reading is None:
        raise BadOption("there is nothing to ask about; name files, or a reading by --reading")
    options = planner_options(args)
    documents = read_files(args)
    with user_mistakes():
        answering = _generation_options(args)
        llm = load_llm(args, options)
        if args.reading is None:
            plan = llm.plan(documents, question=args.questions, max_new_tokens=args.max_new_tokens)
            console.say(f"{plan.explain()}\n")
            reading = _read(console, llm, documents, plan)
        else:
            begin = time.perf_counter()
            reading = llm.load(args.reading, documents=documents or None)
            loaded = time.perf_counter() - begin
            console.say(f"{reading.plan.explain()}\n")
    if args.max_new_tokens is not None:
        answering["max_new_tokens"] = args.max_new_tokens
    answers = _answers(console, args, reading, answering)
    if args.json:
        console.write_json(_report(args, reading, answers))
        return 0
    tokens = reading.plan.prompt_tokens
    if args.reading is None:
        console.say(
            f"\nRead {tokens} tokens in {reading.seconds:.1f} s "
            f"({tokens / reading.seconds:.0f} a second)."
        )
    else:
        console.say(
            f"\nLoaded {tokens} tokens in {loaded:.2f} s; "
            f"they had been read in {reading.seconds:.1f} s."
        )
    return 0


def _read(console: Console, llm: Any, documents: Sequence[Document], plan: ContextPlan) -> Any:
    with console.progress("reading") as progress:
        return llm.read(
            documents,
            max_new_tokens=plan.max_new_tokens,
            question_reserve=plan.reserve_tokens,
            progress=progress,
        )


def _report(args: argparse.Namespace, reading: Any, answers: list[dict[str, Any]]) -> Any:
    return {
        "model": model_name(args),
        "reading": args.reading,
        "documents": [
            {"title": d.title, "source": d.source, "id": d.id, "metadata": d.metadata}
            for d in reading.documents
        ],
        "plan": reading.plan.to_dict(),
        "read_seconds": reading.seconds,
        "answers": answers,
    }


def _generation_options(args: argparse.Namespace) -> dict[str, Any]:
    from selfextend_rag.engine import GenerationSettings

    options = {"temperature": args.temperature, "seed": args.seed}
    GenerationSettings(**options)  # refuses what is out of range before anything is loaded
    return options


def _answers(
    console: Console, args: argparse.Namespace, reading: Any, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Ask all questions, write the answers unless all is to be JSON, and return them as such."""
    questions = args.questions
    if len(questions) == 1 or args.evidence:
        return [_answer(console, args, reading, question, options) for question in questions]
    with console.progress("questions") as progress:
        answers = reading.ask_batch(questions, progress=progress, **options)
    for question, answer in zip(questions, answers, strict=True):
        if not args.json:
            console.write(f"Q: {question}\nA: {answer.text}\n\n")
        _remark(console, reading, answer)
    return [_as_values(*pair) for pair in zip(questions, answers, strict=True)]


def _answer(
    console: Console,
    args: argparse.Namespace,
    reading: Any,
    question: str,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Ask one question and write the answer as it comes."""
    several = len(args.questions) > 1
    if several and not args.json:
        console.write(f"Q: {question}\nA: ")
    with reading.stream(question, evidence=args.evidence, **options) as stream:
        for piece in stream:
            if not args.json:
                console.write(piece)
        answer = stream.answer
    if not args.json:
        console.write("\n\n" if several else "\n")
    _remark(console, reading, answer)
    return _as_values(question, answer)


def _remark(console: Console, reading: Any, answer: Any) -> None:
    if answer.finish_reason == "length":
        console.say(
            f"(cut off after {answer.usage.completion_tokens} tokens; --max-new-tokens allows more)"
        )
    for passage in answer.evidence:
        console.say(_as_line(passage, reading.documents))


def _as_values(question: str, answer: Any) -> dict[str, Any]:
    return {
        "question": question,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "usage": answer.usage.to_dict(),
        "evidence": [passage.to_dict() for passage in answer.evidence],
    }


def _as_line(passage: Any, documents: Sequence[Any]) -> str:
    """Return where a passage is, its share of the attention, and its beginning."""
    document = next(one for one in documents if one.id == passage.document_id)
    line = document.text.count("\n", 0, passage.start) + 1
    quote = textwrap.shorten(passage.text, _QUOTE, placeholder=" ...")
    where = document.source or passage.title or passage.document_id
    return f'  {where}, line {line} ({passage.score:.0%}): "{quote}"'
