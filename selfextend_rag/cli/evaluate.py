"""``selfextend-rag calibrate`` and ``eval``: how good a model is, by length and settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from typer import Argument, Option

from selfextend_rag.cli.app import PROGRAM, Command, app, print_error, silence_transformers
from selfextend_rag.cli.options import BadOption, DocumentOptions, user_mistakes

if TYPE_CHECKING:
    from selfextend_rag.evals.calibration import Calibrator
    from selfextend_rag.llm import LongContextLLM


@app.command()
@dataclass(kw_only=True)
class Calibrate(DocumentOptions):
    """Measure how much of its window to use.

    Look for pass keys and measure perplexity beyond the model's window under a small grid of
    settings, and keep what was found where plans for this model look for it. Exit code 1 when no
    setting was as good as the model is inside its window.
    """

    files: list[str] = Argument(
        [], metavar="FILE", help="text to measure on; King James Bible by default"
    )
    length: int | None = Option(None, help="tokens of a prompt; 4 windows by default")
    depths: int = Option(5, help="places of the pass key")
    samples: int = Option(2, help="texts for each")
    seed: int = Option(0)
    output: Path | None = Option(None, help="where to store it instead")
    plot: Path | None = Option(None, help="PNG to draw the map in")

    def run(self) -> int:
        text = "\n\n".join(document.text for document in self.documents().documents)
        with user_mistakes():
            llm = self.load()
            calibrator = self._calibrator(llm, text)
            window, length = calibrator.window, calibrator.length
            prompts = self.samples * (self.depths + 1)
            work = f"{len(calibrator.grid)} settings, {prompts} texts of {length} tokens each"
            self.say(f"{work}. In the window of {window}, by plain attention, first:")
            inside, cells = calibrator.run(lambda cell: self.say(cell.explain()))
        from selfextend_rag.evals.calibration import chosen, store
        from selfextend_rag.planning import CalibrationError, calibration_path

        if self.plot:
            from selfextend_rag.evals.plots import calibration_map

            calibration_map(cells, self.model, self.plot)
        path = self.output or calibration_path(llm.model.config)
        try:
            calibration = chosen(self.model, window, length, inside, cells)
            store(calibration, path)
        except CalibrationError as error:
            print_error(str(error))
            return 1
        except OSError as error:
            reason = f"can't store the calibration in {path}: {error.strerror}"
            raise BadOption(f"{reason}; name another file with --output") from error
        report = {"stored": str(path), "calibration": calibration.to_dict()}
        self.write_result(report, f"\n{calibration.explain()}\nStored in {path}")
        return 0

    def _calibrator(self, llm: "LongContextLLM", text: str) -> "Calibrator":
        from selfextend_rag.evals.calibration import Calibrator
        from selfextend_rag.evals.prose import Prose, king_james

        window = llm.planner.pretraining_window
        return Calibrator(
            llm.engine,
            llm.tokenizer,
            Prose.tokenize(text or king_james(), llm.tokenizer),
            window=window,
            length=4 * window if self.length is None else self.length,
            depth_count=self.depths,
            samples=self.samples,
            seed=self.seed,
        )


@app.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@dataclass(kw_only=True)
class Eval(Command):
    """Measure lookups by length and depth."""

    arguments: list[str] = Argument([])

    def run(self) -> int:
        silence_transformers()
        from selfextend_rag.evals import cli  # heavy, and so are its options

        with user_mistakes():
            return cli.run(cli.parser(f"{PROGRAM} eval").parse_args(self.arguments), self.write)
