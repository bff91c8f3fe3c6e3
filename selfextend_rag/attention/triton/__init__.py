"""SelfExtend attention in Triton kernels: for CUDA devices, or anywhere under its interpreter.

Importing this package imports no triton; the first call does.
"""

from selfextend_rag.attention.triton.dispatch import triton_attention, why_not

__all__ = ["triton_attention", "why_not"]
