"""Time and memory of the attention alone, for `benchmarks/gpu.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gpu_baselines import Authors, cudnn, flash, flex_decode, plain_ways, two_passes
from gpu_run import Run
from torch import Tensor

from selfextend_rag.attention.triton import tiles as tiling
from selfextend_rag.attention.triton.dispatch import attention_with_lse
from selfextend_rag.attention.triton.launch import keeps_busier

_ALLOWED = 0.05  # between two ways to compute outputs of up to about 4 in bfloat16


def tune(run: Run) -> None:
    """Time every tile to choose from, and take the fastest that is right from here on."""
    wrong = []
    capability = tiling.capability_of(run.device)
    size = torch.empty((), dtype=run.dtype).element_size()
    (n,) = run.tokens(1 << 14)[:1]
    works = (
        ("prefill", run.tensors(n, n)),
        ("decode", run.tensors(1, 2 * n)),
        ("question", run.tensors(n // 256 or 9, 2 * n)),
    )
    for kind, (q, k, v) in works:
        best: tuple[float, Any] | None = None
        expected = run.ours(q, k, v, impl="blocked")
        for tiles in tiling.candidates(kind, capability, run.dim, size):
            if run.left() < run.seconds * 0.6:
                break

            def work() -> Any:
                return attention_with_lse(q, k, v, run.spec, tiles=tiles)

            try:
                error = (work()[0] - expected).abs().max().item()
                if not error <= _ALLOWED:  # nor if it is no number
                    wrong.append(f"{kind} {tiles} differs by {error:.3g}")
                    continue
                found = work if kind == "prefill" else run.captured(work)
                took = run.paired({"it": found}, graph=kind != "prefill")["it"]
            except Exception as error:  # noqa: BLE001  too large for this device, say
                print(f"  {kind} {tiles}: {type(error).__name__}: {str(error)[:120]}")
                continue
            run.add(f"tune {kind}, ms", str(tiles).replace("Tiles", ""), took)
            if best is None or took < best[0]:
                best = (took, tiles)
        if best is not None:
            tiling.choose(kind, best[1], capability, run.dim, size)
    if wrong:
        raise RuntimeError("; ".join(wrong))


def prefill(run: Run) -> None:
    """Un-rotated q and k against plain attention of rotated ones, and two passes of a library."""
    for n in run.tokens(1 << 13, 1 << 15, 1 << 17):
        q, k, v = run.tensors(n, n)
        at = torch.arange(n, device=q.device)
        works = plain_ways(run.rotary.rotate(q, at), run.rotary.rotate(k, at), v, causal=True)
        plain_names = set(works)
        works["ours"] = lambda: run.ours(q, k, v)
        for name, square in (("two passes, flash", flash), ("two passes, cudnn", cudnn)):

            def passes(square: Callable[..., Any] = square) -> Tensor:
                return two_passes(q, k, v, run.rotary, run.method, square)

            try:
                passes()
                works[name] = passes
            except Exception as error:  # noqa: BLE001  a library that can't is left out
                print(f"  {name}: {type(error).__name__}: {str(error)[:120]}")
        took = run.paired(works)
        flops = 4 * n * n / 2 * run.dim * run.heads
        plain = min(took[name] for name in plain_names)
        run.add("prefill / plain", f"{n} tokens", took["ours"] / plain, not run.dry, ms=took)
        for name in works.keys() - plain_names - {"ours"}:
            run.add(f"{name} / plain", f"{n} tokens", took[name] / plain)
        speed = flops / took["ours"] / 1e9
        what = "prefill TFLOP/s at 32k" if n == 1 << 15 else "prefill TFLOP/s"
        run.add(what, f"{n} tokens (plain {flops / plain / 1e9:.0f})", speed)


def copy_bandwidth(run: Run) -> float:
    """Bytes read and written by a copy on the device, in GB/s."""
    target = torch.empty(1 << (12 if run.dry else 31), dtype=torch.uint8, device=run.device)
    source = torch.ones_like(target)
    took = run.paired({"copy": lambda: target.copy_(source)})["copy"]
    speed = 2 * target.numel() / took / 1e6
    run.add("copy bandwidth, GB/s", f"{target.numel() >> 20} MiB", speed)
    return speed


def decode(run: Run) -> None:
    """One query over a long cache, as CUDA graphs, and the share of the copy bandwidth."""
    bandwidth = copy_bandwidth(run)
    for n in run.tokens(1 << 15, 1 << 17):
        for batch in (1, 2) if run.dry else (1, 8):
            q, k, v = run.tensors(1, n, batch)
            ways = plain_ways(q, k, v, causal=False)
            if not (run.dry or run.quick) and batch == 1:
                ways["flex"] = flex_decode(q, k, v)
            ways["ours"] = lambda: run.ours(q, k, v)
            graphs = {}
            for name, work in ways.items():
                try:
                    work()
                    graphs[name] = run.captured(work)
                except Exception as error:  # noqa: BLE001  a way that can't is left out
                    print(f"  {name}: {type(error).__name__}: {str(error)[:120]}")
            took = run.paired(graphs, graph=True)
            plain = min(t for name, t in took.items() if name != "ours")
            shape = f"{n} keys, batch {batch}"
            run.add("decode / plain", shape, took["ours"] / plain, not run.dry, ms=took)
            speed = (k.nbytes + v.nbytes) / took["ours"] / 1e6
            run.add("decode / copy bandwidth", shape, speed / bandwidth, not run.dry)


def questions(run: Run) -> None:
    """Some queries over a long cache, by either kernel, next to torch's flash attention."""
    capability = tiling.capability_of(run.device)
    for n in run.tokens(1 << 15, 1 << 17):
        for length in (9,) if run.dry else (16, 64, 128, 256):
            q, k, v = run.tensors(length, n)
            shape = capability, run.dim, q.element_size()
            works: dict[str, Callable[[], Any]] = {"plain": lambda: flash(q, k, v)}
            ways = {
                "keys split": tiling.decode_tiles(*shape, rows=64),
                "tiles of queries": tiling.prefill_tiles(*shape),
            }
            for name, tiles in ways.items():
                works[name] = lambda tiles=tiles: attention_with_lse(q, k, v, run.spec, tiles=tiles)
            took = run.paired({name: run.captured(w) for name, w in works.items()}, graph=True)
            taken = "keys split" if keeps_busier(q, k) else "tiles of queries"
            for name in ways:
                what = f"question, {name}{' (taken)' * (name == taken)} / flash"
                run.add(what, f"{length} tokens over {n}", took[name] / took["plain"], ms=took)


def memory(run: Run) -> None:
    """Peak memory of one prefill over that of plain attention of tensors as large."""
    for n in run.tokens(1 << 15, 1 << 17):
        q, k, v = run.tensors(n, n)
        works = {"plain": lambda: flash(q, k, v), "ours": lambda: run.ours(q, k, v)}
        if run.dry:
            works["ours"]()
            continue
        peaks = {name: peak_bytes(work) for name, work in works.items()}
        over = peaks["ours"] / peaks["plain"] - 1
        run.add("memory over plain", f"{n} tokens", over, n == 1 << 17, **peaks)


def peak_bytes(work: Callable[[], Any]) -> int:
    """Memory allocated at the most while ``work`` runs, what was there before included."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def authors(run: Run) -> None:
    """The two-partial-attention form, keys re-rotated at every step."""
    form = Authors(run.rotary, run.method)
    for n in run.tokens(1 << 13, 1 << 15):
        q, k, v = run.tensors(n, n)
        exact = run.ours(q, k, v)
        error = (form(q, k, v) - exact).abs().max().item()
        run.add("authors' form, distance to ours", f"{n} tokens", error)
        works = {"theirs": lambda: form(q, k, v), "ours": lambda: run.ours(q, k, v)}
        took = run.paired(works)
        ratio = took["theirs"] / took["ours"]
        run.add("authors' prefill / ours", f"{n} tokens", ratio, not run.dry, ms=took)
        one = q[:, :, -1:].contiguous()
        works = {"theirs": lambda: form(one, k, v), "ours": lambda: run.ours(one, k, v)}
        took = run.paired({name: run.captured(work) for name, work in works.items()}, graph=True)
        ratio = took["theirs"] / took["ours"]
        at_32k = n == 1 << 15
        what = "authors' decode / ours at 32k" if at_32k else "authors' decode / ours"
        run.add(what, f"{n} keys", ratio, ms=took)
