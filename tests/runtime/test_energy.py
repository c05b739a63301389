"""Energy: counters that go round, parts that cannot be read, and estimates by the assumptions that are stated."""

from __future__ import annotations

import sys
import time
import types
from dataclasses import replace

import pytest
import torch

from maw.config.tier1_config import Tier1Config
from maw.runtime import energy
from maw.runtime.devices import used_gpus
from maw.runtime.energy import WATTS_PER_CORE, WATTS_PER_GPU, Energy, EnergyMeter, sources


@pytest.fixture(autouse=True)
def powercap(monkeypatch, tmp_path):
    """No counters, until a test makes some."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return tmp_path


@pytest.fixture
def clock(monkeypatch):
    """Time as the test has it."""
    made = types.SimpleNamespace(seconds=100.0, processor=7.0)
    monkeypatch.setattr(energy.time, "perf_counter", lambda: made.seconds)
    monkeypatch.setattr(energy.time, "process_time", lambda: made.processor)
    return made


def zone(folder, name, microjoules, size=1_000_000_000):
    folder.mkdir(exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{size}\n")
    (folder / "new").write_text(f"{microjoules}\n")
    (folder / "new").replace(folder / "energy_uj")  # at once, as the kernel's files change


def test_without_counters_processor_time_is_what_counts(clock):
    with EnergyMeter() as meter:
        clock.seconds, clock.processor = 110.0, 22.0
        assert meter.taken() == Energy(15 * WATTS_PER_CORE, 0.0)
    assert sources() == {"processors": "estimated: 12 W for each second of processor time of this program"}


def test_packages_and_memory_are_measured_and_the_rest_is_not(powercap, clock):
    zone(powercap / "intel-rapl:0", "package-0", 5_000_000)
    zone(powercap / "intel-rapl:0:0", "core", 0)
    zone(powercap / "intel-rapl:0:1", "dram", 1_000_000)
    zone(powercap / "intel-rapl:1", "psys", 0)
    zone(powercap / "intel-rapl-mmio:0", "package-0", 0)
    with EnergyMeter() as meter:
        clock.processor = 1000.0
        zone(powercap / "intel-rapl:0", "package-0", 9_000_000)
        zone(powercap / "intel-rapl:0:0", "core", 500_000_000)
        zone(powercap / "intel-rapl:0:1", "dram", 1_500_000)
        zone(powercap / "intel-rapl:1", "psys", 500_000_000)
        assert meter.taken() == Energy(pytest.approx(4.5), pytest.approx(4.5))
    assert sources()["processors"].startswith("measured by RAPL")


def test_a_counter_that_has_gone_round_goes_on(powercap):
    zone(powercap / "intel-rapl:0", "package-0", 900_000_000)
    with EnergyMeter() as meter:
        zone(powercap / "intel-rapl:0", "package-0", 100_000_000)
        assert meter.taken().joules == pytest.approx(200)
        zone(powercap / "intel-rapl:0", "package-0", 50_000_000)
        assert meter.taken().joules == pytest.approx(1150)


def test_counters_are_read_often_enough_to_see_them_go_round(powercap, monkeypatch):
    monkeypatch.setattr(energy, "_POLL_SECONDS", 0.001)
    zone(powercap / "intel-rapl:0", "package-0", 900_000_000)
    with EnergyMeter() as meter:
        for microjoules in (100_000_000, 900_000_000, 100_000_000):
            zone(powercap / "intel-rapl:0", "package-0", microjoules)
            for _ in range(2000):
                if meter._packages._last == [microjoules]:
                    break
                time.sleep(0.001)
        assert meter.taken().joules == pytest.approx(1200)


def test_one_counter_that_may_not_be_read_leaves_all_to_the_estimate(powercap, clock):
    zone(powercap / "intel-rapl:0", "package-0", 0)
    (powercap / "intel-rapl:1").mkdir()
    (powercap / "intel-rapl:1" / "name").write_text("package-1")
    with EnergyMeter() as meter:
        clock.processor += 1
        assert meter.taken() == Energy(WATTS_PER_CORE, 0.0)


class FakeNvml(types.ModuleType):
    """NVIDIA's library, with a counter for each board; one that has none refuses."""

    class NVMLError(Exception):
        pass

    def __init__(self, **millijoules):
        super().__init__("pynvml")
        self.millijoules = millijoules

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, name):
        return name.removeprefix("GPU-")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if handle not in self.millijoules:
            raise self.NVMLError
        return self.millijoules[handle]


def test_gpus_are_measured_by_their_identity(monkeypatch, clock):
    library = FakeNvml(a=5000, b=1000, c=0)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: types.SimpleNamespace(uuid="cab"[gpu]))
    with EnergyMeter([1, 2]) as meter:
        library.millijoules = {"a": 7000, "b": 1500, "c": 10**9}
        clock.processor += 2
        assert meter.taken() == Energy(2.5 + 2 * WATTS_PER_CORE, 2.5)
    assert sources([1])["GPUs"] == "measured by NVML: the boards that were used"


@pytest.mark.parametrize("library", [None, FakeNvml()])
def test_gpus_without_counters_are_taken_to_be_busy(monkeypatch, clock, library):
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: types.SimpleNamespace(uuid="a"))
    with EnergyMeter([0, 3]) as meter:
        clock.seconds += 5
        assert meter.taken() == Energy(2 * 5 * WATTS_PER_GPU, 0.0)
    assert sources([0])["GPUs"] == "estimated: 200 W for each second and GPU"


def test_what_was_not_metered_is_an_estimate():
    assert Energy(10.0, 8.0).stretched(1.5) == Energy(15.0, 8.0)
    assert Energy(10.0, 8.0) - Energy(4.0, 3.0) == Energy(6.0, 5.0)


def test_which_gpus_are_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    config = Tier1Config()
    assert used_gpus(config, torch.device("cpu")) == []
    assert used_gpus(config, torch.device("cuda")) == [0, 1, 2]
    assert used_gpus(config, torch.device("cuda:2")) == [2]
    assert used_gpus(replace(config, use_multi_gpu=False), torch.device("cuda")) == [1]
