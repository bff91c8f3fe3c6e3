"""What is refused before a worker starts, and with which words. Needs no vLLM."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from selfextend_rag import UnsupportedModelError
from vllm_selfextend.refusals import refuse
from vllm_selfextend.settings import resolve

RESOLVED = resolve(
    {"group_size": 8, "neighbor_window": 128}, SimpleNamespace(max_position_embeddings=512)
)


def platform(kind: str, capability=(9, 0)):
    """One of vLLM's platforms."""
    major, minor = capability
    return SimpleNamespace(
        is_cpu=lambda: kind == "cpu", is_cuda=lambda: kind == "cuda",
        get_device_capability=lambda: SimpleNamespace(major=major, minor=minor),
    )  # fmt: skip


CPU, CUDA = platform("cpu"), platform("cuda")


def config_with(**changes):
    """A configuration that is accepted, with some of it changed, by dotted name."""
    text = SimpleNamespace(rope_parameters={"rope_type": "default"})
    config = SimpleNamespace(
        cache_config=SimpleNamespace(cache_dtype="auto", kv_offloading_size=None),
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=1, prefill_context_parallel_size=1, use_ubatching=False
        ),
        kv_transfer_config=None,
        speculative_config=None,
        load_config=SimpleNamespace(load_format="auto"),
        model_config=SimpleNamespace(
            runner_type="generate", use_mla=False, uses_mrope=False, is_mm_prefix_lm=False,
            is_hybrid=False, is_attention_free=False, is_encoder_decoder=False,
            hf_text_config=text, max_model_len=3200, dtype="torch.bfloat16",
            enable_sleep_mode=False,
        ),
        attention_config=SimpleNamespace(
            backend=SimpleNamespace(name="CUSTOM"), backend_per_kind={}
        ),
        compilation_config=SimpleNamespace(pass_config=SimpleNamespace(fuse_rope_kvcache=None)),
        use_v2_model_runner=False,
    )  # fmt: skip
    for name, value in changes.items():
        *path, last = name.split("__")
        place = config
        for part in path:
            place = getattr(place, part)
        setattr(place, last, value)
    return config


@pytest.mark.parametrize("where", [CPU, CUDA])
def test_an_ordinary_engine_is_accepted(where):
    refuse(config_with(), RESOLVED, where)
    refuse(config_with(speculative_config=SimpleNamespace(method="ngram")), RESOLVED, where)
    refuse(config_with(cache_config__cache_dtype="bfloat16"), RESOLVED, where)


REASONS = {
    "cache_config__cache_dtype": ("fp8", "cached keys are quantised .kv_cache_dtype=fp8"),
    "cache_config__cache_dtype ": ("float16", "another type than the model"),
    "cache_config__kv_offloading_size": (4.0, "KV connector or offloading"),
    "kv_transfer_config": (object(), "KV connector or offloading"),
    "parallel_config__decode_context_parallel_size": (2, "decode_context_parallel_size divides"),
    "parallel_config__prefill_context_parallel_size": (2, "prefill_context_parallel_size divides"),
    "parallel_config__use_ubatching": (True, "batches are divided"),
    "speculative_config": (SimpleNamespace(method="eagle"), "speculative method 'eagle'"),
    "load_config__load_format": ("tensorizer", "load_format=tensorizer builds the model past"),
    "model_config__runner_type": ("pooling", "runs for pooling"),
    "model_config__use_mla": (True, "MLA"),
    "model_config__uses_mrope": (True, "M-RoPE"),
    "model_config__is_mm_prefix_lm": (True, "both directions within images"),
    "model_config__is_hybrid": (True, "layers that are no attention"),
    "model_config__is_attention_free": (True, "no attention"),
    "model_config__is_encoder_decoder": (True, "an encoder"),
    "model_config__max_model_len": (3201, "3201 exceeds the extended window of 3200"),
    "model_config__hf_text_config__rope_parameters ": (
        {"rope_type": "yarn", "llama_4_scaling_beta": 0.1},
        "does not read llama_4_scaling_beta",
    ),
    "model_config__hf_text_config__rope_parameters": (
        {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {"rope_type": "default"}},
        "kind 'dynamic'",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_each_refusal_names_its_reason(name):
    value, reason = REASONS[name]
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        refuse(config_with(**{name.strip(): value}), RESOLVED, CPU)
    assert 'leave "selfextend" out' in str(caught.value)


def test_other_devices_are_refused_and_all_reasons_are_given_at_once():
    with pytest.raises(UnsupportedModelError, match=r"CPUs and NVIDIA GPUs.*MLA"):
        refuse(config_with(model_config__use_mla=True), RESOLVED, platform("rocm"))


OF_GPUS = {
    "attention_config__backend": (SimpleNamespace(name="FLASH_ATTN"), "backend was asked for"),
    "attention_config__backend ": (None, "another plugin has registered vLLM's CUSTOM"),
    "attention_config__backend_per_kind": ({"full_attention": 1}, "backend was asked for"),
    "compilation_config__pass_config__fuse_rope_kvcache": (True, "fuse_rope_kvcache rotates"),
    "model_config__enable_sleep_mode": (True, "enable_sleep_mode"),
    "use_v2_model_runner": (True, "second runner of models"),
}


@pytest.mark.parametrize("name", OF_GPUS)
def test_what_a_gpu_can_not_do_is_refused_there_alone(name):
    value, reason = OF_GPUS[name]
    config = config_with(**{name.strip(): value})
    with pytest.raises(UnsupportedModelError, match=reason):
        refuse(config, RESOLVED, CUDA)
    refuse(config, RESOLVED, CPU)


def test_an_old_gpu_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"compute capability 7\.5, below 8\.0"):
        refuse(config_with(), RESOLVED, platform("cuda", (7, 5)))
