"""Tables for papers: numbers, bold values, letters, and names that would be markup."""

from __future__ import annotations

import re

import pytest

from maw.report.tables.paper import COLUMNS, latex, markdown, paper_tables
from report.test_page import whole_result


@pytest.fixture(scope="module")
def run():
    return whole_result(datasets=("pystdlib", "msmarco"))


def test_values_best_and_letters(run):
    results, families = run
    overview, first, second, claims = paper_tables(results, families)
    assert overview.header[0] == "Method" and len(overview.header) == 3
    assert [name for name, _ in first.rows] == ["(a) Zero-shot", "(b) LoRA Fine-tuned", "(c) MAW Fine-tuned"]
    keys = list(results[0]["results"])
    for (_, cells), key in zip(first.rows, keys):
        assert [cell.text for cell in cells] == [f"{results[0]['results'][key]['metrics'][m]:.4f}" for m in COLUMNS]
    for column in range(len(COLUMNS)):
        texts = [cells[column].text for _, cells in first.rows]
        assert [cells[column].strong for _, cells in first.rows] == [text == max(texts) for text in texts]
    assert second.name == "msmarco" and len(claims.rows) == 2


def test_letters_go_by_the_corrected_p_of_the_run(run):
    results, families = run
    test = results[0]["significance"]["maw_vs_zeroshot"]["map"]
    row = next(
        row
        for row in families[1]["comparisons"]
        if (row["dataset"], row["comparison"], row["metric"]) == ("pystdlib", "maw_vs_zeroshot", "map")
    )
    assert test["mean_difference"] > 0
    for p, marks in ((0.049, "a"), (0.051, "")):
        row["p_holm"] = p
        test["p_holm"] = 1 - p
        table = next(table for table in paper_tables(results, families) if table.name == "pystdlib")
        letters = table.rows[2][1][COLUMNS.index("map")].letters
        assert ("a" in letters) == bool(marks)
    alone = next(table for table in paper_tables(results) if table.name == "pystdlib")
    assert "in the dataset" in alone.caption and "in the run" in table.caption


def test_latex_is_balanced_and_uses_booktabs(run):
    text = latex(*run)
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 4
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 4
    assert re.search(r"\(c\) MAW Fine-tuned & .*\\textbf\{0\.\d{4}\}\$\^\{a", text)
    unescaped = re.sub(r"\\[{}]", "", text)
    assert unescaped.count("{") == unescaped.count("}")
    assert text.count("$") % 2 == 0
    for tabular in re.findall(r"\\midrule\n(.*?)\\bottomrule", text, re.DOTALL):
        columns = {line.count(" & ") for line in tabular.strip().splitlines()}
        assert len(columns) == 1


def test_markdown_has_a_cell_for_every_column(run):
    for block in markdown(*run).strip().split("\n\n")[1::2]:
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        assert len({len(row) for row in rows}) == 1 and rows[1][0].strip() == "---"
    assert re.search(r"\*\*0\.\d{4}\*\* <sup>a", markdown(*run))


def test_names_are_no_markup():
    hostile = "a_b & 50% $x$ #1 {y} ~ ^ \\input{z} | <b> `c` [d](e)"
    results, families = whole_result(datasets=("pystdlib", "msmarco"), venue=hostile)
    text = latex(results, families)
    escaped_name = (
        r"a\_b \& 50\% \$x\$ \#1 \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}input\{z\} | $<$b$>$"
    )
    assert escaped_name in text and r"\input{z}" not in text
    table = markdown(results, families)
    assert r"a\_b \& 50% $x$ \#1 \{y\} \~ ^ \\input\{z\} \| \<b\> \`c\` \[d\](e)" in table
