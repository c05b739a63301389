"""Names of datasets: which there are, and what results of one are called."""

from __future__ import annotations

from pathlib import Path

from maw.config.tier1_config import (
    OTHER_DATASETS,
    PUBLIC_DATASETS,
    beir_parts,
)

BUILT_DATASETS = (*PUBLIC_DATASETS, *OTHER_DATASETS)
BEIR = "beir:"
BEIR_DATASETS = ("nq", "hotpotqa")  # whose results the user knows by the names beir_nq and beir_hotpotqa


def results_name(name: str) -> str:
    """What the results of a dataset are called."""
    if not name.startswith(BEIR):
        return f"beir_{name}" if name in BEIR_DATASETS else name
    folder, judgements = beir_parts(name.removeprefix(BEIR))
    return "_".join(["beir", Path(folder).expanduser().resolve().name, *([judgements] if judgements else [])])
