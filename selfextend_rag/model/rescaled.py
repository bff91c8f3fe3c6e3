"""Other rotary frequencies for a while: static NTK and YaRN, by transformers' own rope settings.

transformers' "dynamic" NTK is not offered: it takes its base from the longest position seen so far,
so that keys which were read early are rotated by another base than queries that come later. Static
NTK has one base for the length that is to be read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.model.extension import is_extended, lock_of

FULL = "full_attention"


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are changed for sequences longer than a model was trained for.

    Args:
        kind: ``"ntk"`` multiplies the base by ``factor ** (d / (d - 2))``, d the rotated dimensions
            of a head (static NTK-aware scaling, bloc97, 2023; see arXiv 2309.00071, section 3.1);
            ``"yarn"`` is arXiv 2309.00071.
        factor: length to be read over the pretraining window, above 1.
        original_window: the pretraining window, which YaRN counts rotations in.

    Raises:
        ValueError: one of them is out of range.
    """

    kind: Literal["ntk", "yarn"]
    factor: float
    original_window: int

    def __post_init__(self) -> None:
        if self.kind not in ("ntk", "yarn"):
            raise ValueError(f'kind must be "ntk" or "yarn", got {self.kind!r}')
        if not self.factor > 1:
            raise ValueError(f"factor must be above 1, got {self.factor!r}")
        if self.original_window < 1:
            raise ValueError(f"original_window must be positive, got {self.original_window!r}")

    def applied(self, parameters: dict[str, Any], dim: int) -> dict[str, Any]:
        """Return rope parameters of transformers with this scaling, for ``dim`` rotated numbers."""
        if self.kind == "ntk":
            return {
                **parameters,
                "rope_theta": parameters["rope_theta"] * self.factor ** (dim / (dim - 2)),
            }
        return {
            **parameters,
            "rope_type": "yarn",
            "factor": self.factor,
            "original_max_position_embeddings": self.original_window,
        }


@contextmanager
def rescaled(model: PreTrainedModel, scaling: RopeScaling) -> Iterator[PreTrainedModel]:
    """Give ``model`` other rotary frequencies within the block; then as it was before.

    Only layers that keep all tokens change: in a model that has rope settings for each kind of
    layer, such as Gemma 3, those of ``full_attention``. What was cached before is refused within
    the block, and the other way round, because cached tokens belong to their frequencies.

    Raises:
        UnsupportedModelError: the model can't take these settings; it is named, with the reason,
            and left as it was.
    """
    with lock_of(model).visit():
        if is_extended(model):
            raise UnsupportedModelError(
                f"{type(model).__name__} is extended; call selfextend_rag.restore(model) first"
            )
        before = [(module, dict(vars(module))) for module in _rotary_modules(model)]
        buffers = [dict(module._buffers) for module, _ in before]
        made = [_made(model, module, scaling) for module, _ in before]
        for (module, _), new in zip(before, made, strict=True):
            _take_over(module, new)
    try:
        yield model
    finally:
        with lock_of(model).visit():
            for (module, attributes), kept in zip(before, buffers, strict=True):
                module.__dict__.clear()
                module.__dict__.update(attributes)
                module._buffers.clear()
                module._buffers.update(kept)


def _rotary_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules that hold rotary frequencies, or refuse the model."""
    name = type(model).__name__
    found = [
        module
        for module in model.modules()
        if any(x.endswith("inv_freq") for x, _ in module.named_buffers(recurse=False))
    ]
    if not found:
        raise UnsupportedModelError(f"{name} has no module of rotary frequencies to change")
    if any(not isinstance(getattr(x, "config", None), _config_kind()) for x in found):
        raise UnsupportedModelError(f"{name} makes its rotary frequencies without a configuration")
    return found


def _config_kind() -> type:
    from transformers import PreTrainedConfig

    return PreTrainedConfig


def _made(model: PreTrainedModel, module: nn.Module, scaling: RopeScaling) -> nn.Module:
    """Return a rotary module of the same class with other settings, or refuse the model."""
    name = type(model).__name__
    config: Any = copy.deepcopy(module.config)
    parameters = getattr(config, "rope_parameters", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not isinstance(parameters, dict):
        raise UnsupportedModelError(f"{name} has no rope settings in its configuration")
    by_kind = bool(parameters) and all(isinstance(x, dict | None) for x in parameters.values())
    if by_kind and not isinstance(parameters.get(FULL), dict):
        raise UnsupportedModelError(f"{name} has no rope settings for layers that keep all tokens")
    if not by_kind and kinds - {FULL}:
        raise UnsupportedModelError(
            f"{name} rotates its layers of {', '.join(sorted(kinds - {FULL}))} by the frequencies "
            "of those that keep all tokens, so they can't be changed alone"
        )
    mine = parameters[FULL] if by_kind else parameters
    if mine.get("rope_type", "default") != "default" or "rope_theta" not in mine:
        raise UnsupportedModelError(
            f"{name} was trained with rope settings of type {mine.get('rope_type')!r}, which "
            f"{scaling.kind} would replace; only the default type can be scaled"
        )
    scaled = scaling.applied(mine, _rotary_dim(module, by_kind))
    config.rope_parameters = {**parameters, FULL: scaled} if by_kind else scaled
    try:
        made: nn.Module = type(module)(config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        # the class has other arguments than a configuration, or reads other settings
        kind = type(module).__name__
        raise UnsupportedModelError(f"{name}: {kind} can't be made again ({error!r})") from error
    key = f"{FULL}_inv_freq" if by_kind else "inv_freq"
    new, old = dict(made.named_buffers()).get(key), dict(module.named_buffers()).get(key)
    if new is None or old is None or new.shape != old.shape or torch.equal(new, old.to(new)):
        raise UnsupportedModelError(
            f"{name} does not take {scaling.kind}: its rotary frequencies stay as they are"
        )
    return made


def _rotary_dim(module: nn.Module, by_kind: bool) -> int:
    buffers = dict(module.named_buffers(recurse=False))
    return 2 * buffers[f"{FULL}_inv_freq" if by_kind else "inv_freq"].shape[-1]


def _take_over(module: nn.Module, new: nn.Module) -> None:
    """Give a module the frequencies, scales and settings of another, on its own device."""
    for name, buffer in new._buffers.items():
        old = module._buffers.get(name)
        assert buffer is not None
        place = buffer.device if old is None else old.device
        module._buffers[name] = buffer.to(place)
    own = {"_buffers", "_parameters", "_modules", "_non_persistent_buffers_set", "training"}
    for name, value in vars(new).items():
        if name not in own and not name.endswith("_hooks") and "hooks" not in name:
            module.__dict__[name] = value
