"""Errors against float64, for `benchmarks/gpu.py`."""

from __future__ import annotations

from typing import Any

import torch
from gpu_baselines import flash
from gpu_run import Run, layout
from torch import Tensor

from selfextend_rag.attention import self_extend_attention
from selfextend_rag.positions import SelfExtend


def correctness(run: Run) -> None:
    """Errors against float64 on slices, next to those of plain flash attention from raw q and k."""
    n = 40 if run.dry else 4096
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        (f"prefill {n}", {"length": n, "total": n}, {}),
        (f"prefill {n - 3}", {"length": n - 3, "total": n - 3}, {}),
        (f"chunk {n // 5 + 1} of {n}", {"length": n // 5 + 1, "total": n}, {}),
        (f"decode {n - 1}", {"length": 1, "total": n - 1, "batch": 2}, {}),
        (f"5 queries of {n}", {"length": 5, "total": n}, {}),
        (f"{n // 64 + 6} queries of {n}", {"length": n // 64 + 6, "total": n}, {}),
        ("softcap, sinks", {"length": n, "total": n}, {"softcap": 30.0, "sinks": True}),
        ("left padding", {"length": n, "total": n, "batch": 2}, {"pads": n // 3}),
        ("left padding, decode", {"length": 1, "total": n, "batch": 2}, {"pads": n // 3}),
        ("interleaved", {"length": n, "total": n}, {"layout": {"pairing": "interleaved"}}),
    ]
    cases += [
        (f"heads of {d}", {"length": n, "total": n, "dim": d}, {})
        for d in ([64] if run.dry else [64, 80, 96, 256])
    ]
    cases += [(f"prefill {m}", {"length": m, "total": m}, {}) for m in run.tokens(1 << 15, 1 << 17)]
    for name, shape, options in cases:
        _correct(run, name, run.tensors(**shape), dict(options))


def _correct(run: Run, name: str, qkv: list[Tensor], options: dict[str, Any]) -> None:
    q, k, v = qkv
    rotary = layout(q.shape[3], **options.pop("layout", {}))
    pads = options.pop("pads", 0)
    mask = None
    if pads:
        mask = torch.ones(len(k), k.shape[2], dtype=torch.bool, device=k.device)
        mask[1, :pads] = False
    if options.pop("sinks", False):
        options["sinks"] = torch.linspace(-1, 2, q.shape[1], device=q.device)
    out = run.ours(q, k, v, rotary=rotary, key_mask=mask, **options)
    total, length = k.shape[2], q.shape[2]
    at = torch.arange(total, device=q.device)
    turned = rotary.rotate(q, at[total - length :]), rotary.rotate(k, at)
    stock, _ = flash(*turned, v)
    worst = {"ours": 0.0, "flash": 0.0}
    share, window = q.shape[1] // k.shape[1], run.method.neighbor_window
    heads = slice(0, share)  # of one kv head: float64 scores are large
    for begin in sorted({0, min(window, length - 1), max(0, length - 64), length // 2}):
        end = min(begin + 64, length)
        seen = total - length + end
        part = (q[:, heads, begin:end], k[:, :1, :seen], v[:, :1, :seen])
        exact = {
            "ours": (run.method, {**options, "key_mask": None if mask is None else mask[:, :seen]}),
            "flash": (SelfExtend(1, 1), {}),
        }
        for way, got in (("ours", out), ("flash", stock)):
            method, more = exact[way]
            if "sinks" in more:
                more = {**more, "sinks": more["sinks"][heads]}
            truth = self_extend_attention(
                *(x.double() for x in part),
                rotary=rotary,
                settings=method,
                impl="reference",
                **more,
            )
            error = (got[:, heads, begin:end].double() - truth).abs().max().item()
            worst[way] = max(worst[way], error)
    finite = bool(out.isfinite().all())
    ratio = worst["ours"] / worst["flash"] if finite else float("inf")
    run.add("error / flash", name, ratio, bar=not run.dry, **worst)
