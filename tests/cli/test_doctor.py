"""`doctor`: the problems that it finds, and its advice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tier_1
from maw.cli import doctor
from maw.cli.doctor import Check
from maw.config.tier1_config import Tier1Config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tiny_settings, tiny_beir):
    return tiny_settings(datasets=[f"beir:{tiny_beir}"])


def problems(checks):
    return [check for check in checks if not check.ok]


def flags(config):
    return ["--datasets", *config.datasets, "--model", config.model, "--cache-dir", config.cache_dir]


def test_a_machine_that_has_everything(config, capsys, tmp_path):
    assert tier_1.main(["doctor", *flags(config), "--log-dir", str(tmp_path / "logs")]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == "everything is there"
    assert all(line.startswith("ok ") for line in shown.splitlines()[:-1])
    for words in (
        "Python 3.",
        "packages at the tested version",
        "torch ",
        "cache folder",
        "its weights are here",
        "dataset beir",
    ):
        assert words in shown
    assert not (tmp_path / "logs").exists(), "nothing stays written"


def test_the_default_run_without_a_network(tmp_path):
    """From the shell, as a new user without a network has it: every line that is missing, and exit code 1."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "IR_DATASETS_HOME": str(tmp_path / "ir"),
        "MAW_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(ROOT / "tier_1.py"), "doctor"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and done.stderr == ""
    assert "problem  model facebook/contriever: config.json is not in the local cache" in done.stdout
    assert done.stdout.count("model facebook/contriever") == 1, "one thing is missing, and is said once"
    for name in ("msmarco", "nq", "hotpotqa", "triviaqa"):
        assert f"problem  dataset {name}: " in done.stdout
    assert done.stdout.count("--preset offline") >= 4


def test_what_is_missing_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(doctor, "_pins", lambda: {"numpy": "1.0", "no-such-package": "2.0"})
    found = list(doctor.packages())
    assert [check.ok for check in found] == [False, True, True]
    assert found[0].remedy == "pip install no-such-package==2.0"
    assert "numpy" in found[1].text and "not 1.0" in found[1].text
    assert found[2].text.startswith("0 of 2 packages")
    assert str(found[0]).splitlines()[1] == "         -> pip install no-such-package==2.0"


def test_an_old_python():
    assert not doctor.python_version((3, 10, 4)).ok
    assert doctor.python_version((3, 11, 0)).ok and doctor.python_version((4, 0, 0)).ok


def test_two_faisses_at_once(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: "1.15.1")
    (check,) = doctor.faiss(Tier1Config())
    assert not check.ok and "pip uninstall" in check.remedy
    monkeypatch.setattr(doctor, "_installed", lambda name: None)
    (check,) = doctor.faiss(Tier1Config())
    assert check.ok


def test_folders_that_cannot_be_used(config, monkeypatch, tmp_path):
    usage = type("usage", (), {"free": 10**9})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    assert [check.remedy.startswith("free disk space") for check in problems(doctor.folders(config))] == [True, True]
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    (check,) = problems(doctor.folders(Tier1Config(cache_dir=str(tmp_path / "file" / "cache"))))
    assert "cannot write to" in check.text and "--cache-dir" in check.remedy


def test_a_folder_without_weights(config, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(config.model, folder)
    config.model = str(folder)
    assert not problems(doctor.model(config))
    (folder / "model.safetensors").unlink()
    (check,) = doctor.model(config)
    assert not check.ok and "no weights" in check.text


def test_wrong_flags_are_lines_too(capsys):
    assert tier_1.main(["doctor", "--preset", "offline", "--seed", "x", "--bach-size", "2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "problem  --seed: must be a whole number, got 'x'" in lines
    assert "problem  --bach-size: no such flag (did you mean --batch-size?)" in lines
    assert any(line.startswith("ok       torch") for line in lines), "the other checks are done anyway"


def test_a_device_that_is_not_there(config):
    found = list(doctor._guarded(doctor.torch_and_device, Tier1Config(device="cuda:9")))
    assert [check.ok for check in found] == [False] and "cuda:9" in found[0].text


def test_pins_are_those_of_the_requirements():
    pins = doctor._pins()
    assert pins["torch"] and len(pins) == len(
        [line for line in (ROOT / "requirements-common.txt").read_text().splitlines() if "==" in line]
    )
    assert Check(True, "x").remedy == ""


def test_help_says_what_it_does(capsys):
    assert tier_1.main(["doctor", "--help"]) == 0
    assert "python tier_1.py doctor" in capsys.readouterr().out
