"""SelfExtend attention of vLLM's CPU engine: in place of one layer's attention, on its pages."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, CPUAttentionMetadata

from selfextend_rag.attention import AttentionSpec
from selfextend_rag.attention.paged import Angles, Pages, paged_attention, plain_attention
from vllm_selfextend.plain import PlainMarks, rows_of


class SelfExtendCPUImpl(CPUAttentionBackendImpl):
    """What an extended layer computes with; made from the stock one and the layer's spec.

    Queries come un-rotated, and keys at their grouped positions, as `GroupedRotary` leaves them;
    those of requests that fit P come at their own, and get ordinary attention.
    Pages are in a plain layout, keys before values; the stock kernels' is packed for them.
    """

    def __init__(
        self, stock: CPUAttentionBackendImpl, spec: AttentionSpec, angles: Angles, marks: PlainMarks
    ) -> None:
        self.__dict__.update(vars(stock))
        self.spec = spec
        self.angles = angles
        self.marks = marks

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Write attention to ``output`` ``[N, H, D]`` for the new tokens of all sequences.

        Args:
            layer: the attention layer.
            query: ``[N, H, D]``, the sequences one after another.
            key, value: not read; they are in the cache by now.
            kv_cache: ``[blocks, Hkv, b, 2 D]``.
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
            return output
        if not attn_metadata.causal or attn_metadata.dynamic_causal is not None:
            raise NotImplementedError("SelfExtend attention is causal, and this is not")
        pages = _pages(kv_cache)
        size = pages.keys.shape[2]
        starts = attn_metadata.query_start_loc.tolist()
        plain = rows_of(attn_metadata)
        for row, total in enumerate(attn_metadata.seq_lens.tolist()):
            begin, end = starts[row], starts[row + 1]
            if begin == end:
                continue
            blocks = attn_metadata.block_table[row, : -(-total // size)].tolist()
            asked = query[begin:end]
            if plain[row]:
                found = plain_attention(asked, pages, blocks, total, self.spec)
            else:
                found = paged_attention(asked, pages, blocks, total, self.spec, self.angles)
            output[begin:end] = found
        return output

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Write the new keys and values, ``[N, Hkv, D]``, to their slots ``[N]`` of the cache."""
        count = len(slot_mapping)
        _pages(kv_cache).store(key[:count], value[:count], slot_mapping)


def _pages(kv_cache: Tensor) -> Pages:
    blocks, heads, size, both = kv_cache.shape
    keys, values = kv_cache.view(blocks, heads, 2 * size, both // 2).chunk(2, dim=2)
    return Pages(keys, values)
