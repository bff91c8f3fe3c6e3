"""What layers without a growing cache keep: convolution and recurrent states.

They do not grow with the length, but for one thing: once a reading is asked, convolution states
keep every token that comes, so that they could be wound back. A recurrent state is held in float32;
a convolution state in the model's precision.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from selfextend_rag.errors import UnknownMemoryError

_FLOAT32 = 4
_CHUNK = 64  # tokens that the chunked forms of a recurrence take at a time


class States(NamedTuple):
    """The states of one layer, in numbers.

    Args:
        channels: of the convolution state.
        kernel: tokens that each of them holds.
        recurrent: numbers of the recurrent state.
        pairs: numbers that the chunked form of the recurrence makes for each pair of tokens
            within a chunk.
    """

    channels: int
    kernel: int
    recurrent: int
    pairs: int = 0

    @property
    def work(self) -> int:
        """Return the numbers that running one token takes beside the states, at most."""
        return 10 * self.channels + _CHUNK * self.pairs

    def nbytes(self, recorded: int, itemsize: int) -> int:
        """Return their bytes.

        Args:
            recorded: tokens that came since a reading ended, and are kept.
            itemsize: bytes of a number in the model's precision.
        """
        convolution = self.channels * (self.kernel + recorded)
        return convolution * itemsize + self.recurrent * _FLOAT32


def states_of(config: Any, layer_type: str) -> States:
    """Return the states of one layer.

    Args:
        config: the layer's configuration.
        layer_type: its type, as transformers names it.

    Raises:
        UnknownMemoryError: the states of this model are not known.
    """
    for known in (_short_convolution, _delta_rule, _kimi, _mamba2):
        states = known(config)
        if states is not None:
            return states
    raise UnknownMemoryError(
        f"{type(config).__name__} has layers of type {layer_type!r} whose states are of an unknown "
        "size; known are short convolutions, gated delta rules and Mamba 2"
    )


def _sizes(config: Any, *names: str) -> tuple[int, ...] | None:
    """Return these attributes if all of them are positive integers."""
    values = tuple(getattr(config, name, None) for name in names)
    numbers = tuple(value for value in values if isinstance(value, int) and value > 0)
    return numbers if len(numbers) == len(values) else None


def _short_convolution(config: Any) -> States | None:
    sizes = _sizes(config, "hidden_size", "conv_L_cache")  # LFM 2
    return None if sizes is None else States(sizes[0], sizes[1], 0)


def _delta_rule(config: Any) -> States | None:
    sizes = _sizes(
        config,
        "linear_num_key_heads",
        "linear_key_head_dim",
        "linear_num_value_heads",
        "linear_value_head_dim",
        "linear_conv_kernel_dim",
    )  # Qwen3-Next, Qwen3.5, OLMo Hybrid
    if sizes is None:
        return None
    key_heads, key, value_heads, value, kernel = sizes
    channels = 2 * key_heads * key + value_heads * value
    return States(channels, kernel, value_heads * key * value, 4 * value_heads)


def _kimi(config: Any) -> States | None:
    sizes = _sizes(config, "linear_num_heads", "linear_head_dim", "linear_conv_kernel_dim")
    if sizes is None:
        return None
    heads, dim, kernel = sizes
    # its decay differs from channel to channel, so pairs are held for each
    return States(3 * heads * dim, kernel, heads * dim * dim, 4 * heads * dim)


def _mamba2(config: Any) -> States | None:
    for names in (
        ("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_n_groups", "mamba_d_conv"),
        ("mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "conv_kernel"),
        ("n_mamba_heads", "mamba_headdim", "mamba_d_state", "mamba_ngroups", "mamba_d_conv"),
    ):
        sizes = _sizes(config, *names)
        if sizes is not None:
            heads, dim, state, groups, kernel = sizes
            inner = heads * dim
            channels = inner + 2 * groups * state
            return States(channels, kernel, inner * state, 4 * heads + 2 * state)
    return None
