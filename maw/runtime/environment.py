"""Environment of a run: command, package versions, processor, GPUs, peak memory.

`dataset.json` stores it as "environment", so a report made on another machine shows that of the run.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from maw import __version__

_PACKAGES = ("torch", "transformers", "peft", "datasets", "ir_datasets", "pytrec-eval-terrier", "numpy", "scipy")
_PACKAGES += ("statsmodels", "faiss-cpu", "faiss-gpu")
_ENTRYPOINT = "tier_1.py"


def environment_facts(began_with: str | None = None) -> dict[str, Any]:
    """JSON-able facts about this process and machine; unknown ones are left out.

    "command" is `began_with`, the command line that started a resumed run, or else that of this process.
    "peak_memory_bytes" is the process's peak so far, "peak_gpu_memory_bytes" the peak of tensors on all GPUs.
    """
    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    facts: dict[str, Any] = {
        "version": __version__,
        "command": began_with or command(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": packages,
        "peak_memory_bytes": _peak_memory(),
    }
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        facts["gpus"] = [torch.cuda.get_device_name(each) for each in devices]
        facts["peak_gpu_memory_bytes"] = sum(torch.cuda.max_memory_allocated(each) for each in devices)
    return {key: value for key, value in facts.items() if value is not None}


def command() -> str | None:
    """The command line of this run, quoted for a shell; None in a notebook or another program."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    return shlex.join(["python", name, *sys.argv[1:]]) if name == _ENTRYPOINT else None


def _processor() -> str | None:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or platform.processor() or None


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
