"""Cost and quality of each method: summary/costs.csv, the summary's table and that of the page.

Training counts all seeds, folds and trials; evaluation counts all evaluations of a method on test queries. Energy is
what `maw.runtime.energy` measured. Earlier versions estimated energy; records that may hold an estimate name no
measured devices, and their energy is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from maw.config.methods import methods_of
from maw.evaluation.confirmatory import METRIC
from maw.report.text.format import as_table, wrapped
from maw.report.text.trainings import compute
from maw.runtime.energy import SOURCES
from maw.storage.disk import size_text

COST_HEADER = (
    *("dataset", "method", METRIC, "trained_parameters", "steps", "training_seconds", "evaluation_seconds"),
    *("runtime_seconds", "embeddings", "embedding_bytes", "search", "index_bytes"),
    *("energy_joules", "measured_joules", "measured_devices"),
)
"""Columns of costs.csv; the last three are left out where no method has a measurement. `embeddings` is "from cache"
where evaluation did not compute the documents', so that its seconds and joules are not what they cost; `index_bytes`
is empty where nothing but the embeddings was searched; `measured_devices` says whose energy it is."""

SHARED_NOTE = (
    "Methods share stored activations of the frozen layers. The time to compute them counts for the first method that "
    "needs them, so its seconds do not compare with those of the others."
)


def costs(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a method took, from its entry in dataset.json's "results": the columns of `COST_HEADER` behind the metric.

    None stands for what an earlier version left out.
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


def cost_rows(results: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, ...], list[list[Any]]]:
    """The header of costs.csv, and its rows: one for each dataset and method."""
    rows = []
    for result in results:
        for method in methods_of(result):
            record = result["results"][method.key]
            about = {"dataset": result["dataset"], "method": method.name, METRIC: record["metrics"][METRIC]}
            rows.append(about | costs(record))
    measured = any(row["energy_joules"] is not None for row in rows)
    header = COST_HEADER if measured else COST_HEADER[: COST_HEADER.index("energy_joules")]
    return header, [[row[name] for name in header] for row in rows]


def cost_table(result: Mapping[str, Any]) -> str:
    """What searching and energy cost, as text; nothing where neither is known."""
    took = {method.label: costs(result["results"][method.key]) for method in methods_of(result)}
    if all(each["energy_joules"] is None and each["embedding_bytes"] is None for each in took.values()):
        return ""
    devices = energy_devices(result)
    rows = [
        [label, size(each["embedding_bytes"]), index(each), *([watt_hours(each["energy_joules"])] if devices else [])]
        for label, each in took.items()
    ]
    table = as_table(["Cost", "embeddings searched", "index", *([f"Wh, {devices}"] if devices else [])], rows)
    return "\n".join([table, *wrapped("", cost_note(result))])


def energy_devices(result: Mapping[str, Any]) -> str:
    """Whose energy was measured, such as "processors and GPUs"; empty where methods differ in it, or have none."""
    found = {costs(record)["measured_devices"] for record in result["results"].values()} - {None}
    return found.pop() if len(found) == 1 else ""


def cost_note(result: Mapping[str, Any]) -> str:
    """What the columns of energy, where there is one, and of seconds count."""
    devices = energy_devices(result)
    if not devices:
        return SHARED_NOTE
    how = " and ".join(f"that of {kind}, measured by {SOURCES[kind]}" for kind in devices.split(" and "))
    return f"Energy is {how}; nothing else is in it. {SHARED_NOTE}"


def index(took: Mapping[str, Any]) -> str:
    """What was searched, with its size if it is more than the embeddings; `took` is from `costs`."""
    return took["search"] if took["index_bytes"] is None else f"{size(took['index_bytes'])} {took['search']}"


def size(count: int | None) -> str:
    """Bytes in decimal units, with one decimal."""
    return "-" if count is None else size_text(count, whole_from=1_000_000)


def watt_hours(joules: float | None) -> str:
    """Three digits of an energy."""
    return "-" if joules is None else f"{joules / 3600:,.0f}" if joules >= 3.6e6 else f"{joules / 3600:.3g}"


def _energy(record: Mapping[str, Any]) -> dict[str, Any]:
    """A method's energy; None where its runs and trials were not all measured, and on the same devices."""
    trials = [trial for search in record.get("tuning", ()) for trial in search["trials"]]
    parts = [*(run.get("energy", {}) for run in record.get("runs", ())), *trials]
    devices = {tuple(kind for kind in SOURCES if kind in each.get("measured_devices", ())) for each in parts}
    if len(devices) != 1 or devices == {()}:
        return {"energy_joules": None, "measured_joules": None, "measured_devices": None}
    joules = sum(each["measured_joules"] for each in parts)
    return {"energy_joules": joules, "measured_joules": joules, "measured_devices": " and ".join(*devices)}
