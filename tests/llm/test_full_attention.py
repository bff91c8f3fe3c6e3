"""A model whose every layer slides, as Mistral 7B v0.1, is read with its windows switched off."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from langchain_selfextend import ChatSelfExtend
from langchain_selfextend import SelfExtendLLM as LangChainLLM
from llama_index.llms.selfextend import SelfExtendLLM as LlamaIndexLLM
from selfextend_rag import CacheMismatchError, LongContextLLM, SelfExtend, UnsupportedModelError
from selfextend_rag.cli import main
from selfextend_rag.model import extended
from tests.tiny import byte_tokenizer, tiny_llama

WINDOW = 128
TEXT = "".join(f"Fact {i} is {i * i % 97}. " for i in range(14))  # beyond the window


def sliding(window):
    config = MistralConfig(
        vocab_size=261, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        sliding_window=window, initializer_range=0.2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return MistralForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sliding")
    sliding(WINDOW).save_pretrained(path)
    byte_tokenizer(chat=True).save_pretrained(path)
    return str(path)


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    return (code, *capsys.readouterr())


def test_it_answers_as_the_same_weights_without_windows_do(folder):
    llm = LongContextLLM.from_pretrained(folder, full_attention=True)
    reading = llm.read(TEXT)
    assert reading.plan.pretraining_window == WINDOW
    assert reading.plan.extended
    without = sliding(None)
    without.config.max_position_embeddings = WINDOW
    expected = LongContextLLM(without, byte_tokenizer(chat=True)).read(TEXT).ask("Why?")
    assert reading.ask("Why?").text == expected.text
    tokens = torch.randint(5, 261, (1, 300))
    with (
        torch.no_grad(),
        extended(llm.model, SelfExtend(4, 32)),
        extended(without, SelfExtend(4, 32)),
    ):
        assert torch.equal(llm.model(tokens).logits, without(tokens).logits)


def test_without_the_option_a_long_text_is_refused_and_the_option_is_named(folder):
    llm = LongContextLLM.from_pretrained(folder, pretraining_window=WINDOW)
    with pytest.raises(UnsupportedModelError, match=r"full_attention=True \(--full-attention\)"):
        llm.read(TEXT)


def test_a_reading_made_without_windows_is_not_loaded_with_them(folder, tmp_path):
    path = tmp_path / "reading.kv"
    LongContextLLM.from_pretrained(folder, full_attention=True).read("Short.").save(path)
    again = LongContextLLM.from_pretrained(folder, full_attention=True)
    assert again.load(path).ask("Why?", max_new_tokens=4).text
    with pytest.raises(CacheMismatchError):
        LongContextLLM.from_pretrained(folder, pretraining_window=WINDOW).load(path)


def test_a_configuration_that_is_given_stays_as_it_is(folder):
    config = sliding(WINDOW).config
    options = {"config": config}
    llm = LongContextLLM.from_pretrained(folder, full_attention=True, model_options=options)
    assert llm.planner.pretraining_window == WINDOW
    assert config.sliding_window == WINDOW


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"sliding_window": None}, WINDOW),
        ({"sliding_window": 64}, 64),
        ({"sliding_window": None, "attn_implementation": "eager", "revision": "main"}, WINDOW),
        ({"rms_norm_eps": 0.25}, WINDOW),
    ],
)
def test_what_else_is_changed_in_the_configuration_is_changed_too(folder, changes, window):
    """The model's constructor was given it, and raised a TypeError."""
    llm = LongContextLLM.from_pretrained(folder, full_attention=True, model_options=changes)
    config = llm.model.config
    assert config.sliding_window is None
    assert llm.planner.pretraining_window == config.max_position_embeddings == window
    assert config.rms_norm_eps == changes.get("rms_norm_eps", 1e-6)
    if "attn_implementation" in changes:
        assert config._attn_implementation == "eager"
    assert llm.generate("Why?", max_new_tokens=4).usage.completion_tokens > 0


@pytest.mark.parametrize("form", [ChatSelfExtend, LangChainLLM, LlamaIndexLLM])
def test_every_class_of_the_integrations_takes_it(folder, form):
    llm = form(model=folder, full_attention=True)
    core = getattr(llm, "llm", None) or llm.core
    assert core.model.config.sliding_window is None
    assert core.planner.pretraining_window == WINDOW
    with_windows = form(model=folder, pretraining_window=WINDOW)  # weights are not shared
    other = getattr(with_windows, "llm", None) or with_windows.core
    assert other.model is not core.model
    with pytest.raises((TypeError, ValueError), match="full_attention"):
        form(model=tiny_llama(), tokenizer=byte_tokenizer(), full_attention=True)


def test_the_command_line_takes_it(folder, tmp_path, capsys):
    file = tmp_path / "long.txt"
    file.write_text(TEXT)
    model = ("--model", folder, "--full-attention")
    code, out, err = run(capsys, "ask", file, "-q", "Why?", *model)
    assert code == 0
    assert "SelfExtend with group_size" in err
    code, planned, _ = run(capsys, "plan", file, "-q", "Why?", *model, "--json")
    assert json.loads(planned)["plan"]["pretraining_window"] == WINDOW
    kept = tmp_path / "reading.kv"
    assert run(capsys, "read", file, "-o", kept, *model)[0] == 0
    assert run(capsys, "ask", "--reading", kept, "-q", "Why?", *model)[:2] == (0, out)
    for weights in ([], ["--weights"]):
        assert run(capsys, "support", folder, *weights)[0] == 1
        assert run(capsys, "support", folder, "--full-attention", *weights)[0] == 0


def test_it_can_be_calibrated(folder, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("A word and another, then a third one. " * 400)
    code, _, err = run(
        capsys, "calibrate", folder, text, "--full-attention", "--length", 256, "--samples", 1,
        "--depths", 1, "--output", tmp_path / "calibration.json",
    )  # fmt: skip
    assert code in (0, 1)  # random weights know nothing; what counts is which window they have
    assert f"In the window of {WINDOW}" in err
