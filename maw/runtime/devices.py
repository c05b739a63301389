"""The device of a run, and DataParallel over several GPUs.

`nn.DataParallel` splits a batch evenly and gathers the outputs on the first GPU. Losses, rewards and negatives use the
gathered batch, and routing noise is drawn before the split (`maw.attention.noise.noise_keys`). So the number of GPUs
changes results only by rounding and dropout.
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
    """`config.device`, or the first visible GPU, or the CPU; with several processes, the GPU of the local rank.

    Raises:
        MAWError: the device does not exist, or one GPU is named for several processes.
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
    """Number of devices that share a batch: all GPUs, unless one is named or `use_multi_gpu` is off."""
    if device.type != "cuda" or device.index is not None or not config.use_multi_gpu:
        return 1
    return max(1, torch.cuda.device_count())


def used_gpus(config: Tier1Config, device: torch.device) -> list[int]:
    """Indices of the CUDA devices that this process uses."""
    if device.type != "cuda":
        return []
    count = count_replicas(config, device)
    return list(range(count)) if count > 1 else [torch.cuda.current_device() if device.index is None else device.index]


def replicate(encoder: nn.Module, config: Tier1Config, device: torch.device) -> nn.Module:
    """The encoder, or with several GPUs the encoder in a DataParallel."""
    count = count_replicas(config, device)
    if count == 1:
        return encoder
    distributed.avoid_hangs()
    _say_once(count)
    return nn.DataParallel(encoder).train(encoder.training)  # a new module starts in training mode


@cache
def _say_once(count: int) -> None:
    logger.info("using DataParallel across %d GPUs", count)


def unwrap(module: Module) -> Module:
    """The module inside DataParallel or DistributedDataParallel; otherwise the module itself."""
    return module.module if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else module


def device_of(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """The device to compute on: `device`, or the model's own; all GPUs for a DataParallel."""
    if device is not None:
        return torch.device(device)
    found = unwrap(model).device
    return torch.device(found.type) if isinstance(model, nn.DataParallel) else found


def clear_cache(config: Tier1Config) -> None:
    """Returns unused GPU memory to the driver, if `config.clear_cuda_cache`."""
    if config.clear_cuda_cache:
        torch.cuda.empty_cache()  # does nothing without CUDA


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`. Copies to a GPU go through pinned memory and are asynchronous.

    An ordinary copy to a GPU would wait for all work queued there.
    """
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
