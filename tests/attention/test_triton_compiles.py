"""The kernels compile for GPUs, not in the interpreter alone, and fit their shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.compile

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).parents[2]
SHARED_BYTES = {(8, 0): 163 << 10, (8, 9): 99 << 10, (9, 0): 227 << 10}


def compiled(
    capability: tuple[int, int], length: int, with_more: bool, paged_dim: int = 0
) -> dict[str, dict]:
    script = Path(__file__).with_name("compile_for_gpus.py")
    arguments = [*capability, length, int(with_more), paged_dim]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], env=environment, cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {kernel["kernel"]: kernel for kernel in found}


@pytest.mark.parametrize(
    ("capability", "with_more"),
    [((9, 0), False), ((8, 9), True), ((8, 0), False)],
    ids=["sm_90", "sm_89", "sm_80"],
)
def test_a_prefill_compiles_and_spills_nothing_in_its_loops(capability, with_more):
    """Plain for sm_90, with bounds, sinks, softcap and log-sum-exp for sm_89."""
    found = compiled(capability, 300, with_more)
    assert set(found) == {"rotate_keys", "prefill"}
    assert found["prefill"]["shared"] <= SHARED_BYTES[capability]
    assert found["prefill"]["spills_in_loops"] == 0
    assert found["prefill"]["waits"] * 4 <= found["prefill"]["products"]  # not serialised
    assert found["prefill"]["wgmma"] == found["prefill"]["copy_engine"] == (capability == (9, 0))


@pytest.mark.parametrize(
    ("capability", "length", "with_more"),
    [((9, 0), 1, True), ((8, 0), 1, False), ((9, 0), 16, False), ((8, 9), 16, True)],
    ids=["sm_90, token", "sm_80, token", "sm_90, question", "sm_89, question"],
)
def test_a_decode_step_compiles_and_spills_nothing(capability, length, with_more):
    """One token, or 16, which are 64 rows."""
    found = compiled(capability, length, with_more)
    assert set(found) == {"decode", "join"}
    assert found["decode"]["shared"] <= SHARED_BYTES[capability]
    assert found["decode"]["stack"] == 0


@pytest.mark.parametrize(
    ("capability", "length", "dim", "with_more"),
    [
        ((9, 0), 300, 128, False),
        ((8, 9), 300, 128, True),
        ((8, 0), 300, 64, False),
        ((9, 0), 1, 128, True),
        ((8, 9), 1, 256, False),
        ((8, 0), 1, 80, False),
    ],
    ids=[
        "sm_90, batch", "sm_89, batch", "sm_80, batch",
        "sm_90, steps", "sm_89, steps", "sm_80, steps",
    ],
)  # fmt: skip
def test_paged_attention_compiles_and_spills_nothing_in_its_loops(
    capability, length, dim, with_more
):
    """A mixed batch, or 64 decode steps, whose keys are split: a second kernel joins the parts."""
    found = compiled(capability, length, with_more, paged_dim=dim)
    assert set(found) == ({"paged", "join"} if length == 1 else {"paged"})
    assert found["paged"]["shared"] <= SHARED_BYTES[capability]
    assert found["paged"]["spills_in_loops"] == 0
    if capability == (9, 0) and length > 1:
        assert found["paged"]["wgmma"]
        assert found["paged"]["waits"] * 4 <= found["paged"]["products"]  # not serialised
