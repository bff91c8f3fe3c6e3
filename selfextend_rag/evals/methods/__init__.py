"""Methods of reading long texts, by name; others are added by `register`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from selfextend_rag.evals.methods.base import (
    Answered,
    Input,
    LoadedModel,
    Method,
    MethodError,
    MethodOptions,
    Predicted,
)
from selfextend_rag.evals.methods.mapped import Mapped, ntk, published, yarn
from selfextend_rag.evals.methods.retrieved import bm25, embeddings, oracle, random_passages
from selfextend_rag.evals.methods.windowed import plain, self_extend
from selfextend_rag.maps import MAPS

__all__ = [
    "METHODS",
    "Answered",
    "Input",
    "LoadedModel",
    "Method",
    "MethodError",
    "MethodOptions",
    "Predicted",
    "methods_of",
    "register",
]

Factory = Callable[[LoadedModel, MethodOptions], Method]

METHODS: dict[str, Factory] = {
    "plain": plain,
    "selfextend": self_extend,
    "selfextend-published": published,
    **{name: partial(Mapped, name) for name in MAPS},
    "ntk": ntk,
    "yarn": yarn,
    "bm25": bm25,
    "embeddings": embeddings,
    "random": random_passages,
    "oracle": oracle,
}
"""What makes each method."""


def register(name: str, factory: Factory) -> None:
    """Add a method to those that can be named.

    Raises:
        MethodError: there is one of that name, or the name can't be typed.
    """
    if name in METHODS or not name or "," in name or name != name.strip():
        raise MethodError(f"can't add a method of the name {name!r}; take another")
    METHODS[name] = factory


def methods_of(names: Sequence[str], loaded: LoadedModel, options: MethodOptions) -> list[Method]:
    """Return the methods of these names, for one model.

    Raises:
        MethodError: there is none of a name, or a name comes twice.
    """
    if unknown := [name for name in names if name not in METHODS]:
        raise MethodError(f"there is no method {unknown[0]!r}; there are {', '.join(METHODS)}")
    if not names or len(set(names)) < len(names):
        raise MethodError(f"name each method once, at least one, got {', '.join(names) or 'none'}")
    return [METHODS[name](loaded, options) for name in names]
