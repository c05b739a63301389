"""What each method took, beside what it reached: summary/costs.csv, the summary's table and that of the page.

Training counts all seeds, folds and trials; evaluation all of a method's evaluations on test queries. Energy is what
`maw.runtime.energy` measured or estimated, and every table says which of the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from maw.config.methods import METHODS
from maw.evaluation.confirmatory import METRIC
from maw.report.text.format import as_table, wrapped
from maw.report.text.protocol import compute
from maw.storage.disk import size_text

COST_HEADER = (
    "dataset",
    "method",
    METRIC,
    "trained_parameters",
    "steps",
    "training_seconds",
    "evaluation_seconds",
    "runtime_seconds",
    "embeddings",
    "embedding_bytes",
    "search",
    "index_bytes",
    "energy_joules",
    "measured_joules",
)
"""Columns of costs.csv. `embeddings` is "from cache" where evaluation did not compute the documents', so that its
seconds and joules are not what they cost; `index_bytes` is empty where nothing but the embeddings was searched;
`measured_joules` is the part of `energy_joules` that is no estimate."""

SHARED_NOTE = "Methods share stored activations of the frozen layers: the first that needs them pays for them."


def costs(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a method took: the columns of `COST_HEADER` behind the metric; None for what an earlier version left out.

    Args:
        record: its entry in dataset.json's "results".
    """
    trained, facts = compute(record), record.get("evaluation") or {}
    return {
        "trained_parameters": record.get("trained_parameters") or 0,
        "steps": trained.get("steps", 0),
        "training_seconds": trained.get("seconds", 0.0),
        "evaluation_seconds": record.get("evaluation_seconds"),
        "runtime_seconds": record.get("runtime_seconds"),
        "embeddings": facts.get("embeddings"),
        "embedding_bytes": facts.get("embedding_bytes"),
        "search": facts.get("search", {}).get("index", "approximate" if "index_bytes" in facts else "exact"),
        "index_bytes": facts.get("index_bytes"),
        **_energy(record),
    }


def cost_rows(results: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """Rows under `COST_HEADER`, one for each dataset and method."""
    for result in results:
        for method in METHODS:
            record = result["results"].get(method.key)
            if record:
                yield (result["dataset"], method.name, record["metrics"][METRIC], *costs(record).values())


def cost_table(result: Mapping[str, Any]) -> str:
    """What searching and energy cost, as text; nothing where an earlier version recorded neither."""
    took = {m.label: costs(result["results"][m.key]) for m in METHODS if m.key in result["results"]}
    if all(each["energy_joules"] is None and each["embedding_bytes"] is None for each in took.values()):
        return ""
    rows = [
        [
            label,
            size(each["embedding_bytes"]),
            each["search"] if each["index_bytes"] is None else f"{size(each['index_bytes'])} {each['search']}",
            watt_hours(each["energy_joules"]),
        ]
        for label, each in took.items()
    ]
    table = as_table(["Cost", "embeddings searched", "index", f"Wh, {energy_kind(result)}"], rows)
    return "\n".join([table, *wrapped("", f"{energy_note(result)} {SHARED_NOTE}".strip())])


def energy_kind(result: Mapping[str, Any]) -> str:
    """Whether a dataset's energy is "measured", "partly measured" or "estimated"."""
    found = [costs(record) for record in result["results"].values()]
    joules, measured = (sum(each[key] or 0.0 for each in found) for key in ("energy_joules", "measured_joules"))
    return "estimated" if not measured else "measured" if measured >= joules * (1 - 1e-9) else "partly measured"


def energy_note(result: Mapping[str, Any]) -> str:
    """How a dataset's energy was found, in a sentence; nothing where an earlier version did not say."""
    sources = result.get("environment", {}).get("energy", {})
    parts = "; ".join(f"{name} {how}" for name, how in sources.items())
    return f"Energy: {parts}. Disks, cooling and losses of the power supply are not in it." if parts else ""


def size(count: int | None) -> str:
    """Bytes in decimal units, with one decimal."""
    return "-" if count is None else size_text(count, whole_from=1_000_000)


def watt_hours(joules: float | None) -> str:
    """Three digits of an energy."""
    return "-" if joules is None else f"{joules / 3600:,.0f}" if joules >= 3.6e6 else f"{joules / 3600:.3g}"


def _energy(record: Mapping[str, Any]) -> dict[str, float | None]:
    runs = [run["energy"] for run in record.get("runs", ()) if "energy" in run]
    if not runs:
        return {"energy_joules": None, "measured_joules": None}
    trials = [trial for search in record.get("tuning", ()) for trial in search["trials"] if "joules" in trial]
    return {
        "energy_joules": sum(each["training_joules"] + each["evaluation_joules"] for each in runs)
        + sum(trial["joules"] for trial in trials),
        "measured_joules": sum(each["measured_joules"] for each in (*runs, *trials)),
    }
