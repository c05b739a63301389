"""The number format of a run's matrix products: float32, or bfloat16 where the device is faster with it.

    python tier_1.py --precision float32       # auto, the default, measures; float32 and bfloat16 are taken as said

With bfloat16 the layers that no arm trains hold their weights in it, and all others compute in it under autocast with
float32 weights, so that an optimizer step is never lost to rounding. Pooling, similarities, losses, rewards and
routers stay in float32. Every arm of a run computes in the same format.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from functools import cache

import torch

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_settled: dict[str, torch.dtype] = {}
WORTH_IT = 1.5
"""How many times as fast as float32 bfloat16 must be to be chosen; well away from both what processors with units
for it show (3 to 6) and what others do (below 1), so that a busy machine does not change the choice."""
_ROUNDS, _TOKENS, _WIDTH = 15, 512, 384


def pick_precision(asked: str, device: torch.device) -> torch.dtype:
    """The format to compute in.

    Args:
        asked: "auto", "float32" or "bfloat16".
        device: where to compute.
    """
    if asked != "auto":
        return FORMATS[asked]
    if device.type in _settled:
        return _settled[device.type]
    return torch.bfloat16 if bfloat16_speed(device.type) >= WORTH_IT else torch.float32


@contextlib.contextmanager
def settled(device: torch.device, name: str) -> Iterator[None]:
    """A block in which "auto" means one format on a kind of device: that of a run that goes on, measured before."""
    before = dict(_settled)
    _settled[device.type] = FORMATS[name]
    try:
        yield
    finally:
        _settled.clear()
        _settled.update(before)


@cache
def bfloat16_speed(device_type: str) -> float:
    """How many times as fast as in float32 a matrix product of an encoder's size is in bfloat16; measured once.

    On CUDA a card with native bfloat16 counts as fast, and nothing is measured.
    """
    if device_type == "cuda":
        return float("inf") if torch.cuda.is_bf16_supported(including_emulation=False) else 0.0
    if device_type != "cpu":
        return 0.0
    # What is multiplied does not change how long it takes; ones are as good as text.
    sides = [[torch.ones(_TOKENS, _WIDTH, dtype=d), torch.ones(_WIDTH, 4 * _WIDTH, dtype=d)] for d in FORMATS.values()]
    fastest = [math.inf, math.inf]  # the least of all rounds, since whatever else runs can only add to it
    for _ in range(_ROUNDS):
        for side, (left, right) in enumerate(sides):
            started = time.perf_counter()
            left @ right
            fastest[side] = min(fastest[side], time.perf_counter() - started)
    return fastest[0] / fastest[1]


@contextlib.contextmanager
def computing_in(dtype: torch.dtype, device_type: str) -> Iterator[None]:
    """Matrix products in `dtype`: autocast where that is not float32."""
    if dtype == torch.float32:
        yield
        return
    with torch.autocast(device_type, dtype):
        yield


def name_of(dtype: torch.dtype) -> str:
    """The format's name in reports."""
    return str(dtype).removeprefix("torch.")
