"""`extend` and `restore` on whole models."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from transformers import LlamaConfig

from selfextend_rag import SelfExtend, extend, extended, restore, support
from selfextend_rag.model import current_settings, is_extended
from tests.model.models import LENGTH, METHOD, close, gemma, ids, llama, neox

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("method", [SelfExtend(1, 9), SelfExtend(7, LENGTH)])
def test_without_groups_or_inside_the_window_it_is_the_stock_model(model, method):
    stock = model(ids()).logits
    with extended(model, method):
        close(model(ids()).logits, stock)


def test_beyond_the_window_it_differs_from_the_stock_model(model):
    stock = model(ids()).logits
    with extended(model, METHOD):
        out = model(ids()).logits
    close(out[:, :9], stock[:, :9])
    assert (out - stock)[:, 20:].abs().max() > 1e-2


def test_blocked_and_reference_agree_on_a_whole_model(model):
    with extended(model, METHOD, impl="reference"):
        expected = model(ids(batch=2)).logits
    with extended(model, METHOD, impl="blocked"):
        close(model(ids(batch=2)).logits, expected)


def test_restore_leaves_no_trace(model):
    before = copy.deepcopy(model)
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    stock = model(ids()).logits
    extend(model, METHOD)
    restore(model)
    assert torch.equal(model(ids()).logits, stock)
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert [sorted(vars(m)) for m in model.modules()] == [sorted(vars(m)) for m in before.modules()]
    assert model.config.to_dict() == before.config.to_dict()
    assert model.config._attn_implementation == before.config._attn_implementation
    restore(model)  # once more does nothing


def test_settings_change_by_extending_again():
    model = llama()
    with extended(model, SelfExtend(2, 7)):
        expected = model(ids()).logits
    extend(model, METHOD)
    extend(model, SelfExtend(2, 7))
    assert current_settings(model) == (SelfExtend(2, 7), "auto")
    assert torch.equal(model(ids()).logits, expected)
    restore(model)


def test_nested_blocks_give_back_the_outer_settings_also_after_an_error():
    model = llama()
    with extended(model, METHOD):
        outer = model(ids()).logits
        with pytest.raises(KeyError), extended(model, SelfExtend(2, 7)):
            raise KeyError
        assert torch.equal(model(ids()).logits, outer)
    assert not is_extended(model)


def test_a_copy_of_an_extended_model_stands_alone():
    model = llama()
    stock = model(ids()).logits
    with extended(model, METHOD):
        twin = copy.deepcopy(model)
        expected = model(ids()).logits
    assert torch.equal(model(ids()).logits, stock)
    assert torch.equal(twin(ids()).logits, expected)
    assert support(twin).supported
    assert torch.equal(twin(ids()).logits, expected)
    restore(twin)
    assert torch.equal(twin(ids()).logits, stock)


def test_a_model_that_was_extended_is_freed_with_its_last_reference():
    """What had been measured on it kept it alive."""
    model = llama()
    with extended(model, METHOD):
        model(ids())
    freed = weakref.ref(model)
    del model
    gc.collect()
    assert freed() is None


def test_a_saved_extended_model_loads_as_a_plain_one(tmp_path):
    model = llama()
    stock = model(ids()).logits
    with extended(model, METHOD):
        model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(ids()).logits, stock)


def test_switching_the_implementation_of_an_extended_model_is_noticed():
    """It would run without any positions."""
    model = llama()
    extend(model, METHOD)
    model.config._attn_implementation = "eager"
    with pytest.raises(RuntimeError, match="restore"):
        model(ids())
    restore(model)
    model(ids())


def test_only_the_full_layers_of_a_mixed_model_are_extended():
    report = support(gemma())
    kinds = [layer.status for layer in report.layers]
    assert kinds == ["left alone"] * 5 + ["extended"]
    assert report.layers[0].reason == "sliding or chunked window"
    assert "half/first" in str(report)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_previous_implementation_goes_on_in_the_layers_left_alone(implementation):
    model = gemma()
    model.set_attn_implementation(implementation)
    stock = model(ids()).logits
    with extended(model, SelfExtend(1, 9)):
        close(model(ids()).logits, stock)
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_are_recognised(dtype):
    model = llama().to(dtype)
    assert support(model).supported


def test_low_precision_does_not_hide_a_norm_after_the_rotation():
    """Uneven weights of 2 % were within the tolerance of bfloat16."""
    from transformers import HunYuanDenseV1Config

    from tests.model.models import SIZES, build

    config = HunYuanDenseV1Config(num_hidden_layers=2, num_key_value_heads=2, head_dim=16, **SIZES)
    model = build(config)
    for name, weight in model.named_parameters():
        if "layernorm" in name and "self_attn" in name:
            weight.copy_(1 + 0.02 * torch.randn_like(weight))
    assert not support(model.to(torch.bfloat16)).supported


def test_offloaded_models_are_extended():
    from accelerate import cpu_offload

    model = llama()
    with extended(model, METHOD):
        expected = model(ids()).logits
    moved = cpu_offload(llama(), execution_device="cpu")
    with extended(moved, METHOD):
        close(moved(ids()).logits, expected)


def test_scaled_rotary_embeddings_are_measured():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    model = llama(rope_parameters={"rope_theta": 1e4, **yarn})
    report = support(model)
    assert report.supported
    assert report.layers[0].rotary.scale > 1.05
    stock = model(ids()).logits
    with extended(model, SelfExtend(1, 9)):
        close(model(ids()).logits, stock)


@pytest.mark.parametrize("while_extended", [False, True])
def test_other_rotary_frequencies_are_measured_anew(while_extended):
    """The first measurement was remembered, and queries and keys went on turning by it."""
    model = llama()
    extend(model, METHOD)
    if not while_extended:
        restore(model)
    scaled = copy.deepcopy(model.config)
    scaled.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    model.model.rotary_emb = type(model.model.rotary_emb)(config=scaled)
    with extended(model, METHOD):
        found = model(ids()).logits
    restore(model)
    fresh = llama(rope_parameters=scaled.rope_parameters)
    with extended(fresh, METHOD):
        close(found, fresh(ids()).logits)
    with extended(model, SelfExtend(1, 9)):
        close(model(ids()).logits, fresh(ids()).logits)


def test_training_mode_is_given_back():
    model = llama().train()
    support(model)
    assert model.training


def test_llama_config_default_is_untouched_by_a_probe():
    config = LlamaConfig(num_hidden_layers=1, num_key_value_heads=2, vocab_size=128, hidden_size=64,
                         intermediate_size=96, num_attention_heads=4)  # fmt: skip
    from tests.model.models import build

    model = build(config)
    before = model.config._attn_implementation
    support(model)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("make", [llama, neox, gemma], ids=lambda f: f.__name__)
def test_a_configuration_is_judged_as_its_model(make):
    by_config, by_model = support(make().config), support(make())
    assert by_config.supported
    kinds = [(x.name, x.status, x.describe_rotary()) for x in by_model.layers]
    assert [(x.name, x.status, x.describe_rotary()) for x in by_config.layers] == kinds


def test_a_configuration_of_a_large_model_is_judged_without_its_weights():
    config = LlamaConfig(hidden_size=8192, intermediate_size=28672, num_hidden_layers=8,
                         num_attention_heads=64, num_key_value_heads=8)  # fmt: skip
    report = support(config)
    assert report.supported
    assert report.layers[0].describe_rotary() == "half/first 128"
    assert config.hidden_size == 8192


def test_a_norm_after_the_rotation_is_not_hidden_by_even_weights():
    """HunYuan norms queries after rotating them: exact only while all norm weights are equal."""
    from transformers import HunYuanDenseV1Config

    from tests.model.models import SIZES

    config = HunYuanDenseV1Config(num_hidden_layers=2, num_key_value_heads=2, head_dim=16, **SIZES)
    assert not support(config).supported
