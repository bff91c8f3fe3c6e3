"""``selfextend-rag compare``: whole documents against retrieval, on one's own questions."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from typer import Option

from selfextend_rag.cli.app import app, with_options
from selfextend_rag.cli.options import (
    BadOption,
    ReadingOptions,
    check_output,
    listed,
    user_mistakes,
)

if TYPE_CHECKING:
    from selfextend_rag.documents import ReadFiles
    from selfextend_rag.evals.comparison import Asked, Comparison, Retrieval

_retrieval = partial(Option, rich_help_panel="Retrieval")


@app.command()
@dataclass(kw_only=True)
class Compare(ReadingOptions):
    """Compare whole documents with retrieval, on your own questions.

    The same model answers each question from the documents as a whole, and from the passages that
    a retriever brings; next to the answers are what each rests on, tokens and seconds, and then a
    recommendation with its reasons. Exit code 1 when the documents do not fit whole; retrieval is
    shown all the same.
    """

    questions: list[str] = Option([], "-q", "--question", help="to be asked; give ten or more")
    gold: list[str] = Option(
        [], "--gold", help='right answer to each -q, in their order; "" where it is not known'
    )
    questions_file: Path | None = Option(
        None, "--questions", metavar="FILE",
        help="CSV with columns question and answer, TSV, JSON lines, or a question a line",
    )  # fmt: skip
    retriever: Literal["bm25", "embeddings", "random", "oracle"] = _retrieval(
        "bm25", help="random and oracle are what any retriever is between"
    )
    passages: int = _retrieval(3, help="the most that a question gets")
    passage_words: int | None = _retrieval(
        None, help="the most words of a passage; 200, or what lets so many fit the model's window"
    )
    embeddings: str | None = _retrieval(None, help="encoder of embeddings: hub id or folder")
    output: str | None = Option(None, "-o", "--output", help="write an HTML report to this file")

    def run(self) -> int:
        from selfextend_rag.evals.comparison.shown import lines

        if self.output is not None:
            check_output(self.output)
        with user_mistakes():
            asked, retrieval = self._asked(), self._retrieval()
            found, files = self._compared(asked, retrieval)
        if self.output is not None:
            try:
                found.save(self.output)
            except OSError as error:
                raise BadOption(f"can't write {self.output}: {error.strerror}") from error
        if found.plan is not None:
            self.say(f"{self.explained(found.plan)}\n")
        report = {**found.to_dict(), **listed(files.documents, files)}
        self.write_result({**report, "report": self.output}, "\n".join(lines(found, with_options)))
        if self.output is not None:
            self.say(f"\nReport: {self.output}")
        return 1 if found.refusal else 0

    def _asked(self) -> "list[Asked]":
        """Return the questions that were typed, then those of the file."""
        from selfextend_rag.evals.comparison import Asked, read_questions

        if self.gold and len(self.gold) != len(self.questions):
            raise BadOption(
                f"--gold is given {len(self.gold)} times and -q {len(self.questions)} times; give "
                'a right answer to each question, "" where it is not known'
            )
        pairs = zip_longest(self.questions, self.gold, fillvalue="")
        asked = [Asked(question, (gold,) if gold.strip() else ()) for question, gold in pairs]
        if self.questions_file is not None:
            asked += read_questions(self.questions_file)
        if not asked:
            raise BadOption(
                "there is no question; give some by -q, or a file of them by --questions"
            )
        return asked

    def _retrieval(self) -> "Retrieval":
        from selfextend_rag.evals.comparison import Retrieval

        return Retrieval(self.retriever, self.passages, self.passage_words, self.embeddings)

    def _compared(
        self, asked: "list[Asked]", retrieval: "Retrieval"
    ) -> "tuple[Comparison, ReadFiles]":
        from selfextend_rag.evals.comparison import compare

        llm, files = self.open([each.question for each in asked])
        with self._bars() as progress:
            found = compare(
                llm,
                files.documents,
                asked,
                retrieval=retrieval,
                max_new_tokens=self.max_new_tokens,
                progress=progress,
            )
        return replace(found, model=self.model), files

    @contextmanager
    def _bars(self) -> Iterator[Callable[[str, int, int], None]]:
        """Yield what shows progress by one bar after another, each with the name of the work."""
        bars: dict[str, Callable[[int, int], None]] = {}
        with ExitStack() as open_bar:

            def progress(what: str, done: int, total: int) -> None:
                if what not in bars:
                    open_bar.close()
                    bars[what] = open_bar.enter_context(self.progress(what))
                bars[what](done, total)

            yield progress
