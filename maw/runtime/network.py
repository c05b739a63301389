"""Whether a server can be reached, asked before a client that would try for minutes.

HF_HUB_OFFLINE=1 python tier_1.py ...      # no connection is tried, neither to the hub nor for a dataset
"""

from __future__ import annotations

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
    """Whether the environment forbids connections: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE, as the hub reads them."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in {"1", "ON", "YES", "TRUE"}


@cache
def reachable(url: str) -> bool:
    """Whether the server of `url`, or the proxy that leads to it, takes a connection within some seconds."""
    return unreachable([url]) == []


def unreachable(urls: Iterable[str]) -> list[str]:
    """Those of `urls` whose servers take no connection; all are asked at once, for five seconds altogether.

    A thread for each, since looking up a name has no time limit of its own and may take half a minute.
    """
    servers = {url: _server(url) for url in urls}
    answered: set[tuple[str, int]] = set()
    threads = [
        threading.Thread(target=_connect, args=(server, answered), daemon=True) for server in set(servers.values())
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [url for url, server in servers.items() if server not in answered]


def _server(url: str) -> tuple[str, int]:
    """Host and port to connect to: the proxy's where one is set for this address."""
    address = urlsplit(url)
    proxy = getproxies().get(address.scheme)
    if proxy and not proxy_bypass(address.hostname or ""):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return address.hostname or "", address.port or PORTS.get(address.scheme, 443)


def _connect(server: tuple[str, int], answered: set[tuple[str, int]]) -> None:
    try:
        with socket.create_connection(server, timeout=SECONDS):
            answered.add(server)
    except (OSError, UnicodeError):  # UnicodeError: a host name that cannot be encoded
        return
