"""Row 18: texts that a spreadsheet would execute, and numbers that JSON cannot write."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
from report.test_report import make_evaluations, make_result

from maw.config.tier1_config import Tier1Config
from maw.errors import MAWError
from maw.report import layout
from maw.report.tables.csv_file import write_csv
from maw.storage.files import json_line, write_json

STARTS = ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"]
REST = ["1+1", "SUM(A1)", "cmd|' /C calc'!A0", 'HYPERLINK("http://x","y")', "", "x", '"', ",", "\n=1", "2-3"]
NUMBERS = [-0.5, -3, 0.0, 1e-300, -1.5e300, np.float32(-0.25), np.float64(2.5), 7]


def cells_are_harmless(seed: int, folder: Path) -> None:
    """A table of hostile texts and of numbers, as a spreadsheet would read it."""
    source = random.Random(f"report {seed}")
    texts = [source.choice(STARTS) + source.choice(REST) for _ in range(8)]
    path = write_csv(folder / f"{seed}.csv", ["id", "value"], list(zip(texts, NUMBERS, strict=True)))
    with path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.reader(lines))[1:]
    for text, number, (cell, value) in zip(texts, NUMBERS, rows, strict=True):
        assert cell == f"'{text}", (cell, text)
        assert float(value) == float(number) and not value.startswith("'")


def json_is_strict(seed: int, folder: Path) -> None:
    source = random.Random(f"json {seed}")
    bad = source.choice([float("nan"), float("inf"), -np.inf, np.float32("nan"), np.array([0.0, np.nan])])
    keys = [source.choice(STARTS) + str(number) for number in range(3)]
    for value in (bad, [bad], {keys[0]: bad}, {keys[1]: [{keys[2]: bad}]}):
        with pytest.raises(MAWError, match="is not a finite number"):
            write_json(folder / f"{seed}.json", value)
        with pytest.raises(ValueError, match=r".*"):
            json_line(value)
    assert not (folder / f"{seed}.json").exists()
    back = json.loads(
        write_json(folder / f"{seed}.json", dict.fromkeys(keys, -1.5)).read_text(), parse_constant=strict
    )
    assert back == dict.fromkeys(keys, -1.5)


def strict(name: str):
    raise AssertionError(f"{name} in JSON")


def test_reports_are_harmless(tmp_path, repeats, trial):
    for seed in range(repeats(10, 50)):
        with trial(18, "tables", seed):
            cells_are_harmless(seed, tmp_path)
        with trial(18, "JSON files", seed):
            json_is_strict(seed, tmp_path)


def test_control_a_cell_that_stays_a_formula_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("maw.report.tables.csv_file._cell", lambda cell: cell)
    with pytest.raises(AssertionError):
        cells_are_harmless(0, tmp_path)
    monkeypatch.setattr("maw.storage.files._plain", lambda value, keys: value)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - pytest's own, of what did not raise
        json_is_strict(0, tmp_path)
    assert not isinstance(caught.value, KeyboardInterrupt)


def test_the_files_of_a_run_are_strict_and_harmless(tmp_path):
    evaluations = make_evaluations(queries=5)
    for evaluation in evaluations.values():
        evaluation.query_ids[:] = ["=1+1", "+x", "-2", "@a", "\t=1"]
    result = make_result(evaluations, "tiny", venue='=HYPERLINK("http://x")', warnings=["=1+1"])
    layout.write_dataset(tmp_path, result, evaluations, "20250106_143022")
    layout.write_summary(tmp_path, [result])
    for path in tmp_path.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=strict)
    for path in tmp_path.rglob("*.csv"):
        with path.open(newline="", encoding="utf-8") as lines:
            cells = [cell for row in csv.reader(lines) for cell in row]
        assert not [cell for cell in cells if cell[:1] in tuple("=+@\t\r\n") and cell[:1]]


def test_the_configuration_of_a_hostile_run_is_json(tmp_path):
    config = Tier1Config(query_prefix="=1+1\n", log_dir=str(tmp_path))
    assert json.loads(json_line(config.to_dict()))["query_prefix"] == "=1+1\n"
