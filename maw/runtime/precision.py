"""The number format of a run's matrix products: float32, or bfloat16 where the device is faster with it.

    python tier_1.py --precision float32       # auto, the default, measures; the others are taken as said
    python tier_1.py --tf32 --deterministic    # on a GPU: faster float32 products; the same bits in every run

With bfloat16 or float16 the layers that no arm trains hold their weights in it, and all others compute in it under
autocast with float32 weights, so that an optimizer step is never lost to rounding. Pooling, similarities, losses,
rewards and routers stay in float32. Every arm of a run computes in the same format.

float16 is for GPUs without bfloat16. Its smallest number is 6e-8, so the loss is multiplied before the backward pass,
and a step whose gradient then exceeds its largest, 65504, is left out (`maw.training.trainer`, torch.amp.GradScaler).
What routers learn from needs no scale: a policy's loss and gradient are float32 throughout.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from functools import cache

import torch

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_settled: dict[str, torch.dtype] = {}
WORTH_IT = 1.5
"""How many times as fast as float32 bfloat16 must be to be chosen; well away from both what processors with units
for it show (3 to 6) and what others do (below 1), so that a busy machine does not change the choice."""
_ROUNDS, _TOKENS, _WIDTH = 15, 512, 384


def pick_precision(asked: str, device: torch.device) -> torch.dtype:
    """The format to compute in.

    Args:
        asked: "auto" or a name of `FORMATS`.
        device: where to compute.
    """
    if asked != "auto":
        return FORMATS[asked]
    if device.type in _settled:
        return _settled[device.type]
    return torch.bfloat16 if bfloat16_speed(device.type) >= WORTH_IT else torch.float32


@contextlib.contextmanager
def fixed_precision(device: torch.device, name: str) -> Iterator[None]:
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
    both = (torch.float32, torch.bfloat16)
    # What is multiplied does not change how long it takes; ones are as good as text.
    sides = [[torch.ones(_TOKENS, _WIDTH, dtype=d), torch.ones(_WIDTH, 4 * _WIDTH, dtype=d)] for d in both]
    fastest = [math.inf, math.inf]  # the least of all rounds, since whatever else runs can only add to it
    for _ in range(_ROUNDS):
        for side, (left, right) in enumerate(sides):
            started = time.perf_counter()
            left @ right
            fastest[side] = min(fastest[side], time.perf_counter() - started)
    return fastest[0] / fastest[1]


@contextlib.contextmanager
def numerics(*, tf32: bool, deterministic: bool) -> Iterator[None]:
    """A block in which a GPU computes as asked; afterwards it does as before.

    Args:
        tf32: float32 products may round their factors to TF32, of 10 bits.
        deterministic: only algorithms with the same bits in every run; PyTorch raises an error for what has none.
            cuBLAS needs a workspace of its own for that, which it reads from CUBLAS_WORKSPACE_CONFIG when it is first
            used; that is set unless it is set already.
    """
    matmul = torch.backends.cuda.matmul
    format_before = matmul.fp32_precision
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    matmul.fp32_precision = "tf32" if tf32 else "ieee"
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        matmul.fp32_precision = format_before
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


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
