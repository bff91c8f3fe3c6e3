"""The training model is a Llama model: exported, it computes the same."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from selfextend_rag import LongContextLLM
from selfextend_rag.llm.loading.model import load_model
from training.export import BUNDLED, averaged, largest_difference, main, rounded, stored
from training.model import (
    Decoder,
    ModelShape,
    branched,
    from_llama,
    guide_loss,
    load_checkpoint,
    save_checkpoint,
    to_llama,
)
from training.train import WARMUP_STEPS, keep_tokenizer, learning_rate, weights_of

SHAPE = ModelShape(
    vocabulary=97, hidden=32, layers=2, heads=2, head_size=16, intermediate=40, window=48
)


@pytest.fixture(params=[False, True], ids=["plain", "biases"])
def model(request):
    torch.manual_seed(0)
    made = Decoder(replace(SHAPE, biases=request.param)).eval()
    if request.param:  # those of values and outputs start at zero: a mistake would not show
        for layer in made.layers:
            torch.nn.init.normal_(layer.out.bias)
            layer.qkv.bias.data += torch.randn_like(layer.qkv.bias)
    return made


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


def attention_of(layer, model, ids):
    """Return the attention [H, T, T] of a layer that gets the embeddings of ids [T]."""
    return attention_to(layer, model, model.embedding(ids))


def attention_to(layer, model, x):
    """Return the attention [H, T, T] of a layer that gets x [T, hidden]."""
    length = len(x)
    _, q, k = layer(x[None], model.cos[:length], model.sin[:length])
    unseen = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (q @ k.mT)[0] / model.shape.head_size**0.5
    return scores.masked_fill(unseen, float("-inf")).softmax(-1)


def test_biases_start_the_heads_of_two_layers_on_the_tokens_before():
    torch.manual_seed(0)
    made = Decoder(ModelShape(vocabulary=97, layers=2, head_size=64, biases=True)).eval()
    ids = torch.randint(0, 97, (200,))
    first, second = (attention_of(layer, made, ids) for layer in made.layers)
    for head in range(4):
        assert first[head].diagonal(-1 - head)[20:].mean() > 0.8
    for head, (near, far) in enumerate(((0, 7), (1, 10), (4, 13), (7, 18))):
        share = sum(second[head].diagonal(-back)[40:].mean() for back in range(near, far))
        assert share > 0.8


def test_the_guides_loss_is_minus_the_logarithm_of_the_attention_on_the_statement(model):
    ids = torch.randint(0, 97, (1, 30))
    places, span = torch.tensor([20, 29]), torch.tensor([[3, 8], [11, 12]])
    guided = replace(model.shape, layers=1)
    one = Decoder(guided)
    one.load_state_dict(model.state_dict(), strict=False)
    weights = attention_of(one.layers[0], one, ids[0])[0]
    expected = -(weights[20, 3:8].sum().log() + weights[29, 11].log()) / 2
    _, q, k = one.layers[0](one.embedding(ids), one.cos[:30], one.sin[:30])
    rows = torch.zeros(2, dtype=torch.long)
    _, bias = branched(torch.zeros_like(ids))
    found = guide_loss(q[:, 0], k[:, 0], bias, rows, places, span)
    torch.testing.assert_close(found, expected)


def test_the_guide_is_the_mean_of_the_heads_that_it_leads():
    torch.manual_seed(3)
    made = Decoder(replace(SHAPE, layers=4)).eval()
    ids = torch.randint(0, 97, (2, 30))
    spans, ends = torch.tensor([[0, 0], [4, 9]]), torch.tensor([[1, 14, 6, 2], [1, 13, 5, 1]])
    _, guide, _ = made.weighted_loss(
        ids,
        torch.tensor([3, 30 + 20]),
        torch.tensor([1, 2]),
        torch.ones(2),
        spans,
        ends,
        torch.zeros_like(ids),
    )
    x, expected = made.embedding(ids[1]), []
    for number, layer in enumerate(made.layers):
        shown = attention_to(layer, made, x)
        if number == 1:
            expected.append(-(shown[-1, 14, 6].log() + shown[-1, 13, 5].log()) / 2)
        if number == 2:
            expected.append(-shown[-1, 14, 7].log())
        if number in (1, 2):
            expected += [-shown[head, 20, 4:9].sum().log() for head in (0, 1)]
        x = layer(x[None], made.cos[:30], made.sin[:30])[0][0]
    torch.testing.assert_close(guide, torch.stack(expected).mean())


def test_without_statements_there_is_nothing_to_guide(model):
    ids, none = torch.randint(0, 97, (2, 30)), torch.zeros(3, 2, dtype=torch.long)
    targets = torch.tensor([1, 2, 3])
    loss, guide, right = model.weighted_loss(
        ids,
        torch.tensor([4, 9, 50]),
        targets,
        torch.ones(3),
        none,
        none[:0, [0, 0, 0, 0]],
        torch.zeros_like(ids),
    )
    assert guide == 0
    logits = model(ids).flatten(0, 1)[[4, 9, 50]]
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, targets))
    assert right.tolist() == (logits.argmax(-1) == targets).tolist()


def test_questions_of_one_row_are_as_each_alone_after_the_document(model):
    """They share the document's keys, have the positions after it, and do not see each other."""
    torch.manual_seed(4)
    document = torch.randint(0, 97, (17,))
    questions = [torch.randint(0, 97, (size,)) for size in (6, 9, 5)]
    row = torch.cat([document, *questions])[None]
    branches = torch.tensor([[0] * 17 + [1] * 6 + [2] * 9 + [3] * 5])
    places = torch.arange(17, row.shape[1])
    alone = torch.cat([model(torch.cat([document, asked])[None])[0, 17:] for asked in questions])
    nowhere, none = torch.zeros(len(places), 2).long(), torch.zeros(0, 4).long()
    targets, weights = torch.randint(0, 97, (len(places),)), torch.rand(len(places))
    given = (row, places, targets, weights, nowhere, none)
    loss, _, right = model.weighted_loss(*given, branches)
    expected = torch.nn.functional.cross_entropy(alone, targets, reduction="none")
    torch.testing.assert_close(loss, (expected * weights).sum() / weights.sum())
    assert right.tolist() == (alone.argmax(-1) == targets).tolist()
    together, *_ = model.weighted_loss(*given, torch.zeros_like(row))
    assert abs(together - loss) > 3e-5


def test_weights_of_another_vocabulary_than_the_datas_are_refused(exported, tmp_path):
    small, export = exported
    folder, data, tokens = export(), tmp_path / "data", small.shape.vocabulary
    assert weights_of(folder, data, tokens).shape.vocabulary == tokens
    with pytest.raises(SystemExit, match=f"out has {tokens} tokens, .*data {tokens - 1}"):
        weights_of(folder, data, tokens - 1)


def test_a_checkpoint_gives_back_weights_and_state(model, tmp_path):
    save_checkpoint(tmp_path / "checkpoint.pt", model, progress={"step": 7})
    again, state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert again.shape == model.shape
    assert state["progress"] == {"step": 7}
    ids = torch.arange(20)[None]
    assert torch.equal(again(ids), model(ids))


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """A small model, and a function that exports it with more arguments and returns the folder."""
    torch.manual_seed(1)
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    vocabulary = json.loads((BUNDLED / "config.json").read_text())["vocab_size"]
    small = Decoder(ModelShape(vocabulary, hidden=64, heads=1, intermediate=96, layers=1)).eval()
    save_checkpoint(run / "checkpoint.pt", small, progress={})
    keep_tokenizer(BUNDLED, run)

    def export(*arguments):
        command = ["export", "--run", str(run), "--out", str(out), *arguments]
        monkeypatch.setattr("sys.argv", command)
        main()
        return out

    return small, export


def test_export_writes_a_model_that_transformers_loads(exported):
    small, export = exported
    out = export()
    assert largest_difference(small, out) < 1e-5
    assert (out / "tokenizer.json").read_bytes() == (BUNDLED / "tokenizer.json").read_bytes()


def test_export_writes_the_mean_of_several_runs(exported, tmp_path):
    small, export = exported
    other, run = Decoder(small.shape).eval(), tmp_path / "other"
    run.mkdir()
    save_checkpoint(run / "checkpoint.pt", other, progress={})
    mean = averaged([small, other])
    torch.testing.assert_close(mean.norm, (small.norm + other.norm) / 2)
    both = small.embedding.weight + other.embedding.weight
    torch.testing.assert_close(mean.embedding.weight, both / 2)
    assert largest_difference(mean, export("--average", str(run))) < 1e-5
    with pytest.raises(SystemExit, match="different shapes"):
        averaged([small, Decoder(replace(small.shape, layers=2))])


def test_weights_stored_in_sixteen_bits_are_rounded_and_compute_in_float32(exported):
    small, export = exported
    out = export("--dtype", "bfloat16")
    assert {tensor.dtype for tensor in stored(out).values()} == {torch.bfloat16}
    assert largest_difference(small, out) > 1e-5
    assert largest_difference(rounded(small, torch.bfloat16), out) < 1e-5
    loaded = LongContextLLM.from_pretrained(str(out)).model
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}


def test_the_bundled_weights_compute_in_float32_and_take_at_most_sixteen_megabytes():
    loaded = load_model(BUNDLED)
    assert loaded.dtype == torch.float32
    assert (BUNDLED / "model.safetensors").stat().st_size <= 16_000_000


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
