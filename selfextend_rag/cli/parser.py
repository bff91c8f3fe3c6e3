"""The arguments of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path

_WINDOW_HELP = "tokens the model was trained to see; what its configuration says by default"


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser for these arguments; the evaluation's own are added if they ask for it."""
    parser = argparse.ArgumentParser(
        prog="selfextend-rag",
        description="Answer questions over whole documents with a local model, its context window "
        "stretched at inference time by SelfExtend.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_ask(commands.add_parser("ask", help="read documents and answer questions about them"))
    _add_read(commands.add_parser("read", help="read documents and save the reading"))
    _add_plan(commands.add_parser("plan", help="say how documents would be read; runs no model"))
    _add_support(commands.add_parser("support", help="say which layers of a model are extended"))
    _add_calibrate(commands.add_parser("calibrate", help="measure how much of its window to use"))
    evaluation = commands.add_parser("eval", help="measure lookups by length and depth")
    if "eval" in arguments:  # heavy to import, so only for itself
        import_module("selfextend_rag.evals.cli").add_arguments(evaluation)
    return parser


def _version() -> str:
    return f"selfextend-rag {metadata.version('selfextend-rag')}"


def _add_read(parser: argparse.ArgumentParser) -> None:
    _add_documents(parser)
    parser.add_argument(
        "-o", "--output", required=True, metavar="PATH",
        help="file to save the reading in, for ask --reading",
    )  # fmt: skip
    parser.add_argument(
        "--question-reserve", type=int, metavar="N",
        help="tokens to keep free for each question; an eighth of the model's window by default",
    )  # fmt: skip
    _add_model(parser)
    _add_budget(parser)
    _add_device(parser)
    _add_json(parser)


def _add_ask(parser: argparse.ArgumentParser) -> None:
    _add_documents(parser, nargs="*")
    parser.add_argument(
        "--reading", metavar="PATH",
        help="what `read` saved; files, if named, have to be the ones that were read",
    )  # fmt: skip
    parser.add_argument(
        "-q", "--question", action="append", required=True, dest="questions", metavar="Q",
        help="a question; give several to ask the same reading again, with --no-evidence at once",
    )  # fmt: skip
    _add_model(parser)
    _add_budget(parser)
    answer = parser.add_argument_group("answer")
    answer.add_argument(
        "--temperature", type=float, default=0.0, metavar="T",
        help="0, the default, takes the likeliest token each time",
    )  # fmt: skip
    answer.add_argument(
        "--no-evidence", action="store_false", dest="evidence",
        help="do not look for the passages that an answer rests on",
    )  # fmt: skip
    answer.add_argument("--seed", type=int, metavar="N", help="makes sampling repeatable")
    _add_device(answer)
    _add_json(parser)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    _add_documents(parser)
    parser.add_argument(
        "-q", "--question", action="append", default=[], dest="questions", metavar="Q",
        help="a question that is to come; by default space is kept for any",
    )  # fmt: skip
    _add_model(parser)
    _add_budget(parser)
    parser.add_argument(
        "--turns", type=int, default=1, metavar="N",
        help="questions and answers to keep space for one after another (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--groups", action="store_true",
        help="put the files in as few prompts as hold them whole, and plan each",
    )  # fmt: skip
    _add_device(parser)
    _add_json(parser)


def _add_support(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Exit code 0 when the model can be extended, 1 when it can't. By default its configuration "
        "alone is judged, by a narrow copy with random weights."
    )
    parser.add_argument("model", metavar="MODEL", help='hub id or folder, or "bundled"')
    parser.add_argument("--weights", action="store_true", help="load the model and judge itself")
    _add_full_attention(parser)
    _add_json(parser)


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Look for pass keys and measure perplexity beyond the model's window under a small grid of "
        "settings, and keep what was found where plans for this model look for it. Exit code 1 "
        "when no setting was as good as the model is inside its window."
    )
    parser.add_argument("model", metavar="MODEL", help='hub id or folder, or "bundled"')
    _add_documents(parser, nargs="*", what="text to measure on; King James Bible by default")
    _add_full_attention(parser)
    parser.add_argument("--pretraining-window", type=int, metavar="P", help=_WINDOW_HELP)
    parser.add_argument("--length", type=int, metavar="N", help="tokens of a prompt (default: 4 P)")
    parser.add_argument(
        "--depths", type=int, default=5, metavar="N",
        help="places of the pass key (default: 5)",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=2, metavar="N", help="texts for each (default: 2)"
    )
    parser.add_argument("--seed", type=int, default=0)
    _add_device(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to store it instead")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the map")
    _add_json(parser)


def _add_documents(
    parser: argparse.ArgumentParser, nargs: str = "+", what: str = "text, Markdown, HTML or PDF"
) -> None:
    parser.add_argument("files", nargs=nargs, metavar="FILE", help=f"{what}; - is standard input")
    parser.add_argument(
        "--encoding", metavar="E", help="character encoding of the files; found out by default"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="ID", help="hub id or folder; the bundled model by default"
    )
    _add_full_attention(parser)
    parser.add_argument("--pretraining-window", type=int, metavar="P", help=_WINDOW_HELP)


def _add_full_attention(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--full-attention", action="store_true",
        help="switch off the sliding windows of a model that has one in every layer",
    )  # fmt: skip


def _add_device(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--device", default="cpu", metavar="D",
        help='where the model runs: cpu, the default; "cuda" or "auto" need accelerate',
    )  # fmt: skip
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
        help="precision of the weights; as they are stored by default",
    )  # fmt: skip


def _add_budget(parser: argparse.ArgumentParser) -> None:
    budget = parser.add_argument_group("budget")
    budget.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="the longest answer to keep space for"
    )
    budget.add_argument(
        "--group-size", type=int, metavar="G",
        help="positions that share one; the smallest sufficient by default",
    )  # fmt: skip
    budget.add_argument(
        "--neighbor-window", type=int, metavar="W",
        help="latest tokens at exact distance; a quarter of the model's window by default",
    )  # fmt: skip
    budget.add_argument(
        "--max-group-size", type=int, default=64, metavar="G",
        help="the largest group size to choose (default: 64)",
    )  # fmt: skip
    budget.add_argument(
        "--rule", default="empirical", choices=("empirical", "exact"),
        help="keep positions in the well-trained part of the window (default), or below its end",
    )  # fmt: skip
    budget.add_argument(
        "--memory-limit", action="append", default=[], metavar="[D=]SIZE",
        help="what the model may take in all, such as 8GiB, or cuda:0=20GiB for one device; "
        "what is free by default",
    )  # fmt: skip
    budget.add_argument(
        "--kv-bits", type=int, choices=(8, 4),
        help="keep keys and values in so many bits; in the model's own precision by default",
    )  # fmt: skip
    budget.add_argument(
        "--plain", action="store_true",
        help="never extend, whatever the length; past its window a model makes no sense",
    )  # fmt: skip


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="write one JSON object and no more")
