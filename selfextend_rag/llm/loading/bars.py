"""Progress bars of the libraries that load models."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging as hf_logging

from selfextend_rag import display


@contextmanager
def bars_if_watched() -> Iterator[None]:
    """Keep bars of transformers and of the hub out of files and pipes; then all is as it was."""
    shown, hub_shown = hf_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    if not shown or display.is_watched():
        yield
        return
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        with warnings.catch_warnings(action="ignore"):  # the hub's own switch has priority
            hf_logging.enable_progress_bar()
        if not hub_shown:
            disable_progress_bars()
