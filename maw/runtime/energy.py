"""Energy as the machine measures it: processors by RAPL, GPUs by NVML. Nothing is estimated.

    with EnergyMeter(gpus=[0]) as meter:
        meter.joules()               # {"processors": 5120.3, "GPUs": 30718.9}; {} where nothing is measured

RAPL is Linux's power capping; on most machines only root may read it. NVML needs nvidia-ml-py and a GPU from Volta on.
A kind of device counts only if all its counters can be read. A partial reading would look complete, so it is dropped.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from maw.runtime import distributed

logger = logging.getLogger(__name__)

SOURCES = {
    "processors": "RAPL (packages of the whole machine, and memory where it is counted apart)",
    "GPUs": "NVML (the boards that were used)",
}
POWERCAP = Path("/sys/class/powercap")
_POLL_SECONDS = 60.0  # a package's counter starts again after about 260 kJ: nine minutes at 500 W


class EnergyMeter:
    """Counts from the moment it is entered.

    Args:
        gpus: numbers of the CUDA devices that are used.

    Attributes:
        before: joules that an interrupted training had taken; they are added. None if it was not interrupted.
    """

    def __init__(self, gpus: Sequence[int] = ()):
        self.before: dict[str, float] | None = None
        self._gpus, self._lock, self._stop = gpus, threading.Lock(), threading.Event()

    def __enter__(self) -> EnergyMeter:
        self._counters = _find_counters(self._gpus)
        if distributed.this_process().local_rank != 0:
            self._counters["processors"] = [_Counter(lambda: 0)]  # the machine's first process counts them
        elif self._counters["processors"]:
            threading.Thread(target=self._poll, name="energy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def joules(self) -> dict[str, float]:
        """Joules of each kind of device measured so far; of several processes together, all of which must ask."""
        self._update()
        found = [[sum(each.total for each in counters), not counters] for counters in self._counters.values()]
        sums = distributed.all_reduce_sum_(torch.tensor(found, dtype=torch.float64)).tolist()
        joules = {
            kind: total / 1e6 for kind, (total, missing) in zip(self._counters, sums, strict=True) if not missing
        }
        before = dict.fromkeys(joules, 0.0) if self.before is None else self.before
        return {kind: value + before[kind] for kind, value in joules.items() if kind in before}

    def _update(self) -> None:
        with self._lock:
            for kind, counters in self._counters.items():
                try:
                    for each in counters:
                        each.update()
                except (OSError, ValueError) as error:
                    logger.warning("the energy of %s is not measured any more: %s", kind, error)
                    self._counters[kind] = []

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self._update()


def sources(gpus: Sequence[int] = ()) -> dict[str, str]:
    """How each kind of device in use is measured on this machine, in words."""
    found = _find_counters(gpus)
    used = found if gpus else ("processors",)
    return {kind: f"measured by {SOURCES[kind]}" if found[kind] else "not measured" for kind in used}


class _Counter:
    """A counter of microjoules, which starts again from 0 behind `size`."""

    def __init__(self, read: Callable[[], int | str], size: int = 0):
        self.read, self.size, self.last, self.total = read, size, int(read()), 0

    def update(self) -> None:
        now = int(self.read())
        self.total += now - self.last + (self.size if now < self.last else 0)
        self.last = now


def _find_counters(gpus: Sequence[int]) -> dict[str, list[_Counter]]:
    """The counters of each kind of device; none where one of them cannot be read."""
    found: dict[str, list[_Counter]] = {"processors": [], "GPUs": []}
    with contextlib.suppress(OSError, ValueError):
        found["processors"] = [
            _Counter((zone / "energy_uj").read_text, int((zone / "max_energy_range_uj").read_text()))
            for zone in sorted(POWERCAP.glob("intel-rapl:*"))  # AMD's, too
            if (zone / "name").read_text().startswith(("package", "dram"))  # "psys" holds the packages once more
        ]
    with contextlib.suppress(OSError, ImportError):
        found["GPUs"] = [_Counter(partial(_gpu_energy, gpu)) for gpu in gpus]
    return found


def _gpu_energy(gpu: int) -> int:
    import pynvml

    try:
        pynvml.nvmlInit()  # does nothing after the first call
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(gpu).uuid}")
        return 1000 * pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        raise OSError(f"NVML: {error}") from error
