"""report.html, put together: one file, no script, nothing fetched, readable on a phone and by a screen reader.

    text = report_page(results, families, examples)

The answer stands first; below it each dataset, then the machine, the command and the settings. Whatever is long is in
`details`. A content policy in the page forbids it to fetch or run anything, whatever its texts hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maw.evaluation.confirmatory import METRIC
from maw.evaluation.metrics import METRIC_LABELS
from maw.report.html import sections
from maw.report.html.answer import answer
from maw.report.html.attention import attention
from maw.report.html.examples import examples
from maw.report.html.markup import Markup, bullets, details, element, escaped, facts, joined, paragraph, section, table
from maw.report.html.style import STYLE
from maw.report.significance_marks import RunValues, methods_of_run, run_p_values
from maw.report.text.summary import NOTES

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def report_page(
    results: Sequence[Mapping[str, Any]],
    families: Sequence[Mapping[str, Any] | None] = (),
    examples_of: Mapping[str, Mapping[str, Any]] | None = None,
    attention_of: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """The page of a run.

    Args:
        results: the content of each dataset.json, in the order of the run.
        families: the families of tests over all datasets, once all are done.
        examples_of: dataset -> the content of its examples.json, where it has one.
        attention_of: dataset -> the content of its attention.json, where it has one.
    """
    over_run = run_p_values(families)
    title = f"Retrieval benchmark: {', '.join(str(result['venue']) for result in results)}"
    parts = [
        section("answer", 2, "The answer", answer(results, over_run), _overview(results)),
        *(
            _dataset(
                place, result, over_run, *((of or {}).get(result["dataset"], {}) for of in (examples_of, attention_of))
            )
            for place, result in enumerate(results)
        ),
        section("how", 2, "How this was made", *_made(results)),
        section("reading", 2, "How to read the numbers", bullets(NOTES)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n'
        + element(
            "head",
            Markup('<meta charset="utf-8">'),
            Markup('<meta name="viewport" content="width=device-width,initial-scale=1">'),
            Markup(f'<meta http-equiv="Content-Security-Policy" content="{escaped(_POLICY)}">'),
            element("title", title),
            Markup(f"<style>{STYLE}</style>"),
        )
        + "\n"
        + element(
            "body",
            element("a", "Skip to the answer", href="#answer", class_="skip"),
            element("header", element("h1", title), paragraph(_when(results), class_="soft")),
            _contents(results),
            element("main", joined(parts), id="main"),
            element(
                "footer", paragraph("MAW Transformers. Every number of this page is in the JSON files beside it.")
            ),
        )
        + "\n</html>\n"
    )


def _when(results: Sequence[Mapping[str, Any]]) -> str:
    moments = sorted(str(result["evaluated_at"]) for result in results)
    model = str(results[0].get("model", {}).get("name", "")) if results else ""
    when = moments[0] if moments[0] == moments[-1] else f"{moments[0]} to {moments[-1]}"
    return f"{model + '; ' if model else ''}evaluated {when}"


def _contents(results: Sequence[Mapping[str, Any]]) -> Markup:
    links = [("answer", "The answer")]
    links += [(f"d{place}", result["venue"]) for place, result in enumerate(results)]
    links += [("how", "How this was made"), ("reading", "How to read the numbers")]
    items = bullets([element("a", name, href=f"#{target}") for target, name in links])
    return element("nav", items, aria_label="Contents")


def _overview(results: Sequence[Mapping[str, Any]]) -> Markup:
    """The headline metric, datasets by methods; one dataset has it in its own table."""
    if len(results) == 1:
        return Markup("")
    methods = methods_of_run(results)
    rows = []
    for result in results:
        records = [result["results"].get(method.key) for method in methods]
        found = [record["metrics"][METRIC] if record else None for record in records]
        best = max(value for value in found if value is not None)
        cells = ["-" if v is None else element("strong" if v == best else "span", f"{v:.4f}") for v in found]
        rows.append([result["venue"], *cells])
    return table(f"{METRIC_LABELS[METRIC]} on each dataset", ["Dataset", *(m.label for m in methods)], rows)


def _dataset(
    place: int,
    result: Mapping[str, Any],
    over_run: RunValues,
    found: Mapping[str, Any],
    attended: Mapping[str, Mapping[str, Any]],
) -> Markup:
    name = f"d{place}"
    warned = sections.warnings(result)
    parts = [
        section(f"{name}-warnings", 3, "Read this first", bullets(warned)) if warned else "",
        section(f"{name}-values", 3, "Results", sections.values(result, over_run)),
        section(f"{name}-differences", 3, "Differences", sections.differences(result, over_run)),
        section(f"{name}-cost", 3, "Cost", sections.cost(result)),
        section(f"{name}-examples", 3, "Wins and losses", examples(found)),
        section(f"{name}-curves", 3, "Recall and training", sections.curves(result)),
        section(f"{name}-routing", 3, "Routing", sections.routing(result)),
        section(f"{name}-attention", 3, "Attention by depth", attention(attended)),
        section(f"{name}-data", 3, "Data and model", sections.data(result)),
    ]
    return section(name, 2, f"{result['venue']} ({result['dataset']})", *parts)


def _made(results: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """The command, the machine and the settings, as the last dataset recorded them."""
    if not results:
        return []
    environment = dict(results[-1].get("environment", {}))
    command = environment.pop("command", None)
    settings = results[-1].get("configuration", {})
    settings = {name: "not set" if value is None else value for name, value in settings.items()}
    parts = []
    if command:
        words = (element("span", word, class_="word") for word in str(command).split(" "))
        parts.append(paragraph("The command:") + element("pre", element("code", joined(words, " "))))
    elif environment:
        parts.append(paragraph("Started from Python, with the settings below.", class_="soft"))
    if environment:
        parts.append(details("Environment", facts(environment)))
    if settings:
        parts.append(details("All settings", facts(settings)))
    return parts
