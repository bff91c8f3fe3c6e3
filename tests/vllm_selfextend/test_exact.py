"""Answers of a vLLM engine with the plugin are those of selfextend_rag. Needs vLLM."""

from __future__ import annotations

import pytest

from selfextend_rag import SelfExtend
from tests.vllm_selfextend.engines import (
    TOKENS,
    TOLERANCE,
    WINDOW,
    answers,
    check,
    engine,
    prompt,
    save_llama,
)

LENGTHS = [WINDOW // 2, WINDOW, 4 * WINDOW, 8 * WINDOW, 16 * WINDOW]  # before the answer


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return folder, save_llama(folder)


def fitting(settings: SelfExtend) -> list[list[int]]:
    most = settings.extended_window(WINDOW) - 48
    return [prompt(length - 3) for length in LENGTHS if length - 3 <= most]


@pytest.mark.parametrize(
    ("group", "window"), [(3, 48), (3, 50), (8, 64), (8, 61), (32, 64), (32, 77)]
)
def test_alone_in_a_batch_in_chunks_and_from_the_prefix_cache(llama, group, window):
    """Chunks are of 256 tokens, which 8 requests share; W is a multiple of G, and is not."""
    folder, model = llama
    settings = SelfExtend(group, window)
    prompts = fitting(settings)
    option = {"group_size": group, "neighbor_window": window}
    with engine(folder, selfextend=option) as llm:
        assert llm.llm_engine.model_config.max_model_len == settings.extended_window(WINDOW)
        for asked in prompts:
            (answer,) = answers(llm, [asked])
            check(model, settings, asked, answer)
        others = [prompt(length, seed=9) for length in (37, 300, 411)]
        batch = [*prompts, *others, *(p + q for p, q in zip(prompts, others, strict=False))]
        batch = [p for p in batch if len(p) <= settings.extended_window(WINDOW) - 48][:8]
        found = answers(llm, batch)
        assert max(answer.cached for answer in found) >= 128, "nothing came from the prefix cache"
        for asked, answer in zip(batch, found, strict=True):
            check(model, settings, asked, answer)


def test_a_group_size_of_one_is_the_stock_engine(llama):
    folder, model = llama
    with engine(folder, selfextend={"group_size": 1, "neighbor_window": 64}) as llm:
        assert llm.llm_engine.model_config.max_model_len == WINDOW
        asked = prompt(WINDOW // 2)
        check(model, None, asked, answers(llm, [asked])[0])


def test_requests_that_fit_the_window_get_the_stock_answers_and_keys_of_their_own(llama):
    """The same prompt, plain and extended in turn and together: neither finds the other's keys."""
    folder, model = llama
    settings, asked = SelfExtend(8, 61), prompt(200)
    option = {"group_size": 8, "neighbor_window": 61}
    with engine(folder) as llm:
        stock = answers(llm, [asked], tokens=56)[0]
    with engine(folder, selfextend=option) as llm:
        for tokens, cached in ((56, 0), (57, 0), (56, 128), (57, 128)):
            (answer,) = answers(llm, [asked], tokens=tokens)
            assert answer.cached == cached
            check(model, settings, asked, answer)
            if tokens == 56:
                assert answer.tokens == stock.tokens
        together = [asked[:150], prompt(600), asked[:150] + asked, asked[:40]]
        for one, answer in zip(together, answers(llm, together), strict=True):
            check(model, settings, one, answer)


def test_short_requests_get_the_stock_log_probabilities_however_they_are_run(llama):
    """Up to exactly P tokens with their answer; in chunks of 64 that a long request shares."""
    folder, _ = llama
    short = [prompt(length) for length in (1, 40, 150, 200, WINDOW - TOKENS)]
    long, small = [prompt(700), prompt(1100)], {"max_num_batched_tokens": 64}
    with engine(folder, **small) as llm:
        stock = answers(llm, short)
    option = {"group_size": 8, "neighbor_window": 61}
    with engine(folder, selfextend=option, **small) as llm:
        batch = answers(llm, [long[0], *short, long[1]])[1:-1]
        again = answers(llm, [*short, long[1]])[:-1]
        alone = [answers(llm, [one])[0] for one in short]
    assert [answer.cached for answer in batch] == [0] * 5
    assert [answer.cached for answer in again] == [0, 0, 128, 128, 128]
    for found in (batch, again, alone):
        for answer, wanted in zip(found, stock, strict=True):
            assert answer.tokens == wanted.tokens
            assert answer.logprobs == pytest.approx(wanted.logprobs, rel=0, abs=TOLERANCE)


def test_no_salt_of_a_client_finds_the_keys_of_plain_requests(llama):
    folder, model = llama
    settings, asked = SelfExtend(8, 61), prompt(200)
    with engine(folder, selfextend={"group_size": 8, "neighbor_window": 61}) as llm:
        answers(llm, [asked], tokens=56)  # plain
        for cached in (0, 128):
            (answer,) = answers(llm, [asked], tokens=57, salt="selfextend: plain ")
            assert answer.cached == cached
            check(model, settings, asked, answer)


def test_planned_settings_are_those_of_the_planner(llama):
    folder, model = llama
    with engine(folder, selfextend={"max_tokens": 1000}, max_num_batched_tokens=512) as llm:
        config = llm.llm_engine.vllm_config
        found = config.additional_config["selfextend"]
        assert config.model_config.max_model_len == 1000
        asked = prompt(952)
        check(model, found.settings, asked, answers(llm, [asked])[0])
