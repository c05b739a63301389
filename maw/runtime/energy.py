"""How much energy something takes: measured where the machine tells, else estimated from stated assumptions.

    with EnergyMeter(gpus=[0]) as meter:
        ...
        meter.taken()                # Energy(joules=..., measured_joules=...)

Processors are measured by the counters of Linux's power capping (RAPL), which root alone may read on most machines:
those of the packages and, where it is counted apart, of memory; whatever else runs on the machine is counted, too.
Else `WATTS_PER_CORE` is taken for each second of processor time of this process, and memory is left out. GPUs are
measured by the counters of NVML (from Volta on), where nvidia-ml-py is installed; else `WATTS_PER_GPU` is taken for
each second and GPU. Disks, cooling and the power supply's losses are in neither.

Both assumptions are what Green Algorithms takes for hardware that it does not know: Lannelongue, Grealey and Inouye
(2021), Green Algorithms: Quantifying the Carbon Footprint of Computation, https://doi.org/10.1002/advs.202100707, its
tables TDP_cpu and TDP_gpu. On a given machine they may be wrong by a factor of two or more; methods of a run compare.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maw.runtime import distributed

WATTS_PER_CORE = 12.0
WATTS_PER_GPU = 200.0
POWERCAP = Path("/sys/class/powercap")
_POLL_SECONDS = 60.0  # a package's counter starts again after about 260 kJ: nine minutes at 500 W


@dataclass(frozen=True)
class Energy:
    """An amount of energy, and how much of it was measured and not estimated."""

    joules: float
    measured_joules: float

    def __sub__(self, other: Energy) -> Energy:
        return Energy(self.joules - other.joules, self.measured_joules - other.measured_joules)

    def stretched(self, factor: float) -> Energy:
        """That of something that took `factor` times as long at the same mean power; what is added is an estimate."""
        return Energy(self.joules * factor, self.measured_joules)


class EnergyMeter:
    """Counts from the moment it is entered.

    Args:
        gpus: numbers of the CUDA devices that are used.
    """

    def __init__(self, gpus: Sequence[int] = ()):
        self.gpus = len(gpus)
        self._packages = _Packages() if distributed.this_process().local_rank == 0 else None
        self._nvml = _Nvml.of(gpus)
        self._stop = threading.Event()

    def __enter__(self) -> EnergyMeter:
        self._seconds, self._processor_seconds = time.perf_counter(), time.process_time()
        self._packages_start = self._packages.joules() if self._packages else 0.0
        self._gpus_start = self._nvml.joules() if self._nvml else 0.0
        if self._packages:
            threading.Thread(target=self._poll, name="energy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def taken(self) -> Energy:
        """Since it was entered; of several processes together, all of which must ask."""
        measured = estimated = 0.0
        if self._packages:
            measured += self._packages.joules() - self._packages_start
        elif not _Packages.readable():
            estimated += WATTS_PER_CORE * (time.process_time() - self._processor_seconds)
        if self._nvml:
            measured += self._nvml.joules() - self._gpus_start
        else:
            estimated += WATTS_PER_GPU * self.gpus * (time.perf_counter() - self._seconds)
        sums = distributed.all_reduce_sum_(torch.tensor([measured + estimated, measured], dtype=torch.float64))
        return Energy(*sums.tolist())

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self._packages.joules()


def sources(gpus: Sequence[int] = ()) -> dict[str, str]:
    """How energy is found on this machine, in words: of "processors" and, where there are any, of "GPUs"."""
    if _Packages.readable():
        processors = "measured by RAPL: packages, and memory where it is counted apart, of the whole machine"
    else:
        processors = f"estimated: {WATTS_PER_CORE:g} W for each second of processor time of this program"
    if not gpus:
        return {"processors": processors}
    measured = "measured by NVML: the boards that were used"
    return {
        "processors": processors,
        "GPUs": measured if _Nvml.of(gpus) else f"estimated: {WATTS_PER_GPU:g} W for each second and GPU",
    }


class _Packages:
    """The energy counters of processor packages and of memory, by RAPL."""

    def __init__(self) -> None:
        self._lock, self._total = threading.Lock(), 0.0
        self._zones = self._found()
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in self._zones]
        self._last = [_number(zone / "energy_uj") for zone in self._zones]

    def __bool__(self) -> bool:
        return bool(self._zones)

    @classmethod
    def readable(cls) -> bool:
        """Whether there are any that may be read."""
        return bool(cls._found())

    @staticmethod
    def _found() -> list[Path]:
        zones = []
        for zone in sorted(POWERCAP.glob("intel-rapl:*")):  # AMD's too; "psys" holds the packages once more
            try:
                name = (zone / "name").read_text().strip()
                if name.startswith("package") or name == "dram":
                    _number(zone / "energy_uj"), _number(zone / "max_energy_range_uj")
                    zones.append(zone)
            except (OSError, ValueError):
                return []  # a part of them would look like all
        return zones

    def joules(self) -> float:
        """Counted since this object was made; to be asked before any counter has gone round."""
        with self._lock:
            now = [_number(zone / "energy_uj") for zone in self._zones]
            for before, after, size in zip(self._last, now, self._ranges, strict=True):
                self._total += (after - before + (size if after < before else 0)) / 1e6
            self._last = now
            return self._total


class _Nvml:
    """The energy counters of GPUs, by NVIDIA's management library."""

    def __init__(self, library: Any, handles: Sequence[Any]):
        self._library, self._handles = library, handles

    @classmethod
    def of(cls, gpus: Sequence[int]) -> _Nvml | None:
        """Those of CUDA devices by their numbers; None where there are none, or one cannot be read."""
        if not gpus:
            return None
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            names = [f"GPU-{torch.cuda.get_device_properties(each).uuid}" for each in gpus]
            found = cls(pynvml, [pynvml.nvmlDeviceGetHandleByUUID(name) for name in names])
            found.joules()
        except pynvml.NVMLError:
            return None
        return found

    def joules(self) -> float:
        """Counted since the driver was loaded."""
        return sum(self._library.nvmlDeviceGetTotalEnergyConsumption(each) for each in self._handles) / 1e3


def _number(path: Path) -> int:
    return int(path.read_text())
