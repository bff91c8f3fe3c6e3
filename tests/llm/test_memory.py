"""Memory of models: what they hold, where, and refusals before any work."""

from __future__ import annotations

import copy
import re

import pytest
import torch

from selfextend_rag import Document, DocumentTooLarge, LongContextLLM, MemoryBudgetExceeded
from selfextend_rag.errors import UnknownMemoryError
from selfextend_rag.llm.ledger import Ledger
from selfextend_rag.llm.loading import unloaded
from selfextend_rag.llm.loading.unloaded import budget_of_source, empty_model, sizes_in_folder
from selfextend_rag.llm.memory import memory_of_model, model_memory, sizes_of
from selfextend_rag.planning.memory import format_bytes
from tests import zoo
from tests.tiny import byte_tokenizer, tiny_llama

LONG = "".join(f"Fact {i} is {i * i % 97}. " for i in range(20))


def make(model, **options):
    return LongContextLLM(model, byte_tokenizer(), prefix_cache_bytes=0, **options)


def test_weights_are_counted_once_wherever_their_sizes_come_from(tmp_path):
    for tied in (False, True):
        model = tiny_llama(dtype=torch.float32, tie_word_embeddings=tied)
        held = sum(p.nbytes for p in model.parameters())
        model.save_pretrained(tmp_path / str(tied))
        assert sum(sizes_in_folder(tmp_path / str(tied)).values()) == held
        buffers = sum(b.nbytes for b in model.buffers())
        empty = empty_model("tiny", model.config, torch.float32)
        assert sum(sizes_of(empty).values()) == sum(sizes_of(model).values()) == held + buffers
        assert memory_of_model(model).shares[0].weights_bytes == held + buffers


def test_each_device_has_its_layers_and_what_is_offloaded_runs_on_the_first():
    model = tiny_llama(num_hidden_layers=4)
    sizes = sizes_of(model)
    placed = {
        "model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, "model.layers.2": "cpu",
        "model.layers.3": "disk", "model.norm": 1, "lm_head": 1, "model.rotary_emb": 0,
    }  # fmt: skip
    memory = model_memory(model, sizes, placed)
    shares = {share.name: share for share in memory.shares}
    assert {name: share.layers for name, share in shares.items()} == {
        "cuda:0": (0, 2, 3), "cuda:1": (1,), "cpu": (),
    }  # fmt: skip
    layer = sum(size for name, size in sizes.items() if ".layers.2." in name)
    assert shares["cpu"].weights_bytes == layer
    assert shares["cuda:0"].streamed_bytes == layer
    assert not memory.work.fused_extended
    on_disk = sum(size for name, size in sizes.items() if ".layers.3." in name)
    assert sum(s.weights_bytes for s in memory.shares) == sum(sizes.values()) - on_disk


def test_what_memory_can_not_hold_is_refused_before_any_work(monkeypatch):
    model = tiny_llama(window=128, dtype=torch.float32)
    llm = make(model, memory_limit="1500KiB")
    monkeypatch.setattr(model, "forward", None)
    for work in (lambda: llm.read(LONG), lambda: llm.generate(LONG), lambda: llm.plan(LONG)):
        with pytest.raises(MemoryBudgetExceeded, match=r"1\.46 MiB for them"):
            work()


def test_less_memory_means_smaller_chunks_and_the_same_answer(monkeypatch):
    model = tiny_llama(window=128)
    roomy = make(model)
    answer = roomy.read(LONG).ask("Why?", max_new_tokens=5).text
    needed = roomy.plan(LONG).memory.needed_bytes
    tight = make(model, memory_limit=needed - 1)
    reading = tight.read(LONG)
    assert reading.plan.chunk_size < roomy.plan(LONG).chunk_size
    assert reading.ask("Why?", max_new_tokens=5).text == answer
    stated = reading.plan.memory
    assert reading.nbytes == stated.kv_cache_bytes + stated.grouped_keys_bytes


def test_the_rounding_that_a_refusal_proposes_can_be_taken():
    model = tiny_llama(window=128, num_hidden_layers=24, dtype=torch.float32)
    refused = make(model, chunk_size=64)
    needed = refused.plan(LONG).memory.needed_bytes
    with pytest.raises(MemoryBudgetExceeded) as caught:
        make(model, memory_limit=needed - 1, chunk_size=64).plan(LONG)
    (remedy,) = [x for x in caught.value.remedies if "kv_bits" in x]
    bits = int(re.search(r"kv_bits=(\d)", remedy)[1])
    llm = make(model, memory_limit=needed - 1, chunk_size=64, kv_bits=bits)
    reading = llm.read(LONG)
    stated = reading.plan.memory
    assert format_bytes(stated.needed_bytes) in remedy
    assert reading.nbytes == stated.kv_cache_bytes
    assert reading.ask("Why?", max_new_tokens=5).usage.completion_tokens == 5


def test_the_chunks_of_a_reading_are_those_of_its_plan():
    llm = make(tiny_llama(window=128), chunk_size=100)
    steps = []
    reading = llm.read(LONG, progress=lambda done, total: steps.append(done))
    assert reading.plan.chunk_size == 100
    assert steps == [*range(100, steps[-1], 100), reading.plan.prompt_tokens]


def test_what_is_not_known_is_not_planned_unless_a_limit_asks_for_it():
    model = zoo.build("xlstm")
    assert Ledger(model).budget() is None
    assert budget_of_source("tiny", model.config) is None
    with pytest.raises(UnknownMemoryError, match="on a copy without weights"):
        Ledger(model, limit="1GiB")
    with pytest.raises(UnknownMemoryError, match="on a copy without weights"):
        budget_of_source("tiny", model.config, limit="1GiB")


def test_documents_that_do_not_fit_are_named_by_size():
    llm = make(tiny_llama(window=128), max_group_size=2)
    documents = [Document.from_text("x" * n, title=t) for n, t in ((90, "a"), (40, "b"))]
    with pytest.raises(Exception, match='drop the document "b"'):
        llm.plan(documents)


def test_groups_hold_whole_documents_and_each_can_be_read():
    llm = make(tiny_llama(window=128), max_group_size=8)
    documents = [Document.from_text(f"{n} " + "x" * (20 * n), title=str(n)) for n in range(1, 12)]
    groups = llm.plan_groups(documents)
    assert [d for group in groups for d in group.documents] != []
    assert sorted(int(d.title) for group in groups for d in group.documents) == list(range(1, 12))
    assert 1 < len(groups) < 11
    for group in groups:
        assert llm.plan(list(group.documents)).total_tokens == group.plan.total_tokens
        assert group.plan.total_tokens <= group.plan.extended_window
    with pytest.raises(DocumentTooLarge, match='"whale" of'):
        llm.plan_groups([*documents, Document.from_text("x" * 4000, title="whale")])


def test_room_for_more_turns_is_kept():
    llm = make(tiny_llama(window=128))
    once, thrice = llm.plan(LONG), llm.plan(LONG, turns=3)
    later = once.reserve_tokens + once.max_new_tokens
    assert thrice.total_tokens == once.total_tokens + 2 * later
    assert llm.read(LONG, turns=3).plan.turns == 3


def test_groups_say_whether_fewer_are_possible():
    llm = make(tiny_llama(window=128), max_group_size=8)
    documents = [Document.from_text(f"{n} " + "x" * (20 * n), title=str(n)) for n in range(1, 12)]
    groups = llm.plan_groups(documents)
    assert groups.lower_bound <= len(groups)
    assert groups.optimal == (groups.lower_bound == len(groups))
    assert llm.plan_groups(documents[:1]).optimal


def test_layers_on_the_disk_are_planned_as_they_are_run(tmp_path):
    """By accelerate's own dispatch: what is on the disk is no weight here, and is brought here."""
    pytest.importorskip("accelerate", reason="accelerate is optional and not installed")
    model = tiny_llama(window=128, num_hidden_layers=4, dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    names = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    placed = dict.fromkeys(names, "cpu")
    placed |= {f"model.layers.{i}": "disk" if i in (1, 2) else "cpu" for i in range(4)}
    layer = sum(p.nbytes for p in model.model.layers[0].parameters())
    whole = memory_of_model(model).shares[0].weights_bytes
    for kv_bits in (None, 8):
        llm = LongContextLLM.from_pretrained(
            tmp_path / "model", device_map=placed, kv_bits=kv_bits,
            model_options={"offload_folder": tmp_path / "offload"},
        )  # fmt: skip
        (share,) = (x for x in memory_of_model(llm.model).shares if x.name != "disk")
        assert share.layers == (0, 1, 2, 3)
        assert share.weights_bytes == whole - 2 * layer
        assert share.streamed_bytes == layer
        reading, alike = llm.read(LONG), make(model, kv_bits=kv_bits).read(LONG)
        answers = [x.ask("Why?", max_new_tokens=5).text for x in (reading, alike)]
        assert answers[0] == answers[1]
        stated = reading.plan.memory
        assert reading.nbytes == stated.kv_cache_bytes + stated.grouped_keys_bytes


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """A folder for what is kept from run to run, and how often a model was built."""
    monkeypatch.setenv("SELFEXTEND_RAG_HOME", str(tmp_path / "home"))
    built = []

    def building(*arguments):
        built.append(arguments)
        return empty_model(*arguments)

    monkeypatch.setattr(unloaded, "empty_model", building)
    return built


def test_what_was_measured_once_is_what_is_measured_again(kept, tmp_path):
    """Layers that keep all tokens, windows of them, states, and rounded ones."""
    for family in ("gemma3_text", "jamba", "deepseek_v3", "llama"):
        config = zoo.build(family).config
        plans = [budget_of_source("tiny", config, limit="1GiB") for _ in range(2)]
        assert plans[0] == plans[1]
    assert len(kept) == 4


def test_what_was_measured_belongs_to_all_that_it_depends_on(kept, tmp_path):
    model = tiny_llama(dtype=torch.float32)
    model.save_pretrained(tmp_path / "one")
    tiny_llama(dtype=torch.bfloat16).save_pretrained(tmp_path / "other")
    other = copy.deepcopy(model.config)
    other.num_key_value_heads = 1
    asked = [
        ("one", model.config, {}),
        ("one", other, {}),
        ("one", model.config, {"kv_bits": 8}),
        ("one", model.config, {"dtype": "bfloat16"}),
        ("one", model.config, {"device_map": "auto"}),  # never kept
        ("other", model.config, {}),
    ]
    found = []
    for _ in range(2):
        for name, config, options in asked:
            found.append(budget_of_source(tmp_path / name, config, limit="1GiB", **options))
    assert found[:6] == found[6:]
    assert len(kept) == 6 + 1
    assert len({repr(x) for x in found}) == 5


def test_an_entry_that_can_not_be_read_is_measured_and_written_again(kept, tmp_path):
    config = tiny_llama().config
    first = budget_of_source("tiny", config, limit="1GiB")
    (entry,) = (tmp_path / "home" / "shapes").iterdir()
    whole = entry.read_text()
    for damaged in ("", whole[:100], "{}", whole.replace("layers", "sheets")):
        entry.write_text(damaged)
        assert budget_of_source("tiny", config, limit="1GiB") == first
        assert entry.read_text() == whole
    assert len(kept) == 5


def test_models_whose_code_is_their_own_are_measured_each_time(kept):
    config = tiny_llama().config
    config.auto_map = {"AutoModelForCausalLM": "modeling.Other"}
    for _ in range(2):
        budget_of_source("tiny", config, limit="1GiB")
    assert len(kept) == 2
