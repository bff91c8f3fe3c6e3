"""The two pre-hooks of an extended model. Plain callables: they survive copies of the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from selfextend_rag.attention.bounds import host_waits_are_forbidden
from selfextend_rag.cache import FullLayer, NoticingStaticLayer, RowsCache, let_notice
from selfextend_rag.errors import CacheMismatchError
from selfextend_rag.positions import SelfExtend

_FILLED_UNDER = "_self_extend_filled_under"


class RawPositions:
    """Hands an attention module the identity for its rotation, so that keys reach the cache raw.

    A cache that the model made by itself in this forward is first seen here, and marked.

    Args:
        index: place of ``position_embeddings`` among the positional arguments.
        name: the attention implementation without which the module would have no positions.
        settings: those of the model.
    """

    def __init__(self, index: int | None, name: str, settings: SelfExtend) -> None:
        self.index = index
        self.name = name
        self.settings = settings

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        current = module.config._attn_implementation  # type: ignore[union-attr]  # nn.Module: Tensor | Module
        if current != self.name:
            raise RuntimeError(
                f"the attention implementation of an extended model was switched to {current!r}; "
                "call selfextend_rag.restore(model) first"
            )
        for value in (*kwargs.values(), *args):
            if isinstance(value, Cache) and not hasattr(value, _FILLED_UNDER):
                _mark(value, self.settings)
        return unrotated_arguments(self.index, args, kwargs)


def unrotated_arguments(
    index: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return an attention module's arguments with the identity for its rotation."""
    if kwargs.get("position_embeddings") is not None:
        kwargs = {**kwargs, "position_embeddings": identity(kwargs["position_embeddings"])}
    elif index is not None and index < len(args):
        args = (*args[:index], identity(args[index]), *args[index + 1 :])
    return args, kwargs


def identity(embeddings: Any) -> Any:
    """Return the rotation by nothing in the form of ``embeddings``: (cos, sin), or complex."""
    if isinstance(embeddings, Tensor) and embeddings.is_complex():
        return torch.ones_like(embeddings)
    if isinstance(embeddings, tuple | list) and len(embeddings) == 2:
        cos, sin = embeddings
        if isinstance(cos, Tensor) and isinstance(sin, Tensor):
            return torch.ones_like(cos), torch.zeros_like(sin)
    raise TypeError(f"position embeddings of an unknown form: {type(embeddings).__name__}")


class ConsecutivePositions:
    """Refuses position ids and caches that an extended model would not follow.

    An extended layer counts positions by the attention mask; ids that do not count the unmasked
    tokens of each row one by one would be ignored, and the answer would silently be that of other
    positions. A cache of any kind belongs to the settings that it was filled under, or to none.

    Args:
        settings: those of the model.
    """

    def __init__(self, settings: SelfExtend) -> None:
        self.settings = settings

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        if cache is not None:
            self._check_cache(cache)
            for layer in getattr(cache, "layers", ()):
                if isinstance(layer, FullLayer | NoticingStaticLayer):
                    layer.expect()
        positions = kwargs.get("position_ids")
        if positions is None:
            _refuse_holes(kwargs.get("attention_mask"))
        if not isinstance(positions, Tensor) or positions.ndim not in (2, 3):
            return
        if positions.ndim == 3:
            _refuse(
                (positions != positions[:1]).any(),
                "multimodal position ids (rows that differ between the axes) can't be extended",
            )
        flat = positions[0] if positions.ndim == 3 else positions
        if isinstance(cache, RowsCache):
            _refuse_other_positions(flat, cache)
            return
        past = cache.get_seq_length() if cache is not None else 0
        if isinstance(past, Tensor):  # of a static cache; it grows in place
            past = past.to(flat.device, copy=True)
        mask = kwargs.get("attention_mask")
        if isinstance(mask, dict):  # one for each kind of layer, made by an outer module
            made = (m for m in mask.values() if isinstance(m, Tensor) and m.shape[1:3] == (1, 1))
            mask = next((m[:, 0, 0] for m in made), None)
        elif isinstance(mask, Tensor) and mask.ndim == 4 and mask.dtype == torch.int32:
            mask = mask[:, 0, 0]
        counted, seen = _counted(flat, past, mask)
        offset = torch.where(seen, flat - counted, 0)
        # a row may begin anywhere, as long as it goes on from there
        first = seen.int().argmax(-1, keepdim=True)
        begun = torch.where(seen, offset - offset.gather(-1, first), 0)
        offset = (begun if past == 0 else offset) if isinstance(past, int) else torch.where(
            past == 0, begun, offset
        )  # fmt: skip
        _refuse(
            offset.any(),
            "position_ids of an extended model must count the unmasked tokens of each row one "
            "by one; leave them out, or restore the model first",
        )

    def _check_cache(self, cache: Any) -> None:
        filled_under = getattr(cache, _FILLED_UNDER, None)
        if filled_under != self.settings:
            before = cache.get_seq_length()
            how = filled_under or "plain attention"
            if isinstance(before, Tensor) and host_waits_are_forbidden(before.device):
                told = f"tokens were cached under {how}, and can't be continued; use a new cache"
                torch._assert_async(before == 0, told)
            elif int(before) > 0:
                raise CacheMismatchError(
                    f"{int(before)} tokens were cached under {how}, and "
                    f"can't be continued under {self.settings}; read them again with a new cache"
                )
            _mark(cache, self.settings)


def _mark(cache: Any, settings: SelfExtend) -> None:
    """Note on an empty cache under which settings it is filled from now on."""
    setattr(cache, _FILLED_UNDER, settings)
    if not torch.compiler.is_compiling():
        let_notice(cache)


def _refuse_other_positions(positions: Tensor, cache: RowsCache) -> None:
    """Refuse positions ``[B, 1]`` that are not those of each row's next token."""
    given = positions.flatten().tolist()
    if given != cache.positions:
        raise ValueError(
            f"the next tokens of the rows stand at {cache.positions}, and position_ids say {given}"
        )


def _refuse_holes(mask: Any) -> None:
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


def _counted(positions: Tensor, past: int | Tensor, mask: Any) -> tuple[Tensor, Tensor]:
    """Positions by the attention mask for the tokens of this call, ``[B, T]``, and the mask.

    Args:
        mask: ``[B, S]``, or the bounds of each row, ``[B, 3]`` int32.
    """
    rows, length = positions.shape
    slots = torch.arange(length, device=positions.device) + past
    if isinstance(mask, Tensor) and mask.dtype == torch.int32 and mask.shape[1] == 3:
        bounds = mask.to(positions.device)
        seen = (slots >= bounds[:, :1]) & (slots < bounds[:, 1:2])
        return (slots - bounds[:, :1]).expand(rows, -1), seen.expand(rows, -1)
    if isinstance(mask, Tensor) and mask.ndim == 2 and _reaches(mask, past, length):
        seen = mask.bool().to(positions.device)
        counted = (seen.cumsum(-1) - 1).index_select(1, slots)
        return counted.expand(rows, -1), seen.index_select(1, slots).expand(rows, -1)
    return slots.expand(rows, -1), torch.ones_like(positions, dtype=torch.bool)


def _reaches(mask: Tensor, past: int | Tensor, length: int) -> bool:
    """Whether a mask mentions every token of this call; one for a static cache mentions all."""
    if isinstance(past, Tensor) and host_waits_are_forbidden(mask.device):
        return mask.shape[1] > length
    return mask.shape[1] >= int(past) + length
