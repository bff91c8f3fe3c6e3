"""SelfExtend attention of vLLM's engine on NVIDIA GPUs: a backend, and what a layer computes with.

The backend is vLLM's Triton one but for what is declared about CUDA graphs: its cache, its metadata
and its writing of keys stay. Layers that keep their attention run it; extended ones run ours.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backend import AttentionCGSupport, AttentionType
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadata,
    TritonAttentionMetadataBuilder,
)

from selfextend_rag.attention import AttentionSpec
from selfextend_rag.attention.paged import Pages
from selfextend_rag.attention.triton.dispatch import angle_table
from selfextend_rag.attention.triton.paged import (
    OLDEST,
    PagedBatch,
    paged_batch_attention,
    unsupported,
)
from vllm_selfextend.plain import PlainMarks, rows_of

PATH = "vllm_selfextend.gpu.SelfExtendBackend"


class SelfExtendMetadataBuilder(TritonAttentionMetadataBuilder):
    """Says which steps a CUDA graph may hold with their attention: decode steps of one token.

    For those the launch depends on how many sequences there are alone: lengths, blocks and plain
    requests are read on the device, from tensors that stay where they are. A step with a prefill in
    it takes other tiles by its longest query, which a graph would not know.
    """

    _cudagraph_support: ClassVar[AttentionCGSupport] = (
        AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
    )
    supports_draft_decode_metadata_update = False


class SelfExtendBackend(TritonAttentionBackend):
    """Registered with vLLM as its custom backend, and chosen when the plugin's option is given."""

    supported_kv_cache_dtypes = ["auto", "float16", "bfloat16"]  # noqa: RUF012  # as declared there

    @staticmethod
    def get_name() -> str:
        """Return the name of the member of vLLM's list of backends."""
        return "CUSTOM"

    @staticmethod
    def get_builder_cls() -> type[SelfExtendMetadataBuilder]:
        """Return what makes the metadata of a step."""
        return SelfExtendMetadataBuilder

    @classmethod
    def supports_compute_capability(cls, capability: DeviceCapability) -> bool:
        """Return whether our kernel runs on such a GPU."""
        return bool((capability.major, capability.minor) >= OLDEST)

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        """Return whether it is attention of a decoder."""
        return bool(attn_type == AttentionType.DECODER)

    @classmethod
    def supports_mm_prefix(cls) -> bool:
        """Return False: attention is causal."""
        return False

    @classmethod
    def supports_non_causal(cls) -> bool:
        """Return False: attention is causal."""
        return False

    @classmethod
    def supports_rswa(cls) -> bool:
        """Return False: all layers attend to all tokens, or to a sliding window."""
        return False


def register() -> None:
    """Make the backend vLLM's custom one, unless another plugin's is."""
    try:
        AttentionBackendEnum.CUSTOM.get_path()
    except ValueError:  # it is nobody's
        register_backend(AttentionBackendEnum.CUSTOM, PATH)


def is_registered() -> bool:
    """Return whether vLLM's custom backend is ours."""
    try:
        return bool(AttentionBackendEnum.CUSTOM.get_path() == PATH)
    except ValueError:
        return False


class SelfExtendTritonImpl(TritonAttentionImpl):
    """What an extended layer computes with; made from the stock one and the layer's spec.

    Queries come un-rotated, and keys at their grouped positions, as `GroupedRotary` leaves them;
    those of requests that fit P come at their own, and get ordinary attention.
    """

    def __init__(self, stock: TritonAttentionImpl, spec: AttentionSpec, marks: PlainMarks) -> None:
        self.__dict__.update(vars(stock))
        self.spec = spec
        self.marks = marks
        angle_table(spec.rotary.inv_freq, marks.tokens.device)  # now: not while a graph is captured
        self.supports_quant_query_input = False

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: TritonAttentionMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Write attention to ``output`` ``[N, H, D]`` for the new tokens of all sequences.

        Args:
            layer: the attention layer.
            query: ``[N, H, D]``, the sequences one after another.
            key, value: not read; they are in the cache by now.
            kv_cache: ``[blocks, Hkv, b, 2 D]``, in any strides but for the last.
            attn_metadata: None while memory is measured.
            output: where to write.
            output_scale, output_block_scale: not supported.

        Raises:
            RuntimeError: it is not known which requests fit P.
            NotImplementedError: the output is to be quantised, or attention is not causal.
        """
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("SelfExtend attention has no quantised output")
        if attn_metadata is None:
            return output.fill_(0)
        step = attn_metadata
        if step.causal is not True or step.mm_prefix_range is not None:
            raise NotImplementedError("SelfExtend attention is causal, and this is not")
        rows_of(step)  # somebody wrote the marks of this step
        batch = PagedBatch(
            step.block_table, step.query_start_loc, step.seq_lens,
            self.marks.sequences, step.max_query_len, step.max_seq_len,
        )  # fmt: skip
        count = step.num_actual_tokens
        pages = Pages(*kv_cache.split(self.head_size, dim=-1))
        paged_batch_attention(query[:count], pages, batch, self.spec, output[:count])
        return output

    def fused_output_quant_supported(self, quant_key: object) -> bool:
        """Return False: the output is of the model's type."""
        return False

    def fused_rope_kvcache_supported(self) -> bool:
        """Return False: keys are rotated by `GroupedRotary`."""
        return False


def reason_against(impl: Any, dtype: torch.dtype, capability: tuple[int, int]) -> str:
    """Return why a layer of such numbers can't be extended on such a GPU, or nothing."""
    if getattr(impl, "chunk_lookback", -1) != -1:
        return "it attends to chunks"
    reason: str = unsupported(impl.head_size, dtype, capability)
    return reason
