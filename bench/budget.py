"""Where the time of a run goes, by stage, from its profile.json.

    python tier_1.py --preset offline --profile --log-dir logs/profiled
    python -m bench.budget logs/profiled

A row has the seconds of a stage with all that it contains; deeper stages have more dots. "model" is the layers from
the first trained one up; the frozen layers below it are computed once for each text, in "waiting for batches" of the
first method that reads the text, or in "filling activations". Stages of less than half a percent are left out.

An earlier version took 972 seconds for the same run, on two cores of an AMD EPYC with AVX2 alone: zero-shot 131; LoRA
202 (forward and backward 93, validation 74, test 25); MAW 584 (forward and backward 378, validation 66, diagnostics
83, test 23); results and reports 16.

Without --profile this run takes 262 seconds. A second run with another seed takes 214 (82%): it finds the frozen
layers' output of all passages, but trains and validates as the first does. Little of that can be saved: the matrix
products of a training step of MAW are 68% of its time and run at 360 to 400 GFLOP/s, where the processor's peak is
420; validation and test compute one layer at 60% of the peak (this with attention and norms in its time).
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
