"""The backend for GPUs, in Triton's interpreter, on the batches of a real engine. Needs vLLM."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from selfextend_rag import SelfExtend
from tests.vllm_selfextend.engines import WINDOW, answers, check, engine, prompt, save_llama

if pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it") is not None:
    from vllm.platforms.interface import DeviceCapability
    from vllm.v1.attention.backend import AttentionCGSupport
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    from vllm_selfextend.cpu import SelfExtendCPUImpl
    from vllm_selfextend.gpu import SelfExtendBackend, SelfExtendTritonImpl
    from vllm_selfextend.hooks import install

NEEDED = ("block_table", "query_start_loc", "seq_lens", "max_query_len", "max_seq_len", "causal")


def by_the_kernel(self, layer, query, key, value, kv_cache, attn_metadata, output, **others):
    """`SelfExtendTritonImpl.forward` on a step of vLLM's CPU engine."""
    if attn_metadata is None:
        return output.fill_(0)
    step = SimpleNamespace(**vars(attn_metadata))
    assert all(hasattr(step, name) for name in NEEDED), "this vLLM describes its steps otherwise"
    step.mm_prefix_range = None
    impl = SelfExtendTritonImpl(self, self.spec, self.marks)
    return impl.forward(layer, query, key, value, kv_cache, step, output)


def slots_of_heads(self, layer, key, value, kv_cache, slot_mapping):
    """Write a step's keys and values next to each other, as vLLM does for GPUs."""
    size = kv_cache.shape[2]
    used = slot_mapping >= 0
    block, place = slot_mapping[used] // size, slot_mapping[used] % size
    both = torch.cat([key, value], dim=-1)[: len(slot_mapping)]
    kv_cache[block, :, place] = both[used]


def test_batches_of_an_engine_are_answered_by_the_kernel_as_by_selfextend_rag(tmp_path):
    """Chunks, decode steps and plain requests in one batch, and blocks of the prefix cache."""
    model, settings = save_llama(tmp_path), SelfExtend(8, 61)
    option = {"group_size": 8, "neighbor_window": 61}
    with (
        mock.patch.object(SelfExtendCPUImpl, "forward", by_the_kernel),
        mock.patch.object(SelfExtendCPUImpl, "do_kv_cache_update", slots_of_heads),
        engine(tmp_path, selfextend=option, block_size=32, num_gpu_blocks_override=60) as llm,
    ):
        batch = [prompt(WINDOW + 90), prompt(50), prompt(WINDOW - 1)]
        for asked, answer in zip(batch, answers(llm, batch, tokens=3), strict=True):
            check(model, settings, asked, answer)
        longer = batch[0][:300] + prompt(40)
        (answer,) = answers(llm, [longer], tokens=2)
        assert answer.cached == 288
        check(model, settings, longer, answer)


def selected(capability=(9, 0), head_size=128, dtype=torch.bfloat16):
    """What vLLM's CUDA platform takes when our backend is asked for."""
    with mock.patch.dict(sys.modules, {"vllm._C_stable_libtorch": mock.MagicMock()}):
        from vllm.platforms.cuda import CudaPlatformBase
    from vllm.v1.attention.selector import AttentionSelectorConfig

    wanted = AttentionSelectorConfig(
        head_size=head_size, dtype=dtype, kv_cache_dtype="auto", block_size=None
    )
    found = DeviceCapability(*capability)
    with mock.patch.object(CudaPlatformBase, "get_device_capability", return_value=found):
        return CudaPlatformBase.get_attn_backend_cls(AttentionBackendEnum.CUSTOM, wanted, 32)


def test_vllm_finds_the_backend_under_its_own_name_for_others():
    install()
    assert AttentionBackendEnum.CUSTOM.get_class() is SelfExtendBackend
    assert AttentionBackendEnum[SelfExtendBackend.get_name()] is AttentionBackendEnum.CUSTOM


@pytest.mark.parametrize("head_size", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_cuda_platform_takes_it(head_size, dtype):
    install()
    assert selected(head_size=head_size, dtype=dtype) == "vllm_selfextend.gpu.SelfExtendBackend"


def test_the_cuda_platform_refuses_it_for_old_gpus():
    install()
    with pytest.raises(ValueError, match="compute capability not supported"):
        selected((7, 5))


def test_a_graph_may_hold_the_attention_of_decode_steps_alone():
    builder = SelfExtendBackend.get_builder_cls()
    level = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
    assert builder.get_cudagraph_support(None, None) is level


def test_the_configuration_on_a_gpu_gets_our_backend_and_the_first_runner_of_models(tmp_path):
    """vLLM's own for the CPU, but that the plugin sees a GPU, and Triton is there."""
    from vllm.engine.arg_utils import EngineArgs

    save_llama(tmp_path)
    option = {"selfextend": {"group_size": 8, "neighbor_window": 61}}
    args = {"model": str(tmp_path), "skip_tokenizer_init": True}
    gpu = SimpleNamespace(
        is_cpu=lambda: False, is_cuda=lambda: True,
        get_device_capability=lambda: DeviceCapability(9, 0),
    )  # fmt: skip
    with (
        mock.patch("vllm_selfextend.hooks._platform", return_value=gpu),
        mock.patch("vllm.config.vllm.HAS_TRITON", True),
    ):
        config = EngineArgs(**args, additional_config=option).create_engine_config()
        assert config.attention_config.backend is AttentionBackendEnum.CUSTOM
        assert not config.use_v2_model_runner
        assert EngineArgs(**args).create_engine_config().attention_config.backend is None
        with pytest.raises(ValueError, match="attention backend was asked for"):
            EngineArgs(
                **args, additional_config=option, attention_backend="TRITON_ATTN"
            ).create_engine_config()


def test_the_option_chooses_the_backend_on_gpus_and_no_other_is_taken_from_the_user():
    from vllm_selfextend.hooks import _choose_backend

    for asked, taken in ((None, AttentionBackendEnum.CUSTOM), ("FLASH_ATTN", "FLASH_ATTN")):
        config = SimpleNamespace(attention_config=SimpleNamespace(backend=asked))
        _choose_backend(config)
        assert config.attention_config.backend == taken
