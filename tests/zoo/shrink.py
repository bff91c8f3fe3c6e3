"""Make any transformers configuration tiny, by the meaning of its attribute names.

The names that configurations give their sizes are a small vocabulary. The default configuration of
a family says which of them it knows; each known one is set to a small value, nested configurations
(``text_config``, ``vision_config``, ...) are walked the same way, and every per-layer list is cut
to the shortest model that has each kind of layer once.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LENGTH, WINDOW = 64, 4, 2, 16, 128, 512, 24

# Names of one meaning share a size, which is set only where the configuration knows the name.
_SIZES: list[tuple[int, str]] = [
    (
        HIDDEN,
        "hidden_size n_embd d_model emb_dim embedding_dim dim_model input_embedding_size "
        "output_embedding_size embedding_size word_embed_proj_dim hidden_size_global "
        "lru_width out_hidden_size vision_output_dim projector_input_dim "
        "projector_output_dim adapter_in_dim adapter_input_size adapter_out_dim "
        "output_channels pronunciation_embed_dim shape_embed_dim backbone_hidden_size "
        "input_size attention_hidden_size d_inner",
    ),
    (
        96,
        "intermediate_size n_inner ffn_dim dff dim_ff ffn_hidden_size decoder_ffn_dim "
        "encoder_ffn_dim d_ff intermediate_size_mlp dense_intermediate_size "
        "feed_forward_size mlp_dim",
    ),
    (
        32,
        "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size "
        "moe_shared_expert_intermediate_size shared_intermediate_size "
        "shared_experts_intermediate_size kv_lora_rank q_lora_rank o_lora_rank "
        "prompt_mid_dim router_hidden_size hc_lowrank ple_embed_dim adapter_rank "
        "laurel_rank num_filters base_channels codebook_dim",
    ),
    (
        HEAD_DIM,
        "head_dim attention_head_dim swa_head_dim global_head_dim kv_channels d_head "
        "dim_head d_kv attention_head_size v_head_dim qk_nope_head_dim qk_rope_head_dim "
        "index_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim "
        "mamba_head_dim mamba_headdim mamba_d_head swa_v_head_dim query_pre_attn_scalar "
        "hidden_size_per_layer_input patch_size rotary_dim",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads attention_heads decoder_attention_heads "
        "encoder_attention_heads num_heads num_decoder_attention_heads "
        "num_encoder_attention_heads swa_num_attention_heads linear_num_heads "
        "linear_num_value_heads index_n_heads num_experts n_routed_experts "
        "num_local_experts moe_num_experts",
    ),
    (
        KV_HEADS,
        "num_key_value_heads swa_num_key_value_heads num_global_key_value_heads "
        "index_topk_blocks linear_num_key_heads kv_n_heads num_experts_per_tok "
        "num_experts_per_token moe_topk moe_k moe_top_k top_k_experts num_hidden_layers "
        "n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
        "num_encoder_layers num_blocks depth conf_num_hidden_layers num_layers_per_stack",
    ),
    (
        1,
        "n_group topk_group num_expert_group n_groups mamba_n_groups mamba_ngroups "
        "n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace "
        "num_dense_layers interleave_moe_layer_step num_nextn_predict_layers",
    ),
    (
        VOCAB,
        "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size "
        "pronunciation_vocab_size shape_vocab_size encoder_hash_byte_group_vocab "
        "audio_vocab_size",
    ),
    (
        LENGTH,
        "max_position_embeddings n_positions n_ctx max_seq_len context_length "
        "model_max_length max_source_positions max_target_positions floor_scale "
        "log_scaling_n_floor",
    ),
    (
        WINDOW,
        "sliding_window window_size attention_window_size attention_chunk_size "
        "sliding_window_size local_attention_window_len keep_window_size",
    ),
    (
        16,
        "index_topk index_block_size",
    ),
    (
        8,
        "mamba_d_state state_size ssm_state_size mamba_dt_rank time_step_rank chunk_size "
        "mamba_chunk_size",
    ),
    (
        64,
        "image_size num_position_embeddings",
    ),
]
SIZES = {name: value for value, names in _SIZES for name in names.split()}

_TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LAYER_LISTS = ("layer_types", "layers_block_type", "block_types", "attn_layers")
_DERIVED_LISTS = ("mlp_layer_types", "indexer_types")


def shrink(config: PretrainedConfig) -> dict[str, Any]:
    """Return keyword arguments that build a tiny configuration of the same class.

    Args:
        config: the family's default configuration; it is not changed.
    """
    small: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if isinstance(value, dict) and isinstance(getattr(config, name, None), PretrainedConfig):
            small[name] = shrink(getattr(config, name))
        elif name == "rope_parameters" and value:
            small[name] = _shrink_rope(value)
        elif name in _TOKEN_IDS:
            small[name] = _TOKEN_IDS[name]
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            small[name] = 3
        elif _is_size(name, value):
            small[name] = SIZES[name]
    return _latent_heads(small) | _layers(config)


def _latent_heads(small: dict[str, Any]) -> dict[str, Any]:
    if "kv_lora_rank" in small and "num_key_value_heads" in small:
        small["num_key_value_heads"] = HEADS  # latent attention makes one key per query head
    return small


def _is_size(name: str, value: Any) -> bool:
    if name not in SIZES or isinstance(value, bool):
        return False
    return (isinstance(value, int) and value > SIZES[name]) or (name == "head_dim" and not value)


def _layers(config: PretrainedConfig) -> dict[str, Any]:
    """Cut the per-layer lists to the shortest model that shows each kind of layer."""
    known = config.to_dict()
    lists = [name for name in _LAYER_LISTS if known.get(name)]
    if not lists:
        return {}
    kinds = known[lists[0]]
    first = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    first = first * 2 if len(first) == 1 else first
    small: dict[str, Any] = {lists[0]: [kinds[index] for index in first]}
    if "num_hidden_layers" in known:
        small["num_hidden_layers"] = len(first)
    for derived in _DERIVED_LISTS:
        if known.get(derived):
            cut = list(dict.fromkeys(known[derived]))
            small[derived] = (cut + [cut[-1]] * len(first))[: len(first)]
    # A layer that differs from the others in kind may also differ in its sizes.
    if exceptions := {int(k): v for k, v in known.get("per_layer_config", {}).items()}:
        small["per_layer_config"] = {
            new: _latent_heads({name: SIZES[name] for name in exceptions[old]})
            for new, old in enumerate(first)
            if old in exceptions
        }
    return small


def _shrink_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Keep the scaling, with its original length below the shrunk window."""
    small = dict(rope)
    for key, value in rope.items():
        if isinstance(value, dict):
            small[key] = _shrink_rope(value)
    if "original_max_position_embeddings" in small:
        small["original_max_position_embeddings"] = LENGTH // 2
        if "factor" in small:
            small["factor"] = 2.0
    if "max_position_embeddings" in small:
        small["max_position_embeddings"] = LENGTH
    return small
