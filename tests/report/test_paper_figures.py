"""Figures for papers: the list, the content of the files, and the same bytes for the same results."""

from __future__ import annotations

import re
import zlib

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch

from maw.config.methods import METHODS, look_of
from maw.errors import MAWError
from maw.report import chart_data
from maw.report.figures import paper_figures
from maw.report.html import charts
from report.test_attention_page import an_attention
from report.test_page import HOSTILE, whole_result


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    (result,), _ = whole_result()
    folder = tmp_path_factory.mktemp("figures")
    return folder, result, paper_figures.write_figures(folder, result, an_attention())


def test_each_figure_is_there_as_pdf_and_svg(written):
    folder, _, paths = written
    names = ["ndcg_cut_10", "recall", "training", "routing_maw", "attention_maw", "attention_maw_tokens"]
    assert [path.name for path in paths] == [f"{name}.{form}" for name in names for form in ("pdf", "svg")]
    assert sorted(paths) == sorted((folder / "figures").iterdir())


def test_fonts_are_embedded_as_truetype_and_the_width_is_a_columns(written):
    for path in written[2]:
        content = path.read_bytes()
        if path.suffix == ".pdf":
            streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL)
            whole = content + b"".join(map(unpacked, streams))
            assert b"/FontFile2" in whole and b"/Type3" not in whole, path.name
            box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", whole)
            assert float(box[1]) == pytest.approx(3.33 * 72, abs=0.5)
        else:
            text = content.decode()
            assert "<text" not in text and "<image" not in text, "outlines, and no picture that blurs"
            assert float(re.search(r'width="([\d.]+)pt"', text)[1]) == pytest.approx(3.33 * 72, abs=0.5)


def unpacked(stream):
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return b""


def test_the_same_results_make_the_same_bytes(written, tmp_path):
    _, result, paths = written
    again = paper_figures.write_figures(tmp_path, result, an_attention())
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_the_numbers_are_those_of_the_result(written):
    result = written[1]
    figure = Figure()
    paper_figures._bars(figure, result)
    bars = [patch.get_width() for patch in figure.axes[0].patches]
    assert bars == [record["metrics"]["ndcg_cut_10"] for record in result["results"].values()]
    figure = Figure()
    paper_figures._recall(figure, result)
    expected = [record["metrics"]["recall_1000"] for record in result["results"].values()]
    assert [line.get_ydata()[-1] for line in figure.axes[0].lines] == expected
    figure = Figure()
    by_head, by_depth, *_ = chart_data.grids(an_attention()["maw"])
    paper_figures._maps(figure, [by_head, by_depth])
    cells = [sum(len(patch.get_path().vertices) // 5 for patch in shades(axis)) for axis in figure.axes[:2]]
    assert cells == [np.count_nonzero(by_head.values), np.count_nonzero(by_depth.values)]
    blue, orange = sorted(shades(figure.axes[1]), key=lambda patch: patch.get_facecolor()[0])
    assert blue.get_path().vertices[0].tolist() == [1, 2], "token 1 receives less at depth 2"
    assert orange.get_path().vertices[:4].tolist() == [[0, 2], [1, 2], [1, 3], [0, 3]]


def shades(axis):
    return [patch for patch in axis.patches if isinstance(patch, PathPatch)]


def test_only_what_a_run_has_is_drawn(tmp_path):
    (result,), _ = whole_result(("zero_shot",))
    names = {path.stem for path in paper_figures.write_figures(tmp_path, result, {})}
    assert names == {"ndcg_cut_10", "recall"}


def test_texts_are_not_read_as_mathematics(tmp_path, recwarn):
    (result,), _ = whole_result(("zero_shot", "maw"))
    tokens = ("$\\frac$", HOSTILE, "\ud800", "\u4e2d$_{$")
    paper_figures.write_figures(tmp_path, result, an_attention(tokens))
    assert not recwarn.list


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (result,), _ = whole_result(("zero_shot",))
    (tmp_path / "figures").write_text("")
    with pytest.raises(MAWError, match="figures"):
        paper_figures.write_figures(tmp_path, result, {})


def test_methods_can_be_told_apart_without_colour_and_those_of_the_user_by_marker_alone():
    for dashes, markers in ((paper_figures._DASHES, paper_figures._MARKERS), (charts._DASHES, charts._MARKERS)):
        looks = [(dashes[look % len(dashes)], markers[look % len(markers)]) for look in map(look_of, METHODS)]
        assert len(set(looks)) == len(METHODS)
        assert len({markers[look_of(each) % len(markers)] for each in METHODS if each.by_default}) == 3
