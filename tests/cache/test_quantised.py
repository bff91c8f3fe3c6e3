"""Keys and values in few bits: how far off they are, and that no way of reading matters."""

from __future__ import annotations

import copy

import pytest
import torch

from selfextend_rag import SelfExtend, extended
from selfextend_rag.cache import QuantisedLayer, Row, RowsCache, SelfExtendCache
from selfextend_rag.cache.cache import copied, rewind
from selfextend_rag.cache.quantised import groups_in
from selfextend_rag.errors import CacheMismatchError, UnsupportedModelError
from tests import zoo
from tests.model.models import llama

METHOD = SelfExtend(4, 9)
BITS = [8, 4]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def ids(seed=0, batch=1, length=150):
    return torch.randint(1, 128, (batch, length), generator=torch.Generator().manual_seed(seed))


def uneven(rows, tokens, channels, dtype=torch.float32):
    """Keys as models have them: channels differ by their means and spreads, more than tokens do."""
    spread = torch.logspace(-2, 1, channels)
    return (torch.randn(rows, 2, tokens, channels) * spread + 5 * spread.flip(0)).to(dtype)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("channels", [8, 64, 72, 80, 128, 33])
def test_no_number_is_off_by_more_than_half_a_step_of_its_group(bits, channels):
    x = uneven(2, 200, channels)
    found, _ = QuantisedLayer(bits, 256).update(x, x)
    exact = x.unflatten(-1, (groups_in(channels, bits), -1))
    off = (found - x).unflatten(-1, (groups_in(channels, bits), -1))
    step = (exact.amax(-1) - exact.amin(-1)) / (2**bits - 1)
    allowance = exact.abs().amax(-1) * 2**-6 / (2**bits - 1)  # scales have 8 bits of their own
    assert (off.abs().amax(-1) <= (step / 2 + allowance) * 1.02 + 1e-5).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tokens", [torch.zeros, torch.ones])
def test_tokens_that_are_all_alike_come_back(bits, tokens):
    x = tokens(1, 2, 90, 8)
    assert all(torch.equal(found, x) for found in QuantisedLayer(bits).update(x, x))


@pytest.mark.parametrize("bits", BITS)
def test_a_layer_without_data_says_how_much_it_would_hold(bits):
    x = torch.empty(1, 2, 300, 40)
    real, meta = QuantisedLayer(bits, 700), QuantisedLayer(bits, 700)
    real.update(x, x)
    keys, _ = meta.update(x.to("meta"), x.to("meta"))
    assert keys.shape == x.shape
    assert meta.nbytes == real.nbytes > 0


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_token_is_rounded_to_the_same_whole_in_pieces_or_alone(bits, dtype):
    keys, values = uneven(2, 500, 40, dtype), uneven(2, 500, 24, dtype)
    found = []
    for sizes in ([500], [1] * 500, [63, 1, 1, 200, 235], [200, 300]):
        layer, at = QuantisedLayer(bits), 0
        for size in sizes:
            kept = layer.update(keys[:, :, at : at + size], values[:, :, at : at + size])
            at += size
        found.append(kept)
    for k, v in found[1:]:
        assert torch.equal(k, found[0][0])
        assert torch.equal(v, found[0][1])
    assert k.dtype == dtype


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("length", [30, 64, 65, 170])
def test_a_layer_cut_back_or_copied_goes_on_as_one_that_never_had_more(bits, length):
    first, other = uneven(1, 200, 16), uneven(1, 150, 16)
    whole = QuantisedLayer(bits)
    whole.update(first[:, :, :length], first[:, :, :length])
    expected = whole.update(other, other)[0]
    cut = QuantisedLayer(bits)
    cut.update(first, first)
    copy_of = cut.part(0, length, 400)
    deep = copy.deepcopy(copy_of)
    cut.crop(length - 200)
    for layer in (cut, copy_of, deep):
        assert layer.get_seq_length() == length
        assert torch.equal(layer.update(other, other)[0], expected)


@pytest.mark.parametrize("bits", BITS)
def test_rows_are_reordered_repeated_and_selected(bits):
    x = uneven(3, 150, 16)
    layer = QuantisedLayer(bits)
    before, _ = layer.update(x, x)
    layer.reorder_cache(torch.tensor([2, 0, 1]))
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([0, 3, 5]))
    assert torch.equal(layer.restored("keys"), before[[2, 0, 1]])
    more, _ = layer.update(x[:, :, :3], x[:, :, :3])
    assert more.shape[2] == 153


def test_it_holds_no_more_than_it_says_and_far_less_than_full_precision():
    x = uneven(1, 4096, 64, torch.bfloat16)
    sizes = []
    for layer in (*(QuantisedLayer(bits, 4096) for bits in BITS),):
        layer.update(x, x)
        held = sum(t.untyped_storage().nbytes() for t in layer.tensors().values())
        assert held == layer.nbytes
        sizes.append(held / (2 * x.nbytes))
    assert sizes[0] < 0.56
    assert sizes[1] < 0.32


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("extend_it", [False, True])
def test_a_model_answers_alike_whole_in_chunks_and_token_by_token(bits, extend_it):
    """Exactly but for the order of sums, which double precision makes small."""
    model = llama().double()
    with extended(model, METHOD if extend_it else SelfExtend(1, 9)):
        found = []
        for pieces in ([150], [70, 80], [64, 1, 85], [1] * 150):
            cache = SelfExtendCache(model.config, kv_bits=bits)
            out = [model(x, past_key_values=cache).logits for x in ids().split(pieces, 1)]
            found.append(torch.cat(out, dim=1))
        full = model(ids(), past_key_values=SelfExtendCache(model.config)).logits
    for logits in found[1:]:
        torch.testing.assert_close(logits, found[0], rtol=0, atol=1e-9)
    assert (found[0] - full).abs().max() > 1e-5  # it is rounded


@pytest.mark.parametrize("bits", BITS)
def test_a_question_that_is_taken_back_leaves_no_trace(bits):
    model = llama()
    with extended(model, METHOD):
        cache = SelfExtendCache(model.config, kv_bits=bits)
        model(ids(length=120), past_key_values=cache)
        first = None
        for _ in range(3):
            out = [
                model(x, past_key_values=cache).logits for x in ids(1, length=9).split([7, 1, 1], 1)
            ]
            assert first is None or torch.equal(first, torch.cat(out, 1))
            first = torch.cat(out, 1)
            rewind(cache, 120)
        again = copied(cache, 120, 400)
        out = [model(x, past_key_values=again).logits for x in ids(1, length=9).split([7, 1, 1], 1)]
    assert torch.equal(first, torch.cat(out, 1))


def test_no_grouped_keys_are_kept_beside_rounded_ones():
    model = llama()
    cache = SelfExtendCache(model.config, kv_bits=8)
    with extended(model, METHOD):
        model(ids(), past_key_values=cache)
        model(ids(length=1), past_key_values=cache)
    assert all(layer.grouped_keys is None for layer in cache.layers)
    cache.drop_grouped_keys()
    assert cache.get_seq_length() == 151


def test_keys_of_other_settings_are_refused():
    model = llama()
    cache = SelfExtendCache(model.config, kv_bits=8)
    model(ids(), past_key_values=cache)
    with extended(model, METHOD), pytest.raises(CacheMismatchError, match="150 tokens were cached"):
        model(ids(length=2), past_key_values=cache)


@pytest.mark.parametrize("bits", [2, 16, 0, True, "8", 4.5])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(ValueError, match="kv_bits must be 8, 4 or None"):
        SelfExtendCache(kv_bits=bits)


@pytest.mark.parametrize("name", ["mamba2", "mistral"])
def test_a_model_whose_layers_all_forget_is_refused(name):
    with pytest.raises(UnsupportedModelError, match=r"kv_bits=4 would change nothing.*leave kv_b"):
        SelfExtendCache(zoo.config(name), kv_bits=4)


@pytest.mark.parametrize("bits", BITS)
def test_beams_of_transformers_run_on_it(bits):
    model = llama()
    cache = SelfExtendCache(model.config, kv_bits=bits)
    out = model.generate(
        ids(length=100), attention_mask=torch.ones(1, 100, dtype=torch.long), past_key_values=cache,
        num_beams=3, max_new_tokens=5, do_sample=False,
    )  # fmt: skip
    assert out.shape == (1, 105)


@pytest.mark.parametrize("bits", BITS)
def test_rows_that_share_rounded_tokens_see_what_each_would_see_alone(bits):
    model = llama()
    shared = SelfExtendCache(model.config, kv_bits=bits)
    with extended(model, METHOD):
        model(ids(length=100), past_key_values=shared)
        rows, alone = [], []
        for seed, length in ((1, 3), (2, 9)):  # tokens of their own, as many as each has
            one = copied(shared, 100, 200)
            model(ids(seed, length=length), past_key_values=one)
            rows.append(Row(one, 100, 50))
            alone.append(one)
        together = RowsCache(shared, rows)
        for _ in range(4):
            for index, layer in enumerate(together.layers):
                heads, channels = shared.layers[index].restored("keys").shape[1::2]
                keys, values = torch.randn(2, 2, heads, 1, channels)
                layer.update(keys, values)
                for i, cache in enumerate(alone):
                    lone = cache.layers[index]
                    lone.expect(METHOD)
                    expected = lone.update(keys[i : i + 1], values[i : i + 1])
                    with layer.row(i) as found:
                        assert all(map(torch.equal, found, expected))
    assert shared.get_seq_length() == 100
