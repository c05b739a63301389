"""Several processes as one run: which of them this is, what they tell each other, and how they end together.

    torchrun --nproc_per_node 4 tier_1.py ...        # or accelerate launch; docs/scaling.md has more
    with session(device):                            # does nothing where there is one process
        if is_main(): ...

The launcher says in the environment who is who (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR,
MASTER_PORT). Processes talk through torch.distributed: gloo for tensors on the CPU, NCCL for those on a GPU. All go
through the same program; what only one may do, files and the console, the main one does, of rank 0.

When one fails all end, and say why (`maw.runtime.watchdog`).

This module loads torch only where there are several processes.
"""

from __future__ import annotations

import contextlib
import json
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

TIMEOUT = timedelta(hours=24)  # the main process may build indexes for hours; one that is gone is noticed at once


@dataclass(frozen=True)
class ProcessInfo:
    """Which process this is, as the launcher says.

    Attributes:
        rank: among all, from 0, the main one.
        count: of all.
        local_rank: among those of this machine; its GPU.
        local_count: of those.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1


class _State:
    """What this process knows of the others; `place` is that of a single process outside of a session."""

    process = ProcessInfo()
    alone = 0
    watcher: Watcher | None = None
    failed = False


_state = _State()


def launched() -> ProcessInfo:
    """What the launcher says of this process; a single one where there is no launcher.

    Raises:
        MAWError: variables that are incomplete or no numbers.
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
    """Which process of the session this is."""
    return _state.process


def is_main() -> bool:
    """Whether this process writes files and speaks to the user: the one of rank 0, or the only one."""
    return _state.process.rank == 0


def rank_said() -> int:
    """The rank, also before a session and after it."""
    try:
        return _state.process.rank or launched().rank
    except MAWError:
        return 0


def is_distributed() -> bool:
    """Whether there are other processes that do the same now, so that work can be shared with them."""
    return _state.process.count > 1 and not _state.alone


def main_only(function: Callable[..., Value]) -> Callable[..., Value | None]:
    """A function that does nothing, and gives None, in all processes but the main one."""

    @wraps(function)
    def guarded(*arguments: Any, **options: Any) -> Value | None:
        return function(*arguments, **options) if is_main() else None

    return guarded


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A block that each process goes through by itself, whatever the others do."""
    _state.alone += 1
    try:
        yield
    finally:
        _state.alone -= 1


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """A block that the main process goes through first, then one of each other machine, then the rest; each alone.

    So the first builds what the others find in a cache, on the same disk or on their own.
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


# ------------------------------------------------------------------------------------------------------ the session


@contextlib.contextmanager
def session(device: str | None = None) -> Iterator[ProcessInfo]:
    """Joins the processes that the launcher started, for the block; does nothing for one, or inside another session.

    Args:
        device: as `Tier1Config.device`; unset or cuda: each process has the GPU of its local rank.

    Raises:
        MAWError: there are more processes on this machine than GPUs, or they cannot reach each other.
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
        _leave()
    except BaseException as error:
        _state.failed = True
        if _state.watcher is not None:
            _state.watcher.report(error)
        raise


def end_process(code: int) -> int:
    """Gives the exit code back; or ends the process with it at once, where a session has failed.

    What is left of the others' connections could make an ordinary end wait for them.
    """
    if _state.failed:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def avoid_hangs() -> None:
    """Has NCCL copy from GPU to GPU over NVLink alone, unless the environment says what it is to do.

    Over PCIe such copies never end on machines whose IOMMU or access control services send them elsewhere; through
    the host's memory they do.
    """
    if not {"NCCL_P2P_LEVEL", "NCCL_P2P_DISABLE"} & os.environ.keys():
        os.environ["NCCL_P2P_LEVEL"] = "NVL"


def _join(place: ProcessInfo, device: str | None) -> None:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its stack traces would bury why a process ended
    import torch
    import torch.distributed as dist

    cuda = device not in ("cpu", "mps") and torch.cuda.is_available()
    if cuda:
        if place.local_count > torch.cuda.device_count():
            text = f"{place.local_count} processes on this machine, but {torch.cuda.device_count()} visible GPUs"
            raise MAWError(f"{text}; start as many processes as GPUs, or use --device cpu")
        torch.cuda.set_device(place.local_rank)
        avoid_hangs()
    try:
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, rank=place.rank, world_size=place.count, timeout=TIMEOUT)
        watcher = Watcher(place.rank, place.count)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise MAWError(f"the processes cannot reach each other at {address}: {line_of(error)}") from error
    _state.process, _state.watcher, _state.failed = place, watcher, False
    watcher.start()


def _leave() -> None:
    import torch.distributed as dist

    dist.destroy_process_group()
    _state.process, _state.watcher = ProcessInfo(), None


# ------------------------------------------------------------------------------------------- what they tell each other


def barrier() -> None:
    """Waits for all."""
    if is_distributed():
        any_process(False)


def any_process(*flags: bool) -> list[bool]:
    """Each flag: whether it is set in any process."""
    if not is_distributed():
        return [bool(flag) for flag in flags]
    import torch

    values = torch.tensor([int(flag) for flag in flags], dtype=torch.int64)
    return [value > 0 for value in all_reduce_sum_(values).tolist()]


def all_reduce_sum_(values: Tensor) -> Tensor:
    """Puts the sum over all processes in the tensor's place; the same bits in all of them."""
    if is_distributed():
        import torch.distributed as dist

        _talk(lambda: dist.all_reduce(values))
    return values


def gathered(values: Tensor) -> list[Tensor]:
    """The tensors of all processes, by rank; all of one shape and type."""
    if not is_distributed():
        return [values]
    import torch
    import torch.distributed as dist

    values = values.contiguous()
    parts = [torch.empty_like(values) for _ in range(_state.process.count)]
    _talk(lambda: dist.all_gather(parts, values))
    return parts


def from_main_(values: Tensor) -> Tensor:
    """Puts what the main process has in the tensor's place, which has the same shape and type everywhere."""
    if is_distributed():
        import torch.distributed as dist

        _talk(lambda: dist.broadcast(values, src=0))
    return values


def broadcast_object(make: Callable[[], Any]) -> Any:
    """What the main process makes, JSON-able, in all of them."""
    if not is_distributed():
        return make()
    import torch

    content = json.dumps(make()).encode() if is_main() else b""
    size = from_main_(torch.tensor([len(content)], dtype=torch.int64))
    buffer = torch.zeros(int(size), dtype=torch.uint8)
    if is_main():
        buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    return json.loads(bytes(from_main_(buffer).tolist()))


def _talk(call: Callable[[], object]) -> None:
    """Makes a collective call.

    Raises:
        PeerError: another process is not there any more.
    """
    try:
        call()
    except RuntimeError as error:
        raise PeerError(_state.watcher.cause(error) if _state.watcher else line_of(error)) from error


def of_every_process(values: Tensor) -> Tensor:
    """What each process has, (processes, ...), to be saved; the values themselves where there is one process."""
    import torch

    return torch.stack(gathered(values)) if is_distributed() else values


def of_this_process(values: Tensor) -> Tensor:
    """This process's part of what `of_every_process` gave."""
    return values[this_process().rank].clone() if is_distributed() else values
