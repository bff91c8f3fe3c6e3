"""From a model's probe to a decision about each of its attention layers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from selfextend_rag.model import verify
from selfextend_rag.model.agreement import FAILURES, failure
from selfextend_rag.model.probe import (
    FARTHEST,
    Layer,
    Probe,
    argument_index,
    find_layout,
    fits,
    record,
    record_both,
    rotary_candidates,
    unrotated,
)
from selfextend_rag.model.report import LayerReport, SupportReport
from selfextend_rag.rope import RotaryLayout

_PADDING = 5
_FEW = 8  # tokens that show whether a layout is still the one that was measured before
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
    """A report, and the modules and configurations that `extend` has to touch.

    ``continuation`` says why the model can't continue from a cache with several tokens; None
    where that was not measured.
    """

    report: SupportReport
    continuation: str | None = None
    extended: tuple[ExtendedLayer, ...] = ()
    configs: tuple[Any, ...] = ()
    position_owners: tuple[nn.Module, ...] = ()

    def refused(self, reason: str) -> Inspection:
        """Return the same with the whole model refused."""
        return Inspection(replace(self.report, reason=reason), self.continuation)


Extended = Callable[[Inspection], AbstractContextManager[Any]]


def inspect_model(run: verify.Runner, extended: Extended) -> Inspection:
    """Probe a model, decide layer by layer, and check the result; eight forwards.

    Args:
        run: runs the model, which is left as it was.
        extended: a block in which the model is extended, at a group size of 1.
    """
    model = run.model
    ids = sample_tokens(model, verify.TOKENS)
    chain = verify.Chain(run, ids, verify.CUTS)
    chain.advance(2)
    offset = max(0, min(_trained_positions(model), FARTHEST) - verify.TOKENS)
    found, whole = _probed(run, ids, offset, use_cache=True)
    if not found.report.supported:  # some models take no other positions, or make no cache
        simpler, its_whole = _probed(run, ids, 0, use_cache=False)
        if simpler.report.supported or not found.report.layers:
            found, whole = simpler, its_whole
    chain.advance(1)
    if whole is None or not found.report.supported:
        return found  # without a continuation: these logits may come from attention without a mask
    found = replace(found, continuation=verify.continuation(chain, whole[-1], model.dtype))
    problem = verify.chunked_difference(
        run, ids, whole, lambda: extended(found), not found.continuation
    )
    return found.refused(problem) if problem else found


def _probed(
    run: verify.Runner, ids: Tensor, offset: int, *, use_cache: bool
) -> tuple[Inspection, Tensor | None]:
    """Return a decision by two forwards, and the last logits of the whole prompt.

    Two rows: the prompt, and its beginning behind some padding, at far positions.
    """
    model, name = run.model, type(run.model).__name__
    padded = torch.cat([ids[:, :_PADDING], ids[:, :-_PADDING]], dim=1)
    mask = torch.ones(2, ids.shape[1], dtype=torch.long, device=ids.device)
    mask[1, :_PADDING] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    positions[1] += offset
    probe = Probe(torch.cat([ids, padded]), mask, positions)
    whole: Tensor | None = None
    try:
        layers, whole = record(
            model, probe, partial(run.all_layers, last=verify.LAST, use_cache=use_cache)
        )
        _, replayed = record(model, probe, partial(run.all_layers, last=1, use_cache=False), layers)
    except FAILURES as error:
        reason = f"its code does not run with another attention: {type(error).__name__}: {error}"
        return Inspection(SupportReport(name, (), reason)), None if whole is None else whole[0]
    # read after the forward: some rotary modules change with the longest prompt they saw
    candidates = rotary_candidates(model)
    reports = tuple(_judge(layer, candidates, positions) for layer in layers)
    report = SupportReport(name, reports, _whole_model_reason(reports))
    if not report.supported:
        return Inspection(report), whole[0]
    found = _decided(model, report, {layer.name: layer.module for layer in layers})
    problem = verify.difference({0: whole[:, -1]}, {0: replayed[:, -1]}, model.dtype)
    by_name = {layer.name: layer for layer in layers}
    try:
        for row in reports:
            if row.rotary is not None and not problem:
                problem = verify.layer_difference(by_name[row.name], row.rotary, mask.bool())
    except FAILURES as error:
        problem = failure(error)
    return (found.refused(problem) if problem else found), whole[0]


def recalled(run: verify.Runner, report: SupportReport, continuation: str) -> Inspection | None:
    """Return what was found on a model like this one, if its layers still rotate so; one forward.

    None where anything differs.
    """
    model = run.model
    modules = dict(model.named_modules())
    if not all(layer.name in modules for layer in report.layers):
        return None
    ids = sample_tokens(model, _FEW)
    mask = torch.ones_like(ids)
    offset = max(0, min(_trained_positions(model), FARTHEST) - _FEW)
    positions = torch.arange(offset, offset + _FEW, device=ids.device)[None]
    rows = {modules[row.name]: row for row in report.layers}
    try:
        layers = record_both(
            model,
            Probe(ids, mask, positions),
            partial(run.all_layers, use_cache=False),
            [module for module, row in rows.items() if row.rotary is not None],
        )
    except FAILURES:
        return None
    if [layer.module for layer in layers] != list(rows):
        return None
    for layer in layers:
        kinds = {call.mask for call in layer.rotated}
        rotary = rows[layer.module].rotary
        if rotary is None:
            continue
        if kinds != {"causal"} or len(layer.raw) != len(layer.rotated):
            return None
        if not fits(layer, rotary, positions):
            return None
        if verify.layer_difference(layer, rotary, mask.bool()):
            return None
    found = _decided(
        model, report, {name: modules[name] for name in (x.name for x in report.layers)}
    )
    return replace(found, continuation=continuation)


def _decided(model: nn.Module, report: SupportReport, modules: dict[str, nn.Module]) -> Inspection:
    """Return an inspection with the modules that a supported model's report names."""
    extended = tuple(
        ExtendedLayer(module, module.config, argument_index(module), row.rotary)
        for row in report.layers
        if row.rotary is not None
        for module in (modules[row.name],)
    )
    attending = list(modules.values())
    configs = {id(c): c for c in _touched_configs(model, attending)}
    owners = {id(m): m for m in _position_owners(model)}
    return Inspection(report, None, extended, tuple(configs.values()), tuple(owners.values()))


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


def _touched_configs(model: nn.Module, attending: list[nn.Module]) -> list[Any]:
    """The configurations of the attention modules, and of the decoders that make their masks."""
    own = [module.config for module in attending]
    holders = [
        module.config
        for module in model.modules()
        if any(child is wanted for wanted in attending for child in module.modules())
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
