"""Compares exact search with FAISS's IndexFlatIP, and measures recall and time of FAISS's approximate indices.

    python -m bench.search              # 200,000 passages
    python -m bench.search --full       # 1,000,000

Times do not depend on what vectors mean, so both sides search the same random unit vectors, in turns, from the same
arrays in memory. The time does not include building FAISS's index, which copies the arrays. Both use as many threads
as torch has.

Results count as equal when every rank has the same score, up to rounding, and the same passage wherever the
neighbouring scores differ. Memory is the peak of one process, minus its memory after the arrays are loaded.

Recall depends on the vectors. The smaller corpus for ivf and hnsw is a mixture: passages and queries lie around the
same random centres, as texts gather by topic. Random directions without centres would be the worst case.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch

from bench.common import (
    alternate,
    claim,
    median,
    peak_above_now,
    peak_bytes,
    quick_parser,
    ratio,
    report,
    results_folder,
)
from maw.search.exact import top_k
from maw.search.faiss_index import faiss_top_k, recall

SIZE, TOP = 384, 1000
QUERIES, PASSAGES, SMALLER = 1000, 1_000_000, 50_000
SHORT = (QUERIES, 200_000, 20_000)
QUICK = (50, 20_000, 3_000)
PROBES = (16, 64)
ROUNDS = 5
ROUNDING = 1e-5
MEGABYTE = 1e6
PEER = "FAISS IndexFlatIP"


def unit_vectors(count: int, seed: int, centres: int = 0) -> np.ndarray:
    """Random unit vectors, float32 (count, 384); with centres, half of each vector is one of these."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, SIZE), dtype=np.float32)
    if centres:
        shared = np.random.default_rng(0).standard_normal((centres, SIZE), dtype=np.float32)
        vectors += shared[random.integers(0, centres, count)]
    for start in range(0, count, 1024):  # in place: what is held here beside the arrays would hide what search needs
        part = vectors[start : start + 1024]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def unexplained(scores: np.ndarray, rows: np.ndarray, peer_scores: np.ndarray, peer_rows: np.ndarray) -> int:
    """Ranks at which two results differ by more than a tie.

    A tie is a score that its neighbour, or the cut, is no further from than rounding.
    """
    close = np.abs(np.diff(scores, axis=1)) <= ROUNDING
    tied = np.pad(close, ((0, 0), (0, 1)), constant_values=True) | np.pad(close, ((0, 0), (1, 0)))
    return int(((np.abs(scores - peer_scores) > ROUNDING) | ((rows != peer_rows) & ~tied)).sum())


def against_flat(queries: np.ndarray, passages: np.ndarray) -> tuple[dict[str, list[float]], int]:
    """Seconds of both sides by round, and the ranks at which their results differ by more than ties."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(SIZE)
    index.add(passages)
    ties = np.arange(len(passages))
    sides = {"exact": lambda: top_k(queries, passages, TOP, ties), PEER: lambda: index.search(queries, TOP)}
    seconds = alternate(sides, ROUNDS)
    scores, rows = (each.numpy() for each in sides["exact"]())
    return seconds, unexplained(scores, rows, *sides[PEER]())


def approximate(queries: np.ndarray, passages: np.ndarray) -> list[list[Any]]:
    """A row for each approximate index: seconds in all, index included, and recall against exact search."""
    ties = np.arange(len(passages))
    started = time.perf_counter()
    exact = top_k(queries, passages, TOP, ties)[1].numpy()
    rows: list[list[Any]] = [["exact", time.perf_counter() - started, 0, 1.0, 1.0, 1.0]]
    for kind, nprobe in [("flat", 1), *(("ivf", probes) for probes in PROBES), ("hnsw", 1)]:
        started = time.perf_counter()
        _, found, facts = faiss_top_k(kind, queries, passages, TOP, ties, nprobe=nprobe)
        seconds = time.perf_counter() - started
        shares = recall(found.numpy(), exact, (10, 100, TOP)).values()
        rows.append([f"ivf, nprobe {nprobe}" if kind == "ivf" else kind, seconds, facts["searched_exactly"], *shares])
    return rows


def measure(quick: bool, full: bool) -> None:
    """Measures memory, time and recall, and reports them."""
    count, large, small = QUICK if quick else (QUERIES, PASSAGES, SMALLER) if full else SHORT
    folder = results_folder(quick)
    above = peak_bytes("bench.search", "--peak", str(count), str(large)) / MEGABYTE
    queries, passages = unit_vectors(count, 1), unit_vectors(large, 2)
    seconds, different = against_flat(queries, passages)
    del passages
    rows = [[side, median(each), min(each), ratio(seconds, side, PEER)] for side, each in seconds.items()]
    what = f"top {TOP} of {count:,} queries in {large:,} x {SIZE}"
    claims = [
        claim(f"time, {what}", PEER, ratio(seconds, "exact", PEER), "<= 1.1"),
        claim("ranks that differ beyond ties", PEER, different, "<= 0"),
        claim("MB above the arrays", "the arrays", above, "<= 500"),
    ]
    report("search", ["search", "median s", "least s", "x FAISS"], rows, folder, claims, shortened=not full)
    header = ["search", "s with the index", "queries searched exactly", "recall@10", "recall@100", f"recall@{TOP}"]
    mixture = approximate(unit_vectors(count, 3, small // 50), unit_vectors(small, 4, small // 50))
    report("search_approximate", header, mixture, folder, shortened=not full)


def measure_peak(queries: str, passages: str) -> None:
    """The peak above the arrays; printed for `peak_bytes`."""
    arrays = unit_vectors(int(queries), 1), unit_vectors(int(passages), 2)
    ties = np.arange(int(passages))
    top_k(arrays[0][:1], arrays[1][:64], 1, ties[:64])  # what the libraries load on first use
    sys.stdout.write(f"{peak_above_now(lambda: top_k(*arrays, TOP, ties))}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        measure_peak(*sys.argv[2:])
    else:
        arguments = quick_parser(__doc__).parse_args()
        measure(arguments.quick, arguments.full)
