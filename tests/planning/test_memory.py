"""The planner's promise about memory, and what it says when memory is short."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from selfextend_rag.errors import ContextBudgetExceeded, MemoryBudgetExceeded
from selfextend_rag.planning import ContextBudgetPlanner, ContextPlan
from selfextend_rag.planning.memory import (
    DeviceMemory,
    DeviceShare,
    ModelMemory,
    format_bytes,
    parse_bytes,
)
from selfextend_rag.planning.plan import CHUNK_SIZES, MemoryBudget
from selfextend_rag.planning.workspace import (
    Forward,
    LayerShape,
    States,
    WorkShape,
    layer_bytes,
    workspace_bytes,
)


def rounded(heads, channels):
    """Bytes of a token's key and value, with a scale of 4 bytes for each 64 or 32 channels."""
    groups = {8: -(-channels // 64), 4: -(-channels // 32)}
    return {bits: 2 * heads * (channels * bits // 8 + 4 * n) for bits, n in groups.items()}


@st.composite
def models(draw):
    """Models of one to six layers of any kind, over one or two devices."""
    heads, head = draw(st.sampled_from([1, 4, 8])), draw(st.sampled_from([16, 64]))
    kept = draw(st.sampled_from([h for h in (1, 2, 4, 8) if heads % h == 0]))
    layers = []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["growing", "sliding", "appended", "none"]))
        if kind == "none":
            layers.append(LayerShape("none"))
            continue
        window = draw(st.integers(2, 200)) if kind == "sliding" else None
        layers.append(
            LayerShape(
                kind, kept * head, kept * head, window, extended=kind != "sliding",
                states=draw(st.sampled_from([None, None, None, States(8, 24, 4096)])),
                attended_size=2 * heads * head, query_size=heads * head, head_size=head,
                rounded_bytes=rounded(kept, head) if kind == "growing" else {},
            )
        )  # fmt: skip
    count = len(layers)
    cut = draw(st.integers(0, count))
    shares = (
        DeviceShare("cpu", draw(st.integers(0, 10**6)), tuple(range(cut))),
        DeviceShare("cuda:0", draw(st.integers(0, 10**6)), tuple(range(cut, count))),
    )
    work = WorkShape(
        draw(st.integers(8, 256)), draw(st.integers(8, 1024)), draw(st.integers(8, 5000)),
        fused=draw(st.booleans()), fused_extended=draw(st.booleans()),
    )  # fmt: skip
    return ModelMemory(
        tuple(layers),
        draw(st.sampled_from([2, 4])),
        work,
        shares,
        kv_bits=draw(st.sampled_from([None, 8, 4])),
    )


def needed_by_hand(model, plan, chunk, device):
    """Bytes on one device, from the definition: weights, cache and work of the layers there."""
    share = next(share for share in model.shares if share.name == device)
    total = plan.total_tokens
    chunk = max(1, min(chunk, total))
    later = total - plan.prompt_tokens
    run = Forward(chunk, total, plan.settings, model.itemsize, model.kv_bits, later)
    layers = [model.layers[index] for index in share.layers]
    cache = sum(sum(layer_bytes(layer, run)) for layer in layers)
    work = workspace_bytes(layers, model.work, run)
    has_states = any(layer.states is not None for layer in model.layers)
    return share.weights_bytes + (2 if has_states else 1) * cache + work


windows = st.integers(32, 256)
amounts = st.integers(10**4, 3 * 10**7)


@settings(max_examples=150, deadline=None)
@given(models(), windows, st.integers(1, 1500), st.integers(1, 40), st.integers(1, 3), amounts,
       amounts)  # fmt: skip
def test_a_feasible_plan_keeps_within_its_window_and_the_memory_it_states(
    model, P, prompt, answer, turns, main, gpu
):
    devices = (DeviceMemory("cpu", main, main), DeviceMemory("cuda:0", gpu, gpu))
    budget = MemoryBudget(model, devices)
    planner = ContextBudgetPlanner(P, max_group_size=16)
    try:
        free = planner.plan(prompt, answer, reserve_tokens=7, turns=turns)
    except ContextBudgetExceeded:
        with pytest.raises(ContextBudgetExceeded) as caught:
            planner.plan(prompt, answer, reserve_tokens=7, turns=turns, memory=budget)
        assert not isinstance(caught.value, MemoryBudgetExceeded)
        return

    def fits(chunk):
        return all(needed_by_hand(model, free, chunk, d.name) <= d.available_bytes for d in devices)

    try:
        plan = planner.plan(prompt, answer, reserve_tokens=7, turns=turns, memory=budget)
    except MemoryBudgetExceeded as refused:
        error = refused
    else:
        error = None
    if error is not None:
        assert not any(fits(chunk) for chunk in budget.chunk_sizes(prompt))
        short = next(d for d in devices if d.name == error.device)
        smallest = needed_by_hand(model, free, CHUNK_SIZES[-1], error.device)
        assert error.needed_bytes == smallest > error.available_bytes == short.available_bytes
        assert error.available < error.needed == free.total_tokens
        return
    assert plan.settings == free.settings  # memory never changes what attention does
    assert plan.total_tokens == prompt + turns * (7 + answer) <= plan.extended_window
    assert plan.chunk_size == next(c for c in budget.chunk_sizes(prompt) if fits(c))
    for device, stated in zip(devices, plan.memory.devices, strict=True):
        by_hand = needed_by_hand(model, plan, plan.chunk_size, device.name)
        assert stated.needed_bytes == by_hand <= device.available_bytes


@settings(max_examples=60, deadline=None)
@given(models(), windows, st.integers(1, 1500), amounts)
def test_what_the_error_calls_available_does_fit(model, P, prompt, amount):
    budget = MemoryBudget(
        model, (DeviceMemory("cpu", amount, amount), DeviceMemory("cuda:0", amount, amount))
    )
    planner = ContextBudgetPlanner(P, max_group_size=16)
    try:
        planner.plan(prompt, 10, memory=budget)
    except MemoryBudgetExceeded as error:
        assume(error.available > 10)
        plan = planner.plan(error.available - 10, 10, memory=budget)
        assert plan.memory.fits
    except ContextBudgetExceeded:
        pass


def llama_like(layers=4, weights=10**6, states=None, kv_bits=None):
    shape = LayerShape(
        "growing",
        64,
        64,
        states=states,
        extended=True,
        attended_size=512,
        query_size=256,
        head_size=32,
        rounded_bytes=rounded(2, 32),
    )
    work = WorkShape(256, 704, 2048)
    share = DeviceShare("cpu", weights, tuple(range(layers)))
    return ModelMemory((shape,) * layers, 2, work, (share,), kv_bits)


def limited(amount, chunk_size=None, **options):
    return MemoryBudget(llama_like(**options), (DeviceMemory("cpu", amount, amount),), chunk_size)


def test_less_memory_means_smaller_chunks_and_then_a_refusal():
    planner = ContextBudgetPlanner(512)
    sizes = []
    for amount in range(45_000_000, 9_000_000, -500_000):
        try:
            sizes.append(planner.plan(3000, 50, memory=limited(amount)).chunk_size)
        except MemoryBudgetExceeded:
            sizes.append(0)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 2048
    assert sizes[-1] == 0
    assert len(set(sizes)) >= 5


def test_the_refusal_names_figures_and_remedies_in_order():
    documents = [("small", 300), ("middle", 700), ("large", 2000)]
    with pytest.raises(MemoryBudgetExceeded) as caught:
        ContextBudgetPlanner(512).plan(3000, 50, memory=limited(9_000_000), documents=documents)
    error = caught.value
    assert error.device == "cpu"
    assert error.available_bytes == 9_000_000 < error.needed_bytes
    words = str(error)
    for figure in ("3050 tokens need at most", "977 KiB of weights", "8.58 MiB for them"):
        assert figure in words
    order = [
        next(i for i, remedy in enumerate(error.remedies) if remedy.startswith(start))
        for start in ("drop the document", "take a smaller")
    ]
    assert order == sorted(order)
    dropped = next(n for n, s in sorted(documents, key=lambda d: d[1]) if s >= error.excess)
    assert f'drop the document "{dropped}"' in words


def needed(kv_bits, layers, chunk=64):
    """Bytes that 3,050 tokens take at most in the smallest chunks."""
    plan = ContextBudgetPlanner(512).plan(3000, 50)
    return llama_like(layers, kv_bits=kv_bits).estimate(3000, 50, plan.settings, chunk).needed_bytes


@pytest.mark.parametrize(
    ("now", "room_for", "named"), [(None, 8, 8), (None, 4, 4), (8, 4, 4), (4, 4, None)]
)
def test_the_mildest_rounding_that_helps_is_named_with_its_figure_and_does_help(
    now, room_for, named
):
    layers, planner = 40, ContextBudgetPlanner(512)
    amount = needed(room_for, layers) - (named is None)  # one byte too few even for that
    with pytest.raises(MemoryBudgetExceeded) as caught:
        planner.plan(3000, 50, memory=limited(amount, layers=layers, kv_bits=now))
    remedies = [remedy for remedy in caught.value.remedies if "kv_bits" in remedy]
    if named is None:
        assert remedies == []
        return
    assert remedies == [
        f"keep keys and values in {named} bits by kv_bits={named} (at most "
        f"{format_bytes(needed(named, layers))} in all instead of "
        f"{format_bytes(caught.value.needed_bytes)})"
    ]
    assert planner.plan(3000, 50, memory=limited(amount, layers=layers, kv_bits=named)).fits_memory


def test_a_plan_says_which_layers_are_not_rounded():
    full = llama_like(3, kv_bits=4)
    window = LayerShape("sliding", 64, 64, 100, query_size=256, head_size=32)
    model = replace(full, layers=(*full.layers[:2], window))
    plan = ContextBudgetPlanner(512).plan(3000, 50, memory=MemoryBudget(model))
    words = plan.explain()
    assert "of keys and values in 4 bits" in words
    assert "1 layers that keep a window" in words
    assert plan.to_dict()["memory"]["kv_bits"] == 4
    assert ContextPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert (
        "full precision"
        not in ContextBudgetPlanner(512).plan(3000, 50, memory=MemoryBudget(full)).explain()
    )


def test_weights_that_do_not_fit_leave_nothing_to_drop():
    with pytest.raises(MemoryBudgetExceeded) as caught:
        ContextBudgetPlanner(512).plan(100, 50, memory=limited(10**6, weights=10**7))
    assert caught.value.available == 0
    assert caught.value.remedies == ("take a smaller model or a device with more memory",)


def test_a_chunk_size_of_the_caller_is_kept_and_a_smaller_one_proposed():
    planner = ContextBudgetPlanner(512)
    assert planner.plan(3000, 50, memory=limited(10**9, 777)).chunk_size == 777
    with pytest.raises(MemoryBudgetExceeded, match="read 128 tokens at a time instead of 2048"):
        planner.plan(3000, 50, memory=limited(needed(None, 4, chunk=128), 2048))


def test_models_that_can_not_be_rolled_back_need_their_cache_twice():
    def cache(states):
        budget = limited(10**9, states=states)
        return ContextBudgetPlanner(512).plan(3000, 50, memory=budget).memory

    assert cache(States(0, 0, 0)).kv_cache_bytes == 2 * cache(None).kv_cache_bytes
    assert cache(States(0, 0, 0)).grouped_keys_bytes == 2 * cache(None).grouped_keys_bytes


def test_grouped_keys_are_half_as_much_again_and_plain_attention_has_none():
    planner = ContextBudgetPlanner(512)
    extended = planner.plan(3000, 50, memory=limited(10**9)).memory
    assert extended.grouped_keys_bytes * 2 == extended.kv_cache_bytes
    assert planner.plan(300, 50, memory=limited(10**9)).memory.grouped_keys_bytes == 0


def test_a_plan_with_memory_survives_json_and_explains_itself():
    plan = ContextBudgetPlanner(512).plan(3000, 50, turns=2, memory=limited(5 * 10**7))
    values = json.loads(json.dumps(plan.to_dict()))
    assert ContextPlan.from_dict(values) == plan
    assert values["memory"]["needed_bytes"] == plan.memory.needed_bytes
    words = plan.explain()
    assert "2 times 50 for the answer" in words
    assert "Memory on cpu: 977 KiB of weights" in words
    assert "read 2048 tokens at a time" in words
    assert "part of it that is well trained" in words


def test_offloaded_weights_come_to_the_device_that_runs_them():
    share = DeviceShare("cuda:0", 1000, (0, 1, 2, 3), streamed_bytes=500_000)
    here = llama_like()
    there = ModelMemory(here.layers, 2, here.work, (share, DeviceShare("cpu", 9999, ())))
    both = [m.estimate(3000, 50, None, 256).devices[0].workspace_bytes for m in (here, there)]
    assert both[1] - both[0] == 500_000
    cpu = there.estimate(3000, 50, None, 256).devices[1]
    assert (cpu.weights_bytes, cpu.needed_bytes) == (9999, 9999)


@pytest.mark.parametrize(
    ("given", "count"),
    [(5, 5), ("5", 5), ("8GiB", 8 << 30), ("1.5 MB", 1_500_000), ("2kib", 2048), (" 7 B ", 7)],
)
def test_bytes_are_read_as_people_write_them(given, count):
    assert parse_bytes(given) == count


@pytest.mark.parametrize("given", [0, -1, "", "x", "3 stones", "0GiB", True, None])
def test_what_is_no_number_of_bytes_is_refused(given):
    with pytest.raises(ValueError, match=r'such as 8000000000 or "8GiB", got'):
        parse_bytes(given)


@pytest.mark.parametrize(
    ("count", "words"), [(12, "12 B"), (1024, "1 KiB"), (5_000_000, "4.77 MiB"), (3 << 30, "3 GiB")]
)
def test_bytes_are_said_as_people_read_them(count, words):
    assert format_bytes(count) == words


def test_more_available_than_there_is_is_refused():
    with pytest.raises(ValueError, match="from 0 to its total of 5, got 6"):
        DeviceMemory("cpu", 5, 6)
