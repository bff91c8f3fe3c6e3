"""Prompts that start alike: the rest alone is run, and the answer is that of a fresh run."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import pairwise

import pytest

from selfextend_rag.errors import ReadingFileError
from selfextend_rag.llm import LongContextLLM
from tests.tiny import byte_tokenizer, tiny_llama

FREE = {"max_new_tokens": 12, "stop": (), "stop_token_ids": ()}
LONG = "".join(f"Fact {i} is {i * i % 97}. " for i in range(20))


def make(model, **options):
    return LongContextLLM(model, byte_tokenizer(chat=True), instruction="", **options)


def talk(llm, opening, turns=4):
    """A conversation; its answers and how many tokens of each turn's prompt were cached."""
    messages = [{"role": "user", "content": opening}]
    answers = []
    for turn in range(turns):
        answers.append(llm.generate(messages, **FREE))
        # what a random model says is not always text that it would read in the same tokens
        said = f"Reply {turn}."
        messages += [
            {"role": "assistant", "content": said},
            {"role": "user", "content": f"And then {turn}?"},
        ]
    return answers


@pytest.mark.parametrize("opening", ["Hello!", LONG], ids=["plain", "extended"])
def test_a_conversation_is_the_same_with_and_without_reuse(model, opening):
    with_reuse = talk(make(model), opening)
    without = talk(make(model, prefix_cache_bytes=0), opening)
    assert [a.text for a in with_reuse] == [a.text for a in without]
    # two measurements of the memory that is free differ, so the plans are compared without it
    plans = [[replace(a.plan, memory=None) for a in answers] for answers in (with_reuse, without)]
    assert plans[0] == plans[1]
    assert {a.usage.cached_tokens for a in without} == {0}
    if opening is LONG:
        cached = [a.usage.cached_tokens / a.usage.prompt_tokens for a in with_reuse]
        assert cached[0] == 0
        same = [a.plan.settings == b.plan.settings for a, b in pairwise(with_reuse)]
        assert [share > 0.8 for share in cached[1:]] == same
        assert any(same)


def test_the_plan_depends_on_the_length_alone_and_leaves_room_for_turns(llm):
    plans = [llm.budget.plan_prompt(n, 12) for n in range(100, 500)]
    assert all(not plan.extended for plan in plans[: 128 - 12 - 100 + 1])
    extended = [plan for plan in plans if plan.extended]
    changes = sum(a.settings != b.settings for a, b in pairwise(extended))
    smallest = [llm.planner.plan(plan.prompt_tokens, 12) for plan in extended]
    mildest_changes = sum(a.settings != b.settings for a, b in pairwise(smallest))
    assert changes < mildest_changes / 1.5
    for plan, least in zip(extended, smallest, strict=True):
        assert plan.group_size >= least.group_size
        room = plan.prompt_tokens + plan.max_new_tokens
        assert plan.total_tokens <= max(room * 1.5, room + 1)


def test_the_longest_prompt_that_fits_is_run_without_room_for_more(llm):
    longest = llm.planner.extended_window
    plan = llm.budget.plan_prompt(longest - 12, 12)
    assert replace(plan, chunk_size=None, memory=None) == llm.planner.plan(longest - 12, 12)


def test_a_text_that_starts_like_an_earlier_one_pays_for_the_rest(llm):
    llm.generate(LONG, **FREE)
    answer = llm.generate(f"{LONG}And so on", **FREE)
    fresh = LongContextLLM(llm.model, llm.tokenizer, prefix_cache_bytes=0)
    assert answer.text == fresh.generate(f"{LONG}And so on", **FREE).text
    assert answer.usage.cached_tokens == llm.count_tokens(LONG) + 1  # and the start token
    assert 0 < llm.prefix_cache.nbytes <= llm.prefix_cache.max_bytes


def test_a_folder_serves_another_instance(model, tmp_path):
    options = {"prefix_cache_bytes": 1, "prefix_cache_dir": tmp_path / "kept"}
    first = make(model, **options).generate(LONG, **FREE)
    twin = make(tiny_llama(window=128), prefix_cache_dir=str(tmp_path / "kept"))
    again = twin.generate(LONG, **FREE)
    assert again.text == first.text
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
    other = make(tiny_llama(window=128, seed=1), prefix_cache_dir=tmp_path / "kept")
    assert other.generate(LONG, **FREE).usage.cached_tokens == 0


@pytest.mark.slow
def test_two_processes_share_a_folder(tmp_path):
    folder = tmp_path / "model"
    tiny_llama(window=128).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    source = """
        import sys
        from selfextend_rag import LongContextLLM
        llm = LongContextLLM.from_pretrained(
            sys.argv[1], prefix_cache_bytes=1, prefix_cache_dir=sys.argv[2],
            prefix_cache_dir_bytes=600_000,
        )
        for n in [*range(6)] * 3:
            text = "".join(f"{n} {i} is {i * i % 97}. " for i in range(20))
            print(llm.generate(text, max_new_tokens=4, stop=(), stop_token_ids=()).text.encode())
    """
    command = [sys.executable, "-c", textwrap.dedent(source), str(folder), str(tmp_path / "kept")]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in processes]
    llm = LongContextLLM.from_pretrained(folder, prefix_cache_bytes=0)
    expected = []
    for n in range(6):
        text = "".join(f"{n} {i} is {i * i % 97}. " for i in range(20))
        answer = llm.generate(text, max_new_tokens=4, stop=(), stop_token_ids=())
        expected.append(f"{answer.text.encode()}\n")
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
        assert out == "".join(expected * 3)
        assert "warning" not in err.lower()
    sizes = [path.stat().st_size for path in (tmp_path / "kept").iterdir()]
    assert 0 < sum(sizes) <= 600_000


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"prefix_cache_bytes": -1}, ValueError, "prefix_cache_bytes must be 0 or more, got -1"),
        (
            {"prefix_cache_bytes": 0, "prefix_cache_dir": "x"},
            ValueError,
            "prefix_cache_dir needs a prefix_cache_bytes above 0, got 0",
        ),
        ({"prefix_cache_dir": __file__}, ReadingFileError, "can't use .* as a folder"),
    ],
)
def test_options_out_of_range_are_refused_by_name(model, options, error, says):
    with pytest.raises(error, match=says):
        make(model, **options)
