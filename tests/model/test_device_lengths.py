"""What an extended model does where waiting for the device is dear: row bounds in place of masks.

On CUDA devices this is the only way; here it is switched on, on the CPU, with the kernels in the
interpreter of Triton.
"""

from __future__ import annotations

import pytest
import torch
from transformers import StaticCache

pytest.importorskip("triton", reason="triton is not installed")

from selfextend_rag import SelfExtend, extended
from selfextend_rag.model import attention_fn, observed
from selfextend_rag.model.attention_fn import is_bounds, mask_for_layers
from selfextend_rag.model.hooks import Extension
from tests.tiny import tiny_llama

METHOD = SelfExtend(3, 7)

pytestmark = [
    # the interpreter multiplies rows of scratch that hold anything, whose scores are then not taken
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="kernels are compiled where there is a GPU"
    ),
]


@pytest.fixture(autouse=True)
def dear(monkeypatch):
    monkeypatch.setattr(attention_fn, "_waiting_is_dear", lambda device: True)


@pytest.fixture(scope="module")
def model():
    return tiny_llama(dtype=torch.float32).requires_grad_(False)


def ids(length: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(3, 250, (rows, length), generator=torch.Generator().manual_seed(length))


def mask(q_length: int, kv_length: int, q_offset, attention_mask=None):
    rows = 1 if attention_mask is None else len(attention_mask)
    return mask_for_layers(
        rows, q_length, kv_length, q_offset, attention_mask=attention_mask, previous="sdpa",
        device=torch.device("cpu"),
    )  # fmt: skip


def test_rows_without_padding_need_no_bounds():
    assert mask(5, 12, 7) is None
    assert mask(5, 12, 7, torch.ones(2, 12, dtype=torch.bool)) is None


def test_a_static_cache_gives_bounds_without_reading_its_length():
    bounds = mask(2, 50, torch.tensor(9))
    assert is_bounds(bounds)
    assert bounds[:, 0, 0].tolist() == [[0, 11, 11]]


def test_padding_gives_bounds_and_holes_give_a_mask():
    seen = torch.ones(2, 12, dtype=torch.bool)
    seen[1, :4] = False
    assert mask(2, 12, 10, seen)[:, 0, 0].tolist() == [[0, 12, 12], [4, 12, 12]]
    seen[0, 6] = False
    assert mask(2, 12, 10, seen).dtype == torch.bool


@pytest.mark.parametrize("impl", ["blocked", "triton"])
def test_a_padded_batch_in_a_static_cache_is_each_row_alone(model, impl):
    """Chunks, then single tokens, with a mask as long as what was read so far."""
    rows, length = [ids(30), ids(17)], 30
    batch, seen = torch.zeros(2, length, dtype=torch.long), torch.zeros(2, length, dtype=torch.long)
    for i, row in enumerate(rows):
        batch[i, length - row.shape[1] :] = row[0]
        seen[i, length - row.shape[1] :] = 1
    with extended(model, METHOD, impl=impl):
        cache = StaticCache(config=model.config, max_cache_len=length + 10)
        logits = []
        for begin, end in ((0, 20), (20, 29), (29, 30)):
            logits.append(
                model(
                    batch[:, begin:end], attention_mask=seen[:, :end], past_key_values=cache,
                    position_ids=(seen.cumsum(-1) - 1).clamp(min=0)[:, begin:end],
                ).logits
            )  # fmt: skip
        out = torch.cat(logits, dim=1)
    with extended(model, METHOD, impl="blocked"):
        for i, row in enumerate(rows):
            expected = model(row, use_cache=False).logits[0]
            torch.testing.assert_close(
                out[i, length - row.shape[1] :], expected, rtol=1e-4, atol=1e-4
            )


def test_a_decode_step_with_a_static_cache_compiles_without_graph_break(model):
    """What a CUDA graph needs too: nothing on the way reads a number back."""
    tokens = ids(26)
    with extended(model, METHOD, impl="triton"):
        expected = model(tokens, use_cache=False).logits[:, -2:]
        cache = StaticCache(config=model.config, max_cache_len=40)
        model(tokens[:, :24], past_key_values=cache)
        step = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
        out = [step(tokens[:, n : n + 1], past_key_values=cache).logits for n in (24, 25)]
    torch.testing.assert_close(torch.cat(out, 1), expected, rtol=1e-4, atol=1e-4)


def test_who_observes_is_given_a_mask(model):
    seen = torch.ones(2, 20, dtype=torch.long)
    seen[1, :5] = 0
    masks = []
    positions = (seen.cumsum(-1) - 1).clamp(min=0)
    with (
        extended(model, METHOD, impl="blocked"),
        observed(model, lambda call: masks.append(call.mask)),
    ):
        model(ids(20, rows=2), attention_mask=seen, position_ids=positions, use_cache=False)
    assert torch.equal(masks[0][:, 0, 0], seen.bool())


def test_wrong_positions_stop_a_compiled_step_too():
    """The check becomes an assertion on the device."""
    hook = Extension(METHOD).enter_forward

    def check(positions):
        hook(torch.nn.Identity(), (), {"position_ids": positions})
        return positions + 1

    compiled = torch.compile(check, backend="aot_eager", fullgraph=True)
    compiled(torch.tensor([[3, 4, 5]]))
    with pytest.raises(RuntimeError, match="count the unmasked tokens"):
        compiled(torch.tensor([[3, 5, 6]]))
