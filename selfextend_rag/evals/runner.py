"""Runs the tasks on a model and returns plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from transformers import PreTrainedTokenizerBase

from selfextend_rag.evals.access import EvaluatedModel
from selfextend_rag.evals.metrics import is_exact_match, nll_by_position, perplexity
from selfextend_rag.evals.prose import Prose
from selfextend_rag.evals.tasks import LookupTask, lookup_task, passkey_task
from selfextend_rag.positions import PositionMap

TASKS: dict[str, Callable[..., LookupTask]] = {"passkey": passkey_task, "lookup": lookup_task}
MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Cell:
    """Lookups of one length and depth.

    Attributes:
        length: tokens of each prompt.
        depth: where the statement is, 0 the start and 1 the end of the document.
        right: how many answers were exact.
        samples: how many were asked.
        wrong: up to three wrong answers, as expected and given.
        settings: of SelfExtend, where the model is extended.
    """

    length: int
    depth: float
    right: int
    samples: int
    wrong: tuple[tuple[str, str], ...]
    settings: PositionMap | None = None


class PerplexityRow(TypedDict):
    """What `run_perplexity` measures, as JSON values."""

    length: int
    samples: int
    perplexity: float
    bin_starts: tuple[int, ...]
    means: tuple[float, ...]
    settings: dict[str, int] | None


def run_lookups(
    model: EvaluatedModel,
    tokenizer: PreTrainedTokenizerBase,
    prose: Prose,
    *,
    task: str,
    length: int,
    depths: Sequence[float],
    samples: int,
    seed: int = 0,
    progress: Callable[[Cell], None] | None = None,
) -> list[Cell]:
    """Return one cell for each depth, ``samples`` documents and facts in each.

    Sample i of a depth has the same seed whatever the model, so that models answer the same.

    Args:
        model: what answers.
        tokenizer: the model's transformers tokenizer.
        prose: the text around the facts.
        task: ``"passkey"`` or ``"lookup"``.
        length: tokens of each prompt.
        depths: the places of the statement.
        samples: documents in each cell.
        seed: moves all documents and facts.
        progress: called with each finished cell.
    """
    cells = []
    for place, depth in enumerate(depths):
        wrong: list[tuple[str, str]] = []
        for sample in range(samples):
            question = TASKS[task](
                tokenizer,
                prose,
                length=length,
                depth=depth,
                seed=seed + 1000 * place + sample,
            )
            new = model.generate(question.prompt_ids, MAX_NEW_TOKENS)
            given = str(tokenizer.decode(new, skip_special_tokens=True))
            if not is_exact_match(given, question.answer):
                wrong.append((question.answer, given))
        cell = Cell(length, depth, samples - len(wrong), samples, tuple(wrong[:3]))
        if progress is not None:
            progress(cell)
        cells.append(cell)
    return cells


def run_perplexity(
    model: EvaluatedModel,
    prose: Prose,
    *,
    head: Sequence[int],
    length: int,
    samples: int,
    bin_size: int,
) -> PerplexityRow:
    """Return perplexity over runs of prose, and the mean log-likelihood by position.

    Args:
        model: what reads.
        prose: the text; ``samples`` runs of it are read, evenly spread.
        head: tokens before each run, such as the start token; they count in the length.
        length: tokens of each run.
        samples: how many runs.
        bin_size: positions in one bin.
    """
    sequences = []
    for sample in range(samples):
        run, _ = prose.run(length - len(head), sample / samples)
        sequences.append(model.token_nll([*head, *run]))
    by_position = nll_by_position(sequences, bin_size)
    return {
        "length": length,
        "samples": samples,
        "perplexity": perplexity([value for sequence in sequences for value in sequence]),
        "bin_starts": by_position.bin_starts,
        "means": by_position.means,
        "settings": None,
    }
