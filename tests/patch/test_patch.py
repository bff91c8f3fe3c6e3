"""`extend` and `restore` on whole models."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, StaticCache
from transformers.models.llama.modeling_llama import LlamaAttention

from selfextend_rag import SelfExtend, extend, extended, restore, support
from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.errors import CacheMismatchError, UnsupportedModelError
from selfextend_rag.patch import current_settings, is_extended
from tests.patch.models import gemma, llama, neox

LENGTH = 60
METHOD = SelfExtend(4, 9)


@pytest.fixture(scope="module", params=[llama, neox, gemma], ids=lambda f: f.__name__)
def model(request):
    return request.param()


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def ids(seed=0, batch=1, length=LENGTH):
    make = torch.Generator().manual_seed(seed)
    return torch.randint(1, 128, (batch, length), generator=make)


def close(actual, expected):
    """Float32 through a few layers, at logits of order 1 to 10."""
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()) + 1e-5
    )


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


@pytest.mark.parametrize("make_cache", [DynamicCache, SelfExtendCache], ids=lambda c: c.__name__)
@pytest.mark.parametrize("pieces", [[LENGTH], [13, 20, 27], [5] + [1] * (LENGTH - 5)], ids=len)
def test_one_prefill_is_a_prefill_in_chunks_is_token_by_token(model, make_cache, pieces):
    with extended(model, METHOD):
        expected = model(ids(), use_cache=False).logits
        cache = make_cache(config=model.config)
        out = [model(x, past_key_values=cache).logits for x in ids().split(pieces, dim=1)]
        close(torch.cat(out, dim=1), expected)


def test_a_static_cache_serves_as_well():
    model = llama()
    with extended(model, METHOD):
        expected = model(ids(), use_cache=False).logits
        cache = StaticCache(config=model.config, max_cache_len=LENGTH + 20)
        out = [model(x, past_key_values=cache).logits for x in ids().split([31, 28, 1], dim=1)]
        close(torch.cat(out, dim=1), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make_cache", [None, DynamicCache, SelfExtendCache])
def test_a_row_alone_is_the_row_in_a_padded_batch(model, side, make_cache):
    rows = [ids(1, length=LENGTH), ids(2, length=37), ids(3, length=8)]
    batch, mask = torch.full((3, LENGTH), 127), torch.zeros(3, LENGTH, dtype=torch.long)
    places = []
    for i, row in enumerate(rows):
        n = row.shape[1]
        places.append(slice(LENGTH - n, LENGTH) if side == "left" else slice(0, n))
        batch[i, places[i]], mask[i, places[i]] = row[0], 1
    with extended(model, METHOD):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = make_cache(config=model.config) if make_cache else None
        if cache is None:
            out = model(batch, attention_mask=mask, position_ids=positions, use_cache=False).logits
        else:
            out = torch.cat(
                [
                    model(
                        batch[:, a:b], attention_mask=mask[:, :b], position_ids=positions[:, a:b],
                        past_key_values=cache,
                    ).logits
                    for a, b in ((0, 45), (45, LENGTH - 1), (LENGTH - 1, LENGTH))
                ],
                dim=1,
            )  # fmt: skip
        for i, row in enumerate(rows):
            close(out[i, places[i]], model(row, use_cache=False).logits[0])


def test_generate_of_a_padded_batch_is_that_of_each_row():
    model = llama()
    rows = [ids(1, length=50), ids(2, length=31)]
    batch = torch.full((2, 50), 127)
    batch[0], batch[1, 19:] = rows[0][0], rows[1][0]
    mask = torch.ones_like(batch)
    mask[1, :19] = 0
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 127}
    with extended(model, METHOD):
        together = model.generate(batch, attention_mask=mask, **options)[:, 50:]
        for i, row in enumerate(rows):
            alone = model.generate(row, attention_mask=torch.ones_like(row), **options)
            assert together[i].tolist() == alone[0, row.shape[1] :].tolist()


def test_beam_search_with_our_cache_is_that_of_the_stock_cache():
    model = llama()
    options = {"max_new_tokens": 10, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    with extended(model, METHOD):
        expected = model.generate(ids(), **options)
        cache = SelfExtendCache(config=model.config)
        assert torch.equal(model.generate(ids(), past_key_values=cache, **options), expected)


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


def test_padding_between_tokens_needs_position_ids(model):
    mask = torch.ones(1, LENGTH, dtype=torch.long)
    mask[0, 20:25] = 0
    with extended(model, METHOD):
        with pytest.raises(ValueError, match="has padding between tokens"):
            model(ids(), attention_mask=mask)
        model(ids(), attention_mask=mask, position_ids=mask.cumsum(-1) - 1)
        for side in (slice(0, 5), slice(LENGTH - 5, LENGTH)):
            padded = torch.ones(1, LENGTH, dtype=torch.long)
            padded[0, side] = 0
            model(ids(), attention_mask=padded)


@pytest.mark.parametrize(
    "positions",
    [torch.arange(LENGTH)[None] // 4, torch.cat([torch.arange(30), torch.arange(30)])[None]],
    ids=["grouped by hand", "packed"],
)
def test_positions_that_do_not_count_the_tokens_are_refused(positions):
    """They would be ignored without a word."""
    model = llama()
    with extended(model, METHOD), pytest.raises(ValueError, match="position_ids"):
        model(ids(), position_ids=positions)


def test_positions_that_skip_a_hole_in_the_mask_or_the_cached_tokens_are_refused():
    model = llama()
    mask = torch.ones(1, LENGTH, dtype=torch.long)
    mask[0, 10:20] = 0
    with extended(model, METHOD):
        with pytest.raises(ValueError, match="position_ids"):
            model(ids(), attention_mask=mask, position_ids=torch.arange(LENGTH)[None])
        model(ids(), attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
        for there in (100, 100 + torch.arange(3)):
            cache = DynamicCache(config=model.config)
            model(ids(), past_key_values=cache)
            there = torch.as_tensor(there).reshape(1, -1)
            with pytest.raises(ValueError, match="position_ids"):
                model(ids(length=there.shape[1]), past_key_values=cache, position_ids=there)


def test_masks_of_ones_own_are_refused():
    model = llama()
    own = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    with extended(model, METHOD), pytest.raises(ValueError, match="mask of its own"):
        model(ids(), attention_mask=own)


def test_only_the_full_layers_of_a_mixed_model_are_extended():
    report = support(gemma())
    kinds = [layer.status for layer in report.layers]
    assert kinds == ["left alone"] * 5 + ["extended"]
    assert report.layers[0].reason == "sliding or chunked window"
    assert "half/first" in str(report)


class _RotatesBeforeItsNorm(LlamaAttention):
    """Norms after the rotation with weights that differ by dimension: nothing rotates that."""

    def forward(self, hidden_states, position_embeddings=None, **kwargs):
        cos, sin = position_embeddings
        weights = torch.linspace(0.5, 1.5, cos.shape[-1])
        return super().forward(hidden_states, (cos * weights, sin * weights.flip(0)), **kwargs)


def test_a_rotation_of_an_unknown_kind_is_refused_and_nothing_changes():
    model = llama()
    for layer in model.model.layers:
        layer.self_attn.__class__ = _RotatesBeforeItsNorm
    stock = model(ids()).logits
    with pytest.raises(UnsupportedModelError, match=r"self_attn: unknown rotary layout"):
        extend(model, METHOD)
    assert not support(model).supported
    assert torch.equal(model(ids()).logits, stock)


class _HidesAPositionScale(LlamaAttention):
    """Rotary as usual, and a factor on the output that counts tokens of this call alone."""

    def forward(self, hidden_states, position_embeddings=None, **kwargs):
        out, weights = super().forward(hidden_states, position_embeddings, **kwargs)
        plain = self.config._attn_implementation in ("sdpa", "eager")
        return (out if plain else out * 1.1), weights


def test_a_model_that_passes_the_probe_and_still_differs_is_refused():
    model = llama()
    for layer in model.model.layers:
        layer.self_attn.__class__ = _HidesAPositionScale
    with pytest.raises(UnsupportedModelError, match="would change without any extension"):
        extend(model, METHOD)
    assert not is_extended(model)


def test_a_model_with_sliding_layers_alone_is_refused_with_what_to_do():
    from transformers import MistralConfig

    from tests.patch.models import SIZES, build

    options = {"num_hidden_layers": 2, "num_key_value_heads": 2, **SIZES}
    model = build(MistralConfig(sliding_window=16, **options))
    with pytest.raises(UnsupportedModelError, match=r"config\.sliding_window"):
        extend(model, METHOD)
    opened = build(MistralConfig(sliding_window=None, **options))
    assert support(opened).supported


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

    from tests.patch.models import SIZES, build

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
    from tests.patch.models import build

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

    from tests.patch.models import SIZES

    config = HunYuanDenseV1Config(num_hidden_layers=2, num_key_value_heads=2, head_dim=16, **SIZES)
    assert not support(config).supported


def test_a_cache_that_the_model_made_is_gone_on_with(model):
    """It was refused as filled by plain attention: no pre-hook had seen it empty."""
    with extended(model, METHOD):
        whole = model(ids()).logits
        first = model(ids()[:, :40])
        rest = model(ids()[:, 40:], past_key_values=first.past_key_values).logits
        close(rest, whole[:, 40:])
        cache = first.past_key_values
    with extended(model, SelfExtend(2, 8)), pytest.raises(CacheMismatchError, match="60 tokens"):
        model(ids(), past_key_values=cache)


@pytest.mark.parametrize("made_by", ["user", "user without a config", "model", "generate"])
def test_a_cache_of_transformers_filled_extended_is_not_gone_on_with_plainly(model, made_by):
    """Nothing noticed: the stock model rotated its query and met keys that nobody had."""
    cache = DynamicCache(config=None if made_by == "user without a config" else model.config)
    with extended(model, METHOD):
        if made_by == "generate":
            options = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True}
            cache = model.generate(ids(), pad_token_id=0, **options).past_key_values
        elif made_by == "model":
            cache = model(ids()).past_key_values
        else:
            model(ids(), past_key_values=cache)
    with pytest.raises(
        CacheMismatchError, match="continued under plain attention; read them again"
    ):
        model(ids()[:, :1], past_key_values=cache)


@pytest.mark.parametrize("made_by", ["user", "user in time", "generate"])
def test_a_static_cache_filled_extended_is_not_gone_on_with_plainly(model, made_by):
    cache = StaticCache(config=model.config, max_cache_len=LENGTH + 20)
    with extended(model, METHOD):
        if made_by == "generate":
            options = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True}
            cache = model.generate(
                ids(), pad_token_id=0, past_key_values=cache, disable_compile=True, **options
            ).past_key_values
        else:
            if made_by == "user in time":
                heads = model.config.num_attention_heads
                kv_heads = getattr(model.config, "num_key_value_heads", heads)
                size = model.config.hidden_size // heads
                cache.early_initialization(1, kv_heads, size, torch.float32, torch.device("cpu"))
            model(ids(), past_key_values=cache)
    with pytest.raises(CacheMismatchError, match="filled under SelfExtend"):
        model(ids()[:, :1], past_key_values=cache)
    cache.reset()  # and anybody's again
    close(model(ids(), past_key_values=cache).logits, model(ids(), use_cache=False).logits)
    with extended(model, METHOD), pytest.raises(CacheMismatchError, match="under plain"):
        model(ids()[:, :1], past_key_values=cache)


def test_training_keeps_the_layers_of_a_cache_that_gradients_go_through():
    model = llama()
    with torch.enable_grad(), extended(model, METHOD):
        out = model(ids(), labels=ids())
        again = model(ids()[:, :3], past_key_values=out.past_key_values)
        (out.loss + again.logits.sum()).backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.isfinite().all()


@pytest.mark.parametrize("settings", [8, None, (4, 9)])
def test_settings_of_another_type_are_refused(settings):
    model = llama()
    with pytest.raises(TypeError, match=r"expected settings such as SelfExtend\(group_size=8"):
        extend(model, settings)
    assert not is_extended(model)
    with pytest.raises(TypeError, match="expected a model of transformers, got str"):
        extend("meta-llama/Llama-2-7b-hf", METHOD)


def test_a_model_without_its_head_is_refused_with_what_to_give():
    with pytest.raises(UnsupportedModelError, match="give the causal language model around it"):
        extend(llama().model, METHOD)
