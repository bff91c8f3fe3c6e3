"""What is measured on a model before it is relied on, by short prompts, once.

A prompt read in chunks by the stock model shows whether it can continue from a cache with several
tokens: some begin again, without a word, when more than one comes, and some keep a state in their
modules, where the next prompt writes over it. Their prompts have to be read whole. The same prompt
read by the extended model, at a group size of 1, must give the stock model's logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from selfextend_rag.attention import self_extend_attention
from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.cache.cache import has_state
from selfextend_rag.errors import GenerationCancelled
from selfextend_rag.model.attention_fn import configs
from selfextend_rag.model.probe import (
    Layer,
    judge,
    probe_rows,
    record,
    rotary_layouts,
    sample_tokens,
)
from selfextend_rag.model.report import LayerReport, SupportReport
from selfextend_rag.positions import SelfExtend
from selfextend_rag.rope import RotaryLayout

TOKENS = 32
_CUTS = (0, 27, 30, TOKENS)  # few tokens are left for a lost state to come back
_EXTENDED_CUTS = (0, 27, 31, TOKENS)  # a chunk, a chunk with a past, a single token
_LAST = TOKENS + 1 - _CUTS[1]  # the logits that are compared: from the end of the first chunk on
_PADDING = 5
_FEW = 8  # tokens that show whether a layout is still the one that was measured before
# Of the largest logit: far above what another order of sums does, far below a wrong position.
_TOLERANCE = 1e-3  # in float64 too: stock models rotate in float32 at most
_LOW = 0.15
# In 16 bits: on small random models another order of sums changes 0.01 of the largest logit, a lost
# state 0.06 or more. Models without a state are given the usual tolerance.
_TOLERANCE_OF_A_STATE = 0.05
_UNEXTENDED = " without any extension"
FAILURES = (
    *(ValueError, TypeError, RuntimeError, IndexError, AttributeError, KeyError),
    AssertionError,  # some models check their arguments so
)
"""What a model may raise that can't be run in some way."""

Cancelled = Callable[[], bool]


def failure(error: Exception) -> str:
    """Return that a model can't be run in the way that was tried."""
    return f"it fails in a check: {type(error).__name__}: {error}"


def disagreement(
    expected: Tensor, found: Tensor, dtype: torch.dtype, *, low: float = _LOW, when: str = ""
) -> str:
    """Return how much logits would change, empty if two ways to run a model agree.

    ``low`` is the share of the largest logit by which they may differ in 16 bits or fewer, and
    ``when`` says under what they change.
    """
    scale = float(expected.abs().max())
    change = float((found.double() - expected.double()).abs().max())
    tolerance = _TOLERANCE if dtype in (torch.float32, torch.float64) else low
    if change <= tolerance * scale:
        return ""
    return f"its logits would change{when} by {change:.2g}, at logits up to {scale:.2g}"


def precision_of(model: PreTrainedModel) -> torch.dtype:
    """Return the precision that a model computes in: the least of its own and of its layers'.

    Layers whose weights were rounded say theirs in ``precision``: 14 bits are no float32.
    """
    found = {getattr(module, "precision", None) for module in model.modules()}
    return torch.bfloat16 if torch.bfloat16 in found else model.dtype


class Runner:
    """Short forwards of a model, between which a cancellation is looked at.

    Raises:
        GenerationCancelled: instead of the next forward, once ``cancelled`` says so.
    """

    def __init__(self, model: PreTrainedModel, cancelled: Cancelled) -> None:
        self.model = model
        self._cancelled = cancelled
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def __call__(self, **arguments: Any) -> Tensor:
        """Run the model and return the last token's logits ``[B, 1, V]``, in float32."""
        return self._run({**arguments, **({"logits_to_keep": 1} if self._keeps else {})})[:, -1:]

    def all_layers(self, *, last: int = 0, **arguments: Any) -> Tensor:
        """Run the model and return the first row's last logits ``[1, last, V]``, in float32.

        Others are not made: with a vocabulary of 262,144 tokens they take longer than all layers.
        The model is not asked to leave them out, because some then leave out more.
        """

        def shorten(head: nn.Module, args: tuple[Any, ...]) -> Any:
            (hidden,) = args
            return (hidden[:1, hidden.shape[1] - last :],) if hidden.ndim == 3 else args

        head = self.model.get_output_embeddings()
        hook = None if head is None else head.register_forward_pre_hook(shorten)
        try:
            logits = self._run(arguments)
        finally:
            if hook is not None:
                hook.remove()
        return logits[:1, logits.shape[1] - last :]

    @torch.no_grad()
    def _run(self, arguments: dict[str, Any]) -> Tensor:
        if self._cancelled():
            raise GenerationCancelled(0, TOKENS)
        logits = getattr(self.model(**arguments), "logits", None)
        if logits is None:
            raise TypeError(
                f"{type(self.model).__name__} returns no logits; give the causal language model "
                "around it"
            )
        found: Tensor = logits.float().cpu()
        return found


class Chain:
    """The sample tokens read chunk by chunk with a cache, and the logits after the last chunk.

    ``closely``: logits are made after each chunk, and position ids, which some models count wrongly
    by themselves, are handed over.
    """

    def __init__(self, run: Runner, cuts: tuple[int, ...], *, closely: bool = False) -> None:
        self._run, self._ids = run, sample_tokens(run.model, TOKENS)
        self._left = list(pairwise(cuts))
        self._closely = closely
        self.read = 0
        self.logits: dict[int, Tensor] = {}
        self.error: Exception | None = None
        try:
            self.cache = SelfExtendCache(run.model.config)
        except FAILURES as error:
            self.error = error

    def advance(self, chunks: int = 3) -> None:
        """Read the next chunks; what goes wrong is noted, and ends it."""
        for begin, end in self._left[:chunks] if self.error is None else ():
            ids = self._ids[:, begin:end]
            given = dict[str, Any](input_ids=ids, past_key_values=self.cache, use_cache=True)
            if self._closely:
                given["position_ids"] = torch.arange(begin, end, device=ids.device)[None]
            try:
                if self._closely or end == TOKENS:
                    self.logits[end] = self._run(**given)[0, -1]
                else:  # logits take as long as several layers
                    self._run.all_layers(**given)
            except FAILURES as error:
                self.error = error
                return
            self.read = end
        self._left = self._left[chunks:]


def continuation(chain: Chain, whole: Tensor, dtype: torch.dtype) -> str:
    """Return why a model can't continue from a cache with several tokens; empty if it can.

    Before ``whole`` was run, the last logits of the prompt read at once, the chain had read all but
    its last chunk.
    """
    if chain.error is not None:
        return failure(chain.error)
    try:
        kept = int(chain.cache.get_seq_length())
    except ValueError:  # no layer of the cache keeps any
        kept = 0
    if kept != chain.read:
        return ""  # which is refused wherever a cache is wanted
    filled = (getattr(layer, "is_initialized", True) for layer in chain.cache.layers)
    state = has_state(chain.cache) or not all(filled)  # which is then kept somewhere else
    low = _TOLERANCE_OF_A_STATE if state else _LOW
    return disagreement(whole, chain.logits[TOKENS], dtype, low=low)


def measured_continuation(run: Runner) -> tuple[str, Tensor | None]:
    """Return why a plain model can't continue from a cache with several tokens; four forwards.

    And the last token's logits of the prompt read at once, None if that fails.
    """
    chain = Chain(run, _CUTS)
    chain.advance(2)
    try:  # the prompt whole, which is also another prompt between the last chunks
        whole = whole_logits(run)
    except FAILURES:
        return "", None  # the call raises
    chain.advance(1)
    return continuation(chain, whole, precision_of(run.model)), whole


def whole_logits(run: Runner) -> Tensor:
    """Return the last logits ``[V]`` of the sample tokens read at once."""
    cache = SelfExtendCache(run.model.config)
    ids = sample_tokens(run.model, TOKENS)
    return run(input_ids=ids, use_cache=True, past_key_values=cache)[0, -1]


@dataclass(frozen=True)
class Inspection:
    """A report, and what `extend` has to touch; the model itself would keep its record alive."""

    report: SupportReport
    continuation: str | None = None  # why it can't continue from a cache; None: not measured
    rotary: dict[nn.Module, RotaryLayout] = field(default_factory=dict)  # what is extended
    configs: tuple[PreTrainedConfig, ...] = ()  # of attention, and of decoders that make masks
    position_owners: tuple[nn.Module, ...] = ()  # the modules within that hold a rotary module


def inspect_model(
    run: Runner, extended: Callable[[Inspection], AbstractContextManager[object]]
) -> Inspection:
    """Probe a model, decide layer by layer, and check the result; seven forwards.

    Within a block of ``extended`` the model is extended, at a group size of 1.
    """
    model = run.model
    chain = Chain(run, _CUTS)
    chain.advance(2)
    report, whole = _probed(run, probe_rows(model, TOKENS, padding=_PADDING, far=True))
    if not report.supported:  # some models take no other positions
        simpler, its_whole = _probed(run, probe_rows(model, TOKENS, padding=_PADDING, far=False))
        if simpler.supported or not report.layers:
            report, whole = simpler, its_whole
    if whole is None or not report.supported:
        return Inspection(report)  # its logits may come from attention without a mask
    chain.advance(1)
    reason = continuation(chain, whole[-1], precision_of(model))
    found = _inspection(model, report, reason)
    problem = _extension_difference(run, whole, extended(found), continues=not reason)
    return Inspection(replace(report, reason=problem), reason) if problem else found


def recalled(run: Runner, report: SupportReport, continuation: str) -> Inspection | None:
    """Return what was found on a model like this one, if its layers still rotate so; one forward.

    None where anything differs.
    """
    again, _ = _probed(run, probe_rows(run.model, _FEW, far=True), report)
    return _inspection(run.model, report, continuation) if again == report else None


def _probed(
    run: Runner, rows: dict[str, Tensor], known: SupportReport | None = None
) -> tuple[SupportReport, Tensor | None]:
    """Return a report by one forward, and the first row's last ``_LAST`` logits.

    The layers of a ``known`` report are expected to have its layouts, and no logits are made.
    """
    model = run.model
    name, last, rotating = type(model).__name__, _LAST, None
    expected = {} if known is None else {row.name: row.rotary for row in known.layers}
    if known is not None:
        last, rotating = 0, {m for name, m in model.named_modules() if expected.get(name)}
    try:
        forward = partial(run.all_layers, last=last, use_cache=False)
        layers, logits = record(model, rows, forward, rotating)
    except FAILURES as error:
        reason = f"its code does not run with another attention: {type(error).__name__}: {error}"
        return SupportReport(name, (), reason), None
    reports = []
    for layer in layers:
        # read after the forward: some rotary modules change with the longest prompt they saw
        layouts = rotary_layouts(model, layer.rotated[0].query.shape[-1])
        layout = expected.get(layer.name)
        reports.append(judge(layer, layouts if layout is None else [layout], rows["position_ids"]))
    report = SupportReport(name, tuple(reports), _whole_model_reason(reports))
    if report.supported:
        mask, pairs = rows["attention_mask"].bool(), zip(layers, reports, strict=True)
        problems = (layer_difference(x, row.rotary, mask) for x, row in pairs)
        report = replace(report, reason=next(filter(None, problems), ""))
    return report, logits[0]


def _inspection(model: nn.Module, report: SupportReport, continuation: str) -> Inspection:
    """Return an inspection with the modules that a supported model's report names."""
    modules = dict(model.named_modules())
    attending = {modules[row.name] for row in report.layers}
    rotary = {modules[row.name]: row.rotary for row in report.layers if row.rotary is not None}
    above = (x for x in model.modules() if not attending.isdisjoint(x.modules()))
    owners = [x for x in model.modules() if x is not model and _has_rotary_module(x)]
    return Inspection(report, continuation, rotary, tuple(configs(above)), tuple(owners))


def _has_rotary_module(module: nn.Module) -> bool:
    buffers = (x for child in module.children() for x in child.named_buffers(recurse=False))
    return any(name.endswith("inv_freq") for name, _ in buffers)


def _whole_model_reason(reports: list[LayerReport]) -> str:
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


def _extension_difference(
    run: Runner, whole: Tensor, extended: AbstractContextManager[object], *, continues: bool
) -> str:
    """Return what differs when a model reads the prompt in chunks, extended at a group size of 1.

    ``whole`` are its last logits ``[_LAST, V]`` of the prompt read at once; ``continues`` says
    whether the plain model can continue from a cache.
    """
    dtype = precision_of(run.model)
    expected = {TOKENS: whole[-1]}
    if not continues:  # then compare what both do wrong
        stock = Chain(run, _EXTENDED_CUTS, closely=True)
        stock.advance()
        if stock.error is not None:
            return failure(stock.error)
        # without a past nothing is wrong
        first, found = whole[_CUTS[1] - TOKENS - 1], stock.logits[_CUTS[1]]
        problem = disagreement(first, found, dtype, when=_UNEXTENDED)
        if problem:
            return problem
        expected = stock.logits
    with extended:
        ours = Chain(run, _EXTENDED_CUTS, closely=not continues)
        ours.advance()
    if ours.error is not None:
        return failure(ours.error)
    pairs = ((logits, ours.logits[end]) for end, logits in expected.items())
    problems = (disagreement(a, b, dtype, when=_UNEXTENDED) for a, b in pairs)
    return next(filter(None, problems), "")


@torch.no_grad()
def layer_difference(layer: Layer, rotary: RotaryLayout | None, mask: Tensor) -> str:
    """Return whether our attention gives other outputs than a layer's own; empty if it does not.

    ``mask`` is ``[B, T]``, False at padding; a layer without a rotary layout is left alone.
    """
    if rotary is None:
        return ""
    for stock, raw in zip(layer.rotated, layer.raw, strict=True):
        named, seen = stock.arguments, mask.to(raw.query.device)
        try:
            ours = self_extend_attention(
                raw.query, raw.key, raw.value, rotary=rotary, settings=SelfExtend(1, TOKENS),
                scaling=named.get("scaling"), key_mask=None if bool(mask.all()) else seen,
                softcap=named.get("softcap"), sinks=named.get("s_aux"),
            ).transpose(1, 2)  # fmt: skip
        except FAILURES as error:
            return failure(error)
        if disagreement(stock.output[seen], ours[seen], stock.output.dtype):
            return f"{layer.name}: its outputs would change{_UNEXTENDED}"
    return ""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode within the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
