"""A rotary layout measured from a table and from what a module does. Needs no vLLM."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfextend_rag import UnsupportedModelError
from selfextend_rag.rope import RotaryLayout
from vllm_selfextend.rotary import GroupedRotary, angles_of, measured_layout, with_longer_table

HEAD = 32


class Rotary(nn.Module):
    """A module such as vLLM's: a table of cosines and sines in float32, and a rotation by it."""

    def __init__(self, rows=700, *, rotary=HEAD, base=1e4, pairing="half", scale=1.0, **more):
        super().__init__()
        self.rows, self.scale, self.pairing = rows, scale, pairing
        self.dtype = more.get("dtype", torch.float32)
        self.after = more.get("after", lambda x: x)
        self.inv_freq = 1.0 / base ** (torch.arange(0, rotary, 2, dtype=torch.float) / rotary)
        self.register_buffer("cos_sin_cache", self._compute_cos_sin_cache().to(self.dtype))

    def _compute_cos_sin_cache(self):
        angles = torch.arange(self.rows, dtype=torch.float)[:, None] * self.inv_freq
        return torch.cat([angles.cos(), angles.sin()], -1) * self.scale

    def _rotated(self, positions, x):
        cos, sin = self.cos_sin_cache[positions].to(x.dtype)[:, None].chunk(2, -1)
        heads = x.view(len(x), -1, HEAD)
        part, rest = heads.split([2 * cos.shape[-1], HEAD - 2 * cos.shape[-1]], -1)
        if self.pairing == "half":
            first, second = part.chunk(2, -1)
            part = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
        else:
            first, second = part[..., 0::2], part[..., 1::2]
            part = torch.stack([first * cos - second * sin, second * cos + first * sin], -1)
        return self.after(torch.cat([part.flatten(2), rest], -1).view(x.shape))

    def forward(self, positions, query, key=None):
        rotated = None if key is None else self._rotated(positions, key)
        return self._rotated(positions, query), rotated


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("rotary", [HEAD, 16])
@pytest.mark.parametrize(("base", "scale"), [(1e4, 1.0), (5e5, 1.2079)])
def test_the_layout_is_that_of_the_module(pairing, rotary, base, scale):
    module = Rotary(rotary=rotary, base=base, pairing=pairing, scale=scale)
    found = measured_layout(module, HEAD)
    assert (found.pairing, found.offset, found.sign) == (pairing, 0, 1)
    assert found.scale == pytest.approx(scale, rel=1e-6)
    exact = module.inv_freq.double()
    # what is left of the rounding of 700 angles in float32, over as many positions
    torch.testing.assert_close(torch.tensor(found.inv_freq).double(), exact, rtol=2e-8, atol=1e-9)


def test_angles_are_found_however_long_the_table_is():
    inv_freq = torch.tensor([1.0, 0.37, 1e-3, 2e-7], dtype=torch.float64)
    angles = torch.arange(40_000, dtype=torch.float64)[:, None] * inv_freq
    table = torch.cat([angles.cos(), angles.sin()], -1).float()
    found, scale = angles_of(table)
    assert scale == 1.0
    torch.testing.assert_close(torch.tensor(found).double(), inv_freq, rtol=1e-6, atol=1e-12)


def test_a_table_in_16_bits_is_measured_in_32():
    found = measured_layout(Rotary(dtype=torch.bfloat16), HEAD)
    exact = measured_layout(Rotary(), HEAD)
    assert found == exact


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Identity(), "without a table"),
        (Rotary(after=lambda x: x * 1.01), "0 candidates fit"),
        (Rotary(after=lambda x: x.flip(-1)), "0 candidates fit"),
    ],
)
def test_what_is_no_plain_rotation_is_refused(module, reason):
    with pytest.raises(UnsupportedModelError, match=reason):
        measured_layout(module, HEAD)


def test_angles_that_change_on_the_way_are_refused():
    module = Rotary()
    table = module._compute_cos_sin_cache()
    table[300:] = table[: len(table) - 300].clone()
    module._compute_cos_sin_cache = lambda: table
    module.cos_sin_cache = table
    with pytest.raises(UnsupportedModelError, match="not constant"):
        measured_layout(module, HEAD)


def test_a_table_changed_after_it_was_made_is_refused():
    module = Rotary()
    module.cos_sin_cache[5] += 0.1
    with pytest.raises(UnsupportedModelError, match="not the one that it computes"):
        measured_layout(module, HEAD)


def test_keys_are_put_at_grouped_positions_and_queries_left_as_they_are():
    module, make = Rotary(), torch.Generator().manual_seed(3)
    q, k = (torch.randn(9, 2 * HEAD, generator=make) for _ in range(2))
    positions = torch.tensor([0, 4, 5, 699, 700, 1000, 3000, 3499, 17])
    plain = torch.zeros(40, dtype=torch.bool)
    plain[8] = True  # the token at position 17
    rotary = GroupedRotary(module, 5, plain)
    query, key = rotary(positions, q, k)
    assert torch.equal(query, q)
    layout: RotaryLayout = measured_layout(module, HEAD)
    heads = k.view(9, 2, HEAD).transpose(0, 1)[None]
    places = torch.where(positions == 17, positions, positions // 5)
    wanted = layout.rotate(heads, places)[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(key, wanted, rtol=0, atol=2e-4)  # angles of the table in float32
    with pytest.raises(ValueError, match="no keys"):
        rotary(positions, q)


@pytest.mark.parametrize("scale", [1.0, 1.1386294361])
def test_a_longer_table_is_the_one_that_the_module_would_have_made(scale):
    """Its roundings too: at position 1,280 those of angles moved GPT-OSS's answers by 5e-4."""
    short, long = Rotary(rows=256, scale=scale), Rotary(rows=4096, scale=scale)
    longer = with_longer_table(short, measured_layout(short, HEAD), 4096)
    assert torch.equal(longer.cos_sin_cache[:256], short.cos_sin_cache)
    assert len(short.cos_sin_cache) == 256
    torch.testing.assert_close(longer.cos_sin_cache, long.cos_sin_cache, rtol=0, atol=3e-7)
    assert with_longer_table(long, measured_layout(long, HEAD), 500) is long


def test_nothing_is_made_where_new_tensors_go_while_vllm_builds_a_model():
    """Numbers that a generator of the CPU draws can't be put on a GPU, nor can they be mixed."""
    module, table = Rotary(rows=100), Rotary(rows=100).cos_sin_cache
    module._compute_cos_sin_cache = lambda: table
    with torch.device("meta"):
        layout = measured_layout(module, HEAD)
        longer = with_longer_table(module, layout, 150)
    assert layout == measured_layout(module, HEAD)
    assert longer.cos_sin_cache.device == table.device
