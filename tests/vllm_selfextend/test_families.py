"""Families of models on vLLM with the plugin: equal to selfextend_rag, or refused by layer name."""

from __future__ import annotations

import pytest
import transformers

from selfextend_rag import SelfExtend
from tests.vllm_selfextend.engines import WINDOW, answers, check, engine, prompt, save, small

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
ALL_HEADS = {"num_attention_heads": 2}  # of 32, as many for keys
SETTINGS = SelfExtend(8, 61)
OPTION = {"group_size": 8, "neighbor_window": 61}

# Partial rotary (StableLM, GLM 4), interleaved (GLM 4, Cohere), norms of queries and keys before
# the rotation (Qwen3), softcap and sliding layers (Gemma 2), two rotary embeddings (Gemma 3),
# another scale (Granite), queries and keys of one matrix (Phi-3), scaled frequencies (Llama 3,
# YaRN); sinks, sliding layers, YaRN and experts (GPT-OSS).
FAMILIES = {
    "mistral": ("MistralConfig", {**HEADS, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "qwen3": ("Qwen3Config", HEADS),
    "gemma2": (
        "Gemma2Config",
        {**HEADS, "sliding_window": 64, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 32},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **HEADS,
            "sliding_window": 64,
            "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "stablelm": ("StableLmConfig", {**ALL_HEADS, "num_key_value_heads": 1}),
    "glm4": ("Glm4Config", {**HEADS, "partial_rotary_factor": 0.5}),
    "granite": ("GraniteConfig", {"num_attention_heads": 2, "attention_multiplier": 0.3}),
    "phi3": ("Phi3Config", ALL_HEADS),
    "cohere": ("CohereConfig", {**ALL_HEADS, "num_key_value_heads": 1}),
    "llama 3 scaling": (
        "LlamaConfig",
        {
            **HEADS,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "yarn": (
        "LlamaConfig",
        {
            **HEADS,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "gpt-oss": (
        "GptOssConfig",
        {
            **HEADS,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
            },
        },
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_answers_as_in_selfextend_rag(family, tmp_path):
    name, shape = FAMILIES[family]
    model = save(getattr(transformers, name)(**{**small(), **shape}), tmp_path)
    asked = [prompt(5 * WINDOW), prompt(WINDOW // 2)]
    with engine(tmp_path, selfextend=OPTION) as llm:
        for one, answer in zip(asked, answers(llm, asked, tokens=16), strict=True):
            check(model, SETTINGS, one, answer)


def test_queries_that_grow_with_their_position_are_scaled_or_refused(tmp_path):
    """Ministral 3: vLLM 0.32 passes over the factor where transformers keeps it."""
    rope = {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 64, "llama_4_scaling_beta": 0.1,
    }  # fmt: skip
    shape = {**small(), **HEADS, "sliding_window": None, "rope_parameters": rope}
    model = save(transformers.AutoConfig.for_model("ministral3", **shape), tmp_path)
    with (
        pytest.raises(ValueError, match="does not read llama_4_scaling_beta"),
        engine(tmp_path, selfextend=OPTION),
    ):
        pass
    asked = [prompt(5 * WINDOW), prompt(WINDOW // 2)]
    read = {"llama_4_scaling": {"original_max_position_embeddings": 64, "beta": 0.1}}
    with engine(tmp_path, selfextend=OPTION, hf_overrides=read) as llm:
        for one, answer in zip(asked, answers(llm, asked, tokens=16), strict=True):
            check(model, SETTINGS, one, answer)


REFUSED = {
    "learned positions": (
        "GPT2Config",
        {"n_positions": WINDOW, "n_embd": 64, "n_layer": 2, "n_head": 2},
        r"layer transformer\.h\.0\.attn\.attn: 0 rotary embeddings",
    ),
    "distances in the scores": (
        "BloomConfig",
        {"hidden_size": 64, "n_layer": 2, "n_head": 2, "seq_length": WINDOW},
        r"does not say how long|layer transformer\.h\.0\.self_attention\.attn: 0 rotary",
    ),
    "longrope": (
        "Phi3Config",
        {
            **ALL_HEADS,
            "original_max_position_embeddings": WINDOW // 4,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 16,
                "long_factor": [4.0] * 16,
                "original_max_position_embeddings": WINDOW // 4,
            },
        },
        "kind 'longrope'",
    ),
}


# vLLM runs these through transformers' own classes, which rotate out of its sight.
OF_TRANSFORMERS = {
    "GPTNeoXConfig": {**ALL_HEADS, "rotary_pct": 0.5},
    "PhiConfig": ALL_HEADS,
    "Olmo2Config": {**ALL_HEADS, "num_key_value_heads": 1},
    "GlmConfig": {**HEADS, "partial_rotary_factor": 0.5},
}


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_a_model_of_the_transformers_backend_is_refused_by_layer(name, tmp_path):
    save(getattr(transformers, name)(**{**small(), **OF_TRANSFORMERS[name]}), tmp_path)
    reason = r"layer model\.layers\.0\.\w+\.attn: 0 rotary embeddings next to it"
    with pytest.raises(ValueError, match=reason), engine(tmp_path, selfextend=OPTION):
        pass


@pytest.mark.parametrize("kind", REFUSED)
def test_what_can_not_be_extended_is_refused_with_the_reason(kind, tmp_path):
    name, shape, reason = REFUSED[kind]
    common = {k: v for k, v in small().items() if k not in ("hidden_size", "num_hidden_layers")}
    base = small() if name == "Phi3Config" else common
    save(getattr(transformers, name)(**{**base, **shape}), tmp_path)
    option = {"group_size": 8, "neighbor_window": 40}
    with pytest.raises(ValueError, match=reason), engine(tmp_path, selfextend=option):
        pass
