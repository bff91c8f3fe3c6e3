"""What a model carries while it is extended: one `Extension`, whose methods are its pre-hooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeGuard
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from selfextend_rag.attention import AttentionSpec, Impl, Scoring
from selfextend_rag.attention.bounds import host_waits_are_forbidden, mask_of
from selfextend_rag.cache import FullLayer, RowsCache, RowsLayer, expect, mismatch
from selfextend_rag.errors import CacheMismatchError
from selfextend_rag.positions import PositionMap
from selfextend_rag.rope import RotaryLayout

_NAME = "_self_extend"  # of the attribute: of modules their Binding, of caches their settings

Args = tuple[object, ...]
Kwargs = dict[str, Any]


class Extension:
    """How a model is extended, and the cache of the forward under way.

    A plain model has one without settings while it is observed or run by rows.
    """

    def __init__(self, settings: PositionMap | None, impl: Impl = "auto") -> None:
        self.settings = settings
        self.impl = impl
        self.observer: Observer | None = None
        # the configurations that were switched, and their implementations before
        self.previous: list[tuple[PreTrainedConfig, str | None]] = []
        self.handles: list[RemovableHandle] = []
        self._cache: ref[Cache] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_cache": None}  # weak references can't be pickled

    def attach(self, model: nn.Module, rotary: dict[nn.Module, RotaryLayout]) -> None:
        """Let every module of a model find this extension; those of ``rotary`` are extended."""
        plain = Binding(self)
        for module in model.modules():
            layout = rotary.get(module)
            module.__dict__[_NAME] = plain if layout is None else Binding(self, layout)
        for module in rotary:
            given = argument_index(module), _implementation_of(module)
            self.hook(module, partial(self.enter_attention, *given))
        self.hook(model, self.enter_forward)

    def hook(self, module: nn.Module, function: Callable[..., object]) -> None:
        """Register a pre-hook, which `detach` removes."""
        self.handles.append(module.register_forward_pre_hook(function, with_kwargs=True))

    def detach(self, model: nn.Module) -> None:
        """Remove what `attach` left, and the hooks."""
        for module in model.modules():
            module.__dict__.pop(_NAME, None)
        for handle in self.handles:
            handle.remove()

    def enter_forward(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Note the cache of a forward before it begins; refuse what an extension would not follow.

        An extended layer counts positions by the attention mask; ids that do not count the unmasked
        tokens of each row one by one would be ignored, and the answer would silently be that of
        other positions. A cache of any kind belongs to the settings it was filled under.
        """
        cache, settings = _cache_among(args, kwargs), self.settings
        before = getattr(cache, _NAME, None)
        if cache is not None and settings is not None and before != settings:
            tokens = cache.get_seq_length()
            if isinstance(tokens, Tensor) and host_waits_are_forbidden(tokens.device):
                torch._assert_async(tokens == 0, mismatch("some", before, settings))
            elif int(tokens) > 0:
                raise CacheMismatchError(mismatch(int(tokens), before, settings))
        self._note(cache)
        if settings is not None:
            _check_positions(kwargs)

    def enter_attention(
        self, index: int | None, name: str, module: nn.Module, args: Args, kwargs: Kwargs
    ) -> tuple[Args, Kwargs]:
        """Hand an attention module the identity for its rotation: keys reach the cache raw.

        ``index`` is the place of ``position_embeddings`` among the positional arguments, and
        ``name`` the attention implementation without which the module would have no positions. A
        cache that the model made by itself in this forward is first seen here.
        """
        current = _implementation_of(module)
        if current != name:
            raise RuntimeError(
                f"the attention implementation of an extended model was switched to {current!r}; "
                "call selfextend_rag.restore(model) first"
            )
        cache = _cache_among(args, kwargs)
        if cache is not None and (self._cache is None or self._cache() is not cache):
            self._note(cache)
        return unrotated_arguments(index, args, kwargs)

    def _note(self, cache: Cache | None) -> None:
        self._cache = None if cache is None else ref(cache)
        if cache is not None and self.settings is not None:
            setattr(cache, _NAME, self.settings)
            expect(cache, self.settings)

    def layer_of(self, module: nn.Module, keys: Tensor) -> FullLayer | RowsLayer | None:
        """Return the cache layer that handed these very keys out, if it is one of ours."""
        cache = None if self._cache is None else self._cache()
        layers = getattr(cache, "layers", [])
        slot = getattr(module, "layer_idx", None)  # which is not always the right one
        first = layers[slot : slot + 1] if isinstance(slot, int) else []
        for layer in chain(first, layers):
            if isinstance(layer, FullLayer | RowsLayer) and layer.handed_out(keys):
                return layer
        return None


class Binding(NamedTuple):
    """How one module takes part in the extension of its model."""

    extension: Extension
    rotary: RotaryLayout | None = None  # of an attention module that is extended

    def call(self, asked: Asked) -> AttentionCall:
        """Return a call of an attention function, after the observer has been notified of it."""
        extension, mask, arguments = self.extension, asked.mask, asked.arguments
        scaling = arguments.get("scaling")
        given: Kwargs = {
            "scaling": asked.query.shape[-1] ** -0.5 if scaling is None else scaling,
            "softcap": arguments.get("softcap"),
            "sinks": arguments.get("s_aux"),
        }
        if self.rotary is None or extension.settings is None:
            scoring = Scoring(**given)
        else:
            scoring = AttentionSpec.of(extension.settings, **given, rotary=self.rotary)
        layer = extension.layer_of(asked.module, asked.key)
        tensors = (asked.query, asked.key, asked.value, mask)
        call = AttentionCall(asked.module, *tensors, arguments, scoring, layer, extension.impl)
        if extension.observer is not None:
            slots = asked.key.shape[2]
            seen = mask_of(mask[:, 0, 0], slots)[:, None, None] if is_bounds(mask) else mask
            extension.observer(replace(call, mask=seen))
        return call


PLAIN = Binding(Extension(None))


def binding_of(module: nn.Module) -> Binding:
    """Return the binding of a module; that of a plain one where its model has no extension."""
    binding: Binding = module.__dict__.get(_NAME, PLAIN)
    return binding


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What transformers gives an attention function."""

    module: nn.Module
    query: Tensor  # [B, H, T, D]; not rotated in an extended layer
    key: Tensor  # [B, Hkv, S, D], all that the layer sees; rotated as the query is
    value: Tensor  # [B, Hkv, S, Dv]
    mask: Tensor | None  # as transformers made it; of an extended layer its padding, bool
    arguments: Kwargs  # the others, by name, such as ``scaling`` and ``sliding_window``


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall(Asked):
    """How it is answered; the observer of a model is given each."""

    scoring: Scoring  # of an extended layer an `AttentionSpec`
    # The cache layer that handed the keys over, where it is one of ours that keeps all of them. Of
    # several rows it is their `RowsLayer`, and ``key`` is the newest of each.
    layer: FullLayer | RowsLayer | None
    impl: Impl  # of an extended layer

    @property
    def is_extended(self) -> bool:
        """Whether the layer is extended."""
        return isinstance(self.scoring, AttentionSpec)


Observer = Callable[[AttentionCall], None]


def is_bounds(mask: object) -> TypeGuard[Tensor]:
    """Return whether a mask is the bounds of each row, ``[B, 1, 1, 3]``."""
    return isinstance(mask, Tensor) and mask.dtype == torch.int32 and mask.shape[1:] == (1, 1, 3)


def _implementation_of(module: nn.Module) -> str:
    config: Any = module.config
    return str(config._attn_implementation)


def argument_index(module: nn.Module) -> int | None:
    """Return the place of ``position_embeddings`` among a module's positional arguments."""
    names = list(inspect.signature(module.forward).parameters)
    return names.index("position_embeddings") if "position_embeddings" in names else None


def _cache_among(args: Args, kwargs: Kwargs) -> Cache | None:
    return next((x for x in chain(kwargs.values(), args) if isinstance(x, Cache)), None)


def unrotated_arguments(index: int | None, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """Return an attention module's arguments with the identity for its rotation."""
    if kwargs.get("position_embeddings") is not None:
        kwargs = {**kwargs, "position_embeddings": _identity(kwargs["position_embeddings"])}
    elif index is not None and index < len(args):
        args = (*args[:index], _identity(args[index]), *args[index + 1 :])
    return args, kwargs


def _identity(embeddings: object) -> object:
    """Return the rotation by nothing in the form of ``embeddings``: (cos, sin), or complex."""
    if isinstance(embeddings, Tensor) and embeddings.is_complex():
        return torch.ones_like(embeddings)
    if isinstance(embeddings, tuple | list) and len(embeddings) == 2:
        cos, sin = embeddings
        if isinstance(cos, Tensor) and isinstance(sin, Tensor):
            return torch.ones_like(cos), torch.zeros_like(sin)
    raise TypeError(f"position embeddings of an unknown form: {type(embeddings).__name__}")


def _check_positions(kwargs: Kwargs) -> None:
    """Refuse position ids that do not count the unmasked tokens of each row one by one."""
    cache, positions = kwargs.get("past_key_values"), kwargs.get("position_ids")
    if positions is None:
        _refuse_holes(kwargs.get("attention_mask"))
    if not isinstance(positions, Tensor) or positions.ndim not in (2, 3):
        return
    if positions.ndim == 3:
        _refuse(
            (positions != positions[:1]).any(),
            "multimodal position ids (rows that differ between the axes) can't be extended",
        )
        positions = positions[0]
    if isinstance(cache, RowsCache):
        given = positions.flatten().tolist()
        if given != cache.positions:
            raise ValueError(
                f"the next tokens of the rows are at {cache.positions}, and position_ids say "
                f"{given}"
            )
        return
    past = cache.get_seq_length() if cache is not None else 0
    if isinstance(past, Tensor):  # of a static cache; it grows in place
        past = past.to(positions.device, copy=True)
    counted, seen = _counted(positions, past, _padding(kwargs.get("attention_mask")))
    offset = torch.where(seen, positions - counted, 0)
    # a row may begin anywhere, as long as it continues from there
    first = seen.int().argmax(-1, keepdim=True)
    begun = torch.where(seen, offset - offset.gather(-1, first), 0)
    if isinstance(past, Tensor):
        offset = torch.where(past == 0, begun, offset)
    elif past == 0:
        offset = begun
    _refuse(
        offset.any(),
        "position_ids of an extended model must count the unmasked tokens of each row one "
        "by one; leave them out, or restore the model first",
    )


def _padding(mask: object) -> Tensor | None:
    """Return the padding ``[B, S]``, or row bounds ``[B, 3]``, of what a model was given."""
    if isinstance(mask, dict):  # one for each kind of layer, made by an outer module
        made = (m for m in mask.values() if isinstance(m, Tensor) and m.shape[1:3] == (1, 1))
        return next((m[:, 0, 0] for m in made), None)
    if not isinstance(mask, Tensor):
        return None
    if mask.ndim == 4 and mask.dtype == torch.int32:
        return mask[:, 0, 0]
    return mask if mask.ndim == 2 else None


def _refuse_holes(mask: object) -> None:
    """Refuse padding between tokens: without position ids, a stock model counts it as tokens."""
    if isinstance(mask, Tensor) and mask.ndim == 2:
        seen = mask.bool().int()
        starts = (seen[:, 1:] > seen[:, :-1]).sum(-1) + seen[:, 0]  # runs of tokens in each row
        _refuse(
            (starts > 1).any(),
            "the attention mask of an extended model has padding between tokens; give "
            "position_ids that count the unmasked tokens, or pad on one side",
        )


def _refuse(wrong: Tensor, message: str) -> None:
    """Raise ``message`` if ``wrong``; on the device, later, where the host must not wait."""
    if host_waits_are_forbidden(wrong.device):
        torch._assert_async(~wrong, message)
    elif bool(wrong):
        raise ValueError(message)


def _counted(positions: Tensor, past: int | Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions by the attention mask for the tokens of this call, ``[B, T]``, and the mask."""
    rows, length = positions.shape
    slots = torch.arange(length, device=positions.device) + past
    if mask is not None and mask.dtype == torch.int32 and mask.shape[1] == 3:
        bounds = mask.to(positions.device)
        seen = (slots >= bounds[:, :1]) & (slots < bounds[:, 1:2])
        return (slots - bounds[:, :1]).expand(rows, -1), seen.expand(rows, -1)
    if mask is not None:
        mentioned = mask.shape[1]  # tokens; a mask for a static cache mentions all
        unread = isinstance(past, Tensor) and host_waits_are_forbidden(mask.device)
        if mentioned > length if unread else mentioned >= int(past) + length:
            seen = mask.bool().to(positions.device)
            counted = (seen.cumsum(-1) - 1).index_select(1, slots)
            return counted.expand(rows, -1), seen.index_select(1, slots).expand(rows, -1)
    return slots.expand(rows, -1), torch.ones_like(positions, dtype=torch.bool)
