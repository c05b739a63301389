"""Costs: what is summed, what is measured and what is not known, the same in every report."""

from __future__ import annotations

import copy
import csv
import json

import pytest

from maw.report.html.page import report_page
from maw.report.layout import write_summary
from maw.report.rebuild import find_folders, write_reports
from maw.report.text.costs import (
    COST_HEADER,
    cost_note,
    cost_rows,
    cost_table,
    costs,
    energy_devices,
    size,
    watt_hours,
)
from report.test_page import Page, whole_result
from report.test_report import STAMP, make_evaluations, make_result

MAW = "3_maw_fine_tuned_retriever"
BOTH = ("processors", "GPUs")


def with_costs(devices=BOTH, search=None):
    """A result whose three methods say what they took; MAW was tuned and ran twice."""
    (result,), _ = whole_result()
    for record in result["results"].values():
        record["evaluation"] = {"embeddings": "computed", "embedding_bytes": 1_536_000} | (search or {})
        for run in record["runs"]:
            run["energy"] = {"training_joules": 3600.0, "evaluation_joules": 360.0, "measured_joules": 3960.0}
            run["energy"] = {key: value if devices else None for key, value in run["energy"].items()}
            run["energy"]["measured_devices"] = list(devices)
    maw = result["results"][MAW]
    maw["runs"] = [copy.deepcopy(run) for run in maw["runs"] * 2]
    joules = 1800.0 if devices else None
    trial = {
        "val_ndcg_cut_10": 0.4,
        "steps": 5,
        "optimizer_steps": 5,
        "seconds": 7.0,
        "joules": joules,
        "measured_joules": joules,
        "measured_devices": list(devices),
    }
    maw["tuning"] = [{"trials": [trial, dict(trial)], "seconds": 14.0, "chosen": {}, "chosen_trial": 1}]
    return result


def of_an_earlier_version(measured):
    """The same as an earlier version wrote it: estimates, of which a part was measured."""
    result = with_costs()
    result["environment"]["energy"] = {"processors": "estimated: 12 W", "GPUs": "measured by NVML"}
    for record in result["results"].values():
        trials = [trial for search in record.get("tuning", ()) for trial in search["trials"]]
        for each in (*(run["energy"] for run in record["runs"]), *trials):
            del each["measured_devices"]
            each["measured_joules"] = measured
    return result


def shown(result):
    """The text of the page and of the summary's table."""
    return "".join(Page(report_page([result])).text), cost_table(result)


def test_runs_and_trials_are_summed():
    took = costs(with_costs()["results"][MAW])
    assert took["energy_joules"] == took["measured_joules"] == 2 * 3960 + 2 * 1800
    assert took["measured_devices"] == "processors and GPUs"
    assert took["steps"] == 2 * 9 + 2 * 5 and took["training_seconds"] == 2 * 40 + 14
    assert took["search"] == "exact" and took["index_bytes"] is None
    assert list(took) == list(COST_HEADER[3:])


@pytest.mark.parametrize(
    "devices, named", [(BOTH, "processors and GPUs"), (BOTH[:1], "processors"), (BOTH[1:], "GPUs")]
)
def test_it_is_said_what_was_measured(devices, named):
    result = with_costs(devices)
    assert energy_devices(result) == named
    note = cost_note(result)
    assert ("RAPL" in note, "NVML" in note) == ("processors" in devices, "GPUs" in devices)
    page, table = shown(result)
    assert f"energy, Wh, {named}" in page and note in page
    header, _, *rows = table.splitlines()[:5]
    assert header.endswith(f"Wh, {named}") and [row.split()[-1] for row in rows] == ["1.1", "1.1", "3.2"]


@pytest.mark.parametrize("result", [with_costs(()), of_an_earlier_version(0.0), of_an_earlier_version(1800.0)])
def test_without_a_measurement_reports_have_no_energy(result, tmp_path):
    for text in shown(result):
        assert "Wh" not in text and "Energy" not in text and "1.5 MB" in text
    folder = write_summary(tmp_path, [result])
    with (folder / "costs.csv").open() as file:
        (header, *rows) = csv.reader(file)
    assert tuple(header) == COST_HEADER[:-3] and len(rows) == 3


def test_one_unmeasured_training_leaves_its_method_without_energy():
    """As a resumed run has it whose first process could not measure."""
    result = with_costs()
    result["results"][MAW]["runs"][0]["energy"] |= {"measured_joules": None, "measured_devices": []}
    assert costs(result["results"][MAW])["energy_joules"] is None
    page, table = shown(result)
    assert "energy, Wh" in page and table.splitlines()[4].split()[-1] == "-"


def test_energy_of_different_devices_is_not_set_side_by_side(tmp_path):
    result = with_costs()
    result["results"]["1_normal_retriever"]["runs"][0]["energy"]["measured_devices"] = ["GPUs"]
    assert all("Wh" not in text for text in shown(result))
    with (write_summary(tmp_path, [result]) / "costs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["measured_devices"] for row in rows] == ["GPUs", "processors and GPUs", "processors and GPUs"]
    result["results"][MAW]["tuning"][0]["trials"][0]["measured_devices"] = ["GPUs"]
    assert costs(result["results"][MAW])["energy_joules"] is None


def test_reports_of_an_earlier_versions_run(tmp_path):
    """`report` reads a folder with estimates, and leaves them out of what it writes."""
    folder = tmp_path / f"pystdlib_{STAMP}"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(of_an_earlier_version(0.0)))
    summary = write_reports(tmp_path, find_folders(tmp_path))
    assert "joules" not in (summary / "costs.csv").read_text()
    assert "Wh" not in (summary / "benchmark_summary.txt").read_text()
    assert "Wh" not in "".join(Page((summary / "report.html").read_text()).text)
    kept = json.loads((summary / "all_results.json").read_text())["pystdlib"]["results"]
    assert kept["2_lora_fine_tuned_retriever"]["runs"][0]["energy"]["training_joules"] == 3600


def test_an_approximate_index_is_named_with_its_size():
    result = with_costs(search={"search": {"index": "ivf"}, "index_bytes": 2_000_000, "embeddings": "from cache"})
    assert costs(result["results"]["1_normal_retriever"])["search"] == "ivf"
    assert "2.0 MB ivf" in cost_table(result) and "1.5 MB" in cost_table(result)
    text = "".join(Page(report_page([result])).text)
    assert "2.0 MB ivf" in text and "embeddings from cache" in text


def test_an_earlier_versions_results_leave_cells_empty():
    result = make_result(make_evaluations())
    assert cost_table(result) == "" and energy_devices(result) == ""
    _, rows = cost_rows([result])
    assert [row[1] for row in rows] == ["zero_shot", "lora", "maw"] and rows[0][-1] is None
    assert not Page(report_page([result])).errors


def test_the_table_of_a_run(tmp_path):
    folder = write_summary(tmp_path, [with_costs()])
    with (folder / "costs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["zero_shot", "lora", "maw"] and tuple(rows[0]) == COST_HEADER
    assert float(rows[2]["energy_joules"]) == 11520 and rows[0]["index_bytes"] == ""
    results = json.loads((folder / "all_results.json").read_text())["pystdlib"]["results"]
    assert float(rows[1]["ndcg_cut_10"]) == results["2_lora_fine_tuned_retriever"]["metrics"]["ndcg_cut_10"]


def test_units():
    assert [size(each) for each in (None, 0, 999, 1000, 1_536_000, 27_000_000_000)] == [
        "-", "0 B", "999 B", "1.0 kB", "1.5 MB", "27.0 GB",
    ]  # fmt: skip
    assert [watt_hours(each) for each in (None, 66.76, 3600, 7.2e6)] == ["-", "0.0185", "1", "2,000"]
