"""Where a run computes: the device, and DataParallel over several GPUs."""

from __future__ import annotations

import logging

import torch
from torch import nn

from maw import distributed
from maw.config import Tier1Config
from maw.errors import MAWError

logger = logging.getLogger(__name__)


def pick_device(config: Tier1Config) -> torch.device:
    """`config.device`, or the first visible GPU, or the CPU; of several processes each has a GPU of its own.

    Raises:
        MAWError: the device named is not there, or one GPU is named for several processes.
    """
    name = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if distributed.together() and name.startswith("cuda"):
        if name != "cuda":
            raise MAWError(f"--device {name}: each process has a GPU of its own; leave --device out, or use cuda")
        name = f"cuda:{distributed.place().local_rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MAWError(f"--device {name}: {str(error).splitlines()[0]}") from error
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
    logger.info("using DataParallel across %d GPUs", count)
    return nn.DataParallel(encoder).train(encoder.training)  # a new module is in training mode


def unwrap(encoder: nn.Module) -> nn.Module:
    """The encoder inside a parallel wrapper."""
    return encoder.module if isinstance(encoder, nn.DataParallel) else encoder


def clear_cache(config: Tier1Config) -> None:
    """Gives unused GPU memory back to the driver, if `config.clear_cuda_cache`."""
    if config.clear_cuda_cache and torch.cuda.is_available():
        torch.cuda.empty_cache()
