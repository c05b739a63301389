"""Writes the tables of docs/peft.md.

python docs/peft_tables.py                 # what is offered, with the parameters that each trains in all-MiniLM-L6-v2
python docs/peft_tables.py logs/peft       # the comparison with LoRA, from a run with --compare lora
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from maw.config.method_files import load_method  # noqa: E402 - the package is found by the line above
from maw.config.methods import find_method, methods_of  # noqa: E402
from maw.config.peft_methods import OFFERED, REFUSED  # noqa: E402
from maw.config.tier1_config import Tier1Config  # noqa: E402
from maw.evaluation.confirmatory import METRIC, key_of  # noqa: E402
from maw.report.chart_data import bars  # noqa: E402
from maw.report.text.format import p_value  # noqa: E402
from maw.storage.files import read_json  # noqa: E402

HEADER = "| `--methods` | method | source | trained parameters | default rate | exported merged |"


def offered() -> str:
    """A row for each method: its name, source, size and rate, and whether it can be merged."""
    from maw.models.retriever import BaselineRetriever

    lines = [HEADER, "| --- | --- | --- | ---: | ---: | --- |"]
    for name, adapter in OFFERED.items():
        method = load_method(f"peft:{name}")
        model = BaselineRetriever(method.configure(Tier1Config.from_preset("offline", device="cpu")), method)
        cells = [f"`peft:{name}`", adapter.title, adapter.paper, f"{model.trained_parameters:,}"]
        cells += [f"{adapter.learning_rate:g}", "yes" if adapter.merged else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def refused() -> str:
    """A row for each reason, with the kinds that it keeps out."""
    by_reason: dict[str, list[str]] = {}
    for name, why in REFUSED.items():
        by_reason.setdefault(why, []).append(f"`{name}`")
    rows = [f"| {', '.join(names)} | {why} |" for why, names in by_reason.items()]
    return "\n".join(["| PEFT's | why it is no method of a run |", "| --- | --- |", *rows])


def comparison(result: dict[str, Any]) -> str:
    """A row for each method of a dataset's result: size, nDCG@10, seconds, and the planned test against LoRA."""
    lora = find_method("lora")
    lines = ["| method | trained parameters | nDCG@10 | 95% interval | seconds | difference to LoRA | Holm p |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for method, bar in zip(methods_of(result), bars(result), strict=True):
        record = result["results"][method.key]
        interval = "-" if bar.low is None else f"{bar.low:.4f} to {bar.high:.4f}"
        cells = [bar.name, f"{record['trained_parameters']:,}" if method.trained else "none"]
        cells += [f"{record['metrics'][METRIC]:.4f}", interval, f"{record['runtime_seconds']:.0f}"]
        test = result["significance"].get(key_of(method, lora), {}).get(METRIC)
        planned = test is not None and test["family"] == "confirmatory"
        cells += [f"{test['mean_difference']:+.4f}", p_value(test["p_holm"])] if planned else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for path in sorted(Path(sys.argv[1]).glob("*/dataset.json")):
            sys.stdout.write(comparison(read_json(path)) + "\n")
    else:
        sys.stdout.write(f"{offered()}\n\n{refused()}\n")
