"""report.html: its answer, its parts, and that no text from outside becomes markup."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from html.parser import HTMLParser
from itertools import combinations, pairwise

import numpy as np
import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from maw.config.methods import METHODS, in_order
from maw.config.tier1_config import Tier1Config
from maw.evaluation import confirmatory, exploratory, method_pairs
from maw.report.chart_data import COLOURS, Bar, Cost, Series, quality_by_cost
from maw.report.html import page as page_module
from maw.report.html.charts import (
    WIDTH,
    _close_ticks,
    _labels,
    _log_ticks,
    _ticks,
    cost_chart,
    histogram,
    interval_chart,
    line_chart,
)
from maw.report.html.page import environment, report_page
from maw.report.html.tables import Table
from report.test_report import make_evaluations, make_result

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>\u202e</style></title><!-- &lt;b&gt; \x1b[2J'
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """A page taken apart: elements in order, their text, and whether every one is closed in its turn."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.text, self.errors = [], [], [], []
        self.inside = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} stands twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)

    def handle_data(self, data):
        self.text.append(data)
        for tag in self.open:
            self.inside.setdefault(tag, []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def parts():
    """The macros of templates/parts.html."""
    return environment().get_template("parts.html").module


def whole_result(names=("zero_shot", "lora", "maw"), datasets=("pystdlib",), **changes):
    """Content of dataset.json with everything that a run records, and the families over the run."""
    result = copy.deepcopy(one_result(tuple(names), tuple(datasets)))
    results = [copy.deepcopy({**result, **changes, "dataset": name}) for name in datasets]
    return results, [confirmatory.over_run(results), exploratory.over_run(results)]


@cache
def one_result(names, datasets):
    evaluations = make_evaluations(names)
    config = Tier1Config(datasets=list(datasets), methods=list(names))
    held = {name: None if name == "zero_shot" else each for name, each in evaluations.items()}
    tests = method_pairs.significance(evaluations, permutations=2000)
    section = confirmatory.confirm(tests, confirmatory.smallest_effects(held, 30, config), config, 2000)
    labelled = exploratory.label(tests, section, config)
    side = {"depth_histogram": [[0.5, 0.25, 0.25]], "effective_depths": [2.8], "policy_entropy": [1.0]}
    history = [
        {
            "epoch": n,
            "train_loss": 1 / n,
            "val_ndcg_cut_10": 0.4 + n / 100,
            "val_routing": {"query": side, "document": side},
        }
        for n in (1, 2, 3)
    ]
    result = make_result(
        evaluations,
        intervals=method_pairs.intervals(evaluations),
        confirmatory=section,
        exploratory=exploratory.about(labelled, config, 2000),
        significance=labelled,
        tested_on={"queries": 30, "qrels_sha256": "a" * 64, "corpus_sha256": "b" * 64, "relevance_level": 1},
        environment={
            "command": "python tier_1.py --preset offline",
            "python": "3.11",
            "peak_memory_bytes": 2_600_000_000,
        },
    )
    for method in in_order(names):
        record = result["results"][method.key]
        own = [
            {key: value for key, value in each.items() if method.name == "maw" or key != "val_routing"}
            for each in history
        ]
        record |= {"training_history": own} if method.trained else {}
        if not method.trained:
            record.pop("training_history")
        record |= {"training_seconds": 40.0, "evaluation_seconds": 5.23}
        record["runs"] = [{"steps": 9, "optimizer_steps": 9, "training_seconds": 40.0}] if method.trained else [{}]
    return result


def an_example(text="a passage", query="a query", identifier="d1"):
    return {
        "metric": "ndcg_cut_10",
        "relevance_level": 1,
        "comparisons": {"maw_vs_lora": {"won": ["q1"], "lost": []}},
        "queries": {"q1": {"text": query, "number_relevant": 5, "relevant": [{"passage": identifier, "grade": 1}]}},
        "values": {"maw": {"q1": 1.0}, "lora": {"q1": 0.25}},
        "seeds": {"maw": 42, "lora": 42},
        "rankings": {
            "maw": {"q1": [{"rank": 1, "passage": identifier, "score": 0.75, "grade": 1}]},
            "lora": {"q1": [{"rank": 1, "passage": "d2", "score": 0.5}]},
        },
        "texts": {identifier: {"text": text, "cut": True}, "d2": {"text": "another", "cut": False}},
    }


@pytest.fixture(scope="module")
def made():
    results, families = whole_result()
    text = report_page(results, families, {"pystdlib": an_example()})
    return results[0], Page(text), text


# ------------------------------------------------------------------------------------------------------- structure


def test_it_is_well_formed_and_self_contained(made):
    _, page, text = made
    assert not page.errors and not page.open
    assert text.startswith("<!doctype html>")
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "img", "object", "embed", "base", "form"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style", "xlink:href")], (
            tag
        )
        assert attributes.get("href", "#").startswith("#")
    (policy,) = [each for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy["content"].startswith("default-src 'none'")
    assert "url(" not in text and "@import" not in text and "http" not in "".join(page.inside["style"])


def test_it_can_be_read_without_eyes_and_by_keyboard(made):
    _, page, _ = made
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link["href"][1:] in ids
    assert page.all("html")[0]["lang"] == "en"
    assert [len(page.all(tag)) for tag in ("main", "nav", "header", "footer", "h1", "title")] == [1] * 6
    levels = [int(tag[1]) for tag, _ in page.elements if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit()]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels)), levels
    assert len(page.all("caption")) == len(page.all("table")) > 4
    assert all(cell["scope"] in ("col", "row") for cell in page.all("th"))
    for drawing in page.all("svg"):
        assert drawing.get("aria-hidden") == "true" or (drawing["role"] == "img" and len(drawing["aria-label"]) > 20)
    for region in (each for each in page.all("div") if "scroll" in each.get("class", "")):
        assert region["tabindex"] == "0" and region["role"] == "group" and region["aria-label"]
    assert all(section.get("aria-labelledby", ids[0]) in ids for section in page.all("section"))
    assert len(page.all("details")) == len(page.all("summary")) >= 5


def test_light_and_dark(made):
    style = "".join(made[1].inside["style"]).replace(": ", ":")
    assert "color-scheme:light dark" in style and "@media (prefers-color-scheme:dark)" in style
    assert style.count("--s9:") == 2 and style.count("{") == style.count("}")


def test_the_light_colours_are_those_of_the_figures(made):
    style = "".join(made[1].inside["style"])
    light = style.partition("@media")[0]
    assert tuple(re.findall(r"--s\d: (#\w{6})", light)) == COLOURS
    for look in range(len(COLOURS)):
        assert f".s{look} {{ --c: var(--s{look}) }}" in style


# --------------------------------------------------------------------------------------------------------- content


def test_the_numbers_are_those_of_the_result(made):
    result, page, _ = made
    text = " ".join(" ".join(page.text).split())
    for method in in_order(("zero_shot", "lora", "maw")):
        assert f"{result['results'][method.key]['metrics']['ndcg_cut_10']:.4f}" in text
        low, high = result["intervals"][method.short]["map"]
        assert f"{low:.4f} to {high:.4f}" in text
    for expected in (
        "python tier_1.py --preset offline",
        "2.60 GB",
        "1,234,567",
        "not zero-shot: the model card names such data",
        "a warning on data",
        "Exploratory tests (29)",
        "Largest gains of MAW Fine-tuned",
        "1.000 against 0.250",
        "d1, score 0.7500, grade 1, relevant",
        "d2, score 0.5000, not judged",
        "and 4 more",
        "Greedy depths of queries at the best epoch, 3",
    ):
        assert expected in text, expected
    assert len([each for each in page.all("svg") if each.get("role") == "img"]) == 2 + 3 + 4


def verdict(p, difference, datasets=("pystdlib",)):
    result = copy.deepcopy(one_result(("zero_shot", "lora", "maw"), datasets))
    results = [copy.deepcopy(result) | {"dataset": name} for name in datasets]
    for result in results:
        tests = result["confirmatory"]["comparisons"]["maw_vs_lora"]
        for test in (tests, result["significance"]["maw_vs_lora"]["ndcg_cut_10"]):
            test.update(p_value=p, p_holm=p, mean_difference=difference)
    families = [confirmatory.over_run(results), exploratory.over_run(results)]
    return " ".join("".join(Page(report_page(results, families)).inside["main"]).split())


def test_the_answer_says_who_wins_and_how_sure_it_is():
    assert "MAW is significantly better than LoRA: nDCG@10 +0.0200" in verdict(0.001, 0.02)
    assert "MAW is significantly worse than LoRA: nDCG@10 -0.0200" in verdict(0.001, -0.02)
    assert "MAW and LoRA do not differ significantly: nDCG@10 +0.0000" in verdict(0.001, 0.0)
    text = verdict(0.4, 0.01)
    assert "MAW and LoRA do not differ significantly: nDCG@10 +0.0100" in text and "p = 0.4000" in text
    assert "This does not show that they are equal. With 30 test queries, this run detects a difference of " in text
    text = verdict(0.03, 0.02, ("pystdlib", "msmarco"))
    assert "MAW does not differ significantly from its controls in any of 2 planned" in text, "0.03 is 0.06 of two"
    assert ", p = 0.0600" in text and "p is corrected" in text
    assert "in 2 of 2 planned comparisons" in verdict(0.001, 0.02, ("pystdlib", "msmarco"))


def test_without_a_confirmatory_test_nothing_is_claimed():
    results, families = whole_result(("zero_shot", "lora"))
    text = report_page(results, families)
    assert "This run has no planned comparison" in text and "exploratory" in text
    alone, families = whole_result(("zero_shot",))
    page = Page(report_page(alone, families))
    assert "This run has no test between methods." in "".join(page.text) and not page.errors


def test_the_first_screen_has_charts_and_what_the_run_covers(made):
    *_, text = made
    answer = text[text.index('id="answer"') : text.index('id="d0"')]
    assert answer.count("<figure>") == 2 and "Coverage" in answer
    covered = Page(answer)
    names = [" ".join(word.split()) for word in covered.inside["dt"]]
    values = " ".join(" ".join(covered.inside["dd"]).split())
    assert names == ["Data", "Methods", "Training", "Evaluated"], "the fixture's model has no name"
    assert "2,000 training queries, 30 test queries" in values and "2025-01-06" in values


def test_the_contents_name_every_section_in_its_order(made):
    _, page, text = made
    contents = text[text.index("<nav") : text.index("</nav>")]
    listed = re.findall(r'href="#([^"]+)"', contents)
    headings = [attributes["id"] for tag, attributes in page.elements if tag in ("h2", "h3") and "id" in attributes]
    assert listed == [each for each in headings if each != "covers"] and len(listed) > 9


def test_all_methods_and_four_datasets_fit():
    names = [method.name for method in METHODS]
    results, families = whole_result(names, ("msmarco", "nq", "hotpotqa", "triviaqa"))
    example = an_example("word " * 120)
    text = report_page(results, families, {result["dataset"]: example for result in results})
    page = Page(text)
    assert not page.errors and len(text.encode()) < 3_000_000
    assert "nDCG@10 on each dataset" in text


def test_a_result_of_an_earlier_version_still_makes_a_page():
    result = make_result(make_evaluations())
    page = Page(report_page([result]))
    assert not page.errors and "This run has no planned comparison" in "".join(page.text)


# --------------------------------------------------------------------------------------------------- hostile texts


def hostile_page():
    results, families = whole_result(
        venue=HOSTILE,
        warnings=[HOSTILE],
        data={HOSTILE: HOSTILE, "splits": {HOSTILE: {HOSTILE: HOSTILE}}, "nested": {HOSTILE: [HOSTILE]}},
        model={"name": HOSTILE},
        environment={"command": HOSTILE, "python": HOSTILE},
        configuration={"datasets": [HOSTILE]},
    )
    return report_page(results, families, {"pystdlib": an_example(HOSTILE, HOSTILE, HOSTILE)})


def test_nobodys_text_becomes_a_part_of_the_page():
    harmless, families = whole_result()
    text = hostile_page()
    page, other = Page(text), Page(report_page(harmless, families, {"pystdlib": an_example()}))
    assert not page.errors and not page.open
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in other.elements}
    names = {name for _, attributes in page.elements for name in attributes}
    assert names <= {name for _, attributes in other.elements for name in attributes}
    assert "\u202e" not in text and "\x1b" not in text
    shown = HOSTILE.replace("\u202e", "\ufffd").replace("\x1b", "\ufffd")
    assert "".join(page.text).count(shown) >= 12, "it is shown as it is"


def test_a_planted_hole_would_be_seen():
    """What is marked as finished is not escaped: the parser above then finds the script."""
    results, families = whole_result(venue=Markup(HOSTILE))
    page = Page(report_page(results, families))
    assert page.errors or "script" in {tag for tag, _ in page.elements}


def test_without_escaping_the_script_would_be_found(monkeypatch):
    unsafe = environment.__wrapped__()
    unsafe.autoescape = False
    monkeypatch.setattr(page_module, "environment", lambda: unsafe)
    page = Page(hostile_page())
    assert page.errors and page.all("script") and page.all("img")


def test_no_template_marks_text_as_finished():
    for name in environment().list_templates():
        text = environment().loader.get_source(environment(), name)[0]
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", text), name


@pytest.mark.parametrize("sign", ["\x00", "\x1b", "\r", "\u200b", "\u202e", "\u2028", "\u2066", "\ud800", "\ufeff"])
def test_what_cannot_be_printed_becomes_a_replacement_character(sign):
    results, families = whole_result(venue=f"a{sign}b")
    found = {"pystdlib": an_example(f"c{sign}d\te")}
    text = report_page(results, families, found)
    assert sign not in text and "a\ufffdb" in text and "c\ufffdd\te" in text


def test_escaping_of_elements_and_attributes():
    found = parts().facts({"<a>": "'\"&", "a_b": {"c": None, "d": True, "e": [], "f": {}, "g": 1234, "h": 0.25}})
    assert "<dt>&lt;a&gt;</dt>\n<dd>&#39;&#34;&amp;</dd>" in found
    words = "".join(Page(found).text).split()
    assert words == [
        "<a>",
        "'\"&",
        "a",
        "b",
        "c",
        "none",
        "d",
        "yes",
        "e",
        "none",
        "f",
        "none",
        "g",
        "1,234",
        "h",
        "0.25",
    ]
    assert parts().table("c", Table(["a"], [])) == ""
    assert 'aria-label="&#34;&gt;"' in parts().table('">', Table(["a"], [["b"]]))


def test_names_that_dictionaries_give_their_methods_are_names_like_others():
    odd = {name: f"the {name}" for name in ("items", "get", "values", "keys", "pop")}
    results, families = whole_result(data={**odd, "splits": {"items": odd}}, environment=odd, configuration=odd)
    example = an_example(identifier="values")
    for part in ("queries", "values", "rankings"):
        example = {**example, part: json.loads(json.dumps(example[part]).replace('"q1"', '"items"'))}
    example["comparisons"] = {"maw_vs_lora": {"won": ["items"], "lost": []}}
    text = " ".join("".join(Page(report_page(results, families, {"pystdlib": example})).text).split())
    assert text.count("the items") == text.count("the pop") == 4
    assert "a query 1.000 against 0.250" in text and "values, score 0.7500" in text


def test_a_name_that_a_template_lacks_is_an_error():
    with pytest.raises(UndefinedError, match="nosuch"):
        environment().from_string("{{ nosuch }}").render()


# ---------------------------------------------------------------------------------------------------------- charts


def drawn(chart):
    return Page(parts().figure(chart))


def test_charts_put_values_where_they_belong():
    lines = line_chart("t", [Series("a", 0, [(1, 0.0), (2, 1.0), (3, None)])], x_name="x", y_name="y")
    (line,) = drawn(lines).all("polyline")
    (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in line["points"].split())
    assert x1 < x2 and y1 > y2, "up the page is more"
    assert line_chart("t", [Series("a", 0, [(1, None)])], x_name="x", y_name="y") is None
    assert parts().figure(None) == ""
    columns = drawn(histogram("t", [0.5, 0.25, 0.25], 0, name="depth")).all("rect")
    heights = [float(each["height"]) for each in columns]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2)
    labels = [int(text) for text in drawn(histogram("t", [1 / 32] * 32, 0, name="depth")).text if text.isdigit()]
    assert labels == list(range(0, 32, 4)), "evenly spread"


def test_intervals_stand_around_their_means_on_an_axis_that_says_it_is_zoomed():
    bars = [Bar("one", 0, 0.52, 0.50, 0.54), Bar("two", 1, 0.53, 0.51, 0.55), Bar("no interval", 2, 0.54)]
    page = drawn(interval_chart("t", bars, name="nDCG"))
    one, two = [each for each in page.all("line") if "interval" in each["class"]]
    x = [float(each[end]) for each in (one, two) for end in ("x1", "x2")]
    assert x[1] - x[0] == pytest.approx(x[3] - x[2], abs=0.2) and x[1] - x[0] == pytest.approx(
        4 * (x[2] - x[0]), abs=1
    )
    (middle,) = page.all("circle")
    assert float(middle["cx"]) == pytest.approx((x[0] + x[1]) / 2, abs=0.2)
    assert "nDCG (zoomed axis)" in page.text and "0.5400" in page.text
    whole = drawn(interval_chart("t", [Bar("one", 0, 0.4, 0.0, 0.8)], name="nDCG"))
    assert "nDCG" in whole.text and "nDCG (zoomed axis)" not in whole.text
    assert interval_chart("t", [], name="nDCG") is None


def test_quality_and_cost():
    near = [Cost("a", 0, 0.5, seconds=10), Cost("b", 1, 0.6, seconds=20)]
    page = drawn(cost_chart("t", near, x_name="seconds", y_name="nDCG"))
    (circle,), (square,) = page.all("circle"), page.all("polygon")
    assert float(circle["cx"]) < float(square["points"].split(",")[0]) and {"a", "b", "seconds"} <= set(page.text)
    assert not page.all("ul"), "names beside their points need no legend"
    many = [Cost(f"a long name {number}", number, 0.5, seconds=10) for number in range(6)]
    crowded = drawn(cost_chart("t", many, x_name="seconds", y_name="nDCG"))
    assert len(crowded.all("li")) == 6 and not any("halo" in each.get("class", "") for each in crowded.all("text"))
    far = [Cost("a", 0, 0.5, seconds=1), Cost("b", 1, 0.6, seconds=500)]
    assert "seconds (logarithmic)" in drawn(cost_chart("t", far, x_name="seconds", y_name="nDCG")).text
    assert cost_chart("t", near[:1], x_name="seconds", y_name="nDCG") is None


def test_cost_over_datasets_is_a_sum_and_quality_a_mean():
    results, _ = whole_result(datasets=("one", "two"))
    first = results[0]["results"]["1_normal_retriever"]
    first["metrics"]["ndcg_cut_10"], first["runtime_seconds"] = 0.4, 100.0
    second = results[1]["results"]["1_normal_retriever"]
    second["metrics"]["ndcg_cut_10"], second["runtime_seconds"] = 0.6, 50.0
    for result, ends in zip(results, ([0.37, 0.43], [0.56, 0.64]), strict=True):
        result["intervals"]["zeroshot"]["ndcg_cut_10"] = ends
    found = quality_by_cost(results)[0]
    assert (found.name, found.value, found.seconds) == ("Zero-shot", pytest.approx(0.5), 150.0)
    assert (found.low, found.high) == (pytest.approx(0.475), pytest.approx(0.525)), "3 and 4 make 5, of two datasets"
    del results[1]["results"]["2_lora_fine_tuned_retriever"]
    assert [each.name for each in quality_by_cost(results)] == ["Zero-shot", "MAW Fine-tuned"]


def test_the_interval_over_datasets_is_that_of_a_bootstrap_over_all_their_queries():
    """Queries of each dataset are drawn anew, and the means of the datasets averaged: skewed values, unequal sizes."""
    generator = np.random.default_rng(3)
    samples = [generator.beta(0.3, scale, size) for scale, size in ((0.1, 60), (1.5, 200), (6.0, 40))]
    draws = [sample[generator.integers(0, len(sample), (20_000, len(sample)))].mean(1) for sample in samples]
    results, _ = whole_result(datasets=("one", "two", "three"))
    for result, sample, means in zip(results, samples, draws, strict=True):
        result["results"]["1_normal_retriever"]["metrics"]["ndcg_cut_10"] = sample.mean()
        result["intervals"]["zeroshot"]["ndcg_cut_10"] = np.quantile(means, [0.025, 0.975]).tolist()
    found = quality_by_cost(results)[0]
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    assert (found.low, found.high) == (
        pytest.approx(low, abs=0.04 * (high - low)),
        pytest.approx(high, abs=0.04 * (high - low)),
    )
    assert found.high - found.value != pytest.approx(found.value - found.low, rel=0.02), "skewed, as its parts are"


def test_labels_of_an_axis_have_the_same_decimals():
    assert _labels([0.5, 0.525, 0.55]) == ["0.500", "0.525", "0.550"] and _labels([0, 1000]) == ["0", "1,000"]
    assert _log_ticks(3, 40) == [2, 5, 10, 20, 50] and _log_ticks(1, 10) == [1, 2, 5, 10]


def boxes(chart):
    """Left, upper, right and lower edge of every text of a chart, in a wide font; an axis' name may be turned."""
    found = {}
    for tag, about, text in chart.shapes:
        if tag == "text":
            x, y, wide = float(about["x"]), float(about["y"]), 7.5 * len(text)
            left = x - wide * (0.5 if "middle" in about["class"] else "end" in about["class"])
            if "transform" in about:
                found[text, x, y] = (x - 10, y - wide / 2, x + 3, y + wide / 2)
            else:
                found[text, x, y] = (left, y - 10, left + wide, y + 3)
    return found


@pytest.mark.parametrize("count", [1, 3, 10])
@pytest.mark.parametrize("low, high", [(0.5, 0.6), (0.0, 1.0), (0.61234, 0.61239), (0.97, 0.98)])
def test_no_label_of_a_chart_is_cut_or_covers_another(count, low, high):
    values = np.linspace(low, high, count)
    names = [f"{'A method with a long name' if n % 2 else 'LoRA'} {n}" for n in range(count)]
    bars = [Bar(name, n, each, each - 0.05, each + 0.05) for n, (name, each) in enumerate(zip(names, values))]
    for seconds in (1.0, 12_345.0):
        costs = [Cost(each.name, each.look, each.value, seconds=seconds * (n + 1)) for n, each in enumerate(bars)]
        lines = [Series("a", 0, [(k, low), (2 * k, high), (1000 * k, high)]) for k in range(1, count + 1)]
        charts = [
            interval_chart("t", bars, name="nDCG@10"),
            cost_chart("t", costs, x_name="seconds of training and test", y_name="nDCG@10"),
            line_chart("t", lines, x_name="k (logarithmic)", y_name="recall", log_x=True),
            histogram("t", [1 / count] * (count + 30), 0, name="depth"),
        ]
        for chart in filter(None, charts):
            found = boxes(chart)
            for text, (left, upper, right, lower) in found.items():
                assert left >= -0.1 and right <= WIDTH + 0.1 and upper >= -1 and lower <= chart.height, text
            for (one, a), (other, b) in combinations(found.items(), 2):
                apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
                assert apart, f"{one} and {other} of {chart.about}"


@pytest.mark.parametrize("low, high", [(0.5442, 0.6605), (0.9, 0.98), (0.61234, 0.61239), (0.02, 0.4), (5.0, 5.0)])
def test_an_axis_of_means_is_as_long_as_their_intervals_or_starts_at_zero(low, high):
    ticks, ends = _close_ticks(low, high)
    assert ends[0] <= low and ends[1] >= high and len(ticks) >= 2
    assert all(ends[0] <= tick <= ends[1] for tick in ticks)
    assert ends[0] == 0 or low == high or (high - low) / (ends[1] - ends[0]) > 0.85


def test_a_logarithmic_axis_spaces_ratios_evenly():
    lines = line_chart("t", [Series("a", 0, [(1, 0.1), (10, 0.2), (100, 0.3)])], x_name="x", y_name="y", log_x=True)
    xs = [float(point.split(",")[0]) for point in drawn(lines).all("polyline")[0]["points"].split()]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
    far = line_chart("t", [Series("a", 0, [(1, 0.1), (1000, 0.3)])], x_name="x", y_name="y", log_x=True)
    assert "1,000" in drawn(far).text


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.0, 0.0), (0.4999, 0.5001), (-3.0, 7.0), (0.0, 1e-9), (5.0, 5.0)])
def test_ticks_enclose_the_values(low, high):
    ticks = _ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and len(ticks) <= 9
    assert len(set(ticks)) == len(ticks) >= 2
