"""Several batches at once on a CPU, each on some of its cores.

One bfloat16 batch that fits the caches is over so soon that its many short operations wait for the slowest core, each
of them. Batches beside one another wait for nobody: on two cores 15% more tokens a second. In float32, where matrix
products take nearly all of the time, nothing is gained, and batches run one by one.

Only for passes without gradient: in training the order of random numbers would depend on who is faster.
"""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

MOST_LANES = 4  # Python itself runs in one lane at a time

Item = TypeVar("Item")
Made = TypeVar("Made")


def count_lanes(device: torch.device, precision: torch.dtype) -> int:
    """How many batches to run at once."""
    if device.type != "cpu" or precision != torch.bfloat16 or torch.is_grad_enabled():
        return 1
    return min(MOST_LANES, torch.get_num_threads())


def in_lanes(work: Callable[[Item], Made], items: Iterable[Item], lanes: int) -> Iterator[Made]:
    """`work` of each item, in their order; up to `lanes` items at once, without gradient."""
    if lanes <= 1:
        yield from map(work, items)
        return
    threads = torch.get_num_threads()
    pool = _pool(lanes, threads // lanes)
    coming: deque[Future[Made]] = deque()
    try:
        for item in items:
            context = contextvars.copy_context()
            coming.append(pool.submit(context.run, _without_gradient, work, item, torch.is_inference_mode_enabled()))
            if len(coming) > lanes:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        for future in coming:
            future.cancel()
        torch.set_num_threads(threads)  # a lane's number of threads is also that of the matrix library everywhere


def _without_gradient(work: Callable[[Item], Made], item: Item, inference: bool) -> Made:
    """In the caller's mode, which a thread does not inherit: what inference mode makes, training cannot use."""
    with torch.inference_mode() if inference else torch.no_grad():
        return work(item)


@cache
def _pool(lanes: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(lanes, "lane", initializer=torch.set_num_threads, initargs=(max(1, threads),))
