"""Which tokens and sequences of a step are plain, as all layers and captured graphs read it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from vllm_selfextend.plain import PlainMarks, note_rows, rows_of


def runner_of(marks, kinds, counts):
    """A runner of models with these requests, in the order of its batch."""
    names = [f"request {i}" for i in range(len(kinds))]
    extra = {"plain": {"selfextend": "plain"}, "extended": None}
    requests = {
        name: SimpleNamespace(sampling_params=SimpleNamespace(extra_args=extra[kind]))
        for name, kind in zip(names, kinds, strict=True)
    }
    starts = torch.cat([torch.zeros(1).int(), torch.tensor(counts).cumsum(0).int()])
    context = {
        "of a table": SimpleNamespace(),
        "layer": SimpleNamespace(impl=SimpleNamespace(marks=marks)),
    }
    return SimpleNamespace(
        requests=requests, input_batch=SimpleNamespace(req_ids=names),
        query_start_loc=SimpleNamespace(cpu=torch.cat([starts, torch.full((5,), 99).int()])),
        vllm_config=SimpleNamespace(
            compilation_config=SimpleNamespace(static_forward_context=context)
        ),
    )  # fmt: skip


def test_marks_follow_each_step_and_stay_where_they_are():
    marks = PlainMarks(16, torch.device("cpu"))
    places = marks.tokens.data_ptr(), marks.sequences.data_ptr()
    for kinds, counts in (
        (["extended", "plain", "plain"], [3, 2, 1]),
        (["plain", "extended"], [1, 4]),
        (["plain", "extended"], [1, 4]),
        (["extended"], [7]),
        ([], []),
        (["plain"], [16]),
    ):
        metadata = SimpleNamespace(query_start_loc=torch.zeros(5))
        note_rows({"a": metadata, "b": metadata}, runner_of(marks, kinds, counts))
        plain = [kind == "plain" for kind in kinds]
        tokens = [p for p, count in zip(plain, counts, strict=True) for _ in range(count)]
        assert marks.tokens.tolist() == (tokens + [False] * 16)[:16]
        assert marks.sequences.tolist() == ([int(p) for p in plain] + [0] * 16)[:16]
        assert rows_of(metadata) == (plain + [False] * 4)[:4]
    assert places == (marks.tokens.data_ptr(), marks.sequences.data_ptr())


def test_a_step_that_nobody_noted_is_refused():
    with pytest.raises(RuntimeError, match="VLLM_USE_V2_MODEL_RUNNER=0"):
        rows_of(SimpleNamespace())


def test_divided_batches_are_refused():
    with pytest.raises(NotImplementedError, match="ubatches"):
        note_rows([{}, {}], runner_of(None, [], []))
