"""What every measurement here needs: sides that alternate in one run, medians, and a table with its JSON.

Two sides are never timed one after the other as wholes: a processor that slows down for a while would then decide
the result. They take turns, and what is compared are medians and the ratio of each round.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROUNDS = 7


def alternate(
    sides: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS, repeats: int = 1
) -> dict[str, list[float]]:
    """Seconds that each side takes, by round; every side runs once before anything is timed.

    Args:
        sides: name -> what to run.
        rounds: how often each side is timed.
        repeats: calls per timing, for what is over too soon to time alone.
    """
    for run in sides.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            started = time.perf_counter()
            for _ in range(repeats):
                run()
            seconds[name].append((time.perf_counter() - started) / repeats)
    return seconds


def median(seconds: Sequence[float]) -> float:
    """The median of one side's rounds."""
    return statistics.median(seconds)


def ratio(seconds: Mapping[str, Sequence[float]], name: str, base: str) -> float:
    """How many times as long `name` takes as `base`: the median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def peak_bytes(module: str, *arguments: str) -> int:
    """The most memory that `python -m module arguments` has in use, from a process of its own that prints it last."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def own_peak_bytes() -> int:
    """The most memory that this process has had in use."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def report(name: str, header: Sequence[str], rows: Sequence[Sequence[Any]], folder: Path | None = None) -> None:
    """Shows a table, and writes it with the machine it was measured on to bench/results/<name>.json."""
    cells = [[_shown(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    folder = folder or Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    content = {"machine": machine(), "rows": [dict(zip(header, row, strict=True)) for row in rows]}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Where a measurement was taken."""
    import torch

    facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return facts | {"processor": names[0] if names else platform.processor(), "gpu": gpu}


def _shown(cell: Any) -> str:
    return (
        f"{cell:,.3f}"
        if isinstance(cell, float) and abs(cell) < 100
        else f"{cell:,.0f}"
        if isinstance(cell, float)
        else str(cell)
    )
