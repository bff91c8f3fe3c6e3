"""SelfExtend for any transformers decoder, computed by the model's own code.

Nothing here knows how a family rotates. The stock model is run at three sets of positions, which
shows what ``position_embeddings`` each attention module receives there; then the module's own
forward is called with each of them, and the queries and keys it makes are caught on their way into
the eager attention function of its modelling file. What remains is the definition: exact scores
inside the neighbor window, grouped scores beyond it, one softmax in float64.

It is slow, keeps N x N scores, and handles one row without a cache: it is there to be right.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

_EAGER = "eager_attention_forward"  # the name of this function in every modelling file


@dataclass(slots=True)
class Call:
    """What one call of the attention function was given."""

    query: Tensor  # [B, H, T, D]
    key: Tensor  # [B, Hkv, S, D]
    value: Tensor  # [B, Hkv, S, Dv]
    mask: Tensor | None
    settings: dict[str, Any]


Attend = Callable[[nn.Module, Call], Tensor | None]  # None: the family's eager attention does it
Combine = Callable[[list[Call]], Tensor | None]  # the same call, once for each embedding


def oracle_logits(
    model: nn.Module,
    input_ids: Tensor,
    group_size: int,
    neighbor_window: int,
    extended_layers: Collection[str],
) -> Tensor:
    """Return the logits ``[1, N, V]`` under SelfExtend in the named attention modules.

    Args:
        model: a stock model in eval mode; it is left as it was.
        input_ids: ``[1, N]``.
        group_size: G.
        neighbor_window: W.
        extended_layers: names of attention modules, as in ``model.named_modules()``; all others
            run as the family's eager attention does.
    """
    exact = torch.arange(input_ids.shape[1])[None]
    keys = exact // group_size
    queries = keys + neighbor_window - neighbor_window // group_size
    near = (exact[0][:, None] - exact[0][None, :]) < neighbor_window  # [N, N]
    seen = [_embeddings(model, input_ids, positions) for positions in (exact, keys, queries)]
    repeated = _repeated(
        model,
        extended_layers,
        seen,
        lambda name: partial(_selfextend, near, model.get_submodule(name)),
    )
    return _run(model, input_ids, repeated)


def oracle_weights(
    model: nn.Module,
    input_ids: Tensor,
    group_size: int,
    neighbor_window: int,
    extended_layers: Collection[str],
) -> dict[str, Tensor]:
    """Return the attention weights ``[H, N, N]`` of each module; arguments as above."""
    names = {module: name for name, module in model.named_modules()}
    kept: dict[str, Tensor] = {}

    def keep(module: nn.Module, weights: Tensor | None) -> None:
        if weights is not None:
            kept[names[module]] = weights[0].double()

    _keepers.append(keep)
    try:
        oracle_logits(model, input_ids, group_size, neighbor_window, extended_layers)
    finally:
        _keepers.pop()
    return kept


_keepers: list[Callable[[nn.Module, Tensor | None], None]] = []


def eager_logits(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Return the stock model's logits with its family's own eager attention."""
    return _run(model, input_ids, [])


def rotary_layers(model: nn.Module, input_ids: Tensor) -> dict[str, bool]:
    """Return the attention modules that turn queries by position; True where all the past is seen.

    Found by effect: the same hidden states with the embeddings of other positions give other
    queries. False is a layer whose mask hides some key of the past: a window, chunks, a selection.
    """
    past = torch.ones(input_ids.shape[1], input_ids.shape[1], dtype=torch.bool).tril()
    found: dict[str, bool] = {}

    def compare(name: str, calls: list[Call]) -> None:
        moved, call = calls
        if not torch.equal(moved.query, call.query):
            causal = call.mask is None or torch.equal(call.mask[0, 0] == 0, past)
            found[name] = causal and found.get(name, True)

    positions = torch.arange(input_ids.shape[1])[None]
    seen = [_embeddings(model, input_ids, p) for p in (positions + 1, positions)]
    _run(model, input_ids, _repeated(model, seen[0], seen, lambda name: partial(compare, name)))
    return found


class _Repeated:
    """One module's forward, run once for each of several embeddings.

    ``shared`` holds, for each embedding, the keys and values that some families hand from one layer
    to the next ones; all modules of a run use the same.
    """

    def __init__(
        self, module: nn.Module, embeddings: list[Any], combine: Combine, shared: list[dict]
    ) -> None:
        self.module = module
        self.shared = shared
        self.stock = module.forward
        self.embeddings = embeddings
        self.combine = combine
        self.caught: list[list[Call]] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(self.stock).bind(*args, **kwargs)
        self.caught = []
        for embedding, shared in zip(self.embeddings, self.shared, strict=True):
            self.caught.append([])
            given.arguments["position_embeddings"] = embedding
            if "shared_kv_states" in given.arguments:
                given.arguments["shared_kv_states"] = shared
            result = self.stock(*given.args, **given.kwargs)
        return result

    def attend(self, call: Call) -> Tensor | None:
        """Keep the call; in the last run, combine it with its like from the runs before."""
        self.caught[-1].append(call)
        if len(self.caught) < len(self.embeddings):
            return None
        turn = len(self.caught[-1]) - 1  # some modules attend more than once in a forward
        return self.combine([calls[turn] for calls in self.caught])


def _selfextend(near: Tensor, module: nn.Module, calls: list[Call]) -> Tensor:
    """Return attention ``[B, T, H, Dv]`` over exact scores where ``near``, else grouped ones."""
    exact, at_key, at_query = calls
    scores = torch.where(near, _scores(exact.query, exact.key), _scores(at_query.query, at_key.key))
    scores = scores * exact.settings.get("scaling", exact.query.shape[-1] ** -0.5)
    if (softcap := exact.settings.get("softcap")) is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~torch.ones_like(near).tril(), -torch.inf)
    if (sinks := exact.settings.get("s_aux")) is not None:
        column = sinks.double().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    for keep in _keepers:
        keep(module, weights)
    value = _per_query_head(exact.value, scores.shape[1])
    return (weights @ value).transpose(1, 2).to(exact.value.dtype).contiguous()


def _scores(query: Tensor, key: Tensor) -> Tensor:
    return query.double() @ _per_query_head(key, query.shape[1]).transpose(2, 3)


def _per_query_head(tensor: Tensor, heads: int) -> Tensor:
    return tensor.double().repeat_interleave(heads // tensor.shape[1], dim=1)


def _embeddings(model: nn.Module, input_ids: Tensor, positions: Tensor) -> dict[str, Any]:
    """Return what each attention module receives as ``position_embeddings`` at these positions."""
    names = {module: name for name, module in model.named_modules()}
    received: dict[str, Any] = {}
    attending: set[str] = set()

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        if given.get("position_embeddings") is not None:
            received[names[module]] = given["position_embeddings"]

    def note(module: nn.Module, call: Call) -> None:
        attending.add(names[module])

    with ExitStack() as stack:
        for module in names:
            if "position_embeddings" in inspect.signature(module.forward).parameters:
                hook = module.register_forward_pre_hook(before, with_kwargs=True)
                stack.callback(hook.remove)
        stack.enter_context(_attention(model, note))
        _forward(model, input_ids, positions)
    return {name: value for name, value in received.items() if name in attending}


def _repeated(
    model: nn.Module,
    names: Collection[str],
    seen: list[dict[str, Any]],
    combine: Callable[[str], Combine],
) -> list[_Repeated]:
    shared: list[dict] = [{} for _ in seen]
    return [
        _Repeated(model.get_submodule(name), [each[name] for each in seen], combine(name), shared)
        for name in names
    ]


def _run(model: nn.Module, input_ids: Tensor, repeated: list[_Repeated]) -> Tensor:
    by_module = {layer.module: layer for layer in repeated}

    def attend(module: nn.Module, call: Call) -> Tensor | None:
        return by_module[module].attend(call) if module in by_module else None

    with ExitStack() as stack:
        for module, layer in by_module.items():
            module.forward = layer.forward
            stack.callback(module.__dict__.pop, "forward")
        stack.enter_context(_attention(model, attend))
        return _forward(model, input_ids, torch.arange(input_ids.shape[1])[None])


@contextmanager
def _attention(model: nn.Module, attend: Attend) -> Iterator[None]:
    """Send every eager attention of the model through ``attend``.

    The name stays "eager": some families build their masks by that name, and hand a selection of
    keys to any other implementation in an argument of its own.
    """
    owners = (getattr(module, "config", None) for module in model.modules())
    configs = {id(config): config for config in owners if isinstance(config, PretrainedConfig)}
    files = {sys.modules[type(module).__module__] for module in model.modules()}
    with ExitStack() as stack:
        before = [config._attn_implementation for config in configs.values()]
        stack.callback(_set_implementations, configs.values(), before)
        _set_implementations(configs.values(), ["eager"] * len(configs))
        for file in files:
            if eager := getattr(file, _EAGER, None):
                stack.callback(setattr, file, _EAGER, eager)
                setattr(file, _EAGER, partial(_observed, attend, eager))
        yield


def _set_implementations(configs: Iterable[Any], names: Iterable[str | None]) -> None:
    """Set them from the outermost in, since a configuration passes its own on to nested ones."""
    for config, name in zip(configs, names, strict=True):
        config._attn_implementation = name


def _observed(
    attend: Attend,
    eager: Callable[..., tuple[Tensor, Tensor | None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    result = attend(module, Call(query, key, value, attention_mask, settings))
    if result is None:
        out, weights = eager(module, query, key, value, attention_mask, **settings)
        for keep in _keepers:
            keep(module, weights)
        return out, weights
    return result, None


@torch.no_grad()
def _forward(model: nn.Module, input_ids: Tensor, positions: Tensor) -> Tensor:
    return model(input_ids=input_ids, position_ids=positions, use_cache=False).logits
