"""One run of `benchmarks/gpu.py`: its sizes, its clock, its results, its bars."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from selfextend_rag.attention import AttentionSpec, self_extend_attention
from selfextend_rag.positions import SelfExtend
from selfextend_rag.rope import RotaryLayout

BARS = {
    "error / flash": ("<=", 1.5),
    "prefill / plain": ("<=", 1.10),
    "prefill TFLOP/s at 32k": (">=", 450),
    "decode / plain": ("<=", 1.10),
    "decode / copy bandwidth": (">=", 0.70),
    "memory over plain": ("<=", 0.02),
    "authors' prefill / ours": (">=", 1.3),
    "authors' decode / ours at 32k": (">=", 5.0),
    "model: extended / plain tokens per second": (">=", 0.93),
}


def layout(dim: int, **kwargs: Any) -> RotaryLayout:
    return RotaryLayout(tuple(5e5 ** (-2 * i / dim) for i in range(dim // 2)), **kwargs)


@dataclass
class Run:
    """One run of the benchmark: sizes, clock, results."""

    dry: bool
    quick: bool
    seconds: float
    began: float = field(default_factory=time.perf_counter)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.device = torch.device("cpu" if self.dry else "cuda")
        self.dtype = torch.float32 if self.dry else torch.bfloat16
        self.heads, self.kv_heads, self.dim = (2, 1, 16) if self.dry else (32, 8, 128)
        self.method = SelfExtend(3, 8) if self.dry else SelfExtend(8, 1024)
        self.rotary = layout(self.dim)
        self.spec = AttentionSpec(
            rotary=self.rotary, bands=self.method.bands, scaling=self.dim**-0.5
        )
        self.pairs = 1 if self.dry else 5 if self.quick else 11

    def tokens(self, *lengths: int) -> list[int]:
        if self.dry:
            return [20]
        return [n for n in lengths if not self.quick or n <= 1 << 15]

    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self.began)

    def add(self, what: str, shape: str, value: float, bar: bool = True, **more: Any) -> None:
        sign, limit = BARS.get(what, ("", None))
        met = None
        if limit is not None and bar:
            met = value <= limit if sign == "<=" else value >= limit
        row = {"what": what, "shape": shape, "value": value, "bar": limit if bar else None}
        self.rows.append({**row, "met": met, **more})
        verdict = {
            None: "",
            True: f"  bar {sign} {limit}: met",
            False: f"  bar {sign} {limit}: MISSED",
        }
        print(f"{what:45} {shape:38} {value:10.4g}{verdict[met]}", flush=True)

    def tensors(
        self, length: int, total: int, batch: int = 1, heads: int = 0, kv: int = 0, dim: int = 0
    ) -> list[Tensor]:
        heads, kv, dim = heads or self.heads, kv or self.kv_heads, dim or self.dim
        make = torch.Generator(self.device).manual_seed(total)
        shapes = [(batch, heads, length, dim), (batch, kv, total, dim), (batch, kv, total, dim)]
        return [
            torch.randn(s, generator=make, device=self.device, dtype=self.dtype) for s in shapes
        ]

    def ours(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        options = {"rotary": self.rotary, "settings": self.method, "impl": "triton"} | options
        return self_extend_attention(q, k, v, **options)

    def milliseconds(self, work: Callable[[], Any], graph: bool = False) -> float:
        """Time of one call; several short ones are timed together."""
        if self.dry:
            begin = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - begin)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times = 20 if graph else 1
        begin.record()
        for _ in range(times):
            work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / times

    def captured(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """The same work as a CUDA graph, so that no launch is waited for."""
        if self.dry:
            return work
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    def paired(self, works: dict[str, Callable[[], Any]], graph: bool = False) -> dict[str, float]:
        """Median milliseconds of each, run in turn, after two warm-ups."""
        for work in works.values():
            work(), work()
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(self.pairs):
            for name, work in works.items():
                times[name].append(self.milliseconds(work, graph))
        return {name: statistics.median(t) for name, t in times.items()}
