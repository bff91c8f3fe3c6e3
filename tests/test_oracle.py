"""The oracle itself: against stock models, and against SelfExtend written out pair by pair."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from selfextend_rag.positions import SelfExtend
from tests import oracle, zoo

LENGTH = 64
NAMES = [name for name in (*zoo.families(), *zoo.variants()) if name not in zoo.NOT_BUILT]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models run no faster on more threads, which then only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_without_grouping_the_oracle_is_the_stock_model(name: str) -> None:
    model, tokens = zoo.build(name), zoo.tokens(LENGTH)
    layers = [layer for layer, sees_all in _rotary(model, tokens).items() if sees_all]
    if not layers:
        pytest.skip("no rotary layer that sees all the past and calls the usual attention function")
    stock = oracle.eager_logits(model, tokens)
    unit = stock.abs().max()
    for group_size, window in ((1, 7), (4, LENGTH)):
        same = oracle.oracle_logits(model, tokens, group_size, window, layers)
        assert (same - stock).abs().max() <= 1e-5 * unit
    grouped = oracle.oracle_logits(model, tokens, 4, 7, layers)
    assert (grouped - stock).abs().max() >= 1e-2 * unit
    assert torch.equal(oracle.eager_logits(model, tokens), stock)  # it leaves no trace


@pytest.mark.parametrize(("group_size", "window"), [(2, 4), (4, 7), (3, 10)])
def test_the_oracle_rotates_each_pair_by_its_relative_position(
    group_size: int, window: int
) -> None:
    """One attention layer of a Llama, with every score turned by its own relative position."""
    model, tokens = zoo.build("llama", num_hidden_layers=1), zoo.tokens(40)
    layer = model.model.layers[0]
    hidden = layer.input_layernorm(model.model.embed_tokens(tokens))
    query, key, value = (_heads(p(hidden)) for p in _projections(layer.self_attn))
    settings = SelfExtend(group_size, window)
    relative = torch.tensor(
        [[settings.relative_position(i, min(i, j)) for j in range(40)] for i in range(40)]
    )
    turned = _turn(query[:, :, None], relative[..., None], model.model.rotary_emb.inv_freq)
    scores = (turned * key.repeat_interleave(2, 0)[:, None]).sum(-1) * 16**-0.5  # [H, T, S]
    scores = scores.masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf)
    mixed = scores.softmax(-1) @ value.repeat_interleave(2, 0)
    attended = model.model.embed_tokens(tokens) + layer.self_attn.o_proj(
        mixed.transpose(0, 1).reshape(1, 40, -1).float()
    )
    output = attended + layer.mlp(layer.post_attention_layernorm(attended))
    expected = model.lm_head(model.model.norm(output))
    actual = oracle.oracle_logits(model, tokens, group_size, window, ["model.layers.0.self_attn"])
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_sliding_layer_is_told_from_one_that_sees_all() -> None:
    found = oracle.rotary_layers(zoo.build("gemma3_text"), zoo.tokens(LENGTH))
    assert found == {"model.layers.0.self_attn": False, "model.layers.1.self_attn": True}


def _rotary(model: torch.nn.Module, tokens: Tensor) -> dict[str, bool]:
    try:
        return oracle.rotary_layers(model, tokens)
    except TypeError as error:
        if "position_ids" not in str(error):
            raise
        return {}  # it takes no positions


def _projections(attention: torch.nn.Module) -> tuple[torch.nn.Module, ...]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def _heads(x: Tensor) -> Tensor:
    return x[0].unflatten(-1, (-1, 16)).transpose(0, 1).double()  # [H, T, D]


def _turn(x: Tensor, angle_positions: Tensor, inv_freq: Tensor) -> Tensor:
    """Turn the pairs (i, i + D / 2) of a Llama head, in complex numbers."""
    pairs = torch.complex(*x.chunk(2, dim=-1))
    turned = pairs * torch.exp(1j * angle_positions.double() * inv_freq.double())
    return torch.cat([turned.real, turned.imag], dim=-1)
