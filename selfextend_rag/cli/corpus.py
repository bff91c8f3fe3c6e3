"""``selfextend-rag corpus``: the same questions about many documents, each read whole."""

import json as json_module
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import Option

from selfextend_rag.cli.app import app
from selfextend_rag.cli.options import BadOption, ReadingOptions, user_mistakes

if TYPE_CHECKING:
    from selfextend_rag.corpus import CorpusRow, ModelSpec

_answer = partial(Option, rich_help_panel="Answer")
_where = partial(Option, rich_help_panel="Where it runs")


@app.command("corpus")
@dataclass(kw_only=True)
class Corpus(ReadingOptions):
    """Ask questions about each document of a folder, and keep the answers.

    Rows are written as they come, and what the file has already is not asked again. A document that
    can't be read or answered about is a row with its error; exit code 1 if there is one.
    """

    questions: list[str] = Option(..., "-q", "--question", help="to be asked; give one or several")
    output: str = Option(
        ..., "-o", "--output", help="file of JSON lines, or a table where it ends in .parquet"
    )
    schema: Path | None = _answer(
        None, metavar="FILE", help="JSON schema that each answer is constrained to"
    )
    together: bool = Option(
        False, "--together", help="as many documents as fit in a prompt, and an answer about them"
    )
    evidence: bool = _answer(False, "--evidence", help="keep the passages that answers rest on")
    replicas: int = _where(0, help="of the model, in processes of Ray; 0 is this process")
    gpus: float = _where(0.0, help="GPUs that each replica takes")
    base_url: str | None = _where(None, help="a server of OpenAI's API that has the model")
    at_once: int = _where(16, help="requests to the server at the same time")

    def run(self) -> int:
        if not self.output or Path(self.output).is_dir():
            raise BadOption(f"-o takes the name of a file, got {self.output!r}")
        with user_mistakes():
            spec, options = self._spec(), self._options()
            found = self.documents()
            try:
                from selfextend_rag.corpus import run_corpus

                result = run_corpus(
                    found,
                    self.questions,
                    spec,
                    self.output,
                    together=self.together,
                    evidence=self.evidence,
                    replicas=self.replicas,
                    replica_options={"num_gpus": self.gpus} if self.gpus else {},
                    report=self._report,
                    **options,
                )
            except ImportError as error:
                raise BadOption(str(error)) from error
        failed = len(result.failed)
        report = {
            "output": self.output,
            "rows": len(result.rows),
            "computed": result.computed,
            "failed": failed,
            "skipped": [skip.to_dict() for skip in found.skipped],
        }
        text = f"{self.output}: {len(result.rows)} rows, {result.computed} of them new"
        self.write_result(report, f"{text}, {failed} without an answer" if failed else text)
        return 1 if failed else 0

    def _report(self, row: "CorpusRow", done: int, total: int) -> None:
        names = ", ".join(x["source"] or x["title"] or x["id"] for x in row.documents)
        said = " ".join((row.text if row.status == "answered" else row.error).split())
        self.say(f"{done} of {total}: {names}: {said[:160]}")

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens}
        if self.schema is not None:
            try:
                options["json_schema"] = json_module.loads(self.schema.read_text("utf-8"))
            except ValueError as error:
                raise BadOption(f"{self.schema} is no JSON: {error}") from error
        return options

    def _spec(self) -> "ModelSpec":
        """Return how the model is opened, here or in each replica."""
        from selfextend_rag.corpus import ModelSpec

        chosen, limit = self.planner_options(self.questions), self.memory_limits()
        if self.base_url is not None:
            named = None if self.model == "bundled" else self.model
            return ModelSpec(named, self.base_url, context={"at_once": self.at_once})
        loading = {
            "device_map": self.device_map,
            "dtype": self.dtype,
            "full_attention": self.full_attention,
            "weight_bits": self.weight_bits,
        }
        window = {"pretraining_window": self.pretraining_window}
        context = {**chosen, **window, "memory_limit": limit, "kv_bits": self.kv_bits}
        model = os.fspath(Path(self.model).resolve()) if Path(self.model).is_dir() else self.model
        return ModelSpec(model, loading=loading, context=context)
