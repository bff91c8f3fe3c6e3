"""Tiny models written as GGUF files, in llama.cpp's own layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from tests.tiny import tiny_llama

BYTES = sorted(ByteLevel.alphabet())
SPECIAL = ["<|begin|>", "<|end|>", "<|message_end|>"]
MERGED = ["qq"]
TOKENS = [*BYTES, *MERGED, *SPECIAL]
BEGIN, END, MESSAGE_END = (TOKENS.index(token) for token in SPECIAL)
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
CUTS = {"llama": "llama-bpe", "qwen2": "qwen2"}


def tiny(family: str, **options: Any) -> PreTrainedModel:
    """Return a model with random weights of a family, with as many tokens as `TOKENS`."""
    if family == "llama":
        return tiny_llama(128, vocab_size=len(TOKENS), **options).float()
    like = tiny_llama(128, vocab_size=len(TOKENS), hidden_size=64).config
    assert isinstance(like, LlamaConfig)
    sizes = {name: getattr(like, name) for name in ("vocab_size", "intermediate_size")}
    config = Qwen2Config(
        **sizes,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=BEGIN,
        eos_token_id=END,
        tie_word_embeddings=True,
        **options,
    )
    return Qwen2ForCausalLM(config).eval()


def write(
    path: Path,
    model: PreTrainedModel,
    family: str,
    *,
    quantised: gguf.GGMLQuantizationType | None = None,
    more: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    tokens: list[str] = TOKENS,
    cut: str | None = None,
) -> Path:
    """Write a model with a byte-level tokenizer; ``more`` are further statements about it."""
    config = model.config
    head = config.hidden_size // config.num_attention_heads
    out = gguf.GGUFWriter(path, family)
    out.add_name("tiny")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if family == "llama":
        out.add_rope_dimension_count(head)
        out.add_vocab_size(config.vocab_size)
    for name, value in (more or {}).items():
        (out.add_string if isinstance(value, str) else out.add_float32)(f"{family}.{name}", value)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(cut or CUTS[family])
    out.add_token_list(tokens)
    out.add_token_types([1] * len(BYTES + MERGED) + [3] * len(SPECIAL))
    out.add_token_merges(["q q"])
    out.add_bos_token_id(BEGIN)
    out.add_eos_token_id(END)
    out.add_eot_token_id(MESSAGE_END)
    out.add_chat_template(TEMPLATE)
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = weight.float().numpy()
        for kind, count in heads.items():
            if family == "llama" and f"{kind}_proj" in name:  # pairs of a head side by side
                split = values.reshape(count, 2, head // 2, -1)
                values = split.swapaxes(1, 2).reshape(values.shape)
        to = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if quantised is not None and values.ndim == 2:
            blocks = gguf.quantize(values, quantised)
            out.add_tensor(to, blocks, raw_dtype=quantised)
        else:
            out.add_tensor(to, np.ascontiguousarray(values, dtype=np.float32))
    for to, values in (tensors or {}).items():
        out.add_tensor(to, values)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
