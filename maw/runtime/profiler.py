"""Profile of a run: time per stage, and matrix-product speed relative to the machine's peak.

    python tier_1.py --profile

    with profiling(device) as profile:
        with stage("training"):
            ...
    profile.content()

`stage` may be used anywhere: stages nest, and without a profile it does nothing. On CUDA a stage waits for the device
at its start and end, so a profiled run is somewhat slower.

`watch` counts the floating-point operations of an encoder's linear maps and attentions (a multiplication and an
addition are two), for real tokens only: padding is not counted. The peak is the best rate of a large square matrix
product in the run's number format, measured in the same run. Products outside the encoder (search, similarities) and
the small ones of depth kernels are not counted.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Item = TypeVar("Item")

_ROUNDS = 7
_SIDES = {"cpu": 1536, "cuda": 8192}
_current: Profile | None = None
_nothing = contextlib.nullcontext()


class Stage:
    """One stage: name, number of calls, seconds, operations of its own, nested stages."""

    def __init__(self, name: str):
        self.name, self.calls, self.seconds, self.own_flops = name, 0, 0.0, 0.0
        self.stages: dict[str, Stage] = {}

    def inside(self, name: str) -> Stage:
        """The nested stage of that name; created at first use."""
        return self.stages.setdefault(name, Stage(name))

    @property
    def flops(self) -> float:
        """Floating-point operations of this stage and its nested stages."""
        return self.own_flops + sum(each.flops for each in self.stages.values())


class Profile:
    """Stages of a run. Only the thread that made the profile opens stages; any thread may add operations."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device, self.precision = torch.device(device), torch.float32
        self.root = Stage("all")
        self._open = [self.root]
        self._thread, self._lock = threading.get_ident(), threading.Lock()
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Records the block as a stage inside the open one."""
        if threading.get_ident() != self._thread:  # a thread that prepares batches runs beside the stages
            yield
            return
        self._wait()
        stage, started = self._open[-1].inside(name), time.perf_counter()
        self._open.append(stage)
        try:
            yield
        finally:
            self._wait()
            self._open.pop()
            stage.calls += 1
            stage.seconds += time.perf_counter() - started

    def add_flops(self, flops: float) -> None:
        """Adds operations to the open stage."""
        with self._lock:
            self._open[-1].own_flops += flops

    def content(self) -> dict[str, Any]:
        """All stages so far, JSON-able. Measures the peak if any operations were counted.

        Returns:
            "seconds" of the whole run; "device", "threads", "precision", "peak_flops_per_second"; and nested "stages",
            each with "name", "calls", "seconds", "share" of the run, "self_seconds" outside its own "stages", and if
            operations were counted "flops", "flops_per_second" and "share_of_peak".
        """
        self._wait()
        total = time.perf_counter() - self._started
        peak = peak_rate(self.precision, self.device) if self.root.flops else None
        return {
            "seconds": total,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "precision": str(self.precision).removeprefix("torch."),
            "peak_flops_per_second": peak,
            "stages": [_content(each, total, peak) for each in self.root.stages.values()],
        }

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _content(stage: Stage, total: float, peak: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": stage.name,
        "calls": stage.calls,
        "seconds": stage.seconds,
        "share": stage.seconds / total,
        "self_seconds": stage.seconds - sum(each.seconds for each in stage.stages.values()),
    }
    if stage.flops and peak:
        rate = stage.flops / stage.seconds
        found |= {"flops": stage.flops, "flops_per_second": rate, "share_of_peak": rate / peak}
    return found | {"stages": [_content(each, total, peak) for each in stage.stages.values()]}


@contextlib.contextmanager
def profiling(device: torch.device | str = "cpu", *, wanted: bool = True) -> Iterator[Profile | None]:
    """Records the stages of the block; yields None and records nothing if not `wanted`."""
    global _current
    before, _current = _current, Profile(device) if wanted else None
    try:
        yield _current
    finally:
        _current = before


def current() -> Profile | None:
    """The active profile, or None."""
    return _current


def stage(name: str) -> AbstractContextManager[None]:
    """Records the block as a stage of the active profile, if there is one."""
    return _nothing if _current is None else _current.stage(name)


def waiting(name: str, items: Iterable[Item]) -> Iterator[Item]:
    """Yields the items; the waiting time for each counts as a stage."""
    if _current is None:
        yield from items
        return
    source = iter(items)
    while True:
        with stage(name):
            try:
                item = next(source)
            except StopIteration:
                return
        yield item


def watch(encoder: nn.Module) -> None:
    """Counts the operations of a `maw.models.encoder` from now on, if a profile is active.

    A linear map does 2 * inputs * outputs operations a token, and as many again for the gradient of its weights and
    for that of its input, where they are computed. Attention does 4 * T * C for each of T tokens, and twice that in
    the backward pass, if anything is trained.
    """
    if _current is not None:
        _current.precision = encoder.precision
        _Watcher(_current, encoder)


class _Watcher:
    """Hooks on one encoder, its linear maps and its attentions."""

    def __init__(self, profile: Profile, encoder: nn.Module):
        self.profile, self.here = profile, threading.local()  # replicas run in threads
        self.tokens_alone = encoder.tokens_alone
        encoder.register_forward_pre_hook(self._enter, with_kwargs=True)
        for module in encoder.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(self._linear)
        for layer in encoder.architecture.layers(encoder.backbone):
            attention = encoder.architecture.attention(layer)
            attention.register_forward_pre_hook(self._attention, with_kwargs=True)

    def __deepcopy__(self, memo: Any) -> _Watcher:
        return self  # so that a copy of a router, such as GRPO's reference, is counted too

    def _enter(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        inputs = args[0] if args else kwargs["inputs"]
        mask = inputs.get("attention_mask")
        lengths = None if mask is None else mask.sum(1).double()
        self.here.real = 1.0 if lengths is None else float(lengths.sum()) / mask.numel()
        self.here.pairs = 1.0 if lengths is None else float((lengths**2).sum()) / (mask.numel() * mask.shape[1])

    def _linear(self, module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
        back = torch.is_grad_enabled() and module.weight.requires_grad + args[0].requires_grad
        values = args[0].shape[-1] * self._shape(args[0]).numel()
        self._add((1 + back) * 2 * values * module.out_features * getattr(self.here, "real", 1.0))

    def _attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        learns = hidden.requires_grad or any(each.requires_grad for each in module.parameters())
        passes = 3 if torch.is_grad_enabled() and learns else 1
        shape = self._shape(hidden)
        values = hidden.shape[-1] * shape.numel()
        self._add(passes * 4 * values * shape[-1] * getattr(self.here, "pairs", 1.0))

    def _shape(self, states: Tensor) -> torch.Size:
        """(B, T) of states (B, T, ...), also of those that run without padding."""
        tokens = self.tokens_alone()
        return states.shape[:-1] if tokens is None else tokens.shape

    def _add(self, flops: float) -> None:
        if _current is self.profile:
            self.profile.add_flops(flops)


def peak_rate(dtype: torch.dtype, device: torch.device | str) -> float:
    """Floating-point operations a second of a large square matrix product: the best of several timed rounds."""
    device = torch.device(device)
    side = _SIDES.get(device.type, _SIDES["cpu"])
    # The values do not change the time, so ones will do.
    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    fastest = float("inf")
    for number in range(_ROUNDS + 1):  # the first is a warm-up
        started = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:
            fastest = min(fastest, time.perf_counter() - started)
    return 2 * side**3 / fastest
