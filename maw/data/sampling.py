"""Draws that do not depend on order, machine or process, used for every sample of queries.

An id's place is decided by a hash of the seed, the purpose and the id itself. So a shuffled input gives the
same draw, a larger sample contains the smaller, and two purposes draw independently of each other.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable


def place(seed: int, purpose: str, item: str) -> bytes:
    """16 bytes by which `item` is ordered among all items drawn for one seed and purpose."""
    key = f"{seed}\0{purpose}\0{item}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(key, digest_size=16).digest()


def draw(ids: Iterable[str], n: int, seed: int, purpose: str) -> list[str]:
    """The `n` ids of lowest hash, all of them where there are fewer, in order of their hash.

    Args:
        ids: unique ids, in any order.
        n: how many to draw.
        seed: the seed of the run.
        purpose: what the draw is for, e.g. "train"; draws for different purposes are independent.
    """
    return heapq.nsmallest(n, ids, key=lambda item: (place(seed, purpose, item), item))


def fraction(purpose: str, item: str) -> float:
    """A number in [0, 1) that belongs to `item`, for splits that no seed changes."""
    return int.from_bytes(place(0, purpose, item)[:8], "big") / 2**64
