"""Plans by another map than SelfExtend, with the settings that its authors published."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from selfextend_rag.maps import MAPS, AdaGroPE, DualChunk, LaMPE, LeakyReRoPE, ReRoPE, String
from selfextend_rag.planning.plan import ContextPlan
from selfextend_rag.planning.planner import ContextBudgetPlanner
from selfextend_rag.positions import PositionMap, SelfExtend

_LLAMA2 = 4096  # P of the model that most settings were published for
_FIRST_FITTED = 8192  # tokens from which LaMPE's U follows a curve; before it is constant


def published_map(method: str, pretraining_window: int, tokens: int) -> PositionMap:
    """Return a map with its authors' settings for Llama-2 (P = 4096), in proportion to P.

    =============  =================================================================
    ReRoPE         W = P / 8
    leaky ReRoPE   W = P / 8, c = 16, or as much more as these tokens need
    STRING         S = P / 3, W = P / 32
    dual chunk     s = 3 P / 4, w = P / 8
    LaMPE          H = P / 8, T = 200 P / 4096, U by the authors' curve for Llama-2
    AdaGroPE       P' = P / 2, ratio 1/4
    =============  =================================================================

    Args:
        method: one of `selfextend_rag.maps.MAPS`.
        pretraining_window: P, at least 32.
        tokens: prompt and answer together.

    Raises:
        ValueError: there is no such method, or P is too small for it.
    """
    if method not in _PUBLISHED:
        raise ValueError(f"there is no map {method!r}; there are {', '.join(_PUBLISHED)}")
    if pretraining_window < 32:
        raise ValueError(f"pretraining_window must be at least 32, got {pretraining_window}")
    return _PUBLISHED[method](pretraining_window, max(2, tokens))


def _leaky(window: int, tokens: int) -> LeakyReRoPE:
    near = window // 8
    return LeakyReRoPE(near, max(16, math.ceil((tokens - near) / (window - near))))


def _lampe(window: int, tokens: int) -> LaMPE:
    scale = window / _LLAMA2
    length = tokens / scale
    mapped = 1536.0
    if length >= _FIRST_FITTED:
        mapped = 2489 / (1 + math.exp(-(8.67e-5 * length - 0.648)))
    return LaMPE(window // 8, int(200 * scale), max(1, int(mapped * scale)), tokens)


_PUBLISHED: dict[str, Callable[[int, int], PositionMap]] = {
    ReRoPE.name: lambda window, tokens: ReRoPE(window // 8),
    LeakyReRoPE.name: _leaky,
    String.name: lambda window, tokens: String(window // 3, window // 32),
    DualChunk.name: lambda window, tokens: DualChunk(3 * window // 4, window // 8),
    LaMPE.name: _lampe,
    AdaGroPE.name: lambda window, tokens: AdaGroPE(window // 2, 0.25, tokens),
}
assert _PUBLISHED.keys() == MAPS.keys()


@dataclass(frozen=True)
class MapPlanner(ContextBudgetPlanner):
    """Plans by one map; `published_map` has its settings, and positions below P bound its length.

    Args:
        method: one of `selfextend_rag.maps.MAPS`.

    Raises:
        ValueError: there is no such method, P is too small for it, or an option is given that is
            SelfExtend's alone.
    """

    method: str = ReRoPE.name

    def __post_init__(self) -> None:
        super().__post_init__()
        published_map(self.method, self.pretraining_window, self.pretraining_window)
        for option in ("group_size", "neighbor_window"):
            if getattr(self, option) is not None:
                raise ValueError(f"{option} is SelfExtend's; method {self.method!r} has none")

    @property
    def extended_window(self) -> int:
        """Return the longest sequence that the method reaches."""
        window = self.pretraining_window
        if self.extension == "never":
            return window
        low, high = window, 1 << 30  # for methods that depend on the length, by search
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._fits(middle) else (low, middle - 1)
        return low

    def _fits(self, tokens: int) -> bool:
        try:
            found = published_map(self.method, self.pretraining_window, tokens)
            return tokens <= found.extended_window(self.pretraining_window)
        except ValueError:
            return False

    def _settled(self, plain: ContextPlan) -> ContextPlan | None:
        fits = plain.total_tokens <= self.pretraining_window
        if self.extension == "never" or (fits and self.extension == "auto"):
            return replace(plain, settings=None, rule=None)
        if not self._fits(plain.total_tokens):
            return None
        settings = published_map(self.method, self.pretraining_window, plain.total_tokens)
        return replace(plain, settings=settings, rule="exact")

    def _best(self) -> tuple[SelfExtend | None, int]:
        return None, self.extended_window

    def _sufficient_group_size(self, needed: int) -> int | None:
        return None
