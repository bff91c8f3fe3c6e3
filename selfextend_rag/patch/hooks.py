"""The two pre-hooks of an extended model. Plain callables: they survive copies of the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


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
        if kwargs.get("position_embeddings") is not None:
            kwargs = {**kwargs, "position_embeddings": identity(kwargs["position_embeddings"])}
        elif self.index is not None and self.index < len(args):
            replaced = identity(args[self.index])
            args = (*args[: self.index], replaced, *args[self.index + 1 :])
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
    """Refuses position ids that do not count the tokens of each row one by one.

    An extended layer counts positions by the attention mask; other ids would be ignored, and the
    answer would silently be that of other positions.
    """

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        positions = kwargs.get("position_ids")
        if not isinstance(positions, Tensor) or positions.shape[-1] < 2:
            return
        if positions.ndim == 3 and bool((positions != positions[:1]).any()):
            raise ValueError(
                "multimodal position ids (rows that differ between the axes) can't be extended"
            )
        flat = positions[0] if positions.ndim == 3 else positions
        steps = flat[..., 1:] - flat[..., :-1]
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[-1] >= flat.shape[-1]:
            seen = mask[:, -flat.shape[-1] :].bool().to(flat.device)
            steps = steps.where(seen[:, 1:] & seen[:, :-1], torch.ones_like(steps))
        if bool((steps != 1).any()):
            raise ValueError(
                "position_ids of an extended model must count the tokens of each row one by one; "
                "leave them out, or restore the model first"
            )
