"""Measures the growth of time and memory with the corpus: exact search of 10,000 to 1,000,000 passages, and encoding.

    python -m bench.growth              # the three smallest sizes
    python -m bench.growth --full

Search finds the 1,000 best of random unit vectors for 1,000 queries, since times do not depend on what vectors mean;
the sizes take turns. Memory is the peak of one process for each size, minus its memory after the arrays are loaded.
Time is compared with a straight line, a fixed part and a part per passage, fitted so that relative deviations are
least. The time per passage of the largest size is compared with that of the smallest.

A deviation from the line can be a gain. Where middle sizes are below the line and both ends above it, a passage costs
less in a larger corpus, since of N passages only about k * ln(N / k) ever enter a query's best k. Memory depends on
the size of the nearly equal blocks in which a corpus is read, between half of the largest block and all of it. The
rows of search below are older than the current search: with four blocks or more it compared all passages in bfloat16
first.

Encoding uses all-MiniLM-L6-v2 on 500 to 8,000 passages of 12 words, taken from the docstrings and functions of
Python's own library and repeated. A million passages would take hours on few cores and are not encoded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice

import numpy as np

from bench.common import alternate, claim, median, peak_above_now, peak_bytes, quick_parser, report, results_folder
from bench.peer import settings, texts_of_python
from bench.search import MEGABYTE, QUERIES, TOP, unit_vectors
from maw.models.encode import encode
from maw.models.retriever import BaselineRetriever
from maw.search.exact import top_k

PASSAGES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
TEXTS = (500, 1_000, 2_000, 4_000, 8_000)
SHORT = 3  # so many of these sizes, from the smallest, and as many rounds
QUICK_PASSAGES, QUICK_TEXTS, QUICK_QUERIES = (5_000, 10_000, 20_000), (20, 40, 80), 50
WORDS = 12
ROUNDS = 5
SETTLED = 100_000  # from here on a block, a tile and the buffers have their full size
GROWTH = "<= 1.15"
DEVIATION = "<= 0.15"


def deviations(sizes: Sequence[int], seconds: Sequence[float]) -> np.ndarray:
    """Relative distances of times from the line a + b * size that keeps their squares least."""
    values = np.asarray(seconds)
    columns = np.stack([np.ones(len(sizes)), np.asarray(sizes)], 1) / values[:, None]
    (fixed, each), *_ = np.linalg.lstsq(columns, np.ones(len(sizes)), rcond=None)
    return (fixed + each * np.asarray(sizes)) / values - 1


def search_sides(sizes: Sequence[int], queries: int) -> dict[int, Callable[[], object]]:
    """For each size, a search in the first so many of the same passages."""
    wanted, passages = unit_vectors(queries, 1), unit_vectors(max(sizes), 2)
    return {size: partial(top_k, wanted, passages[:size], TOP, np.arange(size)) for size in sizes}


def encoding_sides(sizes: Sequence[int]) -> dict[int, Callable[[], object]]:
    """For each size, an encoding of that many short texts."""
    retriever = BaselineRetriever(settings())
    texts = short_texts(max(sizes))
    return {size: partial(encode, retriever.encoder, retriever.source(texts[:size], "document")) for size in sizes}


def short_texts(count: int) -> list[str]:
    """Passages of 12 words from real text, in its order, from the start again when it ends."""
    corpus = texts_of_python().test.corpus
    words = " ".join(corpus.take(range(len(corpus)))).split()
    pieces = [" ".join(words[start : start + WORDS]) for start in range(0, len(words) - WORDS, WORDS)]
    return list(islice(cycle(pieces), count))


SIDES = {"search": search_sides, "encoding": encoding_sides}


def measure(quick: bool, full: bool) -> None:
    """Measures memory and time of both, and reports them."""
    queries = QUICK_QUERIES if quick else QUERIES
    sizes = {"search": QUICK_PASSAGES, "encoding": QUICK_TEXTS} if quick else {"search": PASSAGES, "encoding": TEXTS}
    if not full:
        sizes = {task: each[:SHORT] for task, each in sizes.items()}
    memory = {
        (task, size): peak_bytes("bench.growth", "--peak", task, str(size), str(queries)) / MEGABYTE
        for task, each in sizes.items()
        for size in each
    }
    rows, claims = [], []
    for task, each in sizes.items():
        sides = SIDES[task](each, queries) if task == "search" else SIDES[task](each)
        seconds = alternate({str(size): side for size, side in sides.items()}, ROUNDS if full else SHORT)
        medians = [median(seconds[str(size)]) for size in each]
        off = deviations(each, medians)
        for size, taken, share in zip(each, medians, off, strict=True):
            rows.append([task, size, taken, 1e6 * taken / size, 100 * share, memory[task, size]])
        claims += growth_claims(task, each, medians, off, [memory[task, size] for size in each])
    header = ["task", "passages", "median s", "us per passage", "% off the line", "MB above the arrays"]
    report("growth", header, rows, results_folder(quick), claims, shortened=not full)


def growth_claims(
    task: str, sizes: Sequence[int], seconds: Sequence[float], off: np.ndarray, memory: Sequence[float]
) -> list[dict[str, object]]:
    """What is claimed of one task's growth, with what was measured."""
    span = f"{sizes[0]:,} to {sizes[-1]:,}"
    per_passage = seconds[-1] / sizes[-1] / (seconds[0] / sizes[0])
    claims = [
        claim(f"{task}: distance of times from a line", f"a line, {span}", float(np.abs(off).max()), DEVIATION),
        claim(f"{task}: time per passage at {sizes[-1]:,}", f"{sizes[0]:,} passages", per_passage, GROWTH),
    ]
    if task == "encoding":  # its memory holds the embeddings, which grow with the passages
        return claims
    settled = next((place for place, size in enumerate(sizes) if size >= SETTLED), len(sizes) // 2)
    grown = memory[-1] / memory[settled]
    return [*claims, claim(f"{task}: memory at {sizes[-1]:,}", f"{sizes[settled]:,} passages", grown, GROWTH)]


def measure_peak(task: str, size: str, queries: str) -> None:
    """The peak of one run above what is loaded for it; printed for `peak_bytes`."""
    if task == "search":
        (run,) = search_sides([int(size)], int(queries)).values()
    else:
        (run,) = encoding_sides([int(size)]).values()
    sys.stdout.write(f"{peak_above_now(run)}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        measure_peak(*sys.argv[2:])
    else:
        arguments = quick_parser(__doc__).parse_args()
        measure(arguments.quick, arguments.full)
