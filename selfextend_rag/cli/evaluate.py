"""``selfextend-rag calibrate`` and ``eval``: how good a model is, by length and settings."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from typer import Argument, Option

from selfextend_rag.bundled import NAME as BUNDLED
from selfextend_rag.cli.app import app, print_error, silence_transformers
from selfextend_rag.cli.options import (
    BadOption,
    DocumentOptions,
    DType,
    ModelOptions,
    user_mistakes,
)

if TYPE_CHECKING:
    from selfextend_rag.evals.benchmarks import Task
    from selfextend_rag.evals.calibration import Calibrator
    from selfextend_rag.evals.methods import Input, LoadedModel
    from selfextend_rag.evals.suite.rows import Results
    from selfextend_rag.evals.suite.run import SuiteOptions
    from selfextend_rag.llm import LongContextLLM

GRIDS = ("passkey", "lookup", "perplexity")
_grid = partial(Option, rich_help_panel="passkey, lookup and perplexity")
_suite = partial(Option, rich_help_panel="Benchmarks")


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
        from selfextend_rag.documents import refuse_pictures

        documents = self.documents().documents
        refuse_pictures(documents, "a calibration does not look at")
        text = "\n\n".join(document.text for document in documents)
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

    `passkey`, `lookup` and `perplexity` need no data, and neither do `ruler`, `needle` and
    `passkey/5`, `/10`, `/36` and `/64`. `longbench`, `leval`, `mdqa`, `kv`, `longeval`, `pg19`,
    `babilong`, `infinitebench` and, of pictures, `vhs` read the benchmark's files;
    `longbench/qasper` is one task of them. What was answered before, in the same folder, is not run
    again. Exit code 1 when a metric that was to be checked differs from its official score.
    """

    tasks: list[str] = Argument([], metavar="TASK", help="such as passkey, leval, ruler/vt")
    model: str = Option(BUNDLED, help="hub id or folder")
    methods: str = Option("plain,selfextend", help="what to measure, by comma")
    device: str = Option("cpu", help="torch device")
    out: Path | None = Option(
        None, help="folder for results; of benchmarks eval-results by default, of grids none"
    )
    no_plot: bool = Option(False, "--no-plot", help="draw no picture")
    check_metrics: Path | None = Option(
        None, metavar="FILE", help="compare the metrics with the official scores in a JSON file"
    )
    lengths: list[str] = Option([], help="tokens, by comma; 1, 2, 4, 8, 16 windows by default")
    depths: int = Option(10, help="places of a fact")
    samples: int = Option(20, help="documents of each length, and of each place of a fact")
    seed: int = Option(0)
    neighbor_window: int | None = Option(None, help="W; a quarter of the window by default")
    group_size: int | None = Option(
        None, help="G, also inside the window; by default what a length needs"
    )
    trained_fraction: float | None = Option(
        None, help="share of the window to use; in grids two thirds by default"
    )
    kv_bits: Literal[8, 4] | None = Option(None, help="keep keys and values in so many bits")
    weight_bits: Literal[8, 4] | None = Option(
        None, help="round weights to so many bits, on the CPU"
    )
    data: str | None = _suite(
        None, metavar="FOLDER", help="the benchmark's files, or the id of a data set of `datasets`"
    )
    limit: int | None = _suite(None, help="documents of each task; all by default")
    embeddings: str | None = _suite(None, help="encoder of method embeddings: hub id or folder")
    passages: int | None = _suite(
        None, help="the most passages that retrieval brings; as many as fit by default"
    )
    passage_words: int = _suite(200, help="words of a passage")
    inputs: str = _suite(
        "", help="whole, cut or both by comma; plain attention is given both by default"
    )
    cut_tokens: int | None = _suite(
        None, help="what prompts are cut to; as published for the model's window by default"
    )
    answer_tokens: int | None = _suite(
        None, help="the longest answer, where a benchmark allows a longer one"
    )
    likelihood: bool = _suite(
        False,
        "--likelihood",
        help="measure how likely the right answers are, too, and whether wrong ones are likelier",
    )
    pretraining_window: int | None = _suite(
        None, help="tokens the model was trained to see; what its configuration says by default"
    )
    dtype: DType = _suite("auto", help="precision of the weights; auto is as they are stored")
    only: Literal["plain", "selfextend"] | None = _grid(None, help="the one method to measure")
    prose: Path | None = _grid(None, help="text file; King James Bible by default")
    bin_size: int = _grid(64, help="positions in a perplexity bin")

    def run(self) -> int:
        if self.check_metrics is not None:
            return self._check_metrics(self.check_metrics)
        tasks, lengths = self._numbers()
        if not tasks:
            raise BadOption("name a task, such as passkey, ruler or leval; --help lists them")
        silence_transformers()
        report: dict[str, object] = {}
        with user_mistakes():
            grids = [task for task in tasks if task in GRIDS]
            benchmarks = [task for task in tasks if task not in GRIDS]
            if grids:
                report["results"] = [self._run_grid(task, lengths) for task in grids]
            if benchmarks:
                report |= self._run_suite(benchmarks, lengths)
        if self.json:
            self.write_result(report, "")
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
            "model", "depths", "samples", "seed", "neighbor_window", "group_size", "kv_bits",
            "weight_bits", "prose", "bin_size", "device", "full_attention", "out",
        )  # fmt: skip
        fraction = 2 / 3 if self.trained_fraction is None else self.trained_fraction
        grid = Grid(
            task=task,
            lengths=lengths,
            labels=self._method_names(),
            trained_fraction=fraction,
            plot=not self.no_plot,
            **{name: getattr(self, name) for name in names},
        )
        return run_grid(grid, self._write_line)

    def _write_line(self, text: str) -> None:
        if not self.json:
            self.write(text)

    def _run_suite(self, names: list[str], lengths: list[int]) -> dict[str, object]:
        from selfextend_rag.evals.benchmarks import Source, SyntheticOptions, selected_tasks
        from selfextend_rag.evals.methods import MethodOptions, methods_of
        from selfextend_rag.evals.suite.report import REPORT, write_results
        from selfextend_rag.evals.suite.rows import RowFile
        from selfextend_rag.evals.suite.run import check_needs, run_suite
        from selfextend_rag.evals.suite.summary import summary_of, table

        options = self._suite_options()
        source = Source.of(self.data)
        self._check_plots()
        loaded = self._loaded()
        lengths = lengths or [loaded.window * times for times in (1, 2, 4, 8, 16)]
        synthetic = SyntheticOptions(tuple(lengths), self.samples, self.seed, self.depths)
        tasks, missing = selected_tasks(names, source, synthetic)
        check_needs(tasks)
        chosen = MethodOptions(
            self.group_size,
            self.neighbor_window,
            self.trained_fraction,
            self.kv_bits,
            likelihood=self.likelihood,
            embeddings=self.embeddings,
            most_passages=self.passages,
            passage_words=self.passage_words,
        )
        methods = methods_of(self._method_names(), loaded, chosen)
        folder = self.out or Path("eval-results")
        if missing:
            self.say(f"{len(missing)} tasks without data are left out, such as {missing[0]}")
        with RowFile(folder) as file:
            results = run_suite(tasks, methods, loaded, file, options, self._say_item)
        summary = summary_of(results)
        write_results(folder, results, summary, loaded, methods, options, plot=not self.no_plot)
        self._write_line(f"{table(summary)}\n")
        self.say(
            f"{results.computed} rows computed, {results.found} found in {folder}; see "
            f"{folder / REPORT}"
        )
        counts = {"computed": results.computed, "found": results.found, "left_out": missing}
        return {**counts, "summary": summary, "report": str(folder / REPORT)}

    def _method_names(self) -> list[str]:
        return [self.only] if self.only else self.methods.split(",")

    def _say_item(self, task: "Task", number: int, results: "Results") -> None:
        self.say(f"{task.name}: document {number}, {results.computed} rows computed")

    def _suite_options(self) -> "SuiteOptions":
        from selfextend_rag.evals.suite.run import SuiteOptions

        forms = self.inputs.split(",") if self.inputs else []
        known: dict[str, Input] = {"whole": "whole", "cut": "cut"}
        if unknown := [form for form in forms if form not in known]:
            raise BadOption(f"--inputs takes whole and cut, by comma, got {unknown[0]!r}")
        inputs = tuple(known[x] for x in forms)
        return SuiteOptions(self.limit, inputs, self.cut_tokens, self.answer_tokens)

    def _check_plots(self) -> None:
        """Refuse to begin what could not be drawn in the end."""
        if not self.no_plot:
            from selfextend_rag.evals.plots import pyplot

            try:
                pyplot()
            except ImportError as error:
                raise BadOption(f"{error}; or pass --no-plot") from error

    def _loaded(self) -> "LoadedModel":
        from selfextend_rag.evals.methods import LoadedModel
        from selfextend_rag.llm.loading.model import load_model
        from selfextend_rag.llm.loading.sources import load_tokenizer, usable_processor

        model = load_model(
            self.source,
            full_attention=self.full_attention,
            device_map=None if self.device == "cpu" else self.device,
            dtype=self.dtype,
            weight_bits=self.weight_bits,
        )
        tokenizer = load_tokenizer(self.source)
        processor = usable_processor(self.source, tokenizer)
        window = self.pretraining_window or 0
        return LoadedModel(self.model, model, tokenizer, window, processor)
