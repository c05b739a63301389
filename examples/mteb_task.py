"""Evaluates a model of a finished run with mteb, on the test queries of that run.

    pip install mteb                               # needs a network; nothing else does
    python examples/mteb_task.py logs/tier1 maw

The script makes an mteb task of the run's own passages, queries and judgements. It prints mteb's nDCG@10 and the run's
own. For a published task: `mteb.evaluate(MTEBEncoder(model), mteb.get_tasks(tasks=["SciFact"]))`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mteb
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from maw.data.registry import load_collection
from maw.evaluation.mteb import MTEBEncoder
from maw.experiment.past_run import PastRun


class RunTask(AbsTaskRetrieval):
    """The test split of a run as a retrieval task of mteb; `data` is a `maw.data.registry.RetrievalData`.

    mteb leaves out the passage whose id is the query's. So a query that ranks that passage in the run is renamed.
    """

    data: Any = None
    ignore_identical_ids = True
    metadata = TaskMetadata(
        name="MAWRun",
        description="The test queries of one run of MAW Transformers.",
        type="Retrieval",
        dataset={"path": "in-memory/run", "revision": "1"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    def load_data(self, *given: Any, **named: Any) -> None:
        """Gives mteb the data in memory."""
        records = self.data.corpus.records()
        corpus = [{"id": key, "title": title, "text": text} for key, title, text in records]
        names = {key: key if key in self.data.left_out else f"query {key}" for key in self.data.query_ids}
        texts = zip(names.values(), self.data.queries, strict=True)
        queries = [{"id": name, "text": text} for name, text in texts]
        judged = {names[key]: self.data.qrels[key] for key in names}
        split = {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries)}
        self.dataset = {"default": {"test": split | {"relevant_docs": judged, "top_ranked": None}}}
        self.data_loaded = True


def main(run_dir: str, method: str) -> float:
    """Evaluates one method of a run; returns mteb's nDCG@10."""
    run = PastRun.open(run_dir)
    name = run.config.datasets[0]
    task = RunTask()
    task.data = load_collection(name, run.config).test
    model = run.model(method)
    result = mteb.evaluate(MTEBEncoder(model, f"maw/{method}"), task, cache=None, co2_tracker=False)
    found = result.task_results[0].get_score()
    own = run.record(method)["metrics"]["ndcg_cut_10"]
    sys.stdout.write(f"{method} on {run.name}: nDCG@10 {found:.4f} by mteb, {own:.4f} by the run\n")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:3])
