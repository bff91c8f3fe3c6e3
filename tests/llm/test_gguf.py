"""GGUF files: the model that is in them, or a refusal that names what would be passed over."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from selfextend_rag import LongContextLLM, ModelLoadError
from selfextend_rag.cli import main
from selfextend_rag.llm.loading.gguf import gguf_file
from selfextend_rag.llm.loading.model import load_model
from selfextend_rag.llm.loading.sources import load_tokenizer
from tests.llm.gguf_files import (
    END,
    MESSAGE_END,
    TEMPLATE,
    TOKENS,
    tiny,
    write,
)

TEXT = "The height of the old mill is 6400. It is by the river, and the river is wide."


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty place to keep what is made of the files."""
    folder = tmp_path / "home"
    monkeypatch.setattr("selfextend_rag.llm.loading.gguf.constants.HF_HOME", str(folder))
    return folder


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_file_gives_the_model_that_was_written_to_it(tmp_path, family):
    model = tiny(family)
    path = write(tmp_path / "tiny.gguf", model, family)
    llm = LongContextLLM.from_pretrained(path)
    tokenizer = llm.tokenizer
    ids = tokenizer(TEXT, add_special_tokens=False, return_tensors="pt").input_ids
    assert ids.tolist() == [[TOKENS.index("Ġ" if c == " " else c) for c in TEXT]]
    with torch.no_grad():
        torch.testing.assert_close(llm.model(ids).logits, model(ids).logits)
    assert llm.model.config.max_position_embeddings == 128
    assert tokenizer.chat_template == TEMPLATE
    assert llm.model.generation_config.eos_token_id == [END, MESSAGE_END]
    reading = llm.read(TEXT * 5, max_new_tokens=4)
    assert reading.plan.group_size > 1
    assert reading.ask("What is high?", max_new_tokens=4).usage.completion_tokens > 0


def test_quantised_weights_are_restored(tmp_path):
    model = tiny("llama", hidden_size=64, intermediate_size=64)
    path = write(tmp_path / "q8.gguf", model, "llama", quantised=gguf.GGMLQuantizationType.Q8_0)
    found = LongContextLLM.from_pretrained(path).model
    assert found.dtype == torch.bfloat16
    ids = torch.tensor([[1, 40, 200, 7]])
    with torch.no_grad():
        wanted, got = model(ids).logits, found(ids).logits.float()
    assert (wanted - got).abs().max() < 0.1 * wanted.abs().max()


def test_a_file_is_converted_once(tmp_path, home, monkeypatch):
    path = write(tmp_path / "tiny.gguf", tiny("llama"), "llama")
    load_model(path)
    (kept,) = [
        folder for folder in (home / "selfextend-rag/gguf").iterdir() if folder.name[0] != "d"
    ]
    assert {file.name for file in (kept / "model").iterdir()} >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    monkeypatch.setattr("selfextend_rag.llm.loading.gguf._write", None)
    load_model(path)
    other = write(tmp_path / "other.gguf", tiny("llama", seed=1), "llama")
    with pytest.raises(ModelLoadError):
        load_model(other)  # what is kept is another's
    path.write_bytes(other.read_bytes())
    with pytest.raises(ModelLoadError):
        load_model(path)


def test_a_plan_restores_no_weights(tmp_path, home, capsys):
    path = write(tmp_path / "tiny.gguf", tiny("llama"), "llama")
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 5)
    assert main(["plan", str(text), "--model", str(path), "--max-new-tokens", "4"]) == 0
    assert "The model was trained on 128: SelfExtend" in capsys.readouterr().out
    assert not list(home.rglob("model.safetensors"))


def test_a_folder_with_one_file_is_that_file(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    path = write(folder / "tiny.gguf", tiny("llama"), "llama")
    assert gguf_file(folder) == path
    llm = LongContextLLM.from_pretrained(folder, model_options={"gguf_file": "tiny.gguf"})
    assert llm.model.config.max_position_embeddings == 128
    (folder / "more.gguf").write_bytes(path.read_bytes())
    with pytest.raises(ModelLoadError, match=r"holds several models, name one: more\.gguf, tiny"):
        LongContextLLM.from_pretrained(folder)


def _llama3_factors(base, factor, low=1.0, high=4.0, trained=8192, pairs=4):
    found = []
    for pair in range(pairs):
        wavelength = 2 * np.pi * base ** (pair / pairs)
        if wavelength < trained / high:
            found.append(1.0)
        elif wavelength > trained / low:
            found.append(factor)
        else:
            smooth = (trained / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, dtype=np.float32)


def test_scaled_rotary_angles_are_taken_over(tmp_path):
    scaled = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model = tiny("llama", rope_parameters=scaled)
    factors = _llama3_factors(5e5, 8.0)
    assert len(set(factors)) > 2
    path = write(tmp_path / "l3.gguf", model, "llama", tensors={"rope_freqs.weight": factors})
    found = load_model(path)
    wanted, got = model.model.rotary_emb.inv_freq, found.model.rotary_emb.inv_freq
    torch.testing.assert_close(got.double(), wanted.double(), rtol=1e-5, atol=0)
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    path = write(tmp_path / "linear.gguf", tiny("llama"), "llama", more=linear)
    found = load_model(path)
    torch.testing.assert_close(
        found.model.rotary_emb.inv_freq, tiny("llama").model.rotary_emb.inv_freq.float() / 4
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more": {"attention.scale": 0.5}}, "it states llama.attention.scale = 0.5, which is not"),
        (
            {"more": {"attention.sliding_window": 64.0}},
            "it states llama.attention.sliding_window = 64.0, and what was read of it says None",
        ),
        ({"more": {"rope.scaling.type": "longrope"}}, "angles are scaled by 'longrope', which is"),
        (
            {"tensors": {"rope_freqs.weight": np.array([1, 2, 3, 4], dtype=np.float32)}},
            "scaled by factors that are not Llama 3's",
        ),
        (
            {"tensors": {"blk.0.some.scale": np.ones(3, dtype=np.float32)}},
            "weights, and the model",
        ),
        ({"cut": "viking"}, "its tokenizer cuts text by 'viking', which is not read"),
        ({"tokens": ["\u00e9\u0394", *TOKENS[1:]]}, "its token 0 is .*, and the tokenizer has"),
    ],
)
def test_what_would_be_passed_over_is_refused(tmp_path, changes, message):
    path = write(tmp_path / "odd.gguf", tiny("llama"), "llama", **changes)
    with pytest.raises(ModelLoadError, match=message) as refused:
        load_model(path)
    assert str(path) in str(refused.value)


def test_damaged_missing_and_partial_files_are_refused(tmp_path):
    whole = write(tmp_path / "tiny.gguf", tiny("llama"), "llama").read_bytes()
    for size in (0, 3, 30, 500, len(whole) // 2, len(whole) - 100):
        cut = tmp_path / f"cut{size}.gguf"
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelLoadError, match=f"can't load the model .*cut{size}.gguf"):
            load_model(cut)
    with pytest.raises(ModelLoadError, match="there is no such file"):
        load_model(tmp_path / "none.gguf")
    with pytest.raises(ModelLoadError, match="one part of several; join them"):
        load_tokenizer(tmp_path / "big-00001-of-00003.gguf")


def test_a_disk_that_is_too_small_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "tiny.gguf", tiny("llama"), "llama")
    monkeypatch.setattr(
        "selfextend_rag.llm.loading.gguf.shutil.disk_usage",
        lambda _: type("Disk", (), {"free": 10}),
    )
    with pytest.raises(ModelLoadError, match="GiB free; set HF_HOME to a larger disk"):
        load_model(path)
