"""The two pre-hooks of an extended model. Plain callables: they survive copies of the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from selfextend_rag.errors import CacheMismatchError
from selfextend_rag.positions import SelfExtend

_FILLED_UNDER = "_self_extend_filled_under"


class RawPositions:
    """Hands an attention module the identity for its rotation, so that keys reach the cache raw.

    Args:
        index: place of ``position_embeddings`` among the positional arguments.
        name: the attention implementation without which the module would have no positions.
    """

    def __init__(self, index: int | None, name: str) -> None:
        self.index = index
        self.name = name

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        current = module.config._attn_implementation  # type: ignore[union-attr]
        if current != self.name:
            raise RuntimeError(
                f"the attention implementation of an extended model was switched to {current!r}; "
                "call selfextend_rag.restore(model) first"
            )
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
        positions = kwargs.get("position_ids")
        if positions is None:
            _refuse_holes(kwargs.get("attention_mask"))
        if not isinstance(positions, Tensor) or positions.ndim not in (2, 3):
            return
        if positions.ndim == 3 and bool((positions != positions[:1]).any()):
            raise ValueError(
                "multimodal position ids (rows that differ between the axes) can't be extended"
            )
        flat = positions[0] if positions.ndim == 3 else positions
        past = int(cache.get_seq_length()) if cache is not None else 0
        mask = kwargs.get("attention_mask")
        if isinstance(mask, dict):  # one for each kind of layer, made by an outer module
            made = (m for m in mask.values() if isinstance(m, Tensor) and m.shape[1:3] == (1, 1))
            mask = next((m[:, 0, 0] for m in made), None)
        counted, seen = _counted(flat, past, mask)
        offset = torch.where(seen, flat - counted, 0)
        if past == 0:  # a row may begin anywhere, as long as it goes on from there
            first = seen.int().argmax(-1, keepdim=True)
            offset = torch.where(seen, offset - offset.gather(-1, first), 0)
        if bool(offset.any()):
            raise ValueError(
                "position_ids of an extended model must count the unmasked tokens of each row one "
                "by one; leave them out, or restore the model first"
            )

    def _check_cache(self, cache: Any) -> None:
        filled_under = getattr(cache, _FILLED_UNDER, None)
        if filled_under != self.settings:
            before = int(cache.get_seq_length())
            if before > 0:
                raise CacheMismatchError(
                    f"{before} tokens were cached under {filled_under or 'plain attention'}, and "
                    f"can't be continued under {self.settings}; read them again with a new cache"
                )
            setattr(cache, _FILLED_UNDER, self.settings)


def _refuse_holes(mask: Any) -> None:
    """Refuse padding between tokens: without position ids, a stock model counts it as tokens."""
    if isinstance(mask, Tensor) and mask.ndim == 2:
        seen = mask.bool().int()
        starts = (seen[:, 1:] > seen[:, :-1]).sum(-1) + seen[:, 0]  # runs of tokens in each row
        if bool((starts > 1).any()):
            raise ValueError(
                "the attention mask of an extended model has padding between tokens; give "
                "position_ids that count the unmasked tokens, or pad on one side"
            )


def _counted(positions: Tensor, past: int, mask: Any) -> tuple[Tensor, Tensor]:
    """Positions by the attention mask for the tokens of this call, ``[B, T]``, and the mask."""
    rows, length = positions.shape
    end = past + length
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= end:
        seen = mask[:, :end].bool().to(positions.device)
        return (seen.cumsum(-1) - 1)[:, past:].expand(rows, -1), seen[:, past:].expand(rows, -1)
    counted = torch.arange(past, end, device=positions.device).expand(rows, -1)
    return counted, torch.ones_like(positions, dtype=torch.bool)
