"""The plugin's option: what it takes, what it plans, and how it travels. Needs no vLLM."""

from __future__ import annotations

import json
import pickle
from types import SimpleNamespace
from unittest import mock

import pytest

from selfextend_rag.planning import ContextBudgetPlanner
from selfextend_rag.positions import SelfExtend
from vllm_selfextend.settings import Resolved, length_limit, option_of, resolve

CONFIG = SimpleNamespace(max_position_embeddings=512)


def test_the_two_settings_are_taken_as_they_are():
    found = resolve({"group_size": 3, "neighbor_window": 100}, CONFIG)
    assert found.settings == SelfExtend(3, 100)
    assert found.extended_window == SelfExtend(3, 100).extended_window(512)
    assert length_limit(found, None) == length_limit(found, -1) == found.extended_window


def test_from_a_number_of_tokens_the_planner_picks_both():
    found = resolve({"max_tokens": 2000}, CONFIG)
    assert found.settings == ContextBudgetPlanner(512).plan(2000, 0).settings
    assert length_limit(found, None) == 2000
    assert length_limit(found, found.extended_window) == found.extended_window > 2000


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"group_size": 3}, "must be"),
        ({"group_size": 3, "neighbour_window": 8}, "neighbour_window"),
        ({"group_size": 3, "neighbor_window": 8, "max_tokens": 9}, "got the entries"),
        ({}, "must be"),
        ({"group_size": 0, "neighbor_window": 8}, "group_size must be a positive integer, got 0"),
        ({"group_size": True, "neighbor_window": 8}, "group_size must be a positive integer"),
        ({"group_size": 3, "neighbor_window": "8"}, "neighbor_window must be a positive integer"),
        ({"group_size": 3, "neighbor_window": 512}, "smaller than the pretraining window of 512"),
        ({"max_tokens": 512}, "fits the pretraining window of 512; leave the option out"),
        ({"max_tokens": 10**6}, "out of reach"),
    ],
)
def test_what_can_not_be_meant_is_refused(option, reason):
    with pytest.raises(ValueError, match=reason):
        resolve(option, CONFIG)


def test_the_option_is_a_dictionary_or_absent():
    assert option_of({}) is None
    assert option_of({"other": 1}) is None
    assert option_of(object()) is None
    with pytest.raises(ValueError, match="must be"):
        option_of({"selfextend": 8})


def test_a_length_beyond_the_extended_window_is_refused_with_the_figures():
    found = resolve({"group_size": 8, "neighbor_window": 128}, CONFIG)
    reason = r"5000 exceeds the extended window of 3200 .*group_size 8"
    with pytest.raises(ValueError, match=reason):
        length_limit(found, 5000)


def test_it_travels_with_the_plugin_and_is_hashed_as_a_dictionary():
    found = resolve({"max_tokens": 2000}, CONFIG)
    with mock.patch("vllm_selfextend.register") as register:
        again = pickle.loads(pickle.dumps(found))
    assert register.called, "a process that gets the option connects the plugin"
    assert type(again) is Resolved
    assert again == found
    assert resolve(again, CONFIG) is again
    assert json.loads(json.dumps({"selfextend": again}))["selfextend"] == dict(found)
