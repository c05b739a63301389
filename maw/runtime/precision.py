"""Number format of matrix products: float32, or bfloat16 where the device computes faster in it.

    python tier_1.py --precision float32       # auto, the default, measures the speed
    python tier_1.py --tf32 --deterministic    # on a GPU: faster float32 products; the same bits in every run

With bfloat16 or float16, layers that no method trains store their weights in that format. Trained layers keep float32
weights and compute under autocast, so that no optimizer step is lost to rounding. Pooling, similarities, losses,
rewards and routers stay in float32. All methods of a run use the same format.

float16 is for GPUs without bfloat16. Its smallest number is 6e-8, so the loss is scaled before the backward pass, and
a step whose gradient exceeds its largest number, 65504, is skipped (`maw.training.trainer`, torch.amp.GradScaler).
Router losses need no scaling: a policy's loss and gradient are float32 throughout.
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
WORTH_IT = 1.5
"""Least speed-up of bfloat16 over float32 for which "auto" chooses it. Processors with bfloat16 units reach 3 to 6 and
others stay below 1, so a busy machine does not change the choice."""
_fixed: dict[str, torch.dtype] = {}
_ROUNDS, _TOKENS, _WIDTH = 15, 512, 384


def pick_precision(asked: str, device: torch.device) -> torch.dtype:
    """The number format to compute in on `device`; `asked` is "auto" or a key of `FORMATS`."""
    if asked != "auto":
        return FORMATS[asked]
    if device.type in _fixed:
        return _fixed[device.type]
    return torch.bfloat16 if bfloat16_speed(device.type) >= WORTH_IT else torch.float32


@contextlib.contextmanager
def fixed_precision(device: torch.device, name: str) -> Iterator[None]:
    """In the block "auto" means format `name` on this kind of device: a resumed run keeps its format."""
    before = dict(_fixed)
    _fixed[device.type] = FORMATS[name]
    try:
        yield
    finally:
        _fixed.clear()
        _fixed.update(before)


@cache
def bfloat16_speed(device_type: str) -> float:
    """Speed of bfloat16 relative to float32 for a matrix product of an encoder's size; measured once.

    CUDA is not measured: infinite for a card with native bfloat16, else 0.
    """
    if device_type == "cuda":
        return float("inf") if torch.cuda.is_bf16_supported(including_emulation=False) else 0.0
    if device_type != "cpu":
        return 0.0
    both = (torch.float32, torch.bfloat16)
    # The values do not change the time, so ones will do.
    sides = [[torch.ones(_TOKENS, _WIDTH, dtype=d), torch.ones(_WIDTH, 4 * _WIDTH, dtype=d)] for d in both]
    fastest = [math.inf, math.inf]  # the minimum, since other load can only add time
    for _ in range(_ROUNDS):
        for side, (left, right) in enumerate(sides):
            started = time.perf_counter()
            left @ right
            fastest[side] = min(fastest[side], time.perf_counter() - started)
    return fastest[0] / fastest[1]


@contextlib.contextmanager
def numerics(*, tf32: bool, deterministic: bool) -> Iterator[None]:
    """Sets the numerics of the GPU for a block and restores them afterwards.

    Args:
        tf32: float32 products may round their factors to TF32, with 10 bits of mantissa.
        deterministic: only algorithms that give the same bits in every run; PyTorch raises an error where there is
            none. cuBLAS also needs CUBLAS_WORKSPACE_CONFIG before its first use; it is set here if it is unset.
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
    """Runs matrix products of the block in `dtype`, through autocast unless it is float32."""
    if dtype == torch.float32:
        yield
        return
    with torch.autocast(device_type, dtype):
        yield


def name_of(dtype: torch.dtype) -> str:
    """The format's name in reports, such as float32."""
    return str(dtype).removeprefix("torch.")
