"""``selfextend-rag calibrate`` and ``eval``: how good a model is, by length and settings."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from typer import Argument, Option

from selfextend_rag.bundled import NAME as BUNDLED
from selfextend_rag.cli.app import app, print_error, silence_transformers
from selfextend_rag.cli.options import BadOption, DocumentOptions, ModelOptions, user_mistakes

if TYPE_CHECKING:
    from selfextend_rag.evals.calibration import Calibrator
    from selfextend_rag.llm import LongContextLLM

_grid = partial(Option, rich_help_panel="Grid of passkey, lookup and perplexity")


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


@app.command()
@dataclass(kw_only=True)
class Eval(ModelOptions):
    """Measure how well a model finds, answers and predicts in long texts.

    `passkey`, `lookup` and `perplexity` need no data. Exit code 1 when a metric that was to be
    checked differs from its official score.
    """

    tasks: list[str] = Argument([], metavar="TASK", help="passkey, lookup or perplexity")
    model: str = Option(BUNDLED, help="hub id or folder")
    methods: str = Option("plain,selfextend", help="what to measure, by comma")
    device: str = Option("cpu", help="torch device")
    out: Path | None = Option(None, help="folder for results and pictures")
    no_plot: bool = Option(False, "--no-plot", help="write no picture")
    check_metrics: Path | None = Option(
        None, metavar="FILE", help="compare the metrics with the official scores in a JSON file"
    )
    lengths: list[str] = _grid([], help="tokens, by comma; 1, 2, 4, 8, 16 windows by default")
    depths: int = _grid(10, help="places of the fact")
    samples: int = _grid(20, help="documents in each cell")
    seed: int = _grid(0)
    neighbor_window: int | None = _grid(None, help="W; a quarter of the window by default")
    group_size: int | None = _grid(
        None, help="G, also inside the window; by default what a length needs"
    )
    trained_fraction: float = _grid(2 / 3, help="share of the window to use")
    only: Literal["plain", "selfextend"] | None = _grid(None, help="the one method to measure")
    kv_bits: Literal[8, 4] | None = _grid(None, help="keep keys and values in so many bits")
    prose: Path | None = _grid(None, help="text file; King James Bible by default")
    bin_size: int = _grid(64, help="positions in a perplexity bin")

    def run(self) -> int:
        if self.check_metrics is not None:
            return self._check_metrics(self.check_metrics)
        tasks, lengths = self._numbers()
        if not tasks:
            raise BadOption("name a task: passkey, lookup or perplexity")
        silence_transformers()
        with user_mistakes():
            reports = [self._run_grid(task, lengths) for task in tasks]
        if self.json:
            self.write_result({"results": reports}, "")
        return 0

    def _check_metrics(self, path: Path) -> int:
        from selfextend_rag.evals.metrics.check import check_metrics

        check = check_metrics(path)
        differences = [asdict(each) for each in check.differences]
        report = {"cases": check.cases, "agreeing": check.agreeing, "differences": differences}
        self.write_result(report, check.explain())
        return 1 if check.differences else 0

    def _numbers(self) -> tuple[list[str], list[int]]:
        """Return the tasks and the lengths, which may follow one another as well as a comma."""
        tasks = [task for task in self.tasks if not task.isdecimal()]
        given = [part for text in self.lengths for part in text.split(",")]
        more = [task for task in self.tasks if task.isdecimal()]
        if more and not given:
            raise BadOption(f"{more[0]} is no task; lengths follow --lengths")
        try:
            return tasks, [int(text) for text in (*given, *more)]
        except ValueError as error:
            raise BadOption(f"--lengths takes numbers of tokens by comma: {error}") from error

    def _run_grid(self, task: str, lengths: list[int]) -> dict[str, object]:
        from selfextend_rag.evals.grids import Grid, run_grid

        names = (
            "model", "depths", "samples", "seed", "neighbor_window", "group_size",
            "trained_fraction", "kv_bits", "prose", "bin_size", "device", "full_attention", "out",
        )  # fmt: skip
        labels = [self.only] if self.only else self.methods.split(",")
        grid = Grid(
            task=task,
            lengths=lengths,
            labels=labels,
            plot=not self.no_plot,
            **{name: getattr(self, name) for name in names},
        )
        return run_grid(grid, self._write_line)

    def _write_line(self, text: str) -> None:
        if not self.json:
            self.write(text)
