"""Sampling by hash, independent of order, machine and process; used for all samples of queries and passages.

Items are ordered by a hash of the seed, the purpose and the id. So shuffled input gives the same sample, a larger
sample contains the smaller one, and samples for different purposes are independent.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable

import numpy as np


def order_key(seed: int, purpose: str, item: str) -> bytes:
    """16 bytes that order `item` among all items for one seed and purpose."""
    key = f"{seed}\0{purpose}\0{item}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(key, digest_size=16).digest()


def draw(ids: Iterable[str], n: int, seed: int, purpose: str) -> list[str]:
    """The `n` of the unique `ids` with the lowest hash, in order of their hash; all ids if there are fewer."""
    return heapq.nsmallest(n, ids, key=lambda item: (order_key(seed, purpose, item), item))


def fraction(purpose: str, item: str) -> float:
    """A number in [0, 1) for `item`, independent of any seed."""
    return int.from_bytes(order_key(0, purpose, item)[:8], "big") / 2**64


def mix64(values: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser for uint64 of any shape: every input bit affects every output bit.

    Source: S. Vigna, splitmix64.c, https://prng.di.unimi.it.
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


def order_keys(hashes: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """As `order_key`, for millions of ids at once, 8 bytes each, from the (N,) uint64 of `Corpus.id_hashes`."""
    return mix64(hashes ^ np.uint64(int.from_bytes(order_key(seed, purpose, "")[:8], "little")))
