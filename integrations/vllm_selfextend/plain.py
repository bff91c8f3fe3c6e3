"""Requests that fit the pretraining window: they run with ordinary attention, as the stock model.

Whether one does is decided once, where it enters the engine, by its prompt and its longest answer.
It is marked in its sampling parameters, which travel to every worker, and its cached blocks get
a salt of their own: its keys are at their own positions, and no extended request may find them.

The mark of each request holds the engine's settings, too. Where nodes are started one by one, each
with flags of its own, a worker of other settings, or without the plugin, stops at the first one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vllm_selfextend.settings import OPTION, Resolved

_SALT = "selfextend: plain"
_SALT_OF_OTHERS = "selfextend: extended"
_ROWS = "selfextend_plain_rows"  # of metadata: whether each sequence is plain


class PlainMarks:
    """Which tokens and sequences of the present step are plain, where the model's tensors are.

    All layers of a model share one. The tensors stay where they are, so that what a CUDA graph
    captured reads the step's own marks when it is replayed.

    Args:
        tokens: the most new tokens of a step, so the most sequences, too.
        device: of the model.
    """

    def __init__(self, tokens: int, device: torch.device) -> None:
        self.tokens = torch.zeros(tokens, dtype=torch.bool, device=device)
        self.sequences = torch.zeros(tokens, dtype=torch.int32, device=device)
        self._written: tuple[list[bool], list[int]] | None = None  # None: all are zero

    def write(self, rows: list[bool], counts: list[int]) -> None:
        """Write which sequences are plain, and how many new tokens each has."""
        written = (rows, counts) if any(rows) else None
        if written == self._written:
            return
        self._written = written
        self.tokens.zero_()
        self.sequences.zero_()
        if written is not None:
            plain = torch.tensor(rows)
            tokens = plain.repeat_interleave(torch.tensor(counts))
            self.tokens[: len(tokens)].copy_(tokens, non_blocking=True)
            self.sequences[: len(rows)].copy_(plain, non_blocking=True)


def mark(request: Any, resolved: Resolved) -> None:
    """Mark a request that enters the engine: plain if prompt and answer fit P tokens together.

    One that may be continued later is never plain: its length is not known. A mark that came with
    the request is dropped.
    """
    params, ids = request.sampling_params, request.prompt_token_ids
    if params is None:
        return
    plain = (
        ids is not None
        and params.max_tokens is not None
        and not request.resumable
        and len(ids) + params.max_tokens <= resolved.pretraining_window
    )
    request.sampling_params = params.clone()
    own = {OPTION: {"plain": plain, "settings": resolved}}
    request.sampling_params.extra_args = {**(params.extra_args or {}), **own}
    if plain:
        request.cache_salt = f"{_SALT} {request.cache_salt or ''}"
    elif request.cache_salt:  # so that none of the client's own is taken for the salt above
        request.cache_salt = f"{_SALT_OF_OTHERS} {request.cache_salt}"


def note_rows(metadata: Any, runner: Any, resolved: Resolved | None) -> None:
    """Write down which sequences and tokens of a step are plain, for all layers.

    Args:
        metadata: by layer, as vLLM's runner of models built it for the present batch.
        runner: knows the batch's requests, in the order of the metadata.
        resolved: the settings of this process, None if it has none.

    Raises:
        NotImplementedError: the batch is divided.
        RuntimeError: the engine has other settings than this process.
    """
    marks = [_mark_of(runner.requests.get(name)) for name in runner.input_batch.req_ids]
    if any(one is not None and one["settings"] != resolved for one in marks):
        raise RuntimeError(
            f"a node of this engine was started with other settings of SelfExtend ({resolved}) "
            f'than the first one; give all nodes the same "{OPTION}" in additional_config'
        )
    if resolved is None:
        return
    if not isinstance(metadata, dict):
        raise NotImplementedError("SelfExtend does not run in batches that are divided (ubatches)")
    plain = [one is not None and one["plain"] for one in marks]
    counts = runner.query_start_loc.cpu[: len(plain) + 1].diff().tolist()
    layers = runner.vllm_config.compilation_config.static_forward_context.values()
    for shared in (getattr(getattr(layer, "impl", None), "marks", None) for layer in layers):
        if shared is not None:  # by all layers of a stage
            shared.write(plain, counts)
            break
    for one in {id(x): x for x in metadata.values()}.values():
        rows = len(one.query_start_loc) - 1
        setattr(one, _ROWS, (plain + [False] * rows)[:rows])


def _mark_of(request: Any) -> dict[str, Any] | None:
    params = None if request is None else request.sampling_params
    found = None if params is None else (params.extra_args or {}).get(OPTION)
    ours = isinstance(found, dict) and isinstance(found.get("settings"), Resolved)
    return found if ours else None  # a client may send anything under that name


def rows_of(metadata: Any) -> list[bool]:
    """Return whether each sequence of a step is plain.

    Raises:
        RuntimeError: nobody noted it: vLLM ran another runner of models than the one it used to.
    """
    if not hasattr(metadata, _ROWS):
        raise RuntimeError(
            "the requests of this step are unknown to vllm_selfextend: it is written for vLLM's "
            "first runner of models; set VLLM_USE_V2_MODEL_RUNNER=0"
        )
    rows: list[bool] = getattr(metadata, _ROWS)
    return rows


def key_positions(positions: Tensor, plain: Tensor, group_size: int) -> Tensor:
    """Return where keys ``[T]`` are put: at ``position // G``, those of plain tokens at their own.

    Args:
        positions: ``[T]``.
        plain: which of the step's tokens are, ``[>= T]``.
        group_size: G.
    """
    return torch.where(plain[: len(positions)], positions, positions // group_size)


@torch.library.custom_op("vllm_selfextend::key_positions", mutates_args=())
def compiled_key_positions(positions: Tensor, plain: Tensor, group_size: int) -> Tensor:
    """`key_positions` for compiled graphs, which so learn nothing of the marks' length."""
    return key_positions(positions, plain, group_size)


@compiled_key_positions.register_fake
def _(positions: Tensor, plain: Tensor, group_size: int) -> Tensor:
    return torch.empty_like(positions)
