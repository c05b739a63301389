"""The heat maps of the page: their content, shade and place, and that no token becomes markup."""

from __future__ import annotations

import re

import pytest

from maw.report.chart_data import SHADES, Grid, grids
from maw.report.html.heatmap import grid_table, heat_map
from maw.report.html.page import environment, report_page
from report.test_page import HOSTILE, Page, parts, whole_result


def attention(found):
    """templates/attention.html of one dataset."""
    template = environment().get_template("attention.html")
    return template.render(result={"dataset": "d"}, attention_of={"d": found}).strip()


def drawn(grid):
    return parts().figure(heat_map(grid))


def an_attention(tokens=("[CLS]", "sort", "##ing", "[SEP]"), depths=3, **changes):
    """Content of attention.json for one method: depth 1 in use, head 2 of 2 the one shown."""
    count = len(tokens)
    even = [[1 / count] * count for _ in tokens]
    first = [[1.0] + [0.0] * (count - 1) for _ in tokens]
    received = [[1 / count] * count for _ in range(depths)]
    received[depths - 1] = first[0]
    found = {
        "query_id": "q7",
        "text": "sorting",
        "tokens": list(tokens),
        "cut": False,
        "layer": 6,
        "head": 2,
        "heads": 2,
        "depths": depths,
        "router": "grpo",
        "route_by": "sequence",
        "picks": [0.0, 1.0] + [0.0] * (depths - 2),
        "distance": [[0.0] * depths, [0.25, 0.0] + [0.75] * (depths - 2)],
        "distance_pretrained": [0.0, 0.5],
        "pretrained": even,
        "used": even,
        "farthest": depths - 1,
        "at_farthest": first,
        "received": received,
    }
    return {"maw": found | changes}


def cells(svg, kind):
    """(x, y) of each cell of a kind -> its opacity, as numbers of column and row."""
    paths = [each for each in Page(svg).all("path") if each["class"] == kind]
    wide, high = (float(each) for each in re.search(r"h([\d.]+)v([\d.]+)", paths[0]["d"]).groups())
    return {
        (round((float(x) - 92) / wide), round((float(y) - 8) / high)): float(path["fill-opacity"])
        for path in paths
        for x, y in re.findall(r"M([\d.]+) ([\d.]+)", path["d"])
    }


def test_cells_have_the_shade_of_their_value_and_their_place():
    values = [[0.0, 0.5, -1.0], [0.25, 0.01, 1.0]]
    svg = drawn(Grid("t", "row", "column", ["a", "b"], ["0", "1", "2"], values, signed=True))
    assert cells(svg, "heat s1") == {(1, 0): 0.5, (0, 1): 0.25, (2, 1): 1.0}
    assert cells(svg, "heat s0") == {(2, 0): 1.0}
    label = next(each["aria-label"] for each in Page(svg).all("svg"))
    assert "the largest value is -1.00, at row a, column 2" in label
    text = "".join(Page(svg).text)
    assert "+1.00" in text and "-1.00" in text, "the scale is given"
    shares = drawn(Grid("t", "row", "column", ["a"], ["0", "1"], [[0.004, 0.002]]))
    assert cells(shares, "heat s5") == {(0, 0): 1.0, (1, 0): 0.5} and "0.00400" in "".join(Page(shares).text)
    assert SHADES == 8


def test_where_nothing_differs_nothing_is_drawn():
    svg = drawn(Grid("t", "row", "column", ["a"], ["0"], [[0.0]], signed=True))
    assert not Page(svg).all("path") and "every value is zero" in svg
    assert heat_map(Grid("t", "row", "column", [], [], [])) is None


def test_the_numbers_stand_in_a_table_with_what_is_in_use_named():
    grid = Grid("t", "depth", "token", ["0", "1"], ["x", "y"], [[0.5, 0.25], [0.1, 0.0]], marked_rows=[1])
    page = Page(parts().table("t", grid_table(grid)))
    assert [each.strip() for each in page.text if each.strip()] == [
        "t", "depth \\ token", "x", "y", "0", "0.500", "0.250", "1 (in use)", "0.100", "0.000",
    ]  # fmt: skip


def test_what_is_shown_are_differences():
    by_head, by_depth, pretrained, moved, farthest = grids(an_attention()["maw"])
    assert by_head.values == [[0.0, 0.0, 0.0], [0.25, 0.0, 0.75]] and by_head.marked_columns == [1]
    assert by_depth.values[0] == by_depth.values[1] == [0.0] * 4 and by_depth.marked_rows == [1]
    assert by_depth.values[2] == pytest.approx([0.75, -0.25, -0.25, -0.25])
    assert pretrained.values[0] == [0.25] * 4 and not pretrained.signed
    assert moved.values == [[0.0] * 4] * 4 and moved.signed
    assert farthest.values[3] == pytest.approx([0.75, -0.25, -0.25, -0.25]) and "depth, 2" in farthest.title


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, "In use: depth 1."),
        ({"router": "soft", "picks": [0.2, 0.5, 0.3]}, "a mixture of all depths, with most of 1 (50%), 2 (30%), 0"),
        ({"route_by": "token", "picks": [0.0, 0.75, 0.25]}, "In use: by token, depths 1 (75%), 2 (25%)."),
        ({"cut": True}, "cut to the tokens shown"),
    ],
)
def test_the_words_say_what_is_in_use(changes, expected):
    text = " ".join("".join(Page(attention(an_attention(**changes))).text).split())
    assert expected in text
    assert "Layer 6, head 2 of 2" in text and "Training moved 50.00% of this head's attention to other tokens" in text


def test_a_mixture_of_all_marks_none():
    assert grids(an_attention(router="soft", picks=[0.2, 0.5, 0.3])["maw"])[0].marked_columns == []


def test_the_page_has_them_and_stays_well_formed():
    results, families = whole_result()
    found = {"pystdlib": an_attention()}
    page = Page(report_page(results, families, {}, found))
    assert not page.errors and not page.open
    assert "Attention by depth" in "".join(page.text)
    drawings = [each for each in page.all("svg") if each.get("role") == "img"]
    assert len(drawings) == 9 + 5 and all(len(each["aria-label"]) > 20 for each in drawings)
    assert attention({}) == ""


def test_nobodys_token_becomes_a_part_of_the_page():
    results, families = whole_result()
    hostile = an_attention((HOSTILE, '"><script>', "</text><script>", "'"), text=HOSTILE, query_id=HOSTILE)
    page = Page(report_page(results, families, {}, {"pystdlib": hostile}))
    assert not page.errors and not page.open and not page.all("script") and not page.all("img")
    assert "".join(page.text).count("<script>") >= 4


def test_many_depths_and_tokens_are_few_bytes():
    tokens = [f"token{number}" for number in range(16)]
    made = attention(an_attention(tokens, depths=64, heads=12, distance=[[0.1] * 64] * 12))
    assert len(made.encode()) < 150_000
    assert len({path["d"] for path in Page(made).all("path")}) <= 5 * 2 * SHADES
