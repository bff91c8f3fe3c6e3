"""Models whose weights are rounded to few bits when they are loaded, by every way to load them."""

from __future__ import annotations

import json

import pytest
import torch

from langchain_selfextend import ChatSelfExtend
from llama_index.llms.selfextend import SelfExtendLLM as LlamaIndexLLM
from selfextend_rag import CacheMismatchError, LongContextLLM, UnsupportedModelError
from selfextend_rag.cli import main
from selfextend_rag.model import verify
from selfextend_rag.model.weights.layers import Linear8
from tests.tiny import byte_tokenizer, tiny_llama

pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="FBGEMM needs x86 with AVX2"
)
FREE = {"max_new_tokens": 8, "stop": (), "stop_token_ids": ()}
LONG = "".join(f"Fact {i} is {i * i % 97}. " for i in range(20))  # beyond the window
KEY = "The pass key is 48213. Remember it. 48213 is the pass key."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny_llama(window=128, dtype=torch.float32).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_text_beyond_the_window_is_read_extended_and_answered_one_by_one_as_in_a_batch(
    folder, bits
):
    llm = LongContextLLM.from_pretrained(folder, weight_bits=bits)
    reading = llm.read(LONG)
    assert reading.plan.extended
    alone = [reading.ask(question, **FREE).text for question in ("What?", "Why?")]
    assert [x.text for x in reading.ask_batch(["What?", "Why?"], **FREE)] == alone


def test_the_bundled_model_still_finds_a_pass_key():
    llm = LongContextLLM.bundled(weight_bits=8)
    assert llm.read(f"{LONG}{KEY} {LONG}").ask("What is the pass key?").text == "48213"


def test_what_14_bits_leave_out_is_not_taken_for_a_state_that_is_lost(monkeypatch, folder):
    """Gemma 3 270M in float32 was refused: read in chunks, its logits change by 0.3 %."""
    monkeypatch.setattr(verify, "_TOLERANCE", 1e-5)  # such a small model errs less
    plain, rounded = (LongContextLLM.from_pretrained(folder, weight_bits=x) for x in (None, 8))
    assert rounded.read(LONG).ask("Why?", **FREE).text
    assert verify.precision_of(rounded.model) == torch.bfloat16
    assert verify.precision_of(plain.model) == torch.float32


def test_a_reading_belongs_to_the_rounded_weights(folder, tmp_path):
    rounded = LongContextLLM.from_pretrained(folder, weight_bits=8)
    rounded.read(LONG).save(tmp_path / "kept")
    again = LongContextLLM.from_pretrained(folder, weight_bits=8).load(tmp_path / "kept")
    assert again.ask("Why?", **FREE).text == rounded.read(LONG).ask("Why?", **FREE).text
    with pytest.raises(CacheMismatchError, match="weights"):
        LongContextLLM.from_pretrained(folder).load(tmp_path / "kept")


@pytest.mark.parametrize("form", [ChatSelfExtend, LlamaIndexLLM])
def test_the_integrations_take_it(folder, form):
    llm = form(model=folder, weight_bits=8)
    core = getattr(llm, "llm", None) or llm.core
    assert isinstance(core.model.lm_head, Linear8)
    with pytest.raises((TypeError, ValueError), match="weight_bits"):
        form(model=tiny_llama(), tokenizer=byte_tokenizer(), weight_bits=8)


def test_the_command_line_plans_with_the_bytes_that_are_loaded(folder, tmp_path, capsys):
    path = tmp_path / "page.txt"
    path.write_text("The sky is blue.")
    found = {}
    for bits in (None, "8", "4"):
        options = [] if bits is None else ["--weight-bits", bits]
        assert main(["plan", str(path), "--model", folder, "--json", *options]) == 0
        memory = json.loads(capsys.readouterr().out)["plan"]["memory"]
        found[bits] = memory["devices"][0]["weights_bytes"]
    for bits in ("8", "4"):
        llm = LongContextLLM.from_pretrained(folder, weight_bits=int(bits))
        loaded = llm.plan("The sky is blue.").memory.devices[0].weights_bytes
        assert found[bits] == loaded < found[None]


def test_a_quantization_config_besides_is_refused_before_anything_is_loaded():
    options = {"quantization_config": {"quant_method": "bitsandbytes"}}
    with pytest.raises(UnsupportedModelError, match="give one of the two"):
        LongContextLLM.bundled(weight_bits=8, model_options=options)
