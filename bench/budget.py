"""Where the time of a run goes, by stage, from its profile.json.

    python tier_1.py --preset offline --profile --log-dir logs/profiled
    python -m bench.budget logs/profiled

A row has the seconds of a stage with all that it contains; deeper stages have more dots. "model" is the layers from
the first trained one up; the frozen layers below it are computed once for each text, in "waiting for batches" of the
first method that reads the text, or in "filling activations". Stages of less than half a percent are left out.

The lines that matter, in seconds, on two cores, whole command included. The earlier version ran on an AMD EPYC with
AVX2 alone. The present one ran on an AMD EPYC with AVX-512 and bfloat16 units, which for the third column was held to
AVX2 and to float32 (ONEDNN_MAX_CPU_ISA, ATEN_CPU_CAPABILITY and MKL_ENABLE_INSTRUCTIONS; --precision float32).

| | earlier, AVX2 | present, held to AVX2 | present, bfloat16 |
| --- | --- | --- | --- |
| whole command (target: at most 600) | 972 | 447 | 272 |
| zero-shot | 131 | 85 | 48 |
| LoRA | 202 | 129 | 74 |
| · forward and backward | 93 | 59 | 35 |
| · validation | 74 | 47 | 26 |
| · test | 25 | 15 | 8 |
| MAW | 584 | 209 | 125 |
| · forward and backward | 378 | 122 | 75 |
| · validation | 66 | 46 | 24 |
| · diagnostics | 83 | 17 | 11 |
| · test | 23 | 15 | 8 |
| results and reports | 16 | 5 | 8 |

In bfloat16 the command takes 262 seconds without --profile. A second run with another seed takes 214 (82%; held to
AVX2 356, which are 80%): it finds the frozen layers' output of all passages, and zero-shot takes 2 seconds, but it
trains and validates as the first does. Little of that can be saved: the matrix products of a training step of MAW are
68% of its time and run at 340 to 400 GFLOP/s, where the processor's peak is 420; validation and test compute one layer
at 60% of the peak (this with attention and norms in its time).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.common import report
from maw.storage.files import read_json

LEAST = 0.005  # share of the whole below which a stage has no row


def rows_of(stages: list[Mapping[str, Any]], whole: float, depth: int = 0) -> Iterator[list[Any]]:
    """A row for each stage: name, seconds, share of the run."""
    for stage in stages:
        if stage["seconds"] >= LEAST * whole:
            yield ["· " * depth + stage["name"], stage["seconds"], stage["seconds"] / whole]
            yield from rows_of(stage["stages"], whole, depth + 1)


def main() -> None:
    """Shows the table and writes it for the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's --log-dir")
    (path,) = sorted(parser.parse_args().run.glob("*/profile.json"))
    profile = read_json(path)
    whole = profile["seconds"]
    rows = [["whole run", whole, 1.0], *rows_of(profile["stages"], whole)]
    report("budget", ["stage", "seconds", "share"], rows)


if __name__ == "__main__":
    main()
