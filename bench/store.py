"""Measures speed and memory of building the passage store, against a bare parse of the same file.

    python bench/store.py --out store.json                                  # 0.5, 1, 2 and 5 million passages
    python bench/store.py --out store.json --passages 200000,500000,1000000

Run it by hand, from the repository's root. Speed: `beir.open_corpus` into an empty folder, and `json.loads` for every
line of the same corpus.jsonl, in turns, median of five. Memory: peak resident size of one process for each size, and
of one that builds no store; the slope is that of the least-squares line through the sizes.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import status_bytes
from maw.data.corpus import Corpus
from maw.data.datasets.beir import open_corpus

SIZES = "500000,1000000,2000000,5000000"
SPEED_PASSAGES = 200_000
TURNS = 5
FASTER = 0.5
MOST_BYTES = 1_500_000_000


def main() -> None:
    """Measures, prints a table and writes the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--passages", default=SIZES, help="sizes at which memory is measured")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        write(json.dumps(peak_of_build(arguments.child)))
        return
    result = {"speed": speed(), "memory": memory([int(size) for size in arguments.passages.split(",")])}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write(table(result))


def write(text: str) -> None:
    """Prints a line."""
    sys.stdout.write(f"{text}\n")


def speed() -> dict[str, Any]:
    """Passages a second of store and bare parse, in turns on one file of passages like MS MARCO's in length."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "corpus.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for identifier, title, text in passages(SPEED_PASSAGES, words=56):
                file.write(json.dumps({"_id": identifier, "title": title, "text": text}) + "\n")
        tasks: dict[str, Callable[[int], object]] = {
            "bare parse": lambda turn: parse(path),
            "store": lambda turn: open_corpus(path, Path(name) / f"stores{turn}"),
        }
        rates: dict[str, list[float]] = {task: [] for task in tasks}
        for turn in range(TURNS):
            for task, run in tasks.items():
                started = time.perf_counter()
                run(turn)
                rates[task].append(SPEED_PASSAGES / (time.perf_counter() - started))
    medians = {task: statistics.median(each) for task, each in rates.items()}
    return {
        "passages": SPEED_PASSAGES,
        "passages_per_second": rates,
        "median": medians,
        "store_to_parse": medians["store"] / medians["bare parse"],
    }


def parse(path: Path) -> int:
    """Reads every line as JSON and drops it."""
    with path.open("rb") as file:
        return sum(len(json.loads(line)) for line in file)


def passages(count: int, words: int) -> Iterator[tuple[str, str, str]]:
    """Records with texts of about that many words, all different."""
    source = random.Random(0)
    vocabulary = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 9))) for _ in range(5000)]
    pieces = [" ".join(source.choices(vocabulary, k=words)) for _ in range(1000)]
    for number in range(count):
        yield str(number), "", f"{pieces[number % 1000]} {number}"


def memory(sizes: list[int]) -> dict[str, Any]:
    """Peak bytes of building stores of short passages, each in a process of its own."""
    found = []
    for size in [0, *sizes]:
        command = [sys.executable, __file__, "--out", "unused", "--child", str(size)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    base = found[0]["peak_bytes"]
    points = [(each["passages"], each["peak_bytes"]) for each in found[1:]]
    slope = statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else None
    return {"without_a_store_bytes": base, "sizes": found[1:], "bytes_per_passage": slope}


def peak_of_build(count: int) -> dict[str, Any]:
    """Builds a store of `count` short passages and gives the process's peak resident size."""
    import datasets  # noqa: F401 - opening a store loads it, so the process without one must too

    started = time.perf_counter()
    if count:
        with tempfile.TemporaryDirectory() as name:
            assert len(Corpus.build(passages(count, words=6), Path(name) / "store")) == count
    return {"passages": count, "peak_bytes": status_bytes("VmHWM"), "seconds": time.perf_counter() - started}


def table(result: dict[str, Any]) -> str:
    """The numbers as a table, and whether they meet the targets."""
    speeds, memory_used = result["speed"], result["memory"]
    lines = [f"{task:<12} {rate:>12,.0f} passages/s" for task, rate in speeds["median"].items()]
    lines.append(f"store / bare parse: {speeds['store_to_parse']:.2f} (target: at least {FASTER})")
    lines.append(f"{'passages':>12} {'peak MB':>9} {'above none':>11}")
    base = memory_used["without_a_store_bytes"]
    for each in memory_used["sizes"]:
        peak = each["peak_bytes"]
        lines.append(f"{each['passages']:>12,} {peak / 1e6:>9,.0f} {(peak - base) / 1e6:>11,.0f}")
    if memory_used["bytes_per_passage"] is not None:
        lines.append(f"bytes a passage: {memory_used['bytes_per_passage']:.1f}")
    lines.append(f"target: below {MOST_BYTES / 1e6:,.0f} MB at 5 million passages")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
