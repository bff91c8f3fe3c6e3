"""Which tokens and sequences of a step are plain, as all layers and captured graphs read it."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from vllm_selfextend.plain import PlainMarks, note_rows, rows_of
from vllm_selfextend.settings import Resolved

SETTINGS = Resolved(group_size=8, neighbor_window=64, pretraining_window=512)


def marked(plain, settings=SETTINGS):
    """What a request's sampling parameters bring from where it entered the engine."""
    return {"selfextend": {"plain": plain, "settings": settings}}


def runner_of(marks, kinds, counts):
    """A runner of models with these requests, in the order of its batch."""
    names = [f"request {i}" for i in range(len(kinds))]
    requests = {
        name: SimpleNamespace(sampling_params=SimpleNamespace(extra_args=marked(kind == "plain")))
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
        note_rows({"a": metadata, "b": metadata}, runner_of(marks, kinds, counts), SETTINGS)
        plain = [kind == "plain" for kind in kinds]
        tokens = [p for p, count in zip(plain, counts, strict=True) for _ in range(count)]
        assert marks.tokens.tolist() == (tokens + [False] * 16)[:16]
        assert marks.sequences.tolist() == ([int(p) for p in plain] + [0] * 16)[:16]
        assert rows_of(metadata) == (plain + [False] * 4)[:4]
    assert places == (marks.tokens.data_ptr(), marks.sequences.data_ptr())


def test_a_step_that_nobody_noted_is_refused():
    with pytest.raises(RuntimeError, match="VLLM_USE_V2_MODEL_RUNNER=0"):
        rows_of(SimpleNamespace())


@pytest.mark.parametrize("here", [None, Resolved({**SETTINGS, "group_size": 4})])
def test_a_node_of_other_settings_than_the_engine_stops_at_the_first_request(here):
    """Each node reads flags of its own where vLLM's workers are started node by node."""
    runner = runner_of(PlainMarks(4, torch.device("cpu")), ["extended"], [3])
    with pytest.raises(RuntimeError, match="all nodes the same"):
        note_rows({}, runner, here)


def test_a_node_without_the_plugin_stops_where_it_reads_the_first_request():
    with mock.patch("vllm_selfextend.register") as register:
        found = pickle.loads(pickle.dumps(marked(plain=True)))
    assert register.called, "a request that arrives connects the plugin, which has to be there"
    assert found == marked(plain=True)


def test_other_engines_on_several_nodes_are_left_alone():
    runner = runner_of(None, ["extended"], [3])
    for given in (None, {"selfextend": "of a client"}, {"selfextend": {"plain": True}}):
        for request in runner.requests.values():
            request.sampling_params.extra_args = given
        note_rows({}, runner, None)


def test_divided_batches_are_refused():
    with pytest.raises(NotImplementedError, match="ubatches"):
        note_rows([{}, {}], runner_of(None, [], []), SETTINGS)
