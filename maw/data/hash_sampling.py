"""Draws that do not depend on order, machine or process, used for every sample of queries and passages.

An id's place is decided by a hash of the seed, the purpose and the id itself. So a shuffled input gives the
same draw, a larger sample contains the smaller, and two purposes draw independently of each other.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable

import numpy as np


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


def mix64(values: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser over uint64 of any shape: every bit of the input reaches every bit of the output.

    Source: S. Vigna, splitmix64.c, https://prng.di.unimi.it.
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


def places(hashes: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """`place` for millions of ids at once, 8 bytes each, from the hashes of the ids that a store keeps.

    Args:
        hashes: (N,) uint64, of `Corpus.id_hashes`.
        seed: as in `place`.
        purpose: as in `place`.
    """
    return mix64(hashes ^ np.uint64(int.from_bytes(place(seed, purpose, "")[:8], "little")))
