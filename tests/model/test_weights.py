"""Weights in 8 and 4 bits: against products in float64 with weights that are rounded here."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config

from selfextend_rag.bundled import FOLDER
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.llm.loading.model import load_model
from selfextend_rag.llm.loading.sources import load_tokenizer
from selfextend_rag.llm.memory import sizes_of
from selfextend_rag.model.weights import layers, round_weights, rounded_sizes
from selfextend_rag.model.weights.layers import Embedding8, Linear4, Linear8
from tests import zoo
from tests.tiny import tiny_llama

pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="FBGEMM needs x86 with AVX2"
)
DOCUMENTS = Path(__file__).parents[2] / "examples" / "documents"
# Activations err by at most half a step of 14 bits: of the largest, in each of K products.
STEP = 0.5 / 127 / 63.499


def layer(outputs, inputs, *, bias=True, dtype=torch.float32):
    torch.manual_seed(outputs + inputs)
    return nn.Linear(inputs, outputs, bias=bias).to(dtype)


def in_8_bits(weight):
    """Return rounded weights, and the scales of their columns."""
    columns = weight.detach().double().square().mean(0).sqrt().float().double()
    even = weight.detach().double() / columns
    scales = even.abs().amax(1, keepdim=True) / 127
    return (even / scales).round() * scales * columns, columns


@torch.inference_mode()
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 32), (7, 2), (70, 37), (1, 130)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 150])
def test_products_are_those_of_weights_rounded_to_8_bits(monkeypatch, outputs, inputs, bias, rows):
    monkeypatch.setattr(layers, "_restored_in", lambda _: None)
    given = layer(outputs, inputs, bias=bias)
    x = torch.randn(rows, inputs)
    weight, columns = in_8_bits(given.weight)
    expected = nn.functional.linear(x.double(), weight, given.bias.double() if bias else None)
    found = Linear8(given)(x)
    largest = (x.double() * columns).abs().amax(1, keepdim=True)
    error = largest * STEP * (weight / columns).abs().sum(1)
    assert ((found - expected).abs() <= 1.01 * error + 1e-6).all()


@torch.inference_mode()
def test_a_row_of_huge_numbers_changes_no_other_row():
    """Scales of a whole input, as FBGEMM takes them, would leave nothing of the small ones."""
    rounded, x = Linear8(layer(48, 64)), torch.randn(3, 64)
    alone = rounded(x[1:2])
    x[0] *= 1e6
    x[2] = 0
    assert torch.equal(rounded(x)[1:2], alone)
    assert rounded(x).isfinite().all()


@torch.inference_mode()
@pytest.mark.parametrize(
    ("given", "inside"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_restored_weights_give_the_same_products(monkeypatch, given, inside):
    rounded, x = Linear8(layer(600, 64, dtype=given)), torch.randn(2, 80, 64).to(given)
    ways = []
    for way in (None, inside):
        monkeypatch.setattr(layers, "_restored_in", lambda _, way=way: way)
        ways.append(rounded(x).double())
    tolerance = 1e-3 if inside == torch.float32 else 0.02  # 14 bits; 8 bits, and rounded twice
    assert 0 < (ways[0] - ways[1]).abs().max() <= tolerance * ways[0].abs().max()
    assert rounded(x).dtype == given


@torch.inference_mode()
@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("rows", [1, 127, 128])
def test_only_many_rows_of_float32_are_rounded_to_bfloat16_and_only_for_amx(monkeypatch, amx, rows):
    """Answers keep the 14 bits of their activations, whatever the documents are read in."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    rounded, x = Linear8(layer(48, 64, bias=False)), torch.randn(rows, 64)
    found = rounded(x)
    assert torch.equal(found, found.bfloat16().float()) == (amx and rows == 128)


@torch.inference_mode()
@pytest.mark.parametrize("inside", [None, torch.bfloat16])
def test_perplexity_of_the_bundled_model_grows_by_at_most_half_a_percent(monkeypatch, inside):
    monkeypatch.setattr(layers, "_restored_in", lambda _: inside)
    text = (DOCUMENTS / "genesis.txt").read_text("utf-8")
    ids = load_tokenizer(FOLDER)(text, return_tensors="pt").input_ids[0, :2048].view(4, 512)
    nats = {}
    for bits in (None, 8):
        logits = load_model(FOLDER, weight_bits=bits, dtype=torch.float32)(ids).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        nats[bits] = float(loss)
    assert math.expm1(nats[8] - nats[None]) <= 0.005


@torch.inference_mode()
def test_weights_of_4_bits_are_at_most_half_a_step_away_from_their_own():
    given = layer(64, 96, dtype=torch.bfloat16)
    found = Linear4(given)(torch.eye(96).bfloat16()).double().T - given.bias.double()[:, None]
    weight = given.weight.double()
    steps = weight.unflatten(1, (-1, 32))
    steps = ((steps.amax(-1) - steps.amin(-1)) / 15).repeat_interleave(32, dim=1)
    # half a step, and what bfloat16 rounds of zeros, sums and the bias
    assert ((found - weight).abs() <= 0.55 * steps + 2**-7 * (weight.abs() + 0.2)).all()


@torch.inference_mode()
def test_an_embedding_keeps_the_factor_that_a_model_gives_it():
    model = zoo.build("gemma3_text")
    ids = torch.arange(20).reshape(4, 5)
    expected = model.get_input_embeddings()(ids)
    assert not torch.allclose(expected, model.get_input_embeddings().weight[ids])
    round_weights(model, 8)
    found = model.get_input_embeddings()
    assert isinstance(found, Embedding8)
    largest = expected.abs().amax(-1, keepdim=True)
    assert ((found(ids) - expected).abs() <= 0.51 / 127 * largest).all()


@torch.inference_mode()
@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.05), (4, 0.5)])
def test_logits_of_a_model_stay_close_and_memory_is_what_was_planned(bits, tolerance):
    dtype = torch.bfloat16 if bits == 4 else torch.float32
    model = tiny_llama(dtype=dtype, hidden_size=64, intermediate_size=96, initializer_range=0.05)
    ids = torch.randint(5, 261, (2, 40))
    before, planned = model(ids).logits.double(), rounded_sizes(model, bits)
    round_weights(model, bits)
    assert sum(sizes_of(model).values()) == sum(planned.values())
    assert sum(planned.values()) < (0.5 if bits == 8 else 0.8) * sum(
        x.nbytes for x in tiny_llama(dtype=dtype, hidden_size=64, intermediate_size=96).parameters()
    )
    change = (model(ids).logits.double() - before).abs().max() / before.abs().max()
    assert 0 < change < tolerance
    assert isinstance(model.lm_head, Linear8)
    kinds = {type(x) for x in model.model.layers.modules() if "Linear" in type(x).__name__}
    assert kinds == {Linear8 if bits == 8 else Linear4}


def test_tied_weights_are_planned_once_for_each_of_their_two_uses():
    model = tiny_llama(dtype=torch.float32, tie_word_embeddings=True)
    planned = rounded_sizes(model, 8)
    round_weights(model, 8)
    assert sum(sizes_of(model).values()) == sum(planned.values())
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert rounded_sizes(empty, 8) == planned


def placed_elsewhere():
    model = tiny_llama(dtype=torch.float32)
    model.hf_device_map = {"model": "cuda:0", "lm_head": "cpu"}
    return model


def quantised_already():
    model = tiny_llama(dtype=torch.float32)
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    return model


def takes_pictures():
    model = tiny_llama(dtype=torch.float32)
    model.config.get_text_config = lambda decoder=None: copy.copy(model.config)
    return model


def mostly_other_layers():
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=16)
    return AutoModelForCausalLM.from_config(config).eval()


class Reads(nn.Module):
    """A module that looks at the weight of its layer."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.to(self.inner.weight.dtype))


def looks_at_a_weight():
    model = tiny_llama(dtype=torch.float32)
    model.model.layers[0].mlp.gate_proj = Reads(model.model.layers[0].mlp.gate_proj)
    return model


@pytest.mark.parametrize(
    ("build", "bits", "why"),
    [
        (placed_elsewhere, 8, "the model is on cpu, cuda:0"),
        (quantised_already, 8, "quantised already"),
        (takes_pictures, 8, "takes more than text"),
        (mostly_other_layers, 8, "in other layers"),
        (looks_at_a_weight, 8, "does not run with replaced layers"),
        (lambda: tiny_llama(dtype=torch.float32), 4, "4 bits are computed in bfloat16"),
    ],
)
def test_what_can_not_be_rounded_is_refused_by_name(build, bits, why):
    with pytest.raises(UnsupportedModelError, match=f"weight_bits={bits} can't be had.*{why}"):
        round_weights(build(), bits)


@pytest.mark.parametrize("bits", [2, 16, "8", True, 8.5])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match="weight_bits must be 8, 4 or None"):
        round_weights(tiny_llama(dtype=torch.float32), bits)


def test_a_rounded_model_is_not_saved_without_its_weights(tmp_path):
    """What transformers would write lacks them."""
    model = tiny_llama(dtype=torch.float32)
    round_weights(model, 8)
    with pytest.raises(UnsupportedModelError, match="can't be saved"):
        model.save_pretrained(tmp_path)


@torch.inference_mode()
def test_a_column_of_large_weights_or_of_none_leaves_the_others_their_bits():
    """With scales of rows alone, 15 of 16 columns were rounded to nothing."""
    given = layer(48, 16, bias=False)
    given.weight[:, 3] *= 1000
    given.weight[:, 5] = 0
    found = Linear8(given)(torch.eye(16)).T
    assert ((found - given.weight).abs() <= 0.03 * given.weight.abs().amax(0)).all()


@torch.inference_mode()
def test_a_copy_of_a_rounded_layer_computes_the_same():
    rounded, x = Linear8(layer(48, 64)), torch.randn(3, 64)
    assert torch.equal(copy.deepcopy(rounded)(x), rounded(x))


@torch.inference_mode()
@pytest.mark.parametrize("outputs", [64, 7])
def test_one_row_is_to_the_bit_what_it_is_among_several(outputs):
    rounded, x = Linear8(layer(outputs, 32, bias=outputs == 7)), torch.randn(3, 32)
    assert torch.equal(torch.cat([rounded(row[None]) for row in x]), rounded(x))


@torch.inference_mode()
def test_layers_that_are_given_one_tensor_are_rounded_each_by_itself():
    """Keys of Gemma 3 lost half of their precision to the scales of its queries."""
    model = tiny_llama(dtype=torch.float32)
    attention = model.model.layers[1].self_attn
    attention.k_proj.weight[:, 3] *= 50
    given = attention.k_proj.weight.double()
    round_weights(model, 8)
    found = attention.k_proj(torch.eye(given.shape[1])).double().T
    assert (found - given).norm() <= 1.05 * (in_8_bits(given)[0] - given).norm()
