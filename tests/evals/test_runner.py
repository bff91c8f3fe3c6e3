"""The runner and the command line, on models whose answers are known beforehand."""

import json
import math
import re

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from selfextend_rag.bundled import FOLDER
from selfextend_rag.cli import main
from selfextend_rag.evals import (
    HuggingFaceModel,
    Prose,
    access,
    depths,
    grids,
    is_exact_match,
    king_james,
    nll_by_position,
    perplexity,
    run_lookups,
    run_perplexity,
)
from selfextend_rag.evals.grids import Grid
from selfextend_rag.evals.runner import MAX_NEW_TOKENS
from selfextend_rag.planning import ContextBudgetPlanner
from selfextend_rag.positions import SelfExtend


class Reader:
    """Answers with the digits it finds in the last tokens it can see."""

    def __init__(self, tokenizer, sight):
        self.tokenizer = tokenizer
        self.sight = sight

    def generate(self, token_ids, max_new_tokens):
        seen = self.tokenizer.decode(list(token_ids)[-self.sight :])
        digits = "".join(c for c in seen if c.isdigit())[:5]
        return self.tokenizer(f" {digits}\n\nQuestion:", add_special_tokens=False)["input_ids"]

    def token_nll(self, token_ids):
        return [math.log(4.0)] * (len(token_ids) - 1)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def prose(tokenizer):
    return Prose.tokenize(king_james()[:40_000], tokenizer)


@pytest.fixture(scope="module")
def tiny(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def test_answers_are_greedy_whatever_a_models_generation_settings_say(tiny, monkeypatch):
    """Qwen's instruct models name a repetition penalty, which was taken."""
    prompt = list(range(20, 50))
    greedy = HuggingFaceModel(tiny, end_ids=[2047]).generate(prompt, 8)
    named = {"repetition_penalty": 30.0, "num_beams": 3, "no_repeat_ngram_size": 1}
    for name, value in named.items():
        monkeypatch.setattr(tiny.generation_config, name, value)
    assert HuggingFaceModel(tiny, end_ids=[2047]).generate(prompt, 8) == greedy
    ids = list(prompt)
    for _ in range(8):
        with torch.no_grad():
            ids.append(int(tiny(torch.tensor([ids])).logits[0, -1].argmax()))
    assert greedy == ids[len(prompt) :]


def test_a_model_that_sees_half_the_prompt_answers_the_deep_half(tokenizer, prose):
    cells = run_lookups(
        Reader(tokenizer, 500),
        tokenizer,
        prose,
        task="passkey",
        length=1000,
        depths=depths(3),
        samples=4,
    )
    assert [(cell.depth, cell.right) for cell in cells] == [(0.0, 0), (0.5, cells[1].right), (1, 4)]
    assert all(cell.samples == 4 for cell in cells)
    expected, given = cells[0].wrong[0]
    assert expected.isdigit()
    assert not given.strip().startswith(expected)


def test_a_model_that_knows_one_in_four_has_perplexity_four(tokenizer, prose):
    result = run_perplexity(
        Reader(tokenizer, 1), prose, head=[0], length=101, samples=3, bin_size=50
    )
    assert result["perplexity"] == pytest.approx(4)
    assert result["bin_starts"] == (1, 51)


def test_token_likelihoods_are_those_of_the_models_own_loss(tiny):
    ids = torch.randint(0, 2048, (50,), generator=torch.Generator().manual_seed(1))
    values = HuggingFaceModel(tiny).token_nll(ids.tolist())
    loss = tiny(ids[None], labels=ids[None]).loss
    assert len(values) == 49
    assert sum(values) / 49 == pytest.approx(loss.item(), rel=1e-5)


def test_extended_likelihoods_differ_beyond_the_neighbor_window_alone(tiny):
    """And the model is the stock model again afterwards."""
    ids = list(range(3, 63))
    plain = HuggingFaceModel(tiny).token_nll(ids)
    extended = HuggingFaceModel(tiny, SelfExtend(4, 16)).token_nll(ids)
    assert extended[:16] == pytest.approx(plain[:16], abs=1e-5)
    assert max(abs(a - b) for a, b in zip(plain[20:], extended[20:], strict=True)) > 1e-6
    assert HuggingFaceModel(tiny).token_nll(ids) == plain


@pytest.mark.parametrize("settings", [None, SelfExtend(4, 16)])
def test_a_long_text_has_the_same_likelihoods_in_chunks(tiny, settings, monkeypatch):
    """Its logits for all words of a vocabulary would not fit in memory at once."""
    ids = [number % 97 for number in range(61)]
    whole = HuggingFaceModel(tiny, settings).token_nll(ids)
    monkeypatch.setattr(access, "_WHOLE", 20)
    for block in (1, 7, 60):
        monkeypatch.setattr(access, "_NLL_BLOCK", block)
        assert HuggingFaceModel(tiny, settings).token_nll(ids) == pytest.approx(whole, abs=1e-5)


def test_generation_stops_before_the_end_token(tiny):
    prompt = [0, 5, 6, 7]
    free = HuggingFaceModel(tiny, end_ids=[2047]).generate(prompt, 6)
    stopped = HuggingFaceModel(tiny, end_ids=[free[2]]).generate(prompt, 6)
    assert stopped == free[: free.index(free[2])]


@pytest.mark.parametrize("length", [513, 1024, 5000, 8192])
def test_the_chosen_settings_are_those_a_user_gets(length):
    settings = Grid(task="passkey").settings(length, 512)
    assert settings == ContextBudgetPlanner(512).plan(length, MAX_NEW_TOKENS).settings
    assert settings.extended_window(512) >= length + MAX_NEW_TOKENS


def test_a_prompt_inside_the_window_is_extended_on_request_alone():
    assert Grid(task="passkey").settings(400, 512) is None
    assert Grid(task="passkey", group_size=4).settings(400, 512) == SelfExtend(4, 128)


def test_the_command_line_writes_results_for_both(tiny, tokenizer, tmp_path):
    tiny.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = f"--model {tmp_path / 'model'} --depths 2 --samples 1 --no-plot --out {tmp_path}"
    assert main(["eval", "passkey", *arguments.split(), "--lengths", "60", "120"]) == 0
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["pretraining_window"] == 64
    for label in ("plain", "selfextend"):
        cells = report["results"][label]
        assert [(c["length"], c["depth"]) for c in cells] == [
            (60, 0.0),
            (60, 1.0),
            (120, 0.0),
            (120, 1.0),
        ]


def test_bits_of_keys_and_values_are_measured_and_reported(tiny, tokenizer, tmp_path):
    tiny.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    shared = f"--model {tmp_path / 'model'} --samples 1 --no-plot --out {tmp_path} --lengths 150"
    found = []
    for bits in ([], ["--kv-bits", "8"], ["--kv-bits", "4"]):
        assert main(["eval", "perplexity", *shared.split(), *bits]) == 0
        report = json.loads((tmp_path / "results.json").read_text())
        assert report["kv_bits"] == (int(bits[1]) if bits else None)
        found.append(report["results"]["selfextend"][0]["perplexity"])
    assert abs(found[1] / found[0] - 1) < abs(found[2] / found[0] - 1) < 0.05
    assert found[0] != found[1]


@pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="FBGEMM needs x86 with AVX2"
)
def test_bits_of_weights_are_measured_and_reported(tiny, tokenizer, tmp_path, capsys):
    tiny.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    shared = f"--model {tmp_path / 'model'} --samples 1 --no-plot --out {tmp_path} --lengths 90"
    found = []
    for bits in ([], ["--weight-bits", "8"]):
        assert main(["eval", "perplexity", *shared.split(), *bits]) == 0
        report = json.loads((tmp_path / "results.json").read_text())
        assert report["weight_bits"] == (int(bits[1]) if bits else None)
        found.append(report["results"]["selfextend"][0]["perplexity"])
    assert 0 < abs(found[1] / found[0] - 1) < 0.05
    arguments = ["eval", "perplexity", *shared.split(), "--weight-bits", "8", "--device", "cuda"]
    assert main(arguments) == 2
    assert "--weight-bits 8 can't be had: it is for the CPU" in capsys.readouterr().err


def test_pictures_are_written_for_lookups_and_perplexity(tiny, tokenizer, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is optional and not installed")
    tiny.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    shared = f"--model {tmp_path / 'model'} --samples 1 --out {tmp_path}"
    assert main(["eval", "lookup", *shared.split(), "--depths", "2", "--lengths", "150"]) == 0
    assert main(["eval", "perplexity", *shared.split(), "--lengths", "120"]) == 0
    for name in ("lookup.png", "perplexity.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("option", ["--depths", "--samples", "--bin-size", "--lengths"])
def test_counts_of_nothing_are_refused(option, capsys):
    assert main(["eval", "passkey", option, "0"]) == 2
    assert re.search(rf"{option} must be .*positive integer", capsys.readouterr().err)


def test_lengths_are_given_by_comma_or_one_after_another(monkeypatch):
    seen = []
    monkeypatch.setattr(grids, "run_grid", lambda grid, write: seen.append(grid) or {})
    for lengths in (["64,128"], ["64", "128"], ["64", "--lengths", "128"]):
        assert main(["eval", "passkey", "--lengths", *lengths]) == 0
    assert [list(grid.lengths) for grid in seen] == [[64, 128]] * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["passkey", "64"], "64 is no task"),
        (["passkey", "--lengths", "many"], "--lengths takes numbers"),
        ([], "name a task"),
        (["passkey", "--methods", "plain,magic"], "methods must be of"),
    ],
)
def test_what_can_not_be_measured_is_said(arguments, said, capsys):
    assert main(["eval", *arguments]) == 2
    assert said in capsys.readouterr().err


# What it counts: exact answers, likelihood by position, perplexity.


@pytest.mark.parametrize("generated", ["12345", " 12345", " 12345\n\nQuestion: again", "\n12345 "])
def test_the_answer_on_the_first_line_matches(generated):
    assert is_exact_match(generated, "12345")


@pytest.mark.parametrize("generated", ["", "\n", "1234", "123456", "12345.", "x 12345", "0\n12345"])
def test_anything_else_does_not_match(generated):
    assert not is_exact_match(generated, "12345")


def test_means_are_taken_over_sequences_and_positions_of_a_bin():
    result = nll_by_position([[1.0, 2.0, 3.0], [3.0, 4.0, 7.0]], bin_size=2)
    assert result.bin_starts == (1, 3)
    assert result.means == (2.5, 5.0)


def test_sequences_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="one length"):
        nll_by_position([[1.0], [1.0, 2.0]], bin_size=1)


def test_guessing_among_n_tokens_has_perplexity_n():
    assert perplexity([math.log(7)] * 5) == pytest.approx(7)


def test_perplexity_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        perplexity([])
