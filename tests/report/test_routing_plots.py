"""The routing pictures show the numbers of the history, and leave out what it lacks."""

from __future__ import annotations

import math

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from maw.errors import MAWError
from maw.report.figures import routing_plots

CHEAP = {
    "depth_histogram": [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]],
    "effective_depths": [2.8, 1.0],
    "top_share": [0.5, 1],
}
POLICY = {"policy_entropy": [1.0, 0.5], "text_depth_mutual_information": [0.1, 0.3], "depth_distance": 0.01}
FULL = {"per_depth": [0.3, 0.5, 0.4], "oracle": 0.6, "best_fixed": 0.5, "greedy": 0.45, "shuffled": None}


def record(epoch, value, side):
    routing = {name: dict(side) for name in ("query", "document")}
    return {"epoch": epoch, "train_loss": 1 / epoch, "val_ndcg_cut_10": value, "val_routing": routing}


@pytest.fixture
def history():
    return [record(1, 0.4, CHEAP | POLICY), record(2, 0.45, CHEAP | POLICY | FULL), record(3, 0.45, CHEAP | POLICY)]


def result(history):
    return {"venue": "Tiny", "results": {"3_maw_fine_tuned_retriever": {"training_history": history}}}


def drawn(history, kept):
    """Title -> axis, of every panel."""
    found = {}
    for name, draw in routing_plots._panels(history, kept):
        found[name] = Figure().subplots()
        draw(found[name])
    return found


def lines(axis):
    return {line.get_label(): list(line.get_ydata()) for line in axis.lines}


def test_each_routed_method_gets_a_picture(history, tmp_path):
    everything = result(history)
    everything["results"] |= {"1_normal_retriever": {}, "2_lora_fine_tuned_retriever": {"training_history": [{}]}}
    (path,) = routing_plots.write_routing_plots(tmp_path, everything)
    assert path == tmp_path / "routing_maw.png" and [path] == list(tmp_path.iterdir())
    height, width, _ = imread(path).shape
    assert width > 1000 and height > 1000


def test_the_panels_show_the_history(history):
    axes = drawn(history, history[1])
    assert len(axes) == 10
    assert lines(axes["Training loss"]) == {"_child0": pytest.approx([1, 1 / 2, 1 / 3])}
    assert lines(axes["Validation nDCG@10"]) == {
        "router": [0.4, 0.45, 0.45],
        "oracle of queries": [0.6],
        "best fixed depth of queries": [0.5],
    }
    assert lines(axes["Policy entropy (nats)"]) == {
        "queries": [0.75] * 3,  # the mean over MAW layers
        "documents": [0.75] * 3,
        "uniform policy": [math.log(3)] * 2,
    }
    assert lines(axes["Effective number of greedy depths"])["all depths alike"] == [3, 3]
    bars = axes["Greedy depths, documents"].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([0.75, 0.125, 0.125])
    depths = lines(axes["nDCG@10 with queries at one depth"])
    assert depths.pop("_child0") == [0.3, 0.5, 0.4]
    assert depths == {"oracle 0.6000": [0.6] * 2, "router 0.4500": [0.45] * 2, "best fixed depth 0.5000": [0.5] * 2}


def test_what_is_not_there_is_not_drawn(history):
    bare = [record(1, 0.4, CHEAP)]
    names = list(drawn(bare, bare[0]))
    assert len(names) == 6 and not any("entropy" in name or "at one depth" in name for name in names)
    random = [record(1, 0.4, CHEAP | FULL | {"depth_distance": None})]
    assert not any("entropy" in name for name in drawn(random, random[0]))


def test_a_single_epoch_is_drawn(tmp_path):
    routing_plots.write_routing_plot(tmp_path / "one.png", "MAW", [record(1, 0.0, CHEAP | POLICY | FULL)])
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written_is_named(history, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MAWError, match="file"):
        routing_plots.write_routing_plots(tmp_path / "file", result(history))
