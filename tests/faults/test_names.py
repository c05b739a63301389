"""Row 16: names of datasets and runs that would lead to other folders, or control a terminal or a shell."""

from __future__ import annotations

import random
import re
import string
from pathlib import Path

import pytest
from report.test_report import make_evaluations, make_result

from faults.tools import tree
from maw.config.tier1_config import SAFE_NAME, Tier1Config
from maw.data.dataset_table import DATASETS
from maw.data.registry import load_collection
from maw.errors import ConfigError, DataError, MAWError
from maw.experiment.config_checks import validate
from maw.report import layout

PIECES = [
    "../", "..\\", "/", "\\", "\0", "\n", "\r", "\t", " ", "~", "$(id)", "`id`", ";", "|", "*", "?", "<b>", "'", '"',
    "\u202e", "\u0301", "\U0001f600", "%2e%2e%2f", "C:", "x" * 300, "\x1b[2J", "=1+1", "\ud800", "-", ".",
]  # fmt: skip


def hostile_name(source: random.Random) -> str:
    """A name that no allow-list takes: at least one piece of the above, and letters."""
    while True:
        pieces = [source.choice([*PIECES, *string.ascii_letters]) for _ in range(source.randint(1, 6))]
        name = "".join(pieces)
        if not SAFE_NAME.fullmatch(name) and not re.fullmatch(layout._SAFE_NAME, name):
            return name


def refused_by_name(name: str, folder: Path) -> None:
    """As a dataset, a BEIR folder, judgements, and the folder of a run's results: refused, with nothing written."""
    inside = folder / "inside" / "logs"
    inside.mkdir(parents=True, exist_ok=True)
    before = tree(folder)
    config = Tier1Config(cache_dir=str(folder / "cache"))
    for dataset in (name, f"beir:{name}", f"beir:{folder}@{name}"):
        with pytest.raises(DataError) as caught:
            load_collection(dataset, config)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 600
    try:
        Tier1Config(datasets=[name])
    except ConfigError:
        pass  # not even a name
    else:
        with pytest.raises(ConfigError, match=r"^datasets: unknown dataset"):
            validate(Tier1Config(datasets=[name], model="packaged:none"))
    evaluations = make_evaluations(("zero_shot",), queries=3)
    for dataset, stamp in ((name, "20250106_143022"), ("tiny", name)):
        with pytest.raises(MAWError, match="cannot name a folder"):
            layout.write_dataset(inside, make_result(evaluations, dataset), evaluations, stamp)
    assert tree(folder) == before


def test_hostile_names_are_refused(tmp_path, repeats, trial):
    for seed in range(repeats(10, 200)):
        with trial(16, "names of datasets and runs", seed):
            refused_by_name(hostile_name(random.Random(f"name {seed}")), tmp_path)


def test_a_folder_of_a_hostile_name_is_refused(tmp_path, repeats, trial):
    config = Tier1Config(cache_dir=str(tmp_path / "cache"))
    for seed in range(repeats(10, 200)):
        name = hostile_name(random.Random(f"folder {seed}"))
        if "/" in name or "\0" in name or name in (".", ".."):
            continue  # no name of a folder
        try:
            (tmp_path / "a" / name).mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError):  # no file system takes it either
            continue
        with trial(16, "names of BEIR folders", seed), pytest.raises(DataError) as caught:
            load_collection(f"beir:{tmp_path / 'a' / name}", config)
        assert str(caught.value).isprintable()


def test_control_a_name_that_is_let_through_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "_SAFE_NAME", re.compile(".*", re.DOTALL))
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - pytest's own, of what did not raise
        refused_by_name("../escaped", tmp_path)
    assert "DID NOT RAISE" in str(caught.value)


def test_names_that_are_allowed_are_few():
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in DATASETS)
