"""The training model is a Llama model: exported, it computes the same; the probe is SelfExtend."""

import shutil
from itertools import pairwise

import pytest
import torch

from selfextend_rag.positions import SelfExtend
from training.dense import logits
from training.export import BUNDLED, largest_difference, main
from training.grow import grown
from training.model import (
    Decoder,
    ModelShape,
    from_llama,
    load_checkpoint,
    save_checkpoint,
    to_llama,
)
from training.train import WARMUP_STEPS, keep_tokenizer, learning_rate

SHAPE = ModelShape(
    vocabulary=97, hidden=32, layers=2, heads=2, head_size=16, intermediate=40, window=48
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Decoder(SHAPE).eval()


def test_the_exported_model_computes_the_same_logits(model):
    ids = torch.randint(0, 97, (2, 48))
    llama = to_llama(model, bos=0, eos=1, pad=2)
    torch.testing.assert_close(llama(ids).logits, model(ids), atol=2e-6, rtol=1e-4)


def test_a_model_of_transformers_comes_back_as_it_was(model):
    again = from_llama(to_llama(model, bos=0, eos=1, pad=2))
    assert again.shape == model.shape
    ids = torch.randint(0, 97, (2, 48))
    assert torch.equal(again(ids), model(ids))


def test_a_head_may_have_any_size():
    torch.manual_seed(0)
    odd = Decoder(ModelShape(97, 32, 2, 4, 12, 40, 48)).eval()
    ids = torch.randint(0, 97, (2, 48))
    llama = to_llama(odd, bos=0, eos=1, pad=2)
    torch.testing.assert_close(llama(ids).logits, odd(ids), atol=2e-6, rtol=1e-4)
    probed = logits(odd, ids[0], group_size=1, window=8, last=5)
    torch.testing.assert_close(probed, odd(ids)[0, -5:], atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("places", [[0], [1, 3], [2]])
def test_a_grown_model_computes_what_it_did_and_can_learn_more(model, places):
    larger = grown(model, places)
    assert larger.shape.layers == 2 + len(places)
    ids = torch.randint(0, 97, (2, 48))
    assert torch.equal(larger(ids), model(ids))
    larger(ids).square().sum().backward()
    for place in places:
        assert larger.layers[place].out.weight.grad.abs().max() > 0
        assert larger.layers[place].down.weight.grad.abs().max() > 0


def test_a_checkpoint_gives_back_weights_and_state(model, tmp_path):
    save_checkpoint(tmp_path / "checkpoint.pt", model, progress={"step": 7})
    again, state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert again.shape == SHAPE
    assert state["progress"] == {"step": 7}
    ids = torch.arange(20)[None]
    assert torch.equal(again(ids), model(ids))


def test_the_probes_plain_attention_is_the_models(model):
    ids = torch.randint(0, 97, (40,))
    probed = logits(model, ids, group_size=1, window=8, last=5)
    torch.testing.assert_close(probed, model(ids[None])[0, -5:], atol=2e-6, rtol=1e-4)


def test_the_probe_sees_keys_at_selfextends_positions(model):
    """One layer's attention against scores that are made pair by pair."""
    from training.dense import angles, attention
    from training.model import rotate

    settings = SelfExtend(3, 7)
    length, size = 21, 16
    q, k, v = torch.randn(3, 2, length, size, generator=torch.Generator().manual_seed(2))
    positions = torch.arange(length)
    tables = {
        "exact": angles(model, positions),
        "key": angles(model, settings.bands[-1].key_position(positions)),
        "query": angles(model, settings.bands[-1].query_position(positions)),
    }
    scores = torch.full((2, length, length), float("-inf"))
    for i in range(length):
        for j in range(i + 1):
            turn = angles(model, torch.tensor([settings.relative_position(i, j)]))
            turned = rotate(q[:, i : i + 1], *turn)[:, 0]
            scores[:, i, j] = (turned * k[:, j]).sum(-1) / size**0.5
    expected = scores.softmax(-1) @ v
    found = attention(q, k, v, tables, settings.neighbor_window)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_export_writes_a_model_that_transformers_loads(model, tmp_path, monkeypatch):
    torch.manual_seed(1)
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    shape = ModelShape(hidden=64, heads=1, intermediate=96, layers=1)
    small = Decoder(shape).eval()
    save_checkpoint(run / "checkpoint.pt", small, progress={})
    keep_tokenizer(BUNDLED, run)
    monkeypatch.setattr("sys.argv", ["export", "--run", str(run), "--out", str(out)])
    main()
    assert largest_difference(small, out) < 1e-5
    assert (out / "tokenizer.json").read_bytes() == (BUNDLED / "tokenizer.json").read_bytes()


def test_a_run_goes_on_with_the_tokenizer_that_it_began_with(tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    run.mkdir()
    shutil.copytree(BUNDLED, data)
    keep_tokenizer(data, run)
    keep_tokenizer(data, run)
    (data / "tokenizer.json").write_text("{}")
    with pytest.raises(SystemExit, match="another tokenizer"):
        keep_tokenizer(data, run)


def test_the_learning_rate_warms_up_stays_and_ends_at_zero():
    rates = [learning_rate(step, step * 10, 10_000, 1.0) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / WARMUP_STEPS)
    assert rates[400] == 1.0
    fall = [a - b for a, b in pairwise(rates[900:])]
    assert fall == pytest.approx([fall[0]] * 100)
    assert fall[0] > 0
    assert rates[1000] == 0
