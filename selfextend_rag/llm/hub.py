"""Whether the model hub can be reached, found out in seconds."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

_SECONDS_TO_ANSWER = 3.0
_SECONDS_TO_BELIEVE = 60.0

_lock = threading.Lock()
_found: dict[str, tuple[float, bool]] = {}  # a hub; when it was looked for, and whether it answered


def hub_name() -> str:
    """Return the host of the hub that models are downloaded from."""
    return urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT


def hub_is_reachable() -> bool:
    """Return whether the hub, or the proxy on the way to it, takes a connection now.

    Libraries try again and again for a minute where there is no network, also for what they have
    on disk. False too where the environment says to stay offline (``HF_HUB_OFFLINE``).
    """
    if constants.is_offline_mode():
        return False
    address = urlsplit(constants.ENDPOINT)
    proxy = getproxies().get(address.scheme)
    if proxy:
        address = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    with _lock:
        when, reachable = _found.get(address.netloc, (0.0, False))
        if not when or time.monotonic() - when > _SECONDS_TO_BELIEVE:
            port = address.port or (80 if address.scheme == "http" else 443)
            reachable = _connects(address.hostname or "", port)
            _found[address.netloc] = time.monotonic(), reachable
        return reachable


def _connects(host: str, port: int) -> bool:
    reached = threading.Event()

    def connect() -> None:
        with suppress(OSError), socket.create_connection((host, port), _SECONDS_TO_ANSWER):
            reached.set()

    # A thread, because looking up a name takes as long as it likes.
    trying = threading.Thread(target=connect, daemon=True)
    trying.start()
    trying.join(_SECONDS_TO_ANSWER)
    return reached.is_set()
