"""Where the plugin enters vLLM: nine functions of it, wrapped once in each process.

Without the option all of them do what they did. vLLM has no seam of its own for these: the check
of lengths, the configuration when it is complete, which of its runners of models it takes, a model
that is built, and one that is loaded, a request that enters the engine, and the batch of a step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from vllm_selfextend.settings import OPTION, Resolved, length_limit, option_of, resolve

_option: ContextVar[Mapping[str, object] | None] = ContextVar("vllm_selfextend", default=None)
_MARK = "_wrapped_by_selfextend"


def install() -> None:
    """Wrap what the plugin needs of vLLM; a second call changes nothing.

    Raises:
        ImportError: this version of vLLM has no such function; the message names it.
    """
    try:
        from vllm.config import model as lengths
        from vllm.config.vllm import VllmConfig
        from vllm.engine.arg_utils import EngineArgs
        from vllm.model_executor.layers.attention import Attention
        from vllm.model_executor.model_loader.base_loader import BaseModelLoader
        from vllm.v1.engine.core import EngineCore
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        from vllm_selfextend import gpu

        gpu.register()
        _wrap(EngineArgs, "create_model_config", _with_option)
        _wrap(lengths, "_get_and_verify_max_len", _longer)
        _wrap(VllmConfig, "try_verify_and_update_config", _checked)
        _wrap(VllmConfig, "_get_v2_model_runner_unsupported_features", _first_runner)
        _wrap(BaseModelLoader, "create_model", _linked)
        _wrap(BaseModelLoader, "load_model", _verified)
        _wrap(Attention, "get_kv_cache_spec", _known)
        _wrap(EngineCore, "preprocess_add_request", _marked)
        _wrap(GPUModelRunner, "_build_attention_metadata", _noted)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"vllm_selfextend is written for vLLM 0.32, and this one differs: {error}; install "
            "vLLM 0.32, or set VLLM_PLUGINS to the plugins that you use"
        ) from error


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(wrapped, _MARK, True)
    setattr(owner, name, wrapped)


def _resolved(config: Any) -> Resolved | None:
    """Return the option of a ``VllmConfig``, decided; None if it is not given, or G is 1."""
    option = option_of(config.additional_config)
    if option is None or config.model_config is None:
        return None
    resolved = resolve(option, config.model_config.hf_text_config)
    return resolved if resolved.settings.group_size > 1 else None


def _with_option(original: Callable[..., Any], args: Any) -> Any:
    """Let the length check know the option: it runs before there is a ``VllmConfig``."""
    token = _option.set(option_of(args.additional_config))
    try:
        return original(args)
    finally:
        _option.reset(token)


def _longer(original: Callable[..., int], *args: Any, **kwargs: Any) -> int:
    option = _option.get()
    if option is None:
        return original(*args, **kwargs)
    if kwargs["disable_sliding_window"] and kwargs["sliding_window"] is not None:
        raise ValueError(
            "SelfExtend can't extend layers whose sliding window is switched off; leave out "
            "disable_sliding_window"
        )
    return length_limit(resolve(option, kwargs["hf_config"]), kwargs["max_model_len"])


def _checked(original: Callable[..., None], config: Any) -> None:
    """Refuse what can't be extended, and leave the decided option for all other processes."""
    original(config)
    resolved = _resolved(config)
    if resolved is not None:
        from vllm_selfextend.refusals import refuse

        platform = _platform()
        if platform.is_cuda():
            _choose_backend(config)
        refuse(config, resolved, platform)
        config.additional_config[OPTION] = resolved


def _platform() -> Any:
    from vllm.platforms import current_platform

    return current_platform


def _choose_backend(config: Any) -> None:
    """Let vLLM take our backend, unless another one was asked for; that is refused then."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    from vllm_selfextend import gpu

    if config.attention_config.backend is None and gpu.is_registered():
        config.attention_config.backend = AttentionBackendEnum.CUSTOM


def _first_runner(original: Callable[..., list[str]], config: Any) -> list[str]:
    """Keep vLLM's second runner of models away: which requests are plain is noted in the first."""
    found = original(config)
    return found if _resolved(config) is None else [*found, "SelfExtend (vllm_selfextend)"]


def _linked(original: Callable[..., Any], loader: Any, *args: Any, **kwargs: Any) -> Any:
    model = original(loader, *args, **kwargs)
    config = kwargs.get("vllm_config") or args[0]
    resolved = _resolved(config)
    if resolved is not None:
        from vllm_selfextend.model import link

        most = config.scheduler_config.max_num_batched_tokens
        link(model, resolved, config.model_config.max_model_len, most)
    return model


def _verified(original: Callable[..., Any], loader: Any, *args: Any, **kwargs: Any) -> Any:
    model = original(loader, *args, **kwargs)
    config = kwargs.get("vllm_config") or args[0]
    if _resolved(config) is not None:
        from vllm_selfextend.model import verify

        verify(model, config.model_config.get_hidden_size(), config.model_config.dtype)
    return model


def _known(original: Callable[..., Any], layer: Any, config: Any) -> Any:
    """Refuse a layer that nobody looked at, when the engine asks how its keys are kept."""
    if _resolved(config) is not None:
        from vllm_selfextend.model import refuse_unverified

        refuse_unverified(layer)
    return original(layer, config)


def _marked(original: Callable[..., Any], core: Any, request: Any) -> Any:
    resolved = _resolved(core.vllm_config)
    if resolved is not None:
        from vllm_selfextend.plain import mark

        mark(request, resolved)
    return original(core, request)


def _noted(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    metadata, common = original(runner, *args, **kwargs)
    resolved = _resolved(runner.vllm_config)
    if resolved is not None or runner.vllm_config.parallel_config.nnodes > 1:
        from vllm_selfextend.plain import note_rows

        note_rows(metadata, runner, resolved)
    return metadata, common
