"""README.md of a trained model: how to load it, facts on model and data, its results and their limits.

Each best checkpoint has one, written after the results of its dataset, and so has each exported folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maw import __version__
from maw.config.methods import Method, comparisons, find_method
from maw.evaluation.metrics import METRIC_LABELS, PRIMARY
from maw.experiment.past_run import PastRun
from maw.models.pretrained import ModelSpec, base_model, trained_layers
from maw.report.text.summary import dataset_summary
from maw.storage.files import write_text
from maw.training.checkpoint import CARD

_LEVEL = 0.05
_OF_DATA = ("source", "version", "licence")


def write_cards(run: PastRun, spec: ModelSpec) -> list[Path]:
    """Writes a card into the folder of each best checkpoint that a run has kept.

    Raises:
        MAWError: a path cannot be written.
    """
    written = []
    for method in run.methods:
        for each in run.record(method).get("runs", ()) if find_method(method).trained else ():
            folder = run.checkpoint_folder(method, each["seed"], each.get("fold"))
            if folder.is_dir():
                card = model_card(spec, run, method, seed=each["seed"], fold=each.get("fold"))
                written.append(write_text(folder / CARD, card))
    return written


def model_card(
    spec: ModelSpec,
    run: PastRun,
    method: str,
    *,
    seed: int | None = None,
    fold: int | None = None,
    exported_to: str | None = None,
) -> str:
    """The card as Markdown; that of an exported model has the metadata that model hubs read.

    Args:
        seed, fold: those of the training; the first ones if None.
        exported_to: folder or ORG/NAME from which sentence-transformers will load the model; None for a checkpoint.
    """
    base, record = base_model(spec), run.record(method)
    asked = run.config.seed if seed is None else seed, fold or (1 if run.config.folds else None)
    runs = record.get("runs", [record])
    own = next((each for each in runs if (each.get("seed"), each.get("fold")) == asked), runs[0])
    code = "`modeling_maw.py` is under the MIT licence. " if exported_to and _has_depths(method) else ""
    licence = (
        f"{code}The weights are those of `{base}`, changed by training. Its licence applies to them, and perhaps the "
        "terms of the data, too. Neither was checked here."
    )
    parts = [_metadata(spec, find_method(method), base)] if exported_to else []
    parts += [
        f"# {record['approach']}, trained on {run.result['venue']}",
        f"{record['description']}, from `{base}`.",
        _loading(run, method, own, exported_to),
        "## The model\n\n" + _bullets(_facts(spec, run, method, own)),
        "## The data\n\n" + _bullets(_data(run)),
        "## What was measured\n\n" + _measured(run, method, own),
        "## Limits\n\n" + _bullets(_limits(run, method, exported=bool(exported_to))),
        "## Licence\n\n" + licence,
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(spec: ModelSpec, method: Method, base: str) -> str:
    # The licence is that of the pretrained model, which its files do not state.
    head = ["---", "library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    head += [f"base_model: {base}"] if spec.folder is None or base != spec.name else []
    head += ["tags:", "- sentence-transformers", "- dense-retrieval", f"- {method.retriever}", "---"]
    return "\n".join(head)


def _has_depths(method: str) -> bool:
    return find_method(method).retriever == "maw"


def _loading(run: PastRun, method: str, own: Mapping[str, Any], place: str | None) -> str:
    if place:
        trust = ", trust_remote_code=True" if _has_depths(method) else ""
        code = [
            "from sentence_transformers import SentenceTransformer",
            "",
            f'model = SentenceTransformer("{place}"{trust})',
            'queries = model.encode_query(["a question"])',
            'passages = model.encode_document(["a passage", "another one"])',
            "scores = model.similarity(queries, passages)",
        ]
        return "\n".join(["## Use", "", "```python", *code, "```"])
    code = [
        "from tier_1 import load_checkpoint",
        "",
        'model = load_checkpoint("this/folder")',
        'queries = model.encode(["a question"], "query")',
        'passages = model.encode(["a passage", "another one"], "document")',
        "scores = queries @ passages.T",
    ]
    which = f" --seed {own['seed']}" if run.config.seeds > 1 else ""
    which += f" --fold {own['fold']}" if run.config.folds else ""
    which += f" --dataset {run.name}" if len(run.config.datasets) > 1 else ""
    command = f"python tier_1.py export RUN_DIR OUT --method {method}{which}"
    about = (
        "This folder holds only the weights that the method changed; the pretrained ones are found by name and hash. "
        f"To export all weights as a folder for sentence-transformers: `{command}`."
    )
    return "\n".join(["## Use", "", "```python", *code, "```", "", about])


def _facts(spec: ModelSpec, run: PastRun, method: str, own: Mapping[str, Any]) -> list[str]:
    lengths = f"{spec.max_query_length} tokens of a query and {spec.max_document_length} of a passage"
    facts = [
        f"{spec.num_layers} layers, {spec.num_heads} heads, {spec.embedding_dim}-dimensional embeddings",
        f"{spec.pooling} pooling, compared by {spec.similarity}, {lengths}",
        f'prefixes: query "{spec.query_prefix}", passage "{spec.document_prefix}"',
        f"trained parameters: {run.record(method).get('trained_parameters') or 0:,}",
    ]
    if "seed" in own and find_method(method).trained:
        fold = f", fold {own['fold']}" if "fold" in own else ""
        facts.append(f"seed {own['seed']}{fold}; weights of epoch {own['best_epoch']}, the best on validation")
    if _has_depths(method):
        config = find_method(method).configure(run.config)
        layers = ", ".join(map(str, trained_layers(config, spec)["maw"]))
        depths = f"{config.depth_dim} depth{'s' * (config.depth_dim != 1)} in layer {layers}"
        facts.append(f"{depths}; router {config.router}, by {config.route_by}, greedy")
    return [*facts, f"made by MAW Transformers {__version__}"]


def _data(run: PastRun) -> list[str]:
    """Source of the texts, and the number of queries in each split."""
    about = run.result.get("data", {})
    facts = [f"{run.result['venue']} ({run.name})", *(f"{key}: {about[key]}" for key in _OF_DATA if key in about)]
    for name, split in about.get("splits", {}).items():
        if isinstance(split, Mapping) and isinstance(split.get("queries"), int):
            facts.append(f"{name}: {split['queries']:,} queries")
    return facts


def _measured(run: PastRun, method: str, own: Mapping[str, Any]) -> str:
    record = run.record(method)
    names = [name for name in dict.fromkeys(("zero_shot", method)) if name in run.methods]
    header = ["metric", *(find_method(name).label for name in names)]
    rows = [[METRIC_LABELS[key], *(f"{run.record(name)['metrics'][key]:.4f}" for name in names)] for key in PRIMARY]
    lines = [_row(header), _row(["---"] * len(header)), *map(_row, rows)]
    count, first = len(record.get("runs", [record])), PRIMARY[0]
    runs = f"Means over {count} trainings. This model alone reached " if count > 1 else ""
    runs += f"{METRIC_LABELS[first]} {own['metrics'][first]:.4f}. " if runs else ""
    intro = f"{runs}The full report of the run, with its other methods, tests and data, is below."
    return "\n".join([*lines, "", intro, "", "```", dataset_summary(run.result), "```"])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _limits(run: PastRun, method: str, *, exported: bool) -> list[str]:
    found = [
        f"Measured on one dataset only, {run.result['venue']}.",
        "Scores on a sampled corpus are higher than on the whole one; the report above says what was searched.",
    ]
    for new, old in comparisons(run.methods):
        test = run.result.get("significance", {}).get(f"{new.short}_vs_{old.short}", {}).get(PRIMARY[0])
        if new.name == method and test and not (test["p_value"] < _LEVEL and test["mean_difference"] > 0):
            difference = f"difference {test['mean_difference']:+.4f}, p = {test['p_value']:.3f}, not corrected"
            found.append(f"Not significantly better than {old.label} in {METRIC_LABELS[PRIMARY[0]]}: {difference}.")
    if run.config.seeds == 1 and find_method(method).trained:
        found.append("One training seed: the variation over seeds is not known.")
    found += [f"{text}." for text in run.result.get("warnings", ())]
    if exported and _has_depths(method):
        found.append("The modeling file needs padded batches: flash attention 2 is not supported.")
    return found
