"""How many short forwards it takes to know a model, at first and once one like it is known."""

from __future__ import annotations

import pytest
import torch

from selfextend_rag import SelfExtend, support
from selfextend_rag.engine import Engine
from selfextend_rag.errors import GenerationCancelled
from selfextend_rag.model import continuation_reason
from selfextend_rag.rope import RotaryLayout
from tests.model.models import METHOD, gemma, ids, llama, neox

MODELS = pytest.mark.parametrize("make", [llama, neox, gemma], ids=lambda f: f.__name__)


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("SELFEXTEND_RAG_HOME", str(tmp_path))
    return tmp_path


def counted(model):
    """The model's forwards from now on, by their numbers of tokens."""
    seen = []

    def see(module, args, kwargs):
        seen.append((args[0] if args else kwargs["input_ids"]).shape[1])

    model.register_forward_pre_hook(see, with_kwargs=True)
    return seen


def read(model, settings: SelfExtend | None):
    Engine(model, chunk_size=50).prefill(ids()[0].tolist(), settings=settings)


@MODELS
def test_a_first_read_takes_seven_forwards_besides_its_chunks(home, make):
    model = make()
    forwards = counted(model)
    read(model, METHOD)
    assert forwards[-2:] == [50, 10]
    assert len(forwards) - 2 <= 7
    read(model, METHOD)
    assert forwards[-2:] == [50, 10]
    assert len(forwards) - 4 <= 7


@MODELS
def test_a_model_like_one_that_was_verified_takes_a_single_forward(home, make):
    expected = support(make())
    model = make(seed=1) if make is llama else make()
    forwards = counted(model)
    read(model, METHOD)
    assert len(forwards) - 2 <= 1
    assert support(model) == expected
    assert continuation_reason(model, None) == ""
    assert len(forwards) - 2 <= 1


def test_a_plain_first_read_takes_four_forwards(home):
    model = llama()
    forwards = counted(model)
    read(model, None)
    assert len(forwards) - 2 <= 4


@pytest.mark.parametrize("change", ["frequencies", "sign"])
def test_a_known_configuration_does_not_vouch_for_an_instance(home, change, monkeypatch):
    """The rotation of each instance is measured, also where one like it is known."""
    support(llama())
    model = llama()
    if change == "frequencies":
        model.model.rotary_emb.inv_freq.mul_(0.5)
    else:
        forward = type(model.model.rotary_emb).forward
        monkeypatch.setattr(
            type(model.model.rotary_emb),
            "forward",
            lambda *args, **kwargs: (forward(*args, **kwargs)[0], -forward(*args, **kwargs)[1]),
        )
    forwards = counted(model)
    (first, *_) = support(model).layers
    assert len(forwards) > 1
    fresh = llama().model.rotary_emb.inv_freq
    expected = {
        "frequencies": RotaryLayout(tuple((fresh * 0.5).double().tolist())),
        "sign": RotaryLayout(tuple(fresh.double().tolist()), sign=-1),
    }
    assert first.rotary == expected[change]


def test_a_class_that_is_not_of_the_libraries_is_measured_whole(home):
    class Own(type(llama())):
        pass

    for _ in range(2):
        model = llama()
        model.__class__ = Own
        forwards = counted(model)
        assert support(model).supported
        assert len(forwards) == 7


def test_a_damaged_entry_is_measured_again(home):
    support(llama())
    (entry,) = home.rglob("*.json")
    entry.write_text("{}")
    assert support(llama()).supported


@pytest.mark.parametrize("settings", [None, METHOD])
def test_a_cancellation_is_seen_between_the_forwards(settings):
    model = llama()
    forwards = counted(model)
    with pytest.raises(GenerationCancelled):
        continuation_reason(model, settings, lambda: len(forwards) == 3)
    assert len(forwards) == 3
    assert continuation_reason(model, settings) == ""


def test_logits_of_a_cancelled_model_are_as_before():
    model = llama()
    with torch.no_grad():
        stock = model(ids()).logits
    for after in range(7):
        forwards = counted(model)
        with pytest.raises(GenerationCancelled):
            continuation_reason(model, METHOD, lambda: len(forwards) >= after)  # noqa: B023  called in this turn
        with torch.no_grad():
            assert torch.equal(model(ids()).logits, stock)
