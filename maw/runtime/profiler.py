"""Where a run's time goes, stage by stage, and how near its matrix products come to what the machine can do.

    python tier_1.py --profile

    with profiling(device) as profile:
        with stage("training"):
            ...
    profile.content()

`stage` may stand anywhere: stages opened inside one another are nested, and without a profile it does nothing. On CUDA
a stage waits for the device at both of its ends, so a profiled run is somewhat slower than one that is not.

Work is counted from the modules themselves, see `watch`: for each linear map and each attention of an encoder the
floating-point operations of its matrix products (a multiplication and an addition are two), as many times as they are
done, and only for real tokens: what is spent on padding is no work. The peak is the best rate of a large square matrix
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
    """One stage: what it is called, how often and how long it was open, its own work, and the stages inside it."""

    def __init__(self, name: str):
        self.name, self.calls, self.seconds, self.own_flops = name, 0, 0.0, 0.0
        self.stages: dict[str, Stage] = {}

    def inside(self, name: str) -> Stage:
        """The stage of that name inside this one; made when first asked for."""
        return self.stages.setdefault(name, Stage(name))

    @property
    def flops(self) -> float:
        """Floating-point operations of this stage and of all inside it."""
        return self.own_flops + sum(each.flops for each in self.stages.values())


class Profile:
    """The stages of a run so far, from the thread that made it; work may be added from any thread.

    Args:
        device: what stages wait for, if it is a CUDA device.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device, self.precision = torch.device(device), torch.float32
        self.root = Stage("all")
        self._open = [self.root]
        self._thread, self._lock = threading.get_ident(), threading.Lock()
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Everything inside counts to the stage of that name within the one that is open."""
        if threading.get_ident() != self._thread:  # batches are made ahead, beside what is timed
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
        """Adds work to the stage that is open."""
        with self._lock:
            self._open[-1].own_flops += flops

    def content(self) -> dict[str, Any]:
        """All stages so far, JSON-able; measures the peak, where any work was counted.

        Returns:
            "seconds" of the whole run; "device", "threads", "precision" and "peak_flops_per_second"; and "stages",
            nested: "name", "calls", "seconds", "share" of the whole run, "self_seconds" in none of its own "stages";
            and where its matrix products were counted "flops", "flops_per_second" and "share_of_peak".
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
    """A block whose stages are recorded; None, and nothing recorded, if not `wanted`."""
    global _current
    before, _current = _current, Profile(device) if wanted else None
    try:
        yield _current
    finally:
        _current = before


def current() -> Profile | None:
    """The profile that stages are recorded in; None where nothing is profiled."""
    return _current


def stage(name: str) -> AbstractContextManager[None]:
    """Records the block as a stage of the profile there is."""
    return _nothing if _current is None else _current.stage(name)


def waiting(name: str, items: Iterable[Item]) -> Iterator[Item]:
    """The items; the time until each of them is there is a stage, what is done with them is not."""
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
    """Counts the work of an encoder of `maw.models.encoder` from now on; nothing where nothing is profiled.

    A linear map does 2 * inputs * outputs operations for each token, once more for the gradient of its weights and
    once more for that of its input, where these are computed. Attention does 4 * T * C for each of T tokens, and
    where something learns twice that again going back.
    """
    if _current is not None:
        _current.precision = encoder.precision
        _Watcher(_current, encoder)


class _Watcher:
    """Hooks on one encoder, its linear maps and its attentions."""

    def __init__(self, profile: Profile, encoder: nn.Module):
        self.profile, self.here = profile, threading.local()  # parts of a batch may run beside one another
        encoder.register_forward_pre_hook(self._enter, with_kwargs=True)
        for module in encoder.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(self._linear)
        for layer in encoder.architecture.layers(encoder.backbone):
            attention = encoder.architecture.attention(layer)
            attention.register_forward_pre_hook(self._attention, with_kwargs=True)

    def __deepcopy__(self, memo: Any) -> _Watcher:
        return self  # a copy of a router, such as GRPO's reference, is watched too

    def _enter(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        inputs = args[0] if args else kwargs["inputs"]
        mask = inputs.get("attention_mask")
        lengths = None if mask is None else mask.sum(1).double()
        self.here.real = 1.0 if lengths is None else float(lengths.sum()) / mask.numel()
        self.here.pairs = 1.0 if lengths is None else float((lengths**2).sum()) / (mask.numel() * mask.shape[1])

    def _linear(self, module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
        back = torch.is_grad_enabled() and module.weight.requires_grad + args[0].requires_grad
        self._add((1 + back) * 2 * args[0].numel() * module.out_features * getattr(self.here, "real", 1.0))

    def _attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        learns = hidden.requires_grad or any(each.requires_grad for each in module.parameters())
        passes = 3 if torch.is_grad_enabled() and learns else 1
        self._add(passes * 4 * hidden.numel() * hidden.shape[1] * getattr(self.here, "pairs", 1.0))

    def _add(self, flops: float) -> None:
        if _current is self.profile:
            self.profile.add_flops(flops)


def peak_rate(dtype: torch.dtype, device: torch.device | str) -> float:
    """Floating-point operations a second of a large square matrix product: the best of several, after one that is
    not timed."""
    device = torch.device(device)
    side = _SIDES.get(device.type, _SIDES["cpu"])
    # What is multiplied does not change how long it takes; ones are as good as anything.
    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    fastest = float("inf")
    for number in range(_ROUNDS + 1):
        started = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:
            fastest = min(fastest, time.perf_counter() - started)
    return 2 * side**3 / fastest
