"""What the generic shrink cannot know: settings, variants, and families without a tiny model."""

from __future__ import annotations

from typing import Any

DROP = object()  # leave this name to the configuration's own default

# Families whose bare default configuration cannot be made.
DEFAULTS: dict[str, dict[str, Any]] = {}

_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16}
_HYBRID = ["linear_attention", "full_attention"]

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0},
    "cohere2_moe": {"logit_scale": 1.0},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 2, 2],
            },
            "full_attention": None,
        },
    },
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {"vision_config": {"per_layer_config": {}}, "text_config": {"head_dim": 32}},
    "dots3_note_text": {"head_dim": 32},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": DROP},
    "granitemoehybrid": {**_MAMBA, "layer_types": _HYBRID, "position_embedding_type": "rope"},
    "hrm_text": {"num_hidden_layers": 1, "num_layers_per_stack": DROP, "L_cycles": 1},
    "inkling_text": {"logits_mup_width_multiplier": 1.0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "layer_types": DROP},
    "laguna": {
        "layer_types": ["full_attention", "sliding_attention"],
        "num_attention_heads_per_layer": [4, 4],
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "full_attn_idxs": DROP},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"no_rope_layers": [1, 0]},
    "longcat_flash": {"zero_expert_num": 1},
    "mamba2": {"num_heads": 8},
    "mellum": {"layer_types": ["full_attention", "sliding_attention"]},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 32,
        "indexer_compress_ratio": 4,
    },
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [32, 32],
    },
    "smollm3": {"no_rope_layers": [1, 0]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2,
        "num_hidden_layers": 6,
        "attention_hidden_size": DROP,
        "attention_head_dim": DROP,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_hidden_layers": 4,
        "attention_hidden_size": DROP,
        "attention_head_dim": DROP,
        "kv_channels": DROP,
        "hybrid_layer_ids": DROP,
    },
    "zaya": {"sliding_window": 24, "layer_types": ["hybrid", "hybrid_sliding"]},
}
OVERRIDES["llama4"] = {"text_config": OVERRIDES["llama4_text"]}
OVERRIDES["qwen4_exp"] = {"text_config": OVERRIDES["qwen4_exp_text"]}

_FULL = ["full_attention"] * 2
_MIXED = ["sliding_attention", "full_attention"]
_PAIRS = 8  # rotary pairs of a head of 16

# The same family as other released checkpoints configure it.
VARIANTS: dict[str, dict[str, Any]] = {
    "deepseek_v3:yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 2.0,
            "original_max_position_embeddings": 256,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        "q_lora_rank": None,
    },
    "deepseek_v3:half": {"rope_interleave": False},
    # Below its 2048 selected tokens the indexer selects all of them: a short probe sees nothing.
    "deepseek_v32:many-selected": {"index_topk": 2048},
    "axk2:many-selected": {"index_topk": 2048},
    "glm_moe_dsa:many-selected": {"index_topk": 2048},
    "hy_v4:many-selected": {"index_topk": 2048},
    "dots3_note_text:many-selected": {"index_topk": 2048},
    "qwen4_exp_text:many-selected": {"indexer_budget": 2048},
    "minimax_m3_vl_text:sparse": {
        "layer_types": ["minimax_m3_sparse", "full_attention"],
        "index_block_size": 20,
    },
    "minimax_m3_vl_text:many-selected": {
        "layer_types": ["minimax_m3_sparse", "full_attention"],
        "index_block_size": 128,
        "index_topk_blocks": 16,
    },
    "doge:many-kept": {"keep_window_size": 2048},
    "exaone4:full": {"sliding_window": None, "layer_types": _FULL},
    "gemma4_text:shared-keys": {
        "num_hidden_layers": 4,
        "layer_types": _MIXED * 2,
        "num_kv_shared_layers": 2,
        "per_layer_config": {1: {"head_dim": 32}, 3: {"head_dim": 32}},
    },
    "gemma4_text:keys-as-values": {"attention_k_eq_v": True},
    "granitemoehybrid:nope": {"position_embedding_type": None},
    "llama:dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    },
    "llama:linear": {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    },
    "llama:yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 2.0,
            "original_max_position_embeddings": 256,
        }
    },
    "llama4_text:all-rope": {"no_rope_layers": [1, 1]},
    "ministral:full": {"layer_types": _FULL},
    "mistral:full": {"sliding_window": None},
    "mixtral:sliding": {"sliding_window": 24},
    "phi3:longrope": {
        "original_max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0 + 0.1 * i for i in range(_PAIRS)],
            "long_factor": [2.0 + 0.5 * i for i in range(_PAIRS)],
            "original_max_position_embeddings": 256,
        },
    },
    "qwen2:sliding": {
        "use_sliding_window": True,
        "sliding_window": 24,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "zamba2:rope": {"use_mem_rope": True},
}

# Families with no tiny text model to run, and why.
NOT_BUILT: dict[str, str] = {
    "gemma3n": "its vision tower needs the timm library; gemma3n_text is the same decoder",
    "gemma4_assistant": "a drafter that attends to the keys of another model",
    "gemma4_unified_assistant": "a drafter that attends to the keys of another model",
    "musicgen": "reads audio codebooks instead of text, at sinusoidal positions",
    "musicgen_melody": "reads audio codebooks instead of text, at sinusoidal positions",
}
