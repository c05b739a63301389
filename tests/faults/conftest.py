"""Shared by all files of the matrix: the number of trials, the seed in a failure, and the count at the end.

    def test_a_fault(repeats, trial):
        for seed in range(repeats(5, 200)):         # 5 times in the ordinary suite, 200 times by `make faults`
            with trial(6, "truncated caches", seed):
                ...

A test that needs the full count is marked `faults` and is not part of the ordinary suite.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from faults.runs import RunServer

COUNTS = pytest.StashKey[Counter]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COUNTS] = Counter()


@pytest.fixture(scope="session")
def server(forks, tmp_path_factory) -> Iterator[RunServer]:
    """The process that starts runs."""
    server = RunServer(forks, tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture
def repeats(request) -> Callable[[int, int], int]:
    """`repeats(small, full)` is how often to try: `small`, or `full` with the option --faults-full."""
    wanted = request.config.getoption("--faults-full")
    return lambda small, full: full if wanted else small


@pytest.fixture
def trial(request) -> Callable[..., contextlib.AbstractContextManager[None]]:
    """`with trial(row, what, seed):` names the seed where the block fails, and counts it where it does not."""
    counts = request.config.stash[COUNTS]

    @contextlib.contextmanager
    def one(row: int, what: str, seed: object) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            error.add_note(f"row {row}, {what}: seed {seed!r}")
            raise
        counts[row, what] += 1

    return one


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = config.stash[COUNTS]
    if counts:
        terminalreporter.section("faults survived")
        for (row, what), count in sorted(counts.items()):
            terminalreporter.write_line(f"row {row:>2}: {count:>5} {what}")
