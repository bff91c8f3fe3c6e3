"""Reading by other maps than SelfExtend: planned, told apart, saved and loaded."""

from __future__ import annotations

import pytest

from selfextend_rag.errors import CacheMismatchError, ContextBudgetExceeded
from selfextend_rag.llm import LongContextLLM
from selfextend_rag.maps import MAPS, String
from selfextend_rag.planning import ContextPlan, MapPlanner, published_map
from tests.tiny import byte_tokenizer, tiny_llama

LONG = "".join(f"Fact {i} is {i * i % 97}. " for i in range(14))
QUESTION = "What is fact 3?"
FREE = {"max_new_tokens": 6, "stop": (), "stop_token_ids": ()}
FAR = sorted(MAPS.keys() - {String.name})  # STRING is made for sequences within the window


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def llm_of(model, method, **options):
    return LongContextLLM(model, byte_tokenizer(), method=method, **options)


@pytest.mark.parametrize("method", FAR)
def test_a_saved_reading_is_loaded_by_its_own_method_alone(model, method, tmp_path):
    llm, path = llm_of(model, method), tmp_path / "reading.kv"
    reading = llm.read(LONG, max_new_tokens=6, question_reserve=48)
    assert reading.plan.settings.name == method
    expected = reading.ask(QUESTION, **FREE).text
    reading.save(path)
    assert llm_of(model, method).load(path).ask(QUESTION, **FREE).text == expected
    others = {*FAR, "selfextend"} - {method}
    for other in others:
        with pytest.raises(CacheMismatchError):
            llm_of(model, other).load(path)


def test_a_reading_of_self_extend_is_refused_by_every_other_method(model, tmp_path):
    path = tmp_path / "reading.kv"
    llm_of(model, "selfextend").read(LONG).save(path)
    for other in FAR:
        with pytest.raises(CacheMismatchError, match="method"):
            llm_of(model, other).load(path)


def test_kept_prompts_are_not_shared_between_methods(model, tmp_path):
    """In one folder, the same prompt under each method: nobody takes another's keys."""
    answers = {}
    for method in ("selfextend", *FAR):
        options = {"prefix_cache_dir": tmp_path, "prefix_cache_bytes": 1 << 24}
        alone = llm_of(model, method, prefix_cache_bytes=0)
        answers[method] = alone.generate(LONG, **FREE).text
        kept = llm_of(model, method, **options)
        for cached in (False, True):
            answer = kept.generate(LONG, **FREE)
            assert answer.text == answers[method]
            assert bool(answer.usage.cached_tokens) == cached, method
            kept.prefix_cache.flush()
    assert len(set(answers.values())) > 1


def test_a_plan_survives_json_and_names_its_map(model):
    plan = llm_of(model, "lampe").plan(LONG, max_new_tokens=6)
    assert ContextPlan.from_dict(plan.to_dict()) == plan
    assert "LaMPE(" in plan.explain()


@pytest.mark.parametrize("method", sorted(MAPS))
@pytest.mark.parametrize("window", [64, 512, 4096])
def test_the_window_of_a_method_is_the_longest_that_its_positions_allow(method, window):
    planner = MapPlanner(window, method=method)
    longest = planner.extended_window
    for tokens in {window + 1, min(longest, 3 * window)}:
        found = published_map(method, window, tokens)
        seen = [found.relative_position(tokens - 1, k) for k in range(0, tokens, 7)]
        assert max(seen) < window
    if longest < 1 << 30:
        assert planner.plan(longest - 1, 1).settings is not None
        with pytest.raises(ContextBudgetExceeded):
            planner.plan(longest, 1)


def test_what_fits_runs_plain_and_nothing_of_self_extend_is_taken(model):
    assert llm_of(model, "rerope").plan("Short.", max_new_tokens=6).settings is None
    with pytest.raises(ValueError, match="there is no map 'other'"):
        llm_of(model, "other")
    with pytest.raises(ValueError, match="group_size is SelfExtend's"):
        llm_of(model, "rerope", group_size=4)
