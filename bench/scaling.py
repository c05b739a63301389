"""Encoding and exact search by two processes on two cores, against one process on one core.

    python -m bench.scaling

Both sides are processes that stay, joined as under torchrun, each with one thread on a core of its own, and take
turns: encoding of real texts with all-MiniLM-L6-v2 in float32 without stored activations, and search in random unit
vectors, since times do not depend on what vectors mean. Each side's result is whole in every process of it, so that
gathering counts. Beside the time by the clock stands the processor time of the process that used most of it: where
other programs run the clock says little, and that time says what the work comes to without them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.common import ROOT, alternate, claim, median, quick_parser, ratio, report, results_folder

TEXTS, QUERIES, PASSAGES, SIZE, K = 600, 500, 200_000, 384, 1000
ROUNDS = 3
TARGET = ">= 1.7"
TASKS = ("encoding", "search")


class Side:
    """Processes that wait for tasks.

    Args:
        count: of them, on as many cores.
        quick: at tiny size.
    """

    def __init__(self, count: int, quick: bool):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.processor_seconds: dict[str, list[float]] = {task: [] for task in TASKS}
        shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.processes = [
            self._start(rank, shared | {"RANK": rank, "LOCAL_RANK": rank}, quick) for rank in range(count)
        ]

    def _start(self, rank: int, launched: dict[str, Any], quick: bool) -> subprocess.Popen[str]:
        environment = os.environ | {name: str(value) for name, value in launched.items()} | {"OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "bench.scaling", "--worker", str(rank), *(["--quick"] if quick else [])]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        return subprocess.Popen(words, env=environment, **pipes)

    def run(self, task: str) -> None:
        """Does a task once, and notes its processor time."""
        for each in self.processes:
            each.stdin.write(f"{task}\n")
            each.stdin.flush()
        self.processor_seconds[task].append(max(json.loads(each.stdout.readline()) for each in self.processes))

    def close(self) -> None:
        """Ends the processes."""
        for each in self.processes:
            each.stdin.close()
        for each in self.processes:
            each.wait(60)


def tasks(quick: bool) -> dict[str, Callable[[], object]]:
    """What a worker can do."""
    import numpy as np
    import torch

    from bench.peer import settings, texts_of_python
    from maw.encoding.encode_sharded import encode_sharded
    from maw.models.retriever import BaselineRetriever
    from maw.runtime import distributed
    from maw.search.sharded import sharded_top_k

    torch.set_num_threads(1)
    retriever = BaselineRetriever(settings(precision="float32"))
    with distributed.main_first():
        corpus = texts_of_python().test.corpus
    source = retriever.source(corpus.take(range(40 if quick else min(TEXTS, len(corpus)))), "document")
    random = np.random.default_rng(0)
    count = 500 if quick else PASSAGES
    passages = random.standard_normal((count, SIZE), dtype=np.float32)
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    queries, ties = torch.from_numpy(passages[:: max(1, count // QUERIES)][:QUERIES].copy()), np.arange(count)
    memory = lambda shape: np.empty(shape, dtype=np.float32)  # noqa: E731
    return {
        "encoding": lambda: encode_sharded(retriever.encoder, source, batch_size=128, place=memory),
        "search": lambda: sharded_top_k(queries, passages, K, ties),
    }


def work(rank: int, quick: bool) -> None:
    """A worker: does what it reads, and writes the processor time that it took."""
    from maw.runtime import distributed

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    with distributed.session("cpu"):
        known = tasks(quick)
        for line in sys.stdin:
            distributed.barrier()
            started = time.process_time()
            known[line.strip()]()
            sys.stdout.write(f"{time.process_time() - started}\n")
            sys.stdout.flush()


def measure(quick: bool) -> None:
    """Times both sides in turns."""
    sides = {"1 process": Side(1, quick), "2 processes": Side(2, quick)}
    rows: list[Sequence[Any]] = []
    claims = []
    for task in TASKS:
        runs = {name: lambda side=side, task=task: side.run(task) for name, side in sides.items()}
        seconds = alternate(runs, 1 if quick else ROUNDS)
        used = {name: side.processor_seconds[task][1:] for name, side in sides.items()}
        rows += [[task, name, median(seconds[name]), median(used[name])] for name in sides]
        speedup = ratio(seconds, "1 process", "2 processes")
        claims.append(claim(f"{task}, two processes on two cores, times as fast", "one on one", speedup, TARGET))
        work_each = ratio(used, "1 process", "2 processes")
        claims.append(claim(f"{task}, the same by processor time of the busier", "one on one", work_each, TARGET))
    for side in sides.values():
        side.close()
    report("scaling", ["task", "side", "seconds", "processor seconds"], rows, results_folder(quick), claims)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line."""
    parser = quick_parser(__doc__)
    parser.add_argument("--worker", type=int, help="for this script's own use")
    words = parser.parse_args(argv)
    if words.worker is None:
        measure(words.quick)
    else:
        work(words.worker, words.quick)


if __name__ == "__main__":
    main()
