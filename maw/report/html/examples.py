"""Wins and losses: real queries, and what two methods ranked first for each, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maw.evaluation.metrics import METRIC_LABELS
from maw.report.html.markup import Markup, details, element, joined, paragraph
from maw.report.significance_marks import label_of

_OPENINGS = {"won": "Largest gains", "lost": "Largest losses"}


def examples(found: Mapping[str, Any]) -> Markup:
    """All comparisons of which examples were kept.

    Args:
        found: the content of examples.json; nothing is shown where it is empty.
    """
    if not found.get("comparisons"):
        return Markup("")
    label = METRIC_LABELS.get(found["metric"], found["metric"])
    opening = paragraph(
        f"Queries on which two methods differ most in {label}, chosen by the size of the difference: they show what "
        "it looks like, not what is typical. A green edge marks a relevant passage.",
        class_="soft",
    )
    return opening + joined(_comparison(found, key, chosen) for key, chosen in found["comparisons"].items())


def _comparison(found: Mapping[str, Any], key: str, chosen: Mapping[str, list[str]]) -> Markup:
    new, old = key.split("_vs_")
    parts: list[Markup] = []
    for kind, opening in _OPENINGS.items():
        if chosen.get(kind):
            parts.append(element("h5", f"{opening} of {label_of(new)}"))
            parts += [_query(found, query, (new, old)) for query in chosen[kind]]
    return element("h4", f"{label_of(new)} against {label_of(old)}") + joined(parts)


def _query(found: Mapping[str, Any], query: str, methods: tuple[str, str]) -> Markup:
    about = found["queries"][query]
    values = [found["values"][method].get(query) for method in methods]
    sides = element("div", *(_side(found, query, method) for method in methods), class_="sides")
    shown = [_relevant(found, each) for each in about["relevant"]]
    more = about["number_relevant"] - len(shown)
    relevant = details(
        f"Relevant passages: {about['number_relevant']:,}",
        *shown,
        paragraph(f"and {more:,} more", class_="soft") if more > 0 else "",
    )
    summary = (
        element("span", about["text"], class_="query"),
        element("span", f" {values[0]:.3f} against {values[1]:.3f}", class_="soft"),
    )
    return details(joined(summary, ""), sides, relevant)


def _side(found: Mapping[str, Any], query: str, method: str) -> Markup:
    ranking = found["rankings"].get(method, {}).get(query, [])
    items = [
        element("li", _passage(found, each), value=each["rank"])
        if each["passage"] in found["texts"]
        else element("li", each["passage"], value=each["rank"])
        for each in ranking
    ]
    seed = found.get("seeds", {}).get(method)
    heading = element("h6", f"{label_of(method)}{'' if seed is None else f', seed {seed}'}")
    return element("div", heading, element("ol", *items))


def _relevant(found: Mapping[str, Any], each: Mapping[str, Any]) -> Markup:
    if each["passage"] not in found["texts"]:
        return paragraph(f"{each['passage']} is not in the corpus that was searched", class_="soft")
    return _passage(found, each)


def _passage(found: Mapping[str, Any], each: Mapping[str, Any]) -> Markup:
    text, grade = found["texts"][each["passage"]], each.get("grade")
    about = [each["passage"]]
    about += [f"score {each['score']:.4f}"] if "score" in each else []
    good = grade is not None and grade >= found.get("relevance_level", 1)
    about += ["not judged"] if grade is None else [f"grade {grade}, {'relevant' if good else 'not relevant'}"]
    relevant = " relevant" if good else ""
    body = element("div", text["text"], " …" if text["cut"] else "", class_=f"passage{relevant}")
    return element("div", element("span", ", ".join(about), class_="soft"), body)
