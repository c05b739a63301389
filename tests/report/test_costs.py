"""Costs: what is summed, what is an estimate and what is not known, the same in every report."""

from __future__ import annotations

import csv
import json

import pytest

from maw.report.html.page import report_page
from maw.report.layout import write_summary
from maw.report.text.costs import COST_HEADER, cost_rows, cost_table, costs, energy_kind, energy_note, size, watt_hours
from report.test_page import Page, whole_result
from report.test_report import make_evaluations, make_result

HOW = {"energy": {"processors": "estimated: 12 W", "GPUs": "measured by NVML"}}


def with_costs(measured=0.0, search=None):
    """A result whose three methods say what they took; MAW was tuned and ran twice."""
    (result,), _ = whole_result(environment=HOW)
    for record in result["results"].values():
        record["evaluation"] = {"embeddings": "computed", "embedding_bytes": 1_536_000} | (search or {})
        for run in record["runs"]:
            run["energy"] = {"training_joules": 3600.0, "evaluation_joules": 360.0, "measured_joules": measured}
    maw = result["results"]["3_maw_fine_tuned_retriever"]
    maw["runs"] *= 2
    trial = {
        "val_ndcg_cut_10": 0.4,
        "steps": 5,
        "optimizer_steps": 5,
        "seconds": 7.0,
        "joules": 1800.0,
        "measured_joules": measured,
    }
    maw["tuning"] = [{"trials": [trial, trial], "seconds": 14.0, "chosen": {}, "chosen_trial": 1}]
    return result


def test_runs_and_trials_are_summed():
    result = with_costs()
    took = costs(result["results"]["3_maw_fine_tuned_retriever"])
    assert took["energy_joules"] == 2 * 3960 + 2 * 1800 and took["measured_joules"] == 0
    assert took["steps"] == 2 * 9 + 2 * 5 and took["training_seconds"] == 2 * 40 + 14
    assert took["search"] == "exact" and took["index_bytes"] is None
    assert list(took) == list(COST_HEADER[3:])
    measured = costs(with_costs(100.0)["results"]["3_maw_fine_tuned_retriever"])["measured_joules"]
    assert measured == 2 * 100 + 2 * 100


@pytest.mark.parametrize("measured, kind", [(0.0, "estimated"), (1800.0, "partly measured")])
def test_it_is_said_what_is_an_estimate(measured, kind):
    result = with_costs(measured)
    assert energy_kind(result) == kind
    assert "processors estimated: 12 W; GPUs measured by NVML" in energy_note(result)
    text = "".join(Page(report_page([result])).text)
    assert f"energy, Wh, {kind}" in text and energy_note(result) in text
    assert f"Wh, {kind}" in cost_table(result)


def test_all_measured():
    result = with_costs(3960.0)
    result["results"]["3_maw_fine_tuned_retriever"]["tuning"] = []
    assert energy_kind(result) == "measured"


def test_an_approximate_index_is_named_with_its_size():
    result = with_costs(search={"search": {"index": "ivf"}, "index_bytes": 2_000_000, "embeddings": "from cache"})
    assert costs(result["results"]["1_normal_retriever"])["search"] == "ivf"
    assert "2.0 MB ivf" in cost_table(result) and "1.5 MB" in cost_table(result)
    text = "".join(Page(report_page([result])).text)
    assert "2.0 MB ivf" in text and "embeddings from cache" in text


def test_an_earlier_versions_results_leave_cells_empty():
    result = make_result(make_evaluations())
    assert cost_table(result) == "" and energy_note(result) == ""
    rows = list(cost_rows([result]))
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
