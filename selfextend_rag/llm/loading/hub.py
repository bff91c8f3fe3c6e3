"""Whether the model hub answers, found out in seconds."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from functools import lru_cache

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

_SECONDS_TO_ANSWER = 3.0
_SECONDS_TO_BELIEVE = 60


def hub_answers(name: str) -> bool:
    """Return whether the hub has anything to say about a model, be it that it has none.

    Libraries retry for a minute where there is no network, also for what they have on disk. False
    too where the environment says to stay offline (``HF_HUB_OFFLINE``).
    """
    return _answers(constants.ENDPOINT, name, int(time.monotonic() // _SECONDS_TO_BELIEVE))


@lru_cache(maxsize=64)
def _answers(endpoint: str, name: str, minute: int) -> bool:
    answered = threading.Event()

    def ask() -> None:
        with suppress(Exception):  # whatever the HTTP library of huggingface_hub raises
            with suppress(HfHubHTTPError, ValueError):  # refused there, or here for its name
                HfApi(endpoint).model_info(name, timeout=_SECONDS_TO_ANSWER)
            answered.set()

    # In a thread, because looking up the name of a host takes as long as it likes.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_SECONDS_TO_ANSWER)
    return answered.is_set()
