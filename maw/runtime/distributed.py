"""Several processes as one run: their ranks, their communication, and their common end.

    torchrun --nproc_per_node 4 tier_1.py ...        # or accelerate launch; docs/scaling.md has more
    with session(device):                            # does nothing with one process
        if is_main(): ...

The launcher sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Processes communicate
through torch.distributed: gloo for tensors on the CPU, NCCL for tensors on a GPU. All run the same program; only the
main one, rank 0, writes files and the console.

When one process fails, all end and say why (`maw.runtime.watchdog`).

This module imports torch only with several processes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from maw.errors import MAWError
from maw.runtime.watchdog import PeerError, Watcher, line_of

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")

TIMEOUT = timedelta(hours=24)  # building indexes may take hours; the watchdog notices a dead process within seconds


@dataclass(frozen=True)
class ProcessInfo:
    """Position of this process, from the launcher.

    Attributes:
        rank: index among all processes; 0 is the main one.
        local_rank: index among the processes of this machine, and of its GPU.
        local_count: number of processes of this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1


class _State:
    """State of this process; `process` is a single one outside of a session."""

    process = ProcessInfo()
    alone = 0
    watcher: Watcher | None = None
    failed = False


_state = _State()


def launched() -> ProcessInfo:
    """Reads the launcher's variables; one process if there are none.

    Raises:
        MAWError: variables are missing or are no numbers.
    """
    said = {name: os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    if said["WORLD_SIZE"] in ("", "1"):
        return ProcessInfo()
    try:
        rank, count = int(said["RANK"]), int(said["WORLD_SIZE"])
        local = int(said["LOCAL_RANK"] or rank), int(said["LOCAL_WORLD_SIZE"] or count)
        known = "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ
        if not (0 <= rank < count and known):
            raise ValueError
    except ValueError:
        text = f"WORLD_SIZE is {said['WORLD_SIZE']}, but RANK, MASTER_ADDR or MASTER_PORT is missing or wrong"
        raise MAWError(f"{text}; start the processes with torchrun or accelerate launch") from None
    return ProcessInfo(rank, count, *local)


def this_process() -> ProcessInfo:
    """Position of this process in the session."""
    return _state.process


def is_main() -> bool:
    """Whether this is the process of rank 0, which writes files and the console."""
    return _state.process.rank == 0


def rank_said() -> int:
    """The rank, also outside of a session."""
    try:
        return _state.process.rank or launched().rank
    except MAWError:
        return 0


def is_distributed() -> bool:
    """Whether other processes do the same work now, so that it can be shared."""
    return _state.process.count > 1 and not _state.alone


def main_only(function: Callable[..., Value]) -> Callable[..., Value | None]:
    """Decorator: the function runs in the main process; in all others it does nothing and returns None."""

    @wraps(function)
    def guarded(*arguments: Any, **options: Any) -> Value | None:
        return function(*arguments, **options) if is_main() else None

    return guarded


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """In the block this process works by itself, as if it were the only one."""
    _state.alone += 1
    try:
        yield
    finally:
        _state.alone -= 1


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Runs the block on rank 0 first, then on local rank 0 of each other machine, then on the rest, each `alone`.

    The first process fills a cache that the others then read, on a shared or on a local disk.
    """
    if not is_distributed():
        yield
        return
    turn = 0 if is_main() else 1 if _state.process.local_rank == 0 else 2
    for _ in range(turn):
        barrier()
    with alone():
        yield
    for _ in range(3 - turn):
        barrier()


@contextlib.contextmanager
def session(device: str | None = None) -> Iterator[ProcessInfo]:
    """Joins the launched processes for a block; does nothing with one process or inside another session.

    Args:
        device: as `Tier1Config.device`; unset or cuda: each process uses the GPU of its local rank.

    Raises:
        MAWError: this machine has fewer GPUs than processes, or the processes cannot reach each other.
        PeerError: another process failed.
    """
    if _state.process.count > 1 or launched().count == 1:
        yield _state.process
        return
    _join(launched(), device)
    try:
        yield _state.process
        if _state.watcher is not None:
            _state.watcher.stop()
        barrier()
        import torch.distributed as dist

        dist.destroy_process_group()
        _state.process, _state.watcher = ProcessInfo(), None
    except BaseException as error:
        _state.failed = True
        if _state.watcher is not None:
            _state.watcher.report(error)
        raise


def end_process(code: int) -> int:
    """Returns the exit code; after a failed session ends the process with it at once.

    Otherwise open connections to the other processes could block the exit.
    """
    if _state.failed:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def avoid_hangs() -> None:
    """Limits NCCL's direct copies between GPUs to NVLink, unless the environment sets it.

    Over PCIe such copies hang on machines whose IOMMU or access control services redirect them. Copies through host
    memory do not.
    """
    if not {"NCCL_P2P_LEVEL", "NCCL_P2P_DISABLE"} & os.environ.keys():
        os.environ["NCCL_P2P_LEVEL"] = "NVL"


def _join(info: ProcessInfo, device: str | None) -> None:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its stack traces would hide why a process ended
    import torch
    import torch.distributed as dist

    cuda = device not in ("cpu", "mps") and torch.cuda.is_available()
    if cuda:
        if info.local_count > torch.cuda.device_count():
            text = f"{info.local_count} processes on this machine, but {torch.cuda.device_count()} visible GPUs"
            raise MAWError(f"{text}; start as many processes as GPUs, or use --device cpu")
        torch.cuda.set_device(info.local_rank)
        avoid_hangs()
    try:
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, rank=info.rank, world_size=info.count, timeout=TIMEOUT)
        watcher = Watcher(info.rank, info.count)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise MAWError(f"the processes cannot reach each other at {address}: {line_of(error)}") from error
    _state.process, _state.watcher, _state.failed = info, watcher, False
    watcher.start()


def barrier() -> None:
    """Waits until all processes are here."""
    if is_distributed():
        any_process(False)


def any_process(*flags: bool) -> list[bool]:
    """For each flag, whether any process has set it."""
    if not is_distributed():
        return [bool(flag) for flag in flags]
    import torch

    values = torch.tensor([int(flag) for flag in flags], dtype=torch.int64)
    return [value > 0 for value in all_reduce_sum_(values).tolist()]


def all_reduce_sum_(values: Tensor) -> Tensor:
    """Replaces the tensor by its sum over all processes, bitwise equal in all of them."""
    if is_distributed():
        import torch.distributed as dist

        _talk(lambda: dist.all_reduce(values))
    return values


def gathered(values: Tensor) -> list[Tensor]:
    """The tensors of all processes, by rank; all have one shape and type."""
    if not is_distributed():
        return [values]
    import torch
    import torch.distributed as dist

    values = values.contiguous()
    parts = [torch.empty_like(values) for _ in range(_state.process.count)]
    _talk(lambda: dist.all_gather(parts, values))
    return parts


def from_main_(values: Tensor) -> Tensor:
    """Replaces the tensor by that of the main process, which has the same shape and type."""
    if is_distributed():
        import torch.distributed as dist

        _talk(lambda: dist.broadcast(values, src=0))
    return values


def _talk(call: Callable[[], object]) -> None:
    """Runs a collective operation.

    Raises:
        PeerError: another process has ended.
    """
    try:
        call()
    except RuntimeError as error:
        raise PeerError(_state.watcher.cause(error) if _state.watcher else line_of(error)) from error


def of_every_process(values: Tensor) -> Tensor:
    """The values of all processes (processes, ...), to be saved; with one process the values themselves."""
    import torch

    return torch.stack(gathered(values)) if is_distributed() else values


def of_this_process(values: Tensor) -> Tensor:
    """This process's part of a tensor from `of_every_process`."""
    return values[this_process().rank].clone() if is_distributed() else values
