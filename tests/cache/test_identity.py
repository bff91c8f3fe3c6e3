"""What was read belongs to the weights that read it, however they are changed or kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from selfextend_rag import LongContextLLM
from selfextend_rag.cache.identity import model_fingerprint, model_state, parts_of
from selfextend_rag.engine import Engine, GenerationSettings
from selfextend_rag.errors import CacheMismatchError
from tests.tiny import byte_tokenizer, tiny_llama

PROMPT = tuple(5 + (i * i * 7 + i) % 250 for i in range(97))
TEXT = "The sky is blue. " * 20


class Adapter(nn.Module):
    """A layer with an adapter that can be switched, in the form of PEFT's."""

    def __init__(self, base):
        super().__init__()
        self.base_layer, self.extra = base, nn.Linear(base.in_features, base.out_features)
        self.scaling, self.merged_adapters, self._off = {"default": 2.0}, [], False

    @property
    def active_adapters(self):
        return ["default"]

    @property
    def disable_adapters(self):
        return self._off

    def forward(self, x):
        return self.base_layer(x) if self._off else self.base_layer(x) + 9 * self.extra(x)


class Halved(torch.Tensor):
    """A weight kept as another tensor, in the form of torchao's quantised ones."""

    @staticmethod
    def __new__(cls, half):
        return torch.Tensor._make_wrapper_subclass(cls, half.shape, dtype=torch.float32)

    def __init__(self, half):
        self.half_of_it = half

    def __tensor_flatten__(self):
        return ["half_of_it"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return Halved(args[0].half_of_it)
        whole = [2 * x.half_of_it if isinstance(x, Halved) else x for x in args]
        return function(*whole, **(kwargs or {}))


def adapted():
    model = tiny_llama(dtype=torch.float32)
    attention = model.model.layers[0].self_attn
    torch.manual_seed(1)
    attention.q_proj = Adapter(attention.q_proj)
    return model.eval(), attention.q_proj


def halved(seed=0):
    model = tiny_llama(dtype=torch.float32, seed=seed)
    for layer in model.model.layers:
        weight = Halved(layer.mlp.up_proj.weight.detach() / 2)
        layer.mlp.up_proj.weight = nn.Parameter(weight, requires_grad=False)
    return model


def switch_off(model, adapter):
    adapter._off = True


def change_the_strength(model, adapter):
    adapter.scaling["default"] = 1.0


def change_in_place(model, adapter):
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(2)


def change_unseen_by_torch(model, adapter):
    model.model.layers[1].mlp.up_proj.weight.data.mul_(2)


def replace(model, adapter):
    layer = model.model.layers[1].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().clone())


def scale_the_rotation(model, adapter):
    model.model.rotary_emb.inv_freq.mul_(0.5)


def replace_the_rotation(model, adapter):
    config = copy.deepcopy(model.config)
    config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)


CHANGES = pytest.mark.parametrize(
    "change",
    [
        switch_off,
        change_the_strength,
        change_in_place,
        change_unseen_by_torch,
        replace,
        scale_the_rotation,
        replace_the_rotation,
    ],
    ids=lambda f: f.__name__,
)


@CHANGES
def test_what_other_weights_read_is_not_gone_on_with(change):
    """An adapter was switched off, and the answer came from the keys that it had made."""
    model, adapter = adapted()
    engine = Engine(model)
    prefix = engine.prefill(PROMPT[:60])
    same = list(engine.generate(PROMPT, GenerationSettings(max_new_tokens=4), prefix=prefix))
    assert same
    change(model, adapter)
    with pytest.raises(CacheMismatchError, match="or its adapters, have changed since it read"):
        next(engine.generate(PROMPT, prefix=prefix))
    with pytest.raises(CacheMismatchError, match="these 60 tokens; read them again"):
        engine.snapshot(prefix)


@CHANGES
def test_prompts_that_other_weights_read_are_not_reused(change):
    model, adapter = adapted()
    llm = LongContextLLM(model, byte_tokenizer())
    llm.generate(TEXT, max_new_tokens=4)
    assert llm.generate(TEXT, max_new_tokens=4).usage.cached_tokens > 0
    change(model, adapter)
    assert llm.generate(TEXT, max_new_tokens=4).usage.cached_tokens == 0


@pytest.mark.parametrize("change", [switch_off, change_in_place, change_unseen_by_torch])
def test_questions_to_a_reading_of_other_weights_are_refused(change, tmp_path):
    model, adapter = adapted()
    llm = LongContextLLM(model, byte_tokenizer())
    reading = llm.read(TEXT)
    reading.save(tmp_path / "a.kv")
    change(model, adapter)
    with pytest.raises(CacheMismatchError, match="have changed"):
        reading.ask("What is blue?", max_new_tokens=4)
    with pytest.raises(CacheMismatchError, match="have changed"):
        reading.ask_batch(["What is blue?", "And?"], max_new_tokens=4)
    with pytest.raises(CacheMismatchError, match="weights"):
        llm.load(tmp_path / "a.kv")


@pytest.mark.parametrize("change", [scale_the_rotation, replace_the_rotation])
def test_a_saved_reading_belongs_to_the_rotary_frequencies_that_read_it(change, tmp_path):
    """They are neither weights nor, once the model is built, configuration: it was loaded."""
    model, adapter = adapted()
    llm = LongContextLLM(model, byte_tokenizer())
    reading = llm.read(TEXT)
    reading.save(tmp_path / "a.kv")
    llm.load(tmp_path / "a.kv")
    change(model, adapter)
    with pytest.raises(CacheMismatchError, match="weights or rotary frequencies of Llama"):
        reading.ask("What is blue?", max_new_tokens=4)
    with pytest.raises(CacheMismatchError, match="in another way: rotary frequencies "):
        llm.load(tmp_path / "a.kv")


def test_an_unchanged_model_is_in_the_same_state_whatever_it_ran():
    model, _ = adapted()
    before = model_state(model)
    LongContextLLM(model, byte_tokenizer()).read(TEXT).ask("?", max_new_tokens=4)
    assert model_state(model) == before
    assert model_state(adapted()[0]) != before


def test_frequencies_that_a_longer_prompt_changed_are_no_other_weights():
    """Dynamic NTK scaling writes them anew whenever a sequence is longer than the window."""
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = tiny_llama(dtype=torch.float32, rope_parameters=dynamic)
    engine, options = Engine(model), GenerationSettings(max_new_tokens=3)
    read = engine.prefill(PROMPT[:50])
    first = list(engine.generate(PROMPT[:51], prefix=read, options=options))
    before = model.model.rotary_emb.inv_freq.clone()
    with torch.no_grad():
        model(torch.tensor([PROMPT]))
    assert not torch.equal(model.model.rotary_emb.inv_freq, before)
    assert list(engine.generate(PROMPT[:51], prefix=read, options=options)) == first


def test_weights_of_other_tensor_classes_are_looked_into(tmp_path):
    """The front door failed on torchao's and quanto's: they have no storage of their own."""
    model = halved()
    weight = model.model.layers[0].mlp.up_proj.weight
    assert [type(part) for part in parts_of(weight)] == [torch.Tensor]
    reading = LongContextLLM(model, byte_tokenizer()).read(TEXT)
    answer = reading.ask("What is blue?", max_new_tokens=4)
    reading.save(tmp_path / "a.kv")
    again = LongContextLLM(halved(), byte_tokenizer()).load(tmp_path / "a.kv")
    assert again.ask("What is blue?", max_new_tokens=4).text == answer.text
    other = halved()
    other.model.layers[1].mlp.up_proj.weight.half_of_it[3, 3] += 1
    with pytest.raises(CacheMismatchError, match="weights"):
        LongContextLLM(other, byte_tokenizer()).load(tmp_path / "a.kv")


@pytest.mark.filterwarnings("ignore:.*deprecated")  # so is torch's dynamic quantisation
def test_packed_weights_are_a_part_of_what_identifies_a_model():
    """Linear layers of torch's dynamic quantisation were left out: they are no tensors."""

    def packed(factor):
        model = tiny_llama(dtype=torch.float32)
        model.model.layers[0].mlp.up_proj.weight.data[0, 0] *= factor
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)

    one, same, other = (model_fingerprint(packed(factor))["weights"] for factor in (1, 1, 5))
    assert one == same != other
