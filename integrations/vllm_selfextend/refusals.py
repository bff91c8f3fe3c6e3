"""What can't be extended exactly, said before a worker starts: read from vLLM's configuration.

What only the built model shows is refused by `vllm_selfextend.model`, with the layer's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from selfextend_rag.errors import UnsupportedModelError
from vllm_selfextend.settings import Resolved

_PLAIN_CACHES = frozenset({"auto", "float32", "float16", "bfloat16"})
_ROTARY_KINDS = frozenset({"default", "linear", "llama3", "yarn"})
_OLDEST_GPU = (8, 0)
_ROPE_FUSIONS = (
    "enable_qk_norm_rope_fusion",
    "fuse_rope_kvcache",
    "fuse_rope_kvcache_cat_mla",
    "fuse_qk_norm_rope_kvcache",
)
_LOADERS = frozenset({"tensorizer", "ipc_cache", "modelexpress"})  # make the model their own way


def refuse(config: Any, resolved: Resolved, platform: Any) -> None:
    """Check a ``VllmConfig`` on one of vLLM's platforms.

    Raises:
        UnsupportedModelError: something in it can't be extended; the message names all of that.
    """
    reasons = [
        *_of_device(config, platform),
        *_of_engine(config),
        *_of_model(config.model_config, resolved),
    ]
    if reasons:
        raise UnsupportedModelError(
            f"SelfExtend can't run in this vLLM engine: {'; '.join(reasons)}; change that, or "
            'leave "selfextend" out of additional_config'
        )


def _of_device(config: Any, platform: Any) -> Iterator[str]:
    if platform.is_cpu():
        return
    if not platform.is_cuda():
        yield f"this plugin computes on CPUs and NVIDIA GPUs, and the engine runs on {platform}"
        return
    capability = platform.get_device_capability()
    if (capability.major, capability.minor) < _OLDEST_GPU:
        yield f"the GPU has compute capability {capability.major}.{capability.minor}, below 8.0"
    attention = config.attention_config
    chosen = attention.backend
    if chosen is None:
        yield "another plugin has registered vLLM's CUSTOM attention backend"
    elif chosen.name != "CUSTOM" or attention.backend_per_kind:
        yield (
            "an attention backend was asked for by name, and layers of SelfExtend have their own; "
            "leave out attention_backend and backend_per_kind"
        )
    passes = config.compilation_config.pass_config
    for name in _ROPE_FUSIONS:
        if getattr(passes, name, None):
            yield f"{name} rotates queries and keys in one kernel, past the plugin"
    if config.model_config.enable_sleep_mode:
        yield "sleeping engines (enable_sleep_mode) lose what the plugin keeps on the GPU"
    if config.use_v2_model_runner:
        yield "vLLM's second runner of models was asked for (VLLM_USE_V2_MODEL_RUNNER); unset that"


def _of_engine(config: Any) -> Iterator[str]:
    dtype, parallel = config.cache_config.cache_dtype, config.parallel_config
    if dtype not in _PLAIN_CACHES:
        yield f"cached keys are quantised (kv_cache_dtype={dtype}) and can't be rotated exactly"
    elif dtype not in ("auto", str(config.model_config.dtype).removeprefix("torch.")):
        yield f"cached keys are of another type than the model (kv_cache_dtype={dtype})"
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name) > 1:
            yield f"{name} divides the keys of a sequence"
    if parallel.use_ubatching:
        yield "batches are divided (enable_dbo, ubatch_size)"
    if config.kv_transfer_config is not None or config.cache_config.kv_offloading_size:
        yield (
            "a KV connector or offloading keeps cached keys beyond the engine, and they hold for "
            "these settings alone"
        )
    drafts = config.speculative_config
    if drafts is not None and drafts.method != "ngram":
        yield f"draft models (speculative method {drafts.method!r}) are not extended; use ngram"
    if config.load_config.load_format in _LOADERS:
        yield f"load_format={config.load_config.load_format} builds the model past the plugin"


def _of_model(model: Any, resolved: Resolved) -> Iterator[str]:
    if model.runner_type != "generate":
        yield f"the model runs for {model.runner_type}, not to generate text"
    kinds = {
        "use_mla": "multi-head latent attention (MLA)",
        "uses_mrope": "rotary positions of several axes (M-RoPE)",
        "is_mm_prefix_lm": "attention in both directions within images",
        "is_hybrid": "layers that are no attention",
        "is_attention_free": "no attention",
        "is_encoder_decoder": "an encoder",
    }
    for name, kind in kinds.items():
        if getattr(model, name):
            yield f"the model has {kind}"
    for rotary_kind in sorted(_rotary_kinds(model.hf_text_config) - _ROTARY_KINDS):
        yield f"rotary embedding of the kind {rotary_kind!r}, which changes with the length"
    if _unread_query_scaling(model.hf_text_config):
        yield (
            "this vLLM does not read llama_4_scaling_beta in rope_parameters, so its queries would "
            'not be scaled; add hf_overrides={"llama_4_scaling": {"beta": ..., '
            '"original_max_position_embeddings": ...}} with the same numbers'
        )
    if model.max_model_len > resolved.extended_window:
        yield (
            f"max_model_len of {model.max_model_len} exceeds the extended window of "
            f"{resolved.extended_window}"
        )


def _unread_query_scaling(config: object) -> bool:
    """Return whether queries grow with their position (Ministral 3) where vLLM looks elsewhere."""
    given = getattr(config, "rope_parameters", None) or {}
    return bool(given.get("llama_4_scaling_beta")) and not getattr(config, "llama_4_scaling", None)


def _rotary_kinds(config: object) -> set[str]:
    """Return the kinds of rotary embedding that a configuration names, of all types of layers."""
    given = getattr(config, "rope_parameters", None) or {}
    parts = [given, *(part for part in given.values() if isinstance(part, dict))]
    return {str(part["rope_type"]) for part in parts if "rope_type" in part}
