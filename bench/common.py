"""Shared by all measurements: sides that take turns in one run, medians, and a table with its JSON.

Two sides are never timed as two blocks, since a temporarily slow processor would then decide the result. They take
turns, and medians and the ratio of each round are compared. A result holds its rows; its claims, each with the
measured value, the target and whether it is met; the commit; and the processor time that other programs used
meanwhile.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import operator
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from maw.storage.files import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
ROUNDS = 7
BUSY_CORES = 0.1
"""More of a core than this in use by other programs, on average, and a result counts as taken on a busy machine."""
CLAIM_HEADER = ("claim", "against", "measured", "target", "met")
_COMPARISONS = {">=": operator.ge, "<=": operator.le}


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
    """Peak memory of `python -m module arguments`, which prints it as its last line."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def peak_above_now(run: Callable[[], Any]) -> int:
    """Peak memory of this process during a call minus its memory now, in bytes; Linux with glibc.

    Memory that loading has freed is returned first, since a call that reuses it would seem to need none.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from here
    before = status_bytes("VmRSS")
    run()
    return status_bytes("VmHWM") - before


def status_bytes(name: str) -> int:
    """Memory of this process from Linux, in bytes: "VmRSS" is in use now, "VmHWM" is the peak.

    getrusage would also count the peak of the program that started this one.
    """
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(name))
    return int(line.split()[1]) * 1024


def quick_parser(description: str | None) -> argparse.ArgumentParser:
    """A command line for the amount of work.

    With `--quick` it is a smoke test at tiny size, whose numbers mean nothing and are kept separately. Scripts that
    take minutes do less than their whole work unless `--full` is given, and mark their results.
    """
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="a smoke test at tiny size; its numbers say nothing")
    sizes.add_argument("--full", action="store_true", help="the whole work, which decides whether a target is met")
    return parser


def results_folder(quick: bool) -> Path:
    """Folder of the results; those of a smoke test never replace real ones."""
    return RESULTS / "quick" if quick else RESULTS


def claim(what: str, against: str, measured: float | None, target: str) -> dict[str, Any]:
    """A row of the table of claims.

    Args:
        what: what is claimed, in a few words.
        against: what it is compared with.
        measured: None where it could not be measured here; the claim is then neither met nor missed.
        target: ">= 2.5" or "<= 0.002".

    Raises:
        ValueError: a target of another form.
    """
    sign, _, bound = target.partition(" ")
    if sign not in _COMPARISONS:
        raise ValueError(f"target {target!r} must be like '>= 2.5' or '<= 0.002'")
    met = None if measured is None else bool(_COMPARISONS[sign](measured, float(bound)))
    return dict(zip(CLAIM_HEADER, (what, against, measured, target, met), strict=True))


def report(
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    folder: Path | None = None,
    claims: Sequence[Mapping[str, Any]] = (),
    shortened: bool = False,
) -> None:
    """Shows a table and its claims, and writes both with the machine to bench/results/<name>.json.

    Args:
        name: of the measurement; "encoding" and "encoding_peak" are two tables of bench/encoding.py.
        header: names of the columns.
        rows: cells; floats are shown rounded and written whole.
        folder: where to write instead.
        claims: what `claim` gave.
        shortened: less work was measured than what decides a target.
    """
    _show(header, rows)
    if claims:
        _show(CLAIM_HEADER, [[each[key] for key in CLAIM_HEADER] for each in claims])
    content = {
        "measured_at": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": commit(),
        "machine": machine(),
        "shortened": shortened,
        **_START.others(),
        "rows": [dict(zip(header, row, strict=True)) for row in rows],
        "claims": list(claims),
    }
    write_json((folder or RESULTS) / f"{name}.json", content)


def machine() -> dict[str, Any]:
    """The machine of a measurement, without anything that identifies it."""
    import torch

    facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    units = sorted({"avx2", "avx512f", "avx512_bf16", "amx_bf16"} & set(fields.get("flags", "").split()))
    processor = fields.get("model name") or platform.processor()
    return facts | {"cores": os.cpu_count(), "processor": processor, "units": units, "gpu": gpu}


def commit() -> str | None:
    """The commit that is measured, marked where code differs from it; None outside a git repository.

    Results that a measurement has written before this one are no change of the code.
    """
    try:
        short = git("rev-parse", "--short", "HEAD")
        written = (":!docs", ":!bench/research", ":!bench/results")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *written)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{short} with changes" if changed else short


def git(*arguments: str) -> str:
    """What git says in this repository."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


class Processors:
    """Processor time since this was made, of the whole machine and of this process with its finished children."""

    def __init__(self) -> None:
        self.started, self.all, self.own = time.perf_counter(), _all_seconds(), _own_seconds()

    def others(self) -> dict[str, Any]:
        """{"others_cores": cores that other programs had in use on average, "busy": too many for good timings}.

        Both are None where the system does not report it.
        """
        now = _all_seconds()
        if now is None or self.all is None:
            return {"others_cores": None, "busy": None}
        wall = max(time.perf_counter() - self.started, 1e-9)
        cores = max(0.0, (now - self.all) - (_own_seconds() - self.own)) / wall
        return {"others_cores": round(cores, 3), "busy": cores > BUSY_CORES}


def _all_seconds() -> float | None:
    """Processor time of everything that runs on this machine, without idling and waiting for disks."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    user, nice, system, _, _, irq, softirq = map(int, path.read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


_START = Processors()  # a script imports this module first, so that a report covers its whole run


def _show(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    cells = [[shown(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    sys.stdout.write("\n")


def shown(cell: Any) -> str:
    """A cell as shown in tables."""
    if cell is None:
        return "not measured"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float) and cell == 0:
        return "0"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.1e}" if 0 < abs(cell) < 1e-3 else f"{cell:,.3f}"
    return str(cell)
