"""Measure how each attention layer of a model rotates its queries and keys.

Two short forwards. The first is the stock model's and records queries, keys and outputs of the
attention function; the second does the same with the rotation replaced by the identity, replaying
the outputs of the first so that every layer sees the same hidden states. What turns the second
recording into the first is the layer's rotary layout. Nothing is looked up by the model's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from selfextend_rag.model.attention_fn import previous_attention, previous_function, spelled
from selfextend_rag.model.hooks import unrotated_arguments
from selfextend_rag.rope import RotaryLayout

_PREFIX = "self_extend_probe_on_"
_MOST_ROUNDINGS = 4.0  # a layout may be off by this many roundings of the model's dtype
FARTHEST = 2048  # no probed position lies at or beyond this


@dataclass
class Call:
    """What one call of the attention function saw, and its output ``[B, T, H, Dv]``."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    mask: str  # "causal", "local" (sliding, chunked), "own" (made by the model), or "foreign"
    arguments: dict[str, Any]
    number: int = 0  # among the calls of the forward


@dataclass
class Layer:
    """One attention module: how it takes ``position_embeddings``, and its calls in one forward."""

    module: nn.Module
    name: str
    index: int | None
    rotated: list[Call] = field(default_factory=list)
    raw: list[Call] = field(default_factory=list)


class _Recorder:
    """The calls of one forward.

    Args:
        padding: ``[B, T]`` bool, False at padding, which masks of plain causal layers have to be.
        replay: calls whose outputs to hand out, in place of attention.
    """

    def __init__(self, padding: Tensor, replay: list[Call] | None = None) -> None:
        self.calls: list[Call] = []
        self.padding = padding
        self.replay = replay
        self.local_masks: list[tuple[Tensor, Any]] = []  # as we know it, as the layer wants it
        self.foreign: set[nn.Module] = set()

    def attention(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        previous: str,
        arguments: dict[str, Any],
    ) -> Tensor:
        """Record a call and return its output."""
        if foreign_tensors(arguments):
            self.foreign.add(module)
        local = self._local(mask)
        kind = (
            "foreign" if module in self.foreign else "causal" if self._is_padding(mask) else "own"
        )
        kind = "local" if local is not None and kind == "own" else kind
        if self.replay is not None:
            output = self.replay[len(self.calls)].output
        elif kind == "causal":
            output, _ = previous_attention(
                module, query, key, value, mask, previous=previous, **arguments
            )
        elif kind == "local" and local is not None:
            function = previous_function(module, previous)
            output, _ = function(module, query, key, value, local[0], **arguments)
        else:  # the layer will be refused
            output = _plausible_output(query, key, value)
        self.calls.append(Call(module, query, key, value, output, kind, arguments))
        return output

    def _is_padding(self, mask: Any) -> bool:
        if not (isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[1:3] == (1, 1)):
            return False
        seen = mask[:, 0, 0]
        return seen.shape == self.padding.shape and torch.equal(seen.cpu(), self.padding.cpu())

    def _local(self, mask: Any) -> tuple[Any] | None:
        """Return the mask of the previous implementation for one of a sliding or chunked layer."""
        if not isinstance(mask, Tensor):
            return None
        for known, wanted in self.local_masks:
            if mask is known or (mask.shape == known.shape and torch.equal(mask, known)):
                return (wanted,)
        return None


_recorder: ContextVar[_Recorder] = ContextVar("selfextend_rag_probe")


def _probe_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    previous: str,
    **more: Any,
) -> tuple[Tensor, None]:
    recorder = _recorder.get()
    return recorder.attention(module, query, key, value, attention_mask, previous, more), None


def _probe_mask(
    batch_size: int, q_length: int, kv_length: int, *args: Any, previous: str, **kwargs: Any
) -> Tensor | None:
    if kwargs.get("mask_function", causal_mask_function) is causal_mask_function:
        given = kwargs.get("attention_mask")
        if given is not None:
            return given[:, None, None, :kv_length].bool()
        shape = (batch_size, 1, 1, kv_length)
        return torch.ones(shape, dtype=torch.bool, device=kwargs.get("device"))
    wanted = ALL_MASK_ATTENTION_FUNCTIONS[previous](
        batch_size, q_length, kv_length, *args, **kwargs
    )
    kwargs["allow_is_causal_skip"] = False
    mask = sdpa_mask(batch_size, q_length, kv_length, *args, **kwargs)
    if mask is not None and not bool(mask.triu(1).any()):  # no encoder's
        _recorder.get().local_masks.append((mask, wanted))
    return mask


def _probe_name(previous: str) -> str:
    """Return the registered name that records ``previous``, registering it at the first call."""
    name = _PREFIX + spelled(previous)
    if name not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(name, partial(_probe_attention, previous=previous))
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, partial(_probe_mask, previous=previous))
    return name


def _plausible_output(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Some causal attention, ``[B, T, H, Dv]``; any would do: the second forward replays it."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = (query.float() @ key.float().mT) * query.shape[-1] ** -0.5
    unseen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    weights = scores.masked_fill(unseen, -torch.inf).softmax(-1).to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous()


_KNOWN = frozenset({"position_ids", "s_aux"})


def foreign_tensors(arguments: dict[str, Any]) -> str:
    """Name the tensors handed to an attention function beyond the ones it knows."""
    return ", ".join(
        name
        for name, x in arguments.items()
        if isinstance(x, Tensor) and x.numel() > 1 and name not in _KNOWN
    )


@contextmanager
def attention_implementations(owners: Iterable[Any], name: Callable[[str], str]) -> Iterator[None]:
    """Switch configurations, within the block, to what ``name`` makes of their implementations."""
    before = [(config, config._attn_implementation) for config in owners]
    for config, previous in before:
        set_implementation(config, name(previous or "eager"))
    try:
        yield
    finally:
        for config, previous in before:
            set_implementation(config, previous)


def configs(model: nn.Module) -> list[Any]:
    """Return the distinct configurations that the modules of ``model`` hold."""
    found = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            found[id(config)] = config
    return list(found.values())


def set_implementation(config: Any, name: str | None) -> None:
    """Set the attention implementation of one configuration, not of those nested in it."""
    config._attn_implementation = {"": name}


@dataclass(frozen=True)
class Probe:
    """Rows to run: ``[B, T]`` each.

    Args:
        input_ids: tokens.
        mask: 1, and 0 at padding.
        positions: position ids.
    """

    input_ids: Tensor
    mask: Tensor
    positions: Tensor


def record(
    model: nn.Module, probe: Probe, run: Callable[..., Tensor], replay: Sequence[Layer] = ()
) -> tuple[list[Layer], Tensor]:
    """Run the stock model and return its attention layers in running order, and its logits.

    Args:
        model: in evaluation mode.
        probe: what to run.
        run: runs the model and returns logits.
        replay: the layers that an earlier run recorded, to be run again without their rotation,
            with the outputs they had; the recordings are added to them.
    """
    layers = {layer.module: layer for layer in replay}
    calls = [call for layer in replay for call in layer.rotated]
    recorder = _Recorder(probe.mask.bool(), _in_order(calls) if replay else None)
    token = _recorder.set(recorder)
    hooks = [
        layer.module.register_forward_pre_hook(
            partial(_without_rotation, layer.index), with_kwargs=True
        )
        for layer in replay
    ]
    try:
        with attention_implementations(configs(model), _probe_name):
            logits = run(
                input_ids=probe.input_ids, attention_mask=probe.mask,
                position_ids=probe.positions,
            )  # fmt: skip
    finally:
        _recorder.reset(token)
        for hook in hooks:
            hook.remove()
    names = {module: name for name, module in model.named_modules()}
    for number, call in enumerate(recorder.calls):
        call.number = number
        if call.module not in layers:
            name = names.get(call.module, type(call.module).__name__)
            layers[call.module] = Layer(call.module, name, argument_index(call.module))
        (layers[call.module].raw if replay else layers[call.module].rotated).append(call)
    return list(layers.values()), logits


def _in_order(calls: Iterable[Call]) -> list[Call]:
    return sorted(calls, key=lambda call: call.number)


@torch.no_grad()
def record_both(
    model: nn.Module, probe: Probe, run: Callable[..., Tensor], modules: Sequence[nn.Module]
) -> list[Layer]:
    """Return the attention layers with both recordings, made in one run of the model.

    Each of ``modules`` runs twice: at first without its rotation, then as it is.
    """
    layers: dict[nn.Module, Layer] = {}
    recorder = _Recorder(probe.mask.bool())
    raw: list[Call] = []

    def twice(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        before = recorder.calls
        recorder.calls = []
        args, kwargs = unrotated_arguments(argument_index(module), args, kwargs)
        module.forward(*args, **kwargs)
        raw.extend(recorder.calls)
        recorder.calls = before

    token = _recorder.set(recorder)
    hooks = [m.register_forward_pre_hook(twice, with_kwargs=True) for m in modules]
    try:
        with attention_implementations(configs(model), _probe_name):
            run(
                input_ids=probe.input_ids, attention_mask=probe.mask,
                position_ids=probe.positions,
            )  # fmt: skip
    finally:
        _recorder.reset(token)
        for hook in hooks:
            hook.remove()
    names = {module: name for name, module in model.named_modules()}
    for call in recorder.calls:
        name = names.get(call.module, "")
        layer = layers.setdefault(
            call.module, Layer(call.module, name, argument_index(call.module))
        )
        layer.rotated.append(call)
    for call in raw:
        layers[call.module].raw.append(call)
    return list(layers.values())


def _without_rotation(
    index: int | None, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return unrotated_arguments(index, args, kwargs)


def argument_index(module: nn.Module) -> int | None:
    """Return the place of ``position_embeddings`` among a module's positional arguments."""
    names = list(inspect.signature(module.forward).parameters)
    return names.index("position_embeddings") if "position_embeddings" in names else None


def unrotated(layer: Layer) -> bool:
    """Return whether the layer sees the same queries and keys with and without rotation."""
    return all(
        torch.equal(a.query, b.query) and torch.equal(a.key, b.key)
        for a, b in zip(layer.rotated, layer.raw, strict=True)
    )


def rotary_candidates(model: nn.Module) -> list[tuple[tuple[float, ...], float]]:
    """Return the (inverse frequencies, scale) of every rotary module within ``model``."""
    found = []
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq") or "original" in name or buffer.is_meta:
                continue
            scale = getattr(module, name.replace("inv_freq", "attention_scaling"), 1.0)
            candidate = (tuple(buffer.double().flatten().tolist()), float(scale))
            if candidate not in found:
                found.append(candidate)
    return found


def find_layout(
    layer: Layer, candidates: list[tuple[tuple[float, ...], float]], positions: Tensor
) -> tuple[RotaryLayout | None, float]:
    """Return the layout that turns raw queries and keys into rotated ones, and its error.

    ``positions`` are ``[B, T]``.

    The error is the largest absolute difference over the largest value, in units of the rounding
    of the layer's dtype; None for the layout if no candidate is within a few roundings.
    """
    best: tuple[RotaryLayout | None, float] = (None, float("inf"))
    head_dim = layer.raw[0].query.shape[-1]
    for inv_freq, scale in candidates:
        rotary_dim = 2 * len(inv_freq)
        for offset in dict.fromkeys((0, head_dim - rotary_dim)):
            if offset < 0:
                continue
            for pairing in ("half", "interleaved"):
                for sign in (1, -1):
                    layout = RotaryLayout(inv_freq, pairing, offset, sign, scale)
                    error = layout_error(layer, layout, positions)
                    if error < best[1]:
                        best = layout, error
    return best if best[1] <= _MOST_ROUNDINGS else (None, best[1])


def fits(layer: Layer, layout: RotaryLayout, positions: Tensor) -> bool:
    """Return whether a layout turns raw queries and keys into rotated ones, to few roundings."""
    return layout_error(layer, layout, positions) <= _MOST_ROUNDINGS


def layout_error(layer: Layer, layout: RotaryLayout, positions: Tensor) -> float:
    """Return the largest difference that a layout leaves; see `find_layout`."""
    worst = 0.0
    for rotated, raw in zip(layer.rotated, layer.raw, strict=True):
        for there, here in ((rotated.query, raw.query), (rotated.key, raw.key)):
            if (
                here.shape[2] != positions.shape[-1]
            ):  # it attends over something other than the tokens
                return float("inf")
            turned = layout.rotate(here.double(), positions.to(here.device))
            unit = _rounding(there.dtype, int(positions.max())) * there.abs().max().double()
            worst = max(worst, float((turned - there.double()).abs().max() / unit))
            if worst > 1e3:
                return worst
    return worst


def _rounding(dtype: torch.dtype, farthest: int) -> float:
    """Rounding of the model's own rotation: of its dtype, and of angles counted in float32."""
    return max(torch.finfo(dtype).eps, farthest * torch.finfo(torch.float32).eps)
