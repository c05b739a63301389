"""The README.md of an exported model: how to load it, what it is, what was measured, and what that does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maw import __version__
from maw.encoder import MAWWithGRPOEncoder
from maw.methods import comparisons, find_method
from maw.metrics import METRIC_LABELS, PRIMARY
from maw.past_run import PastRun
from maw.pretrained import ModelSpec
from maw.report.text import dataset_summary
from maw.retriever import BaselineRetriever

_HUB_NAME = {"packaged:all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2"}
_LEVEL = 0.05


def base_model(spec: ModelSpec) -> str:
    """What a model was trained from, by the name that a hub has for it, or its folder."""
    return _HUB_NAME.get(spec.name, spec.name)


def model_card(model: BaselineRetriever, run: PastRun, method: str, place: str = "this/folder") -> str:
    """Markdown, with the metadata that model hubs read.

    Args:
        model: of the run.
        run: whose results to give.
        method: its name.
        place: from which a reader will load the model, a folder or a hub's ORG/NAME.
    """
    base = base_model(model.spec)
    # A licence is not stated there: it is the pretrained model's, which the files at hand do not tell.
    head = ["---", "library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    head += [f"base_model: {base}"] if model.spec.folder is None or base != model.spec.name else []
    head += ["tags:", "- sentence-transformers", "- dense-retrieval", f"- {find_method(method).retriever}", "---"]
    record = run.record(method)
    parts = [
        "\n".join(head),
        f"# {record['approach']}, trained on {run.result['venue']}",
        f"{record['description']}, from `{base}`.",
        _loading(model, place),
        "## The model\n\n" + "\n".join(f"- {line}" for line in _facts(model, record)),
        "## What was measured\n\n" + _measured(run, method),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(model, run, method)),
        "## Licence\n\n" + _licence(model, base),
    ]
    return "\n\n".join(parts) + "\n"


def _loading(model: BaselineRetriever, place: str) -> str:
    trust = ", trust_remote_code=True" if isinstance(model.encoder, MAWWithGRPOEncoder) else ""
    code = [
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{place}"{trust})',
        'queries = model.encode_query(["a question"])',
        'passages = model.encode_document(["a passage", "another one"])',
        "scores = model.similarity(queries, passages)",
    ]
    return "\n".join(["## Use", "", "```python", *code, "```"])


def _facts(model: BaselineRetriever, record: Mapping[str, Any]) -> list[str]:
    spec = model.spec
    lengths = f"{spec.max_query_length} tokens of a query and {spec.max_document_length} of a passage"
    facts = [
        f"{spec.num_layers} layers, {spec.num_heads} heads, embeddings of {spec.hidden_dim} numbers",
        f"{spec.pooling} pooling, compared by {spec.similarity}, {lengths}",
        f'prefixes: query "{spec.query_prefix}", passage "{spec.document_prefix}"',
        f"trained: {record.get('trained_parameters') or 0:,} numbers",
    ]
    if isinstance(model.encoder, MAWWithGRPOEncoder):
        router = model.encoder.maw_attention[0].router
        layers = ", ".join(map(str, model.encoder.maw_layers))
        facts.append(f"{router.depths} depths in layer {layers}; router {router.name}, by {router.route_by}, greedy")
    return [*facts, f"made by MAW Transformers {__version__}"]


def _measured(run: PastRun, method: str) -> str:
    record = run.record(method)
    names = [name for name in ("zero_shot", method) if name in run.methods]
    names = list(dict.fromkeys(names))
    header = ["metric", *(find_method(name).label for name in names)]
    rows = [[METRIC_LABELS[key], *(f"{run.record(name)['metrics'][key]:.4f}" for name in names)] for key in PRIMARY]
    lines = [_row(header), _row(["---"] * len(header)), *map(_row, rows)]
    count = len(record.get("runs", [record]))
    runs = f"Means over {count} trainings, of which this model is one. " if count > 1 else ""
    intro = f"{runs}The whole report of the run, its other methods, tests and data included, is below."
    return "\n".join([*lines, "", intro, "", "```", dataset_summary(run.result), "```"])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _limits(model: BaselineRetriever, run: PastRun, method: str) -> list[str]:
    found = [
        f"Measured on one dataset, {run.result['venue']}; nothing is known about others.",
        "Scores on a sampled corpus are higher than on the whole one; the report above says what was searched.",
    ]
    for new, old in comparisons(run.methods):
        test = run.result.get("significance", {}).get(f"{new.short}_vs_{old.short}", {}).get(PRIMARY[0])
        if new.name == method and test and not (test["p_value"] < _LEVEL and test["mean_difference"] > 0):
            difference = f"difference {test['mean_difference']:+.4f}, p = {test['p_value']:.3f}, not corrected"
            found.append(f"Not shown to be better than {old.label} in {METRIC_LABELS[PRIMARY[0]]}: {difference}.")
    if run.config.seeds == 1 and find_method(method).trained:
        found.append("One training seed: how far another one would move the numbers is not known.")
    found += [f"{text}." for text in run.result.get("warnings", ())]
    if isinstance(model.encoder, MAWWithGRPOEncoder):
        found.append("The modeling file takes texts with padding only: flash attention 2 is not supported.")
    return found


def _licence(model: BaselineRetriever, base: str) -> str:
    code = "`modeling_maw.py` is under the MIT licence. " if isinstance(model.encoder, MAWWithGRPOEncoder) else ""
    return (
        f"{code}The weights are those of `{base}`, changed by training: its licence applies to them, and so may the "
        "terms of the data. Neither was checked here."
    )
