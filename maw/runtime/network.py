"""Checks quickly whether a server can be reached, before a client that would try for minutes.

HF_HUB_OFFLINE=1 python tier_1.py ...      # forbids connections, to the hub and to dataset servers
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterable
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

SECONDS = 5.0
PORTS = {"http": 80, "https": 443}


def told_to_stay_offline() -> bool:
    """Whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids connections."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in {"1", "ON", "YES", "TRUE"}


@cache
def reachable(url: str) -> bool:
    """Whether the server of `url`, or its proxy, accepts a connection within five seconds."""
    return unreachable([url]) == []


def unreachable(urls: Iterable[str]) -> list[str]:
    """The `urls` whose servers accept no connection; all are tried at once, within five seconds in total.

    Each has a thread, since a name lookup has no timeout of its own and may take half a minute.
    """
    servers = {url: _server(url) for url in urls}
    answered: set[tuple[str, int]] = set()

    def connect(server: tuple[str, int]) -> None:
        # UnicodeError: a host name that cannot be encoded
        with contextlib.suppress(OSError, UnicodeError), socket.create_connection(server, timeout=SECONDS):
            answered.add(server)

    threads = [threading.Thread(target=connect, args=(server,), daemon=True) for server in set(servers.values())]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [url for url, server in servers.items() if server not in answered]


def _server(url: str) -> tuple[str, int]:
    """Host and port to connect to: those of the proxy, if one is set for this address."""
    address = urlsplit(url)
    proxy = getproxies().get(address.scheme)
    if proxy and not proxy_bypass(address.hostname or ""):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return address.hostname or "", address.port or PORTS.get(address.scheme, 443)
