"""Energy: counters that wrap around, and devices that cannot be read and are left out."""

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
from maw.runtime.energy import EnergyMeter, sources


@pytest.fixture(autouse=True)
def powercap(monkeypatch, tmp_path):
    """No counters, until a test makes some."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return tmp_path


def zone(folder, name, microjoules, size=1_000_000_000):
    folder.mkdir(exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{size}\n")
    (folder / "new").write_text(f"{microjoules}\n")
    (folder / "new").replace(folder / "energy_uj")  # at once, as the kernel's files change


def test_without_counters_nothing_is_measured():
    with EnergyMeter() as meter:
        assert meter.joules() == {}
    assert sources() == {"processors": "not measured"}
    assert sources([0]) == {"processors": "not measured", "GPUs": "not measured"}


def test_packages_and_memory_are_measured_and_the_rest_is_not(powercap):
    zone(powercap / "intel-rapl:0", "package-0", 5_000_000)
    zone(powercap / "intel-rapl:0:0", "core", 0)
    zone(powercap / "intel-rapl:0:1", "dram", 1_000_000)
    zone(powercap / "intel-rapl:1", "psys", 0)
    zone(powercap / "intel-rapl-mmio:0", "package-0", 0)
    with EnergyMeter() as meter:
        zone(powercap / "intel-rapl:0", "package-0", 9_000_000)
        zone(powercap / "intel-rapl:0:0", "core", 500_000_000)
        zone(powercap / "intel-rapl:0:1", "dram", 1_500_000)
        zone(powercap / "intel-rapl:1", "psys", 500_000_000)
        assert meter.joules() == {"processors": pytest.approx(4.5)}
    assert sources()["processors"].startswith("measured by RAPL")


def test_a_counter_that_has_gone_round_goes_on(powercap):
    zone(powercap / "intel-rapl:0", "package-0", 900_000_000)
    with EnergyMeter() as meter:
        zone(powercap / "intel-rapl:0", "package-0", 100_000_000)
        assert meter.joules() == {"processors": pytest.approx(200)}
        zone(powercap / "intel-rapl:0", "package-0", 50_000_000)
        assert meter.joules() == {"processors": pytest.approx(1150)}


def test_counters_are_read_often_enough_to_see_them_go_round(powercap, monkeypatch):
    monkeypatch.setattr(energy, "_POLL_SECONDS", 0.001)
    zone(powercap / "intel-rapl:0", "package-0", 900_000_000)
    with EnergyMeter() as meter:
        (counter,) = meter._counters["processors"]
        for microjoules in (100_000_000, 900_000_000, 100_000_000):
            zone(powercap / "intel-rapl:0", "package-0", microjoules)
            for _ in range(2000):
                if counter.last == microjoules:
                    break
                time.sleep(0.001)
        assert meter.joules() == {"processors": pytest.approx(1200)}


def test_one_counter_that_may_not_be_read_leaves_all_unmeasured(powercap):
    zone(powercap / "intel-rapl:0", "package-0", 0)
    (powercap / "intel-rapl:1").mkdir()
    (powercap / "intel-rapl:1" / "name").write_text("package-1")
    with EnergyMeter() as meter:
        assert meter.joules() == {}
    assert sources() == {"processors": "not measured"}


def test_a_counter_that_goes_away_is_not_measured_any_more(powercap, caplog):
    zone(powercap / "intel-rapl:0", "package-0", 0)
    zone(powercap / "intel-rapl:1", "package-1", 0)
    with EnergyMeter() as meter:
        zone(powercap / "intel-rapl:0", "package-0", 5_000_000)
        assert meter.joules() == {"processors": 5}
        (powercap / "intel-rapl:1" / "energy_uj").unlink()
        assert meter.joules() == {} == meter.joules()
    assert caplog.text.count("the energy of processors is not measured any more") == 1


@pytest.mark.parametrize("before, total", [({"processors": 7.0, "GPUs": 9.0}, {"processors": 12}), ({}, {})])
def test_what_an_interrupted_training_took_is_added(powercap, before, total):
    """Only of devices that were measured before and after."""
    zone(powercap / "intel-rapl:0", "package-0", 0)
    with EnergyMeter() as meter:
        meter.before = before
        zone(powercap / "intel-rapl:0", "package-0", 5_000_000)
        assert meter.joules() == total


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


def test_gpus_are_measured_by_their_identity(monkeypatch):
    library = FakeNvml(a=5000, b=1000, c=0)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: types.SimpleNamespace(uuid="cab"[gpu]))
    with EnergyMeter([1, 2]) as meter:
        library.millijoules = {"a": 7000, "b": 1500, "c": 10**9}
        assert meter.joules() == {"GPUs": 2.5}
    assert sources([1]) == {"processors": "not measured", "GPUs": "measured by NVML (the boards that were used)"}


@pytest.mark.parametrize("library", [None, FakeNvml(), FakeNvml(a=5000)])
def test_gpus_without_a_counter_each_are_not_measured(monkeypatch, powercap, library):
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: types.SimpleNamespace(uuid="ab"[gpu]))
    zone(powercap / "intel-rapl:0", "package-0", 0)
    with EnergyMeter([0, 1]) as meter:
        zone(powercap / "intel-rapl:0", "package-0", 3_000_000)
        assert meter.joules() == {"processors": 3}
    assert sources([0, 1])["GPUs"] == "not measured"


def test_which_gpus_are_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    config = Tier1Config()
    assert used_gpus(config, torch.device("cpu")) == []
    assert used_gpus(config, torch.device("cuda")) == [0, 1, 2]
    assert used_gpus(config, torch.device("cuda:2")) == [2]
    assert used_gpus(replace(config, use_multi_gpu=False), torch.device("cuda")) == [1]
