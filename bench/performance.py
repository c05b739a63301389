"""docs/performance.md from the results of the measurements: what was claimed, what was found, and where.

    python -m bench.performance

Reads bench/results/*.json, which the scripts of this folder write. What was not run is said to be not measured. The
page has no path and no name of the machine: a result that holds one is refused.
"""

from __future__ import annotations

import argparse
import ast
import json
import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.common import CLAIM_HEADER, RESULTS, ROOT, shown
from maw.storage.files import write_text

SCRIPTS = (
    "budget",
    "layer",
    "step",
    "encoding",
    "training",
    "offline",
    "search",
    "metrics",
    "growth",
    "checkpoint",
    "report",
)
PAGE = ROOT / "docs" / "performance.md"
NOT_MEASURED = "not measured"
OPENING = """# Performance

The scripts in `bench/` measure times and sizes, and `make bench` writes them to this page. The two sides of a
comparison always take turns in one run. A time is the median of its rounds, and a ratio is the median of the ratios of
each round. The page has every result of these scripts; if one is missing, its script was not run. In `make bench`
most scripts do less than their whole work, and their results are marked as shortened; `offline` does not run. `make
bench FULL=--full` does all of it, in hours, and its results decide whether a target is met. The results of
bench/significance.py and bench/scaling.py are in [protocol.md](protocol.md) and [scaling.md](scaling.md).
"""
LIMITS = """## Limits

- One machine, without a GPU. Ratios depend on the processor: the gain of bfloat16 depends mostly on its units for it.
- One model of six layers and 384 features, on short texts in English and Python. Twelve layers are the same six twice.
- The other libraries have the versions of `requirements-bench.txt` and their own defaults, unless a section says
  otherwise. Another setting may suit this machine better.
- A result that is marked as taken on a busy machine is less reliable: other programs used the processor.
"""

Result = Mapping[str, Any]


def read_results(folder: Path) -> dict[str, Result]:
    """The content of every result, by the name of its file."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def performance_page(results: Mapping[str, Result], scripts: Sequence[str] = SCRIPTS) -> str:
    """The page as Markdown.

    Raises:
        ValueError: a result names the machine or one of its folders.
    """
    parts = [OPENING, machines(results), "## Claims\n", claims_table(results, scripts)]
    for script in scripts:
        parts += section(script, results_of(script, results))
    page = "\n".join([*parts, LIMITS])
    for private in private_words():
        if private in page:
            raise ValueError(f"a result holds {private!r}, which names this machine; the page was not written")
    return page


def results_of(script: str, results: Mapping[str, Result]) -> dict[str, Result]:
    """What one script wrote: "encoding" and "encoding_peak" are both bench/encoding.py's."""
    return {name: each for name, each in results.items() if name == script or name.startswith(f"{script}_")}


def machines(results: Mapping[str, Result]) -> str:
    """Where the results were taken; once, if all are from the same machine."""
    names: dict[str, list[str]] = {}
    for name, result in results.items():
        names.setdefault(machine_line(result["machine"]), []).append(name)
    if len(names) == 1:
        return f"Machine: {next(iter(names))}.\n"
    return "".join(f"Machine of {', '.join(those)}: {line}.\n" for line, those in names.items())


def machine_line(machine: Mapping[str, Any]) -> str:
    """The machine in one line."""
    facts = [machine.get("processor") or "a processor without a name"]
    if machine.get("cores"):
        facts.append(f"{machine['cores']} cores")
    if machine.get("units"):
        facts.append(f"units {', '.join(machine['units'])}")
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    facts += [machine.get("gpu") or "no GPU", f"torch {machine['torch']} on {threads}"]
    return "; ".join([*facts, f"Python {machine['python']}"])


def claims_table(results: Mapping[str, Result], scripts: Sequence[str]) -> str:
    """All claims in the order of the scripts; a script without a result has one row that says so."""
    rows = []
    for script in scripts:
        own = results_of(script, results)
        link = f"[{script}](#{script})"
        if not own:
            rows.append([link, "all of its claims", "", NOT_MEASURED, "", ""])
        for result in own.values():
            where = f"{link}, shortened" if result.get("shortened") else link
            rows += [[where, *claim_cells(each)] for each in claims_of(result)]
    return table(["script", *CLAIM_HEADER], rows)


def claims_of(result: Result) -> list[Mapping[str, Any]]:
    """The claims of a result, kept apart or as rows of its table that hold a "claim"."""
    return [*result.get("claims", []), *(row for row in result["rows"] if row.get("claim"))]


def claim_cells(row: Mapping[str, Any]) -> list[str]:
    """A claim as cells; one that is missed stands out."""
    measured = row.get("measured")
    met = NOT_MEASURED if measured is None or row.get("met") is None else shown(row["met"])
    target = shown(row["target"]) if row.get("target") is not None else ""
    return [
        str(row["claim"]),
        str(row.get("against") or ""),
        shown(measured),
        target,
        "**no**" if met == "no" else met,
    ]


def section(script: str, own: Mapping[str, Result]) -> list[str]:
    """One script: how it measures, in its own words, and its tables."""
    parts = [f"## {script}\n", description(ROOT / "bench" / f"{script}.py")]
    if not own:
        return [*parts, "Not measured.\n"]
    for result in own.values():
        parts.append(f"{taken(result)}\n")
        rows = [row for row in result["rows"] if not row.get("claim")]
        for header, same in groupby(rows, key=lambda row: tuple(row)):
            parts.append(table(header, [[shown(row[key]) for key in header] for row in same]))
    return parts


def description(path: Path) -> str:
    """A script's docstring as paragraphs, its commands as code."""
    if not path.exists():
        return ""
    return f"{ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''}\n"


def taken(result: Result) -> str:
    """When, of which commit, and whether the machine had other work."""
    line = f"Measured {result.get('measured_at') or 'at an unknown time'}, commit {result.get('commit') or 'unknown'}"
    if result.get("shortened"):
        line += "; a shortened workload (without `--full`), which does not decide a target"
    if result.get("busy"):
        return f"{line}. **Other programs had {result['others_cores']:.1f} cores in use: times are worth less.**"
    return f"{line}."


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def private_words() -> list[str]:
    """What must not be on the page: folders of this machine and its name."""
    words = [str(ROOT), tempfile.gettempdir(), str(Path.home()), platform.node()]
    return [word for word in words if len(word) > 3]


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--out", type=Path, default=PAGE, help="page to write")
    arguments = parser.parse_args()
    write_text(arguments.out, performance_page(read_results(arguments.results)))


if __name__ == "__main__":
    main()
