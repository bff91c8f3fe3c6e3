"""SelfExtend inside vLLM: a plugin that vLLM loads by itself and that is idle without its option.

The option is ``{"selfextend": {"group_size": 8, "neighbor_window": 1024}}`` in vLLM's
``additional_config``, or ``{"selfextend": {"max_tokens": 32768}}``, from which both are planned.
"""

from __future__ import annotations


def register() -> None:
    """Connect the plugin to this process's vLLM; called by vLLM in each of its processes.

    Whatever could fail is imported in here: vLLM stops at an error of this function, and would
    only log one that comes while this module is imported.

    Raises:
        ImportError: this vLLM lacks something that the plugin builds on; the message names it.
    """
    from vllm_selfextend.hooks import install

    install()
