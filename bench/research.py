"""Experiments on possible sources of a gain of MAW, on validation queries alone; writes the research log.

The log is docs/research.md, the index, and one page for each experiment in docs/research/.

    python -m bench.research                     # all of bench/experiments.py; hours on two cores
    python -m bench.research layers collapse     # some of them
    python -m bench.research layers --run 3      # one run of one, from 1: shows its numbers and writes nothing
    python -m bench.research --page              # the pages alone, from bench/research/*.json

Every run uses the benchmark's own Python interface on one thread, and gives the same numbers to the last digit on one
machine. Test queries are loaded with the collection, since splits are checked against each other, but nothing reads
them. The result of a run is written to bench/research/NAME.json when the run ends. A run whose result is there, with
the same settings, is not repeated without `--again`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from bench.common import ROOT
from bench.experiments import BASE, EXPERIMENTS, Experiment, Run, find_experiment
from bench.oracle import QUESTION, oracle_page
from bench.trainings import NDCG, Bench, Result
from bench.tuned import paragraph, table, tuned_pages
from maw.evaluation.significance import paired_test
from maw.storage.files import write_json, write_text

FOLDER = ROOT / "bench" / "research"
DOCS = ROOT / "docs"


def run_experiment(experiment: Experiment, bench: Bench, again: bool = False) -> None:
    """Runs what has no result yet, and writes each result when its run ends."""
    path = FOLDER / f"{experiment.name}.json"
    known = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() and not again else []
    reference: np.ndarray | None = None
    results: list[Result] = []
    for run in experiment.runs:
        found = next((each for each in known if _is_of(each, run)), None)
        if found is None:
            values, found = bench.train(run)
            if not results:
                reference = values
            else:
                reference = bench.train(experiment.runs[0])[0] if reference is None else reference
                found["against_first"] = asdict(paired_test(values, reference, seed=BASE["seed"]))
        results.append(found | {"label": run.label})
        show(found)
        write_json(path, {"experiment": experiment.name, "base": dict(BASE), "runs": results})


def _is_of(result: Result, run: Run) -> bool:
    settings = json.loads(json.dumps(dict(run.settings)))
    return (result["method"], result["settings"], result["seeds"]) == (run.method, settings, list(run.seeds))


def show(found: Result) -> None:
    """Prints one line about a run."""
    query = found["routing"].get("query", {})
    depths = f"  effective depths {_mean(query['effective_depths']):.1f}" if query else ""
    line = f"{found[NDCG]:.4f}  {found['label']}{depths}  ({found['seconds']:.0f} s)"
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


# --------------------------------------------------------------------------------------------------------- the pages

HEADER = ("run", "method", "settings", "nDCG@10", "against the first", "p", "depths q / d", "headroom q", "headroom d")
OPENING = """# Research log

Where could a gain of MAW come from? Each experiment has a page with its question, its runs and its conclusion. The
experiments use validation queries. Only the [last part](#methods-tuned-alike) reads test queries, and nothing was
chosen on them. `python -m bench.research` writes these pages from the results in `bench/research/`.

In short: which layers are trained matters most ([layers](research/layers.md)). MAW is not better than controls that
train as many numbers ([pystdlib](research/pystdlib.md), [MS MARCO](research/msmarco.md), [NQ](research/nq.md)). The
router keeps several depths in use, but which one it picks matters little ([clusters](research/clusters.md)).

## How to read a table

Every run has the settings of the offline preset of that time ({base}), one seed and one thread; the column `settings`
lists the settings that differ. In the other columns:

- *nDCG@10*: that of the best epoch on {queries} validation queries of `pystdlib`. At the commits of these pages
  `pystdlib` had 79 fewer queries ([data](data.md#what-a-run-uses)).
- *p*: of a paired randomisation test over these queries against the first run of the table. It is not corrected for
  the number of tests and does not include the spread over seeds.
- *depths q / d*: effective depths (exp of the entropy of the shares of greedy depths), for queries and for documents
  relevant to them, by MAW layer where there are several.
- *headroom*: `learnable_headroom`, the nDCG@10 beyond noise that a choice of depth by text could still add, with its
  standard error ([routing diagnostics](routing.md)). If it is negative or near zero, no router can gain from these
  depths.

Where a run has several seeds, all values are means over them, also for each query, and each seed's nDCG@10 follows in
parentheses.

This command reproduces each number to four digits, on the same machine and at the commit below its table; N is the
run's number in its table, from 1:

    python -m bench.research NAME --run N
"""
TUNED_OPENING = """## Methods, tuned alike

These pages read test queries: once for each training, after all choices were made. `--tune 3` gives each method three
trials of its learning rates, judged on validation. The values of three seeds are averaged for each query. The Holm p
is corrected over the comparisons of one dataset. Tests outside the confirmatory family are exploratory. Texts are cut
at 64 tokens, and `pystdlib` had other queries then, so its numbers do not compare with those of the README.
"""
ROUTER_QUESTION = (
    "With the settings of the pages above, nearly all groups of GRPO had equal rewards, and the depths of a layer "
    "were nearly the same. Which settings make a router that learns, at what price? This page was "
    "written by hand, from runs with the default settings of its day."
)
ENDING = """## Limits

All results are those of one small encoder, all-MiniLM-L6-v2, on one processor, with truncated texts. Its card names MS
MARCO, NQ and CodeSearchNet among its training data. The results say nothing about an encoder that was not tuned for
retrieval. The default model, `facebook/contriever`, on a machine with a GPU would show that:

    python tier_1.py --methods all --tune 9 --seeds 3

With `--dry-run` the command says how much it would download and store and how long it would take. `--folds 5` tests
on every sampled query once.
"""


def research_pages(
    results: Mapping[str, Mapping[str, Any]], experiments: Sequence[Experiment] = EXPERIMENTS
) -> dict[str, str]:
    """The pages as Markdown by their file in docs/, the index first, from the content of bench/research/*.json."""
    queries = {run["queries"] for result in results.values() for run in result["runs"]}
    base = ", ".join(f"`{name}` {value}" for name, value in BASE.items() if name not in ("datasets", "test_samples"))
    index = [wrapped(OPENING.format(base=base, queries=" or ".join(map(str, sorted(queries)))))]
    pages = {}
    for each in experiments:
        index.append(entry(each.name, each.name, each.question))
        pages[each.name] = experiment_page(each, results.get(each.name))
    index += [entry("oracle", "oracle", QUESTION), entry("router", "router", ROUTER_QUESTION), TUNED_OPENING]
    pages["oracle"] = oracle_page()
    for tuned, page in tuned_pages():
        index.append(entry(tuned.name, tuned.title, level=3))
        pages[tuned.name] = page
    parts = {f"research/{name}.md": f"{page}\n[All experiments](../research.md)\n" for name, page in pages.items()}
    return {"research.md": "\n".join([*index, ENDING])} | parts


def entry(name: str, title: str, question: str = "", level: int = 2) -> str:
    """An experiment in the index: its heading keeps the address that it had when the log was one page."""
    text = f"{paragraph(question)}\n\n" if question else ""
    return f"{'#' * level} {title}\n\n{text}[Runs and conclusion](research/{name}.md)\n"


def wrapped(text: str) -> str:
    """The text with its paragraphs wrapped to the page's width; headings, lists and commands stay as they are."""
    return "\n\n".join(each if each[:1] in "# -" else paragraph(each) for each in text.strip().split("\n\n")) + "\n"


def experiment_page(experiment: Experiment, result: Mapping[str, Any] | None) -> str:
    """The page of one experiment; without a result it says so."""
    parts = [f"# Research log: {experiment.name}\n\n{paragraph(experiment.question)}\n"]
    if result is None:
        return "\n".join([*parts, "Not run yet.\n"])
    if experiment.lesson:
        parts.append(f"{paragraph(experiment.lesson)}\n")
    parts.append(f"    python -m bench.research {experiment.name}\n")
    rows = [_row(run, index) for index, run in enumerate(result["runs"])]
    parts.append("\n".join(table(HEADER, rows)) + "\n")
    processors = sorted({run["machine"]["processor"] for run in result["runs"]})
    commits = sorted({run["commit"] or "unknown" for run in result["runs"]})
    parts.append(f"{', '.join(processors)}, commit {', '.join(commits)}.\n")
    return "\n".join([*parts, "[How to read the table](../research.md#how-to-read-a-table)\n"])


def _row(run: Mapping[str, Any], index: int) -> list[str]:
    against = run.get("against_first")
    sides = [run["routing"].get(side, {}) for side in ("query", "document")]
    depths = " / ".join(", ".join(f"{each:.1f}" for each in side["effective_depths"]) for side in sides if side)
    seeds = f" ({', '.join(f'{each:.4f}' for each in run['by_seed'])})" if len(run["seeds"]) > 1 else ""
    return [
        f"{index + 1}. {run['label']}",
        run["method"],
        ", ".join(f"`{name}` {value}" for name, value in run["settings"].items()),
        f"{run[NDCG]:.4f}{seeds}",
        f"{against['mean_difference']:+z.4f}" if against else "",
        _p(against["p_value"]) if against else "",
        depths,
        *(_headroom(side) for side in sides),
    ]


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0005 else "<0.001"


def _headroom(side: Mapping[str, Any]) -> str:
    if side.get("learnable_headroom") is None:
        return ""
    return f"{side['learnable_headroom']:+z.4f} ± {side['learnable_headroom_error']:.4f}"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def write_pages() -> None:
    """Writes the index and all pages of the research log from all results."""
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
    (DOCS / "research").mkdir(exist_ok=True)
    for name, page in research_pages(results).items():
        write_text(DOCS / name, page)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    names = [each.name for each in EXPERIMENTS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"experiments, by default all: {', '.join(names)}")
    parser.add_argument("--run", type=int, metavar="N", help="one run of one experiment, from 1; nothing is written")
    parser.add_argument("--again", action="store_true", help="repeat runs that have results")
    parser.add_argument("--page", action="store_true", help="write the pages alone")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in names]
    if unknown:
        parser.error(f"no experiment {', '.join(unknown)}; there are {', '.join(names)}")
    if options.run is not None and (len(options.names) != 1 or options.run < 1):
        parser.error("--run N needs the name of one experiment, and counts from 1")
    torch.set_num_threads(1)  # a sum's order, and so its last digit, must not depend on the machine's cores
    if options.run is not None:
        runs = find_experiment(options.names[0]).runs
        if options.run > len(runs):
            parser.error(f"{options.names[0]} has {len(runs)} runs")
        with Bench() as bench:
            show(bench.train(runs[options.run - 1])[1])
        return
    if not options.page:
        with Bench() as bench:
            for name in options.names or names:
                run_experiment(find_experiment(name), bench, options.again)
    write_pages()


if __name__ == "__main__":
    main()
