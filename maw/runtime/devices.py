"""Where a run computes: the device, and DataParallel over several GPUs.

`nn.DataParallel` cuts a batch into equal parts, but for the last, and puts results together on the first GPU. Losses,
rewards and negatives are of the whole batch, for they come after that, and the noise of routing was drawn before it
(`maw.attention.noise.noise_keys`): results do not depend on the number of GPUs, but for rounding and dropout.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from maw.config.tier1_config import Tier1Config
from maw.errors import MAWError, reason
from maw.runtime import distributed

logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)


def pick_device(config: Tier1Config) -> torch.device:
    """`config.device`, or the first visible GPU, or the CPU; of several processes each has a GPU of its own.

    Raises:
        MAWError: the device named is not there, or one GPU is named for several processes.
    """
    name = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if distributed.is_distributed() and name.startswith("cuda"):
        if name != "cuda":
            raise MAWError(f"--device {name}: each process has a GPU of its own; leave --device out, or use cuda")
        name = f"cuda:{distributed.this_process().local_rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MAWError(f"--device {name}: {reason(error)}") from error
    return device


def count_replicas(config: Tier1Config, device: torch.device) -> int:
    """Among how many devices a batch is split: all GPUs, unless one of them is named or only one is wanted."""
    if device.type != "cuda" or device.index is not None or not config.use_multi_gpu:
        return 1
    return max(1, torch.cuda.device_count())


def used_gpus(config: Tier1Config, device: torch.device) -> list[int]:
    """Numbers of the CUDA devices that this process computes on."""
    if device.type != "cuda":
        return []
    count = count_replicas(config, device)
    return list(range(count)) if count > 1 else [torch.cuda.current_device() if device.index is None else device.index]


def replicate(encoder: nn.Module, config: Tier1Config, device: torch.device) -> nn.Module:
    """The encoder itself, or on several GPUs a DataParallel that splits each batch evenly among them."""
    count = count_replicas(config, device)
    if count == 1:
        return encoder
    distributed.avoid_hangs()
    _say_once(count)
    return nn.DataParallel(encoder).train(encoder.training)  # a new module is in training mode


@cache
def _say_once(count: int) -> None:
    logger.info("using DataParallel across %d GPUs", count)


def unwrap(module: Module) -> Module:
    """What is inside a parallel wrapper, DataParallel or DistributedDataParallel; or the module itself."""
    return module.module if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else module


def device_of(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """Where to compute with a retriever: as said, or where it is; on all GPUs if it is inside a DataParallel."""
    if device is not None:
        return torch.device(device)
    found = unwrap(model).device
    return torch.device(found.type) if isinstance(model, nn.DataParallel) else found


def clear_cache(config: Tier1Config) -> None:
    """Gives unused GPU memory back to the driver, if `config.clear_cuda_cache`."""
    if config.clear_cuda_cache and torch.cuda.is_available():
        torch.cuda.empty_cache()


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; to a GPU by way of pinned memory, so that the copy takes its turn behind other work.

    An ordinary copy to a GPU makes the program wait until all that was asked of the GPU before is done.
    """
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
