"""Weights in 8 or 4 bits on the CPU: a token of an answer reads every weight once, and fewer bytes.

What is measured of them is in docs/measurements.md.
"""

from selfextend_rag.model.weights.replace import (
    check_weight_bits,
    packed_bytes,
    round_weights,
    rounded_sizes,
)

__all__ = ["check_weight_bits", "packed_bytes", "round_weights", "rounded_sizes"]
