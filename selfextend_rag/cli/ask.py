"""``selfextend-rag ask`` and ``read``: documents are read once, and asked now or later."""

import os
import textwrap
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from typer import Argument, Option

from selfextend_rag.cli.app import app
from selfextend_rag.cli.options import (
    FILES,
    BadOption,
    ReadingOptions,
    Values,
    check_output,
    user_mistakes,
)

if TYPE_CHECKING:
    from selfextend_rag.llm import Answer, Reading

_OF_ANSWER = ("text", "finish_reason", "usage", "evidence")
_QUOTE = 160  # characters of a passage that are shown
_answer = partial(Option, rich_help_panel="Answer")


@app.command()
@dataclass(kw_only=True)
class Ask(ReadingOptions):
    """Read documents and answer questions about them."""

    files: list[str] = Argument([], metavar="FILE", help=FILES)
    reading: str | None = Option(None, help="saved by `read`; files, if named, must be its own")
    questions: list[str] = Option(..., "-q", "--question", help="to be asked; give one or several")
    temperature: float = _answer(0.0, help="0 takes the likeliest token each time")
    no_evidence: bool = _answer(
        False, "--no-evidence", help="look for no passages; answer several questions at once"
    )
    seed: int | None = _answer(None, help="makes sampling repeatable")
    overlays: str | None = _answer(
        None, metavar="FOLDER", help="draw there where in pictures each answer looked, as PNG"
    )

    def run(self) -> int:
        if self.overlays is not None:
            if self.no_evidence:
                raise BadOption("--overlays draws evidence, which --no-evidence leaves out")
            check_output(os.path.join(self.overlays, "picture.png"))
        if not self.files and self.reading is None:
            raise BadOption("there is nothing to ask about; name files, or a reading by --reading")
        from selfextend_rag.engine import GenerationSettings

        with user_mistakes():
            names = ("temperature", "seed", "max_new_tokens")
            options: Values = {x: getattr(self, x) for x in names if getattr(self, x) is not None}
            GenerationSettings(**options)  # refuses what is out of range before anything is loaded
            llm, found = self.open(self.questions)
            begin = time.perf_counter()
            if self.reading is None:
                reading = self.read(llm, found.documents, {"question": self.questions})
            else:
                reading = llm.load(self.reading, documents=found.documents or None)
                loaded = time.perf_counter() - begin
                for document in reading.documents:
                    document.check_whole(self.strict or False)
                self.say(f"{self.explained(reading.plan)}\n")
        answers = self._answers(reading, options)
        tokens, seconds = reading.plan.prompt_tokens, reading.seconds
        if self.json:
            answered = [
                {"question": question, **{name: answer.to_dict()[name] for name in _OF_ANSWER}}
                for question, answer in zip(self.questions, answers, strict=True)
            ]
            report = self.report(reading, found, self.reading)
            self.write_result({**report, "answers": answered}, "")
        elif self.reading is None:
            rate = f"{tokens / seconds:.0f} a second"
            self.say(f"\nRead {tokens} tokens in {seconds:.1f} s ({rate}).")
        else:
            read_in = f"they had been read in {seconds:.1f} s"
            self.say(f"\nLoaded {tokens} tokens in {loaded:.2f} s; {read_in}.")
        return 0

    def _answers(self, reading: "Reading", options: Values) -> "list[Answer]":
        """Ask all questions and write the answers, as they come or all at once."""
        several, answers = len(self.questions) > 1, []
        if several and self.no_evidence:
            with self.progress("questions") as progress:
                answers = reading.ask_batch(self.questions, progress=progress, **options)
            for question, answer in zip(self.questions, answers, strict=True):
                self._write(f"Q: {question}\nA: {answer.text}\n\n")
                self._remark(reading, answer)
            return answers
        for question in self.questions:
            self._write(f"Q: {question}\nA: " if several else "")
            with reading.stream(question, evidence=not self.no_evidence, **options) as stream:
                for text in stream:
                    self._write(text)
                answers.append(stream.answer)
            self._write("\n\n" if several else "\n")
            self._remark(reading, answers[-1])
            self._draw(reading, answers[-1], len(answers))
        return answers

    def _write(self, text: str) -> None:
        if not self.json:
            self.write(text)

    def _remark(self, reading: "Reading", answer: "Answer") -> None:
        """Say that an answer was cut off, and the places of the documents that it rests on."""
        if answer.finish_reason == "length":
            tokens = answer.usage.completion_tokens
            self.say(f"(cut off after {tokens} tokens; --max-new-tokens allows more)")
        documents = {document.id: document for document in reading.documents}
        for passage in answer.evidence:
            document = documents[passage.document_id]
            line = document.text.count("\n", 0, passage.start) + 1
            where = passage.location or f"line {line}"
            quote = textwrap.shorten(passage.text, _QUOTE, placeholder=" ...")
            name = document.source or passage.title or passage.document_id
            said = f'"{quote}"' if passage.picture is None else "a picture"
            self.say(f"  {name}, {where} ({passage.score:.0%}): {said}")

    def _draw(self, reading: "Reading", answer: "Answer", number: int) -> None:
        """Write the pictures that the answer to a question of this number looked at."""
        if self.overlays is None:
            return
        pictures = [x for x in answer.evidence if x.picture is not None]
        for rank, found in enumerate(pictures, 1):
            if found.heat is None:
                self.say(f"  where in {found.location} it looked is not known of this model")
                continue
            path = Path(self.overlays) / f"question-{number}-picture-{rank}.png"
            from selfextend_rag.cache.files import replacing  # which imports torch

            with replacing(path) as file:
                file.write(found.overlay(reading.documents))
            self.say(f"  {found.location} is drawn in {path}")


@app.command()
@dataclass(kw_only=True)
class Read(ReadingOptions):
    """Read documents and save the reading."""

    output: str = Option(..., "-o", "--output", help="file to save it in, for ask --reading")
    question_reserve: int | None = Option(None, help="tokens for each question; P/8 by default")

    def run(self) -> int:
        check_output(self.output)
        with user_mistakes():
            llm, found = self.open()
            reading = self.read(llm, found.documents, {"question_reserve": self.question_reserve})
        reading.save(self.output)
        size = os.path.getsize(self.output)
        report = self.report(reading, found, self.output, bytes=size)
        figures = f"{reading.plan.prompt_tokens} tokens, {size / 2**20:.1f} MiB"
        self.write_result(report, f"{self.output}: {figures}, read in {reading.seconds:.1f} s")
        return 0
