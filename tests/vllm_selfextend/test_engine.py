"""What a vLLM engine refuses with the plugin, and that the plugin is idle without its option."""

from __future__ import annotations

from unittest import mock

import pytest
from transformers import MistralConfig

from tests.vllm_selfextend.engines import (
    WINDOW,
    answers,
    check,
    engine,
    prompt,
    save,
    save_llama,
    small,
)

OPTION = {"group_size": 8, "neighbor_window": 64}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return folder, save_llama(folder)


def test_without_the_option_nothing_is_changed(llama):
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    folder, model = llama
    with engine(folder) as llm:
        config = llm.llm_engine.vllm_config
        assert config.model_config.max_model_len == WINDOW
        layers = config.compilation_config.static_forward_context.values()
        assert {type(layer.impl) for layer in layers} == {CPUAttentionBackendImpl}
        asked = prompt(100)
        check(model, None, asked, answers(llm, [asked])[0])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_model_len": 1601}, r"1601 exceeds the extended window of 1600"),
        ({"selfextend": {"group_size": 8}}, "must be"),
        ({"kv_cache_dtype": "fp8"}, "cached keys are quantised"),
        ({"decode_context_parallel_size": 2, "tensor_parallel_size": 2}, "divides the keys"),
        ({"kv_offloading_size": 1.0}, "KV connector or offloading"),
    ],
)
def test_what_can_not_be_exact_is_refused_before_a_worker_starts(llama, options, reason):
    with (
        mock.patch("vllm.v1.worker.cpu_worker.CPUWorker.__init__", side_effect=AssertionError),
        pytest.raises(ValueError, match=reason),
        engine(llama[0], **{"selfextend": OPTION, **options}),
    ):
        pass


def test_a_longer_model_is_refused_without_the_option(llama):
    with (
        pytest.raises(ValueError, match="greater than the derived max_model_len"),
        engine(llama[0], max_model_len=WINDOW + 1),
    ):
        pass


def test_a_model_that_was_built_past_the_plugin_is_noticed(llama):
    """As by a loader of another kind; its answers would be those of ordinary attention."""
    with (
        mock.patch("vllm_selfextend.model.link"),
        pytest.raises(ValueError, match=r"layers\.0\.self_attn\.attn: the model was loaded past"),
        engine(llama[0], selfextend=OPTION),
    ):
        pass


def test_a_rotary_table_that_ends_within_the_window_is_refused(tmp_path):
    """YaRN's has factor times the original positions, and a window may be stated that is longer."""
    yarn = {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0,
        "original_max_position_embeddings": WINDOW // 4,
    }  # fmt: skip
    save_llama(tmp_path, rope_parameters=yarn)
    reason = r"layers\.0\.self_attn\.attn: its rotary table has 128 positions, and 256 are used"
    with pytest.raises(ValueError, match=reason), engine(tmp_path, selfextend=OPTION):
        pass


def test_layers_that_lose_their_sliding_window_are_refused(tmp_path):
    """vLLM would let them attend to all tokens, which they were not trained for."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    save(MistralConfig(**small(), **heads, sliding_window=64), tmp_path)
    option = {"group_size": 8, "neighbor_window": 32}
    with (
        pytest.raises(ValueError, match="leave out disable_sliding_window"),
        engine(tmp_path, selfextend=option, disable_sliding_window=True),
    ):
        pass
    with (
        pytest.raises(ValueError, match="no layer of this model attends to all tokens"),
        engine(tmp_path, selfextend=option),
    ):
        pass


def test_what_is_done_to_queries_besides_the_rotation_is_noticed(llama):
    from vllm.model_executor.models.llama import LlamaAttention

    def forward(self, positions, hidden_states):
        q, k, v = self.qkv_proj(hidden_states)[0].split([self.q_size, *[self.kv_size] * 2], dim=-1)
        q, k = self.rotary_emb(positions, q, k)
        return self.o_proj(self.attn(q.roll(1, -1), k, v))[0]

    with (
        mock.patch.object(LlamaAttention, "forward", forward),
        pytest.raises(ValueError, match=r"layers\.0\.self_attn\.attn: more than a rotation"),
        engine(llama[0], selfextend=OPTION),
    ):
        pass


def test_a_vllm_that_lacks_what_is_wrapped_is_refused_by_name(monkeypatch):
    from vllm_selfextend import register

    monkeypatch.delattr("vllm.config.model._get_and_verify_max_len")
    with pytest.raises(ImportError, match=r"written for vLLM 0\.32.*_get_and_verify_max_len"):
        register()
