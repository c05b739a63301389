"""Compares the whole offline experiment of this tree with that of an earlier commit.

    python -m bench.offline
    python -m bench.offline --baseline COMMIT --rounds 3

Each run is `python tier_1.py --preset offline` in its own process, in the working tree or in a checkout of the earlier
commit, with an empty cache; the trees take turns. Times are those that the run writes for each method and for the
dataset, and those of the whole process. The default baseline is the first tree whose run the README showed, before
bfloat16 and batches of texts of similar length. Both trees run with the current packages. The baseline has no routing
diagnostics, so this tree runs with them, as by default, and without. A last run of this tree, in float32 and without
training, shows whether faster code changed the rankings.

The baseline also lacks other work that this tree does in the compared time: it did not start routers from clusters of
texts, save a state for resuming, check that numbers are finite, test two families of comparisons, or draw a report.
MAW takes most of the time, since every text is encoded at several depths while its router learns.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import ROOT, claim, commit, git, quick_parser, ratio, report, results_folder
from maw.config.methods import Method, find_method

BASELINE = "1df5073"
SPEEDUP = ">= 3"
SAME = "<= 1e-5"
NDCG = "ndcg_cut_10"
METHODS = [find_method(name) for name in ("zero_shot", "lora", "maw")]
HEADER = [
    *("tree", "commit", "precision", "round", "s process", "s dataset"),
    *(f"s {method.short}" for method in METHODS),
    *(f"nDCG@10 {method.short}" for method in METHODS),
]
NOW, BEFORE, FLOAT32 = "this tree", "baseline", "this tree, float32"
ALIKE = "this tree, without diagnostics"
"""Does the same work as the default baseline, which has no routing diagnostics."""


@dataclass(frozen=True)
class Run:
    """Seconds of one run's process, and the content of `dataset.json` for its dataset."""

    tree: str
    seconds: float
    content: Mapping[str, Any]

    @property
    def dataset_seconds(self) -> float:
        """Seconds of all methods, without the process's start and reading the collection."""
        return self.content["runtime_summary"]["total_dataset_seconds"]

    def of_method(self, method: Method, *keys: str) -> Any:
        """A value of a method's record, found by its keys; None if the method did not run."""
        value = self.content["results"].get(method.key)
        for key in keys:
            value = None if value is None else value[key]
        return value


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A checkout of a commit in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "tree"
        git("worktree", "add", "--detach", str(folder), revision)
        try:
            yield folder
        finally:
            git("worktree", "remove", "--force", str(folder))


def run_offline(name: str, tree: Path, words: Sequence[str]) -> Run:
    """One whole run in an empty cache."""
    with tempfile.TemporaryDirectory() as temporary:
        logs = Path(temporary) / "logs"
        folders = ["--cache-dir", str(Path(temporary) / "cache"), "--log-dir", str(logs)]
        command = [sys.executable, "tier_1.py", "--preset", "offline", *words, *folders]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        started = time.perf_counter()
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode:
            said = "".join(done.stderr.strip().splitlines()[-1:])
            raise SystemExit(f"bench.offline: the run of {name} failed: {said}")
        (content,) = json.loads((logs / "summary" / "all_results.json").read_text(encoding="utf-8")).values()
    return Run(name, seconds, content)


def row_of(run: Run, version: str | None, number: int) -> list[Any]:
    """The run as a row under `HEADER`."""
    precision = run.content["model"].get("precision", "float32")  # the baseline knows no other
    seconds = [run.of_method(method, "runtime_seconds") for method in METHODS]
    found = [run.of_method(method, "metrics", NDCG) for method in METHODS]
    return [run.tree, version, precision, number, run.seconds, run.dataset_seconds, *seconds, *found]


def claims_of(runs: Mapping[str, Sequence[Run]], baseline: str) -> list[dict[str, Any]]:
    """Speed, and that zero-shot is unchanged."""
    seconds = {tree: [run.dataset_seconds for run in runs[tree]] for tree in (NOW, ALIKE, BEFORE)}
    zero_shot = find_method("zero_shot")
    before, now = (runs[tree][0].of_method(zero_shot, "metrics") for tree in (BEFORE, FLOAT32))
    shared = sorted(before.keys() & now.keys())
    against = f"commit {baseline}"
    largest = max(abs(before[key] - now[key]) for key in shared)
    return [
        claim("whole offline run, times as fast, dataset part", against, ratio(seconds, BEFORE, NOW), SPEEDUP),
        claim("the same without diagnostics, times as fast", against, ratio(seconds, BEFORE, ALIKE), SPEEDUP),
        claim("zero-shot nDCG@10 in float32, difference", against, abs(before[NDCG] - now[NDCG]), SAME),
        claim(f"zero-shot in float32, largest difference of {len(shared)} metrics", against, largest, SAME),
    ]


def tiny_collection(folder: Path) -> Path:
    """A few real queries in BEIR layout, for the smoke test."""
    from bench.peer import texts_of_python

    data = texts_of_python().test
    queries = data.query_ids[:24]
    passages = [next(iter(data.qrels[q])) for q in queries]
    texts = data.corpus.take(data.corpus.rows_of(passages))
    (folder / "qrels").mkdir(parents=True)
    for path, ids, values in (("corpus", passages, texts), ("queries", queries, data.queries)):
        with (folder / f"{path}.jsonl").open("w", encoding="utf-8") as file:
            for identifier, text in zip(ids, values, strict=False):
                file.write(json.dumps({"_id": identifier, "title": "", "text": text[:80]}) + "\n")
    for number, split in enumerate(("train", "dev", "test")):
        with (folder / "qrels" / f"{split}.tsv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(["query-id", "corpus-id", "score"])
            writer.writerows([q, d, 1] for q, d in list(zip(queries, passages, strict=True))[number::3])
    return folder


def short_name(revision: str) -> str:
    """A commit's short name; ends the program if the repository does not have it."""
    try:
        return git("rev-parse", "--short", "--verify", f"{revision}^{{commit}}")
    except subprocess.CalledProcessError:
        raise SystemExit(
            f"--baseline {revision}: this repository has no such commit; fetch it, or name another"
        ) from None


def parse() -> argparse.Namespace:
    """The command line."""
    parser = quick_parser(__doc__)
    parser.add_argument("--baseline", default=BASELINE, help="commit to compare with")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each tree; one takes minutes")
    return parser.parse_args()


def main() -> None:
    """Runs the trees in turns."""
    arguments = parse()
    commits = {BEFORE: short_name(arguments.baseline), NOW: commit()}
    runs: dict[str, list[Run]] = {BEFORE: [], NOW: [], ALIKE: []}
    with checkout(arguments.baseline) as earlier, tempfile.TemporaryDirectory() as temporary:
        words: list[str] = []
        if arguments.quick:
            words = ["--datasets", f"beir:{tiny_collection(Path(temporary) / 'tiny')}", "--num-epochs", "1"]
        trees = {BEFORE: (earlier, []), NOW: (ROOT, []), ALIKE: (ROOT, ["--diagnostics", "none"])}
        for _ in range(arguments.rounds):
            for tree, (folder, more) in trees.items():
                runs[tree].append(run_offline(tree, folder, [*words, *more]))
        zero_shot = ["--methods", "zero_shot", "--precision", "float32"]
        runs[FLOAT32] = [run_offline(FLOAT32, ROOT, [*words, *zero_shot])]
    rows = [
        row_of(run, commits.get(tree, commits[NOW]), number + 1)
        for tree, done in runs.items()
        for number, run in enumerate(done)
    ]
    report("offline", HEADER, rows, results_folder(arguments.quick), claims_of(runs, commits[BEFORE]))


if __name__ == "__main__":
    main()
