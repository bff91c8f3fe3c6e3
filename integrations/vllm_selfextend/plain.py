"""Requests that fit the pretraining window: they run with ordinary attention, as the stock model.

Whether one does is decided once, where it enters the engine, by its prompt and its longest answer.
It is marked in its sampling parameters, which travel to every worker, and its cached blocks get
a salt of their own: its keys are at their own positions, and no extended request may find them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context, is_forward_context_available

from vllm_selfextend.settings import OPTION

_PLAIN = "plain"
_SALT = "selfextend: plain"
_SALT_OF_OTHERS = "selfextend: extended"
_ROWS = "selfextend_plain_rows"  # of metadata: whether each sequence is plain
_TOKENS = "selfextend_plain_tokens"  # the same for each new token [N]; None if none is


def mark(request: Any, pretraining_window: int) -> None:
    """Mark a request that enters the engine, if prompt and answer fit P tokens together.

    One that may be continued later is never plain: its length is not known. A mark that came with
    the request is dropped.
    """
    params, ids = request.sampling_params, request.prompt_token_ids
    if params is None:
        return
    fits = (
        ids is not None
        and params.max_tokens is not None
        and not request.resumable
        and len(ids) + params.max_tokens <= pretraining_window
    )
    extra = {k: v for k, v in (params.extra_args or {}).items() if k != OPTION}
    request.sampling_params = params.clone()
    request.sampling_params.extra_args = {**extra, OPTION: _PLAIN} if fits else extra or None
    if fits:
        request.cache_salt = f"{_SALT} {request.cache_salt or ''}"
    elif request.cache_salt:  # so that none of the client's own is taken for the salt above
        request.cache_salt = f"{_SALT_OF_OTHERS} {request.cache_salt}"


def note_rows(metadata: Any, runner: Any) -> None:
    """Write to the metadata of a step which of its sequences and tokens are plain.

    Args:
        metadata: by layer, as vLLM's runner of models built it for the present batch.
        runner: knows the batch's requests, in the order of the metadata.

    Raises:
        NotImplementedError: the batch is divided.
    """
    if not isinstance(metadata, dict):
        raise NotImplementedError("SelfExtend does not run in batches that are divided (ubatches)")
    requests = [runner.requests.get(name) for name in runner.input_batch.req_ids]
    plain = [request is not None and _is_plain(request.sampling_params) for request in requests]
    for one in {id(x): x for x in metadata.values()}.values():
        counts = one.query_start_loc.diff()
        rows = (plain + [False] * len(counts))[: len(counts)]
        setattr(one, _ROWS, rows)
        tokens = torch.tensor(rows).repeat_interleave(counts) if any(rows) else None
        setattr(one, _TOKENS, tokens)


def _is_plain(params: Any) -> bool:
    return params is not None and (params.extra_args or {}).get(OPTION) == _PLAIN


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


@torch.library.custom_op("vllm_selfextend::key_positions", mutates_args=())
def key_positions(positions: Tensor, group_size: int) -> Tensor:
    """Return where keys are put: at ``position // G``, those of plain requests at their own.

    An operator of its own, so that a compiled graph asks for the requests of each step.
    """
    grouped = positions // group_size
    steps = get_forward_context().attn_metadata if is_forward_context_available() else None
    if not isinstance(steps, dict):
        return grouped  # the layer is tried out, or memory is measured
    noted = next((x for x in steps.values() if hasattr(x, _TOKENS)), None)
    tokens = None if noted is None else getattr(noted, _TOKENS)
    if tokens is None:
        return grouped
    plain = torch.zeros(len(positions), dtype=torch.bool, device=positions.device)
    plain[: len(tokens)] = tokens
    return torch.where(plain, positions, grouped)


@key_positions.register_fake
def _(positions: Tensor, group_size: int) -> Tensor:
    return torch.empty_like(positions)
