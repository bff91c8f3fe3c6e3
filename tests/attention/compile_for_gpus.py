"""Compile the kernels for GPUs, without one, with the arguments that their starters give them.

Prints a JSON line for each kernel. Run in a process of its own, where Triton does not interpret.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from selfextend_rag.attention.paged import Pages
from selfextend_rag.attention.partial import AttentionSpec
from selfextend_rag.attention.triton import launch, paged, tiles
from selfextend_rag.attention.triton.dispatch import attention_with_lse
from selfextend_rag.positions import SelfExtend
from selfextend_rag.rope import RotaryLayout

KINDS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32"}
OPTIONS = ("num_warps", "num_stages")


def kind_of(kernel: Any, name: str, value: Any) -> str:
    """How Triton would type an argument; ``constexpr`` for what it builds in."""
    if isinstance(value, torch.Tensor):
        return "*" + KINDS[value.dtype]
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{KINDS[value.base.dtype]}{value.block_shape}>"
    if isinstance(value, bool | str) or value is None or name.isupper():
        return "constexpr"
    fixed = kernel.do_not_specialize
    if isinstance(value, int):
        return "constexpr" if value == 1 and name not in fixed else "i32"
    return "fp32"


def dumped(option: str, cubin: bytes) -> str:
    """What cuobjdump prints about a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def spills_in_loops(sass: str) -> int | None:
    """Count moves of spilt registers in the inner loops that multiply matrices; None without."""
    code = [(int(at, 16), what) for at, what in re.findall(r"/\*([0-9a-f]{4,6})\*/ +(.*?);", sass)]
    jumps = [(at, re.search(r"\bBRA\b.*?\b0x([0-9a-f]+)", what)) for at, what in code]
    loops = [(int(to[1], 16), at) for at, to in jumps if to and int(to[1], 16) < at]
    spills = []
    for begin, end in loops:
        if any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in loops):
            continue
        body = [what for at, what in code if begin <= at <= end]
        if any(re.search(r"\bHG?MMA\b", what) for what in body):
            spills.append(sum(bool(re.search(r"\b(LDL|STL)\b", what)) for what in body))
    return sum(spills) if spills else None


def compiled(kernel: Any, arguments: dict[str, Any], capability: tuple[int, int]) -> None:
    options = {name: arguments.pop(name) for name in OPTIONS if name in arguments}
    assert list(arguments) == kernel.arg_names, "arguments in the order of the kernel"
    kinds = {name: kind_of(kernel, name, value) for name, value in arguments.items()}
    places = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel,
        signature=kinds,
        constexprs={places[n]: arguments[n] for n, kind in kinds.items() if kind == "constexpr"},
        attrs={
            places[n]: [["tt.divisibility", 16]]
            for n, kind in kinds.items()
            if kind[0] == "*" or (kind == "i32" and arguments[n] % 16 == 0)
        },
    )
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    code = triton.compile(source, target=target, options=options)
    sass = dumped("-sass", code.asm["cubin"])
    found = {
        "kernel": kernel.__name__,
        "capability": capability,
        "shared": code.metadata.shared,
        "stack": int(re.search(r"STACK:(\d+)", dumped("-res-usage", code.asm["cubin"]))[1]),
        "spills_in_loops": spills_in_loops(sass),
        "products": sass.count("HGMMA."),
        "waits": sass.count("WARPGROUP.DEPBAR"),
        "wgmma": "wgmma.mma_async" in code.asm["ptx"],
        "copy_engine": "cp.async.bulk.tensor" in code.asm["ptx"],
    }
    sys.stdout.write(json.dumps(found) + "\n")


def spec_of(dim: int, how: dict[str, Any]) -> AttentionSpec:
    rotary = RotaryLayout(tuple(1e4 ** (-2 * i / dim) for i in range(dim // 2)))
    return AttentionSpec(rotary=rotary, bands=SelfExtend(8, 100).bands, scaling=0.1, **how)


def attention(length: int, with_more: bool) -> None:
    """A prefill, a question or a decode step over one tensor of keys."""
    q = torch.zeros(2, 8, length, 128, dtype=torch.bfloat16)
    k = v = torch.zeros(2, 2, 300, 128, dtype=torch.bfloat16)
    how: dict[str, Any] = {}
    more: dict[str, Any] = {}
    if with_more:
        how = {"sinks": torch.zeros(8), "softcap": 5.0}
        more = {"bounds": torch.tensor([[0, 300, 300]] * 2, dtype=torch.int32), "with_lse": True}
    attention_with_lse(q, k, v, spec_of(128, how), **more)


def paged_attention(length: int, with_more: bool, dim: int) -> None:
    """A batch over pages: of 64 decode steps, or, with more new tokens, of any kind."""
    kind = torch.bfloat16 if dim != 64 or not with_more else torch.float32
    q = torch.zeros(64 if length == 1 else 2048, 8, dim, dtype=kind)
    how = {"sinks": torch.zeros(8), "softcap": 5.0} if with_more else {}
    cache, numbers = torch.zeros(4, 2, 16, 2 * dim, dtype=kind), torch.zeros(65).int()
    batch = paged.PagedBatch(
        torch.zeros(64, 64).int(), numbers, numbers[:64], numbers[:64], length, 32768
    )
    pages = Pages(*cache.split(dim, dim=-1))
    paged.paged_batch_attention(q, pages, batch, spec_of(dim, how), torch.empty_like(q))


def main() -> None:
    major, minor, length, with_more, paged_dim = map(int, sys.argv[1:])
    capability = (major, minor)
    for module in (launch, paged, tiles):
        module.capability_of = lambda device: capability
        module.multiprocessors = lambda device: 132

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        named = dict(zip(kernel.arg_names, args, strict=False))
        compiled(kernel, {n: (named | kwargs)[n] for n in [*kernel.arg_names, *kwargs]
                          if n in OPTIONS or n in kernel.arg_names}, capability)  # fmt: skip

    JITFunction.run = run
    if paged_dim:
        paged_attention(length, bool(with_more), paged_dim)
    else:
        attention(length, bool(with_more))


main()
