"""The plugin's one option: read, planned, and carried to every process of the engine."""

from __future__ import annotations

from collections.abc import Mapping

from selfextend_rag.errors import ContextBudgetExceeded
from selfextend_rag.planning import ContextBudgetPlanner, pretraining_window_of
from selfextend_rag.positions import SelfExtend

OPTION = "selfextend"
_NUMBERS = frozenset({"group_size", "neighbor_window"})
_PLANNED = frozenset({"max_tokens"})
_FORMS = '{"group_size": 8, "neighbor_window": 1024} or {"max_tokens": 32768}'


class Resolved(dict[str, int]):
    """The option with everything decided: ``group_size``, ``neighbor_window``, and P.

    A dictionary, so that it is hashed and printed with the rest of vLLM's configuration. Wherever
    it is unpickled the plugin is connected first: a process or a machine without the plugin stops
    there, and does not answer with ordinary attention.
    """

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (dict(self),)

    @property
    def settings(self) -> SelfExtend:
        """G and W."""
        return SelfExtend(self["group_size"], self["neighbor_window"])

    @property
    def pretraining_window(self) -> int:
        """P, in tokens."""
        return self["pretraining_window"]

    @property
    def extended_window(self) -> int:
        """Longest sequence, prompt and answer together, in tokens."""
        return self.settings.extended_window(self.pretraining_window)

    @property
    def default_length(self) -> int:
        """Longest sequence that the engine is set up for if its user names none, in tokens."""
        return self.get("max_tokens", self.extended_window)


def _restored(values: dict[str, int]) -> Resolved:
    from vllm_selfextend import register

    register()
    return Resolved(values)


def option_of(additional_config: object) -> Mapping[str, object] | None:
    """Return the plugin's option in vLLM's ``additional_config``; None where it is not given.

    Raises:
        ValueError: it is there, and is no dictionary.
    """
    if not isinstance(additional_config, Mapping) or OPTION not in additional_config:
        return None
    option = additional_config[OPTION]
    if not isinstance(option, Mapping):
        raise ValueError(f'"{OPTION}" in additional_config must be {_FORMS}, got {option!r}')
    return option


def resolve(option: Mapping[str, object], config: object) -> Resolved:
    """Return the option with everything decided, for a model's configuration.

    Args:
        option: the two settings, or the most tokens that a request may have.
        config: of transformers; its pretraining window is read.

    Raises:
        ValueError: an unknown or a missing entry, one out of range, or no settings are enough.
        UnknownPretrainingWindow: the configuration does not say.
    """
    if isinstance(option, Resolved):
        return option
    names = frozenset(option)
    if names not in (_NUMBERS, _PLANNED):
        raise ValueError(f'"{OPTION}" must be {_FORMS}, got the entries {sorted(names)}')
    numbers = {name: _integer(name, value) for name, value in option.items()}
    window = pretraining_window_of(config)
    if names == _PLANNED:
        return _planned(numbers["max_tokens"], window)
    settings = SelfExtend(numbers["group_size"], numbers["neighbor_window"])
    settings.extended_window(window)  # refuses W >= P
    return Resolved(numbers, pretraining_window=window)


def _planned(tokens: int, window: int) -> Resolved:
    planner = ContextBudgetPlanner(window)
    try:
        plan = planner.plan(tokens, 0)
    except ContextBudgetExceeded as error:
        raise ValueError(f'"{OPTION}": max_tokens of {tokens} is out of reach: {error}') from error
    if plan.group_size is None or plan.neighbor_window is None:
        raise ValueError(
            f'"{OPTION}": max_tokens of {tokens} fits the pretraining window of {window}; leave '
            "the option out"
        )
    return Resolved(
        group_size=plan.group_size,
        neighbor_window=plan.neighbor_window,
        pretraining_window=window,
        max_tokens=tokens,
    )


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'"{OPTION}": {name} must be a positive integer, got {value!r}')
    return value


def length_limit(resolved: Resolved, asked: int | None) -> int:
    """Return the longest sequence for vLLM's ``max_model_len`` of this value.

    Raises:
        ValueError: it is beyond the extended window.
    """
    if asked is None or asked == -1:  # -1: as many as memory holds, decided later
        return resolved.default_length
    if asked > resolved.extended_window:
        settings = resolved.settings
        raise ValueError(
            f"max_model_len of {asked} exceeds the extended window of {resolved.extended_window} "
            f"tokens (group_size {settings.group_size}, neighbor_window "
            f"{settings.neighbor_window}); lower it, or set a larger group_size"
        )
    return asked
