"""From a model's probe to a decision about each of its attention layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from selfextend_rag.model.probe import (
    Layer,
    find_layout,
    probe_layers,
    rotary_candidates,
    spread_positions,
    unrotated,
)
from selfextend_rag.model.report import LayerReport, SupportReport
from selfextend_rag.rope import RotaryLayout

_Candidates = list[tuple[tuple[float, ...], float]]


@dataclass(frozen=True)
class ExtendedLayer:
    """An attention module to extend."""

    module: nn.Module
    config: Any
    index: int | None
    rotary: RotaryLayout


@dataclass(frozen=True)
class Inspection:
    """A report, and the modules and configurations that `extend` has to touch."""

    report: SupportReport
    input_ids: Tensor
    extended: tuple[ExtendedLayer, ...] = ()
    configs: tuple[Any, ...] = ()
    position_owners: tuple[nn.Module, ...] = ()

    def refused(self, reason: str) -> Inspection:
        """Return the same with the whole model refused."""
        return Inspection(replace(self.report, reason=reason), self.input_ids)


def inspect_model(model: nn.Module) -> Inspection:
    """Probe ``model`` and decide, layer by layer. The model is left as it was."""
    name = type(model).__name__
    ids = sample_tokens(model)
    spread = torch.tensor([spread_positions(_trained_positions(model), ids.shape[1])])
    counted = torch.arange(ids.shape[1])[None]
    found: Inspection | None = None
    for positions, passed in ((spread, spread.to(ids.device)), (counted, None)):
        try:
            with torch.no_grad():
                layers = probe_layers(model, ids, passed)
        except (ValueError, TypeError, RuntimeError, IndexError, AttributeError, KeyError) as error:
            reason = (
                f"its code does not run with another attention: {type(error).__name__}: {error}"
            )
            found = found or Inspection(SupportReport(name, (), reason), ids)
            continue
        # read after the forward: some rotary modules change with the longest prompt they saw
        candidates = rotary_candidates(model)
        found = _decide(model, layers, candidates, positions[0], ids)
        if found.report.supported:
            return found
    assert found is not None
    return found


def _decide(
    model: nn.Module, layers: list[Layer], candidates: _Candidates, positions: Tensor, ids: Tensor
) -> Inspection:
    reports = tuple(_judge(layer, candidates, positions) for layer in layers)
    report = SupportReport(type(model).__name__, reports, _whole_model_reason(reports))
    if not report.supported:
        return Inspection(report, ids)
    extended = tuple(
        ExtendedLayer(layer.module, layer.module.config, layer.index, row.rotary)
        for layer, row in zip(layers, reports, strict=True)
        if row.rotary is not None
    )
    configs = {id(c): c for c in _touched_configs(model, layers)}
    owners = {id(m): m for m in _position_owners(model)}
    return Inspection(report, ids, extended, tuple(configs.values()), tuple(owners.values()))


def _judge(layer: Layer, candidates: _Candidates, positions: Tensor) -> LayerReport:
    if len(layer.rotated) != len(layer.raw):
        return LayerReport(layer.name, "refused", "its calls differ from run to run")
    kinds = {call.mask for call in layer.rotated}
    if kinds == {"local"}:
        return LayerReport(layer.name, "left alone", "sliding or chunked window")
    if unrotated(layer):
        if layer.index is None:
            return LayerReport(layer.name, "left alone", "no rotary embedding from outside")
        return LayerReport(layer.name, "left alone", "no rotary embedding")
    if "foreign" in kinds:
        return LayerReport(layer.name, "refused", "scores depend on more than positions")
    if kinds != {"causal"}:
        return LayerReport(layer.name, "refused", "attention mask made by the model")
    layout, error = find_layout(layer, candidates, positions)
    if layout is None:
        return LayerReport(layer.name, "refused", f"unknown rotary layout (off by {error:.3g})")
    return LayerReport(layer.name, "extended", "causal attention over all tokens", layout)


def _whole_model_reason(reports: tuple[LayerReport, ...]) -> str:
    if not reports:
        return "no layer calls the attention function that is set in its configuration"
    for row in reports:
        if row.status == "refused":
            return f"{row.name}: {row.reason}"
    if any(row.status == "extended" for row in reports):
        return ""
    if any(row.reason.startswith("sliding") for row in reports):
        return (
            "its rotary embedding is used in sliding or chunked layers alone; a model whose every "
            "layer slides may be loaded with full_attention=True (--full-attention)"
        )
    return "no attention layer with a rotary embedding that is handed in from outside"


def _touched_configs(model: nn.Module, layers: list[Layer]) -> list[Any]:
    """The configurations of the attention modules, and of the decoders that make their masks."""
    own = [layer.module.config for layer in layers]
    holders = [
        module.config
        for module in model.modules()
        if any(child is layer.module for layer in layers for child in module.modules())
        and hasattr(getattr(module, "config", None), "_attn_implementation")
    ]
    return own + holders


def _position_owners(model: nn.Module) -> list[nn.Module]:
    """The model itself, and the modules that hold a rotary module beside their layers."""
    owners = [model]
    for module in model.modules():
        if any(
            name.endswith("inv_freq")
            for child in module.children()
            for name, _ in child.named_buffers(recurse=False)
        ):
            owners.append(module)
    return owners


def _trained_positions(model: nn.Module) -> int:
    """A number of positions within which no rotary scaling sets in."""
    text = model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]  # nn.Module
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions")]
    limits.append(getattr(text, "original_max_position_embeddings", None))
    scaling = getattr(text, "rope_parameters", None) or {}
    for entry in (scaling, *(x for x in scaling.values() if isinstance(x, dict))):
        limits.append(entry.get("original_max_position_embeddings"))
    return min([int(x) for x in limits if isinstance(x, int) and x > 0] or [512])


def sample_tokens(model: nn.Module, length: int = 32) -> Tensor:
    """Return ordinary tokens ``[1, length]``: none that the configuration gives a meaning."""
    config = model.config
    text = config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]  # nn.Module
    special = {
        value
        for source in (config, text)
        for name, value in vars(source).items()
        if name.endswith(("_token_id", "_token_index", "_index")) and isinstance(value, int)
    }
    embeddings = model.get_input_embeddings()  # type: ignore[operator]  # nn.Module
    vocabulary = int(getattr(text, "vocab_size", 0) or embeddings.weight.shape[0])
    ordinary = (
        [i for i in range(1, vocabulary) if i not in special]
        if vocabulary < 4096
        else [i for i in range(100, 4096) if i not in special]
    )
    chosen = [ordinary[(7 + 37 * i) % len(ordinary)] for i in range(length)]
    device = embeddings.weight.device  # of offloaded weights "meta": accelerate moves the ids
    return torch.tensor([chosen], device="cpu" if device.type == "meta" else device)
