"""Uses a run in PyTerrier: its models as retrievers of a pipeline, its rankings and judgements as data frames.

    pip install pyterrier                          # needs a network; nothing else does, and no Java
    python examples/pyterrier_experiment.py logs/tier1

The script runs a PyTerrier experiment on the run's own passages, queries and judgements, and prints its table. Each
method appears twice: as the model ranks now, and as the run wrote its ranking. Both have the run's own numbers.

`RunRetriever` is a PyTerrier transformer, so pipelines can use it: `RunRetriever(run, "maw") % 50 >> ...` re-ranks the
first 50, and `bm25 >> ...` combines it with an index of PyTerrier (which needs Java). Its results include the text of
passages. `pt.io.write_results(ranking, "mine.trec")` writes a TREC run file for `examples/ir_measures_run.py` and
every other tool that reads such files.
"""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import pyterrier as pt
import torch

from maw.data.corpus import Corpus
from maw.experiment.past_run import PastRun
from maw.models.encode import encode
from maw.search.exact import top_k
from maw.search.left_out import leaving_out

MEASURES = ["ndcg_cut_10", "map", "recall_100"]


class RunRetriever(pt.Transformer):
    """Queries to passages, by one method of a run: columns qid, query -> and docno, text, score, rank.

    Args:
        run: of which the model and the passages are.
        method: its name, such as maw.
        k: passages of a query.
    """

    def __init__(self, run: PastRun, method: str, k: int = 1000):
        super().__init__()
        self.model = run.model(method, precision=run.config.precision)
        self.data = run.test()
        self.corpus: Corpus = self.data.corpus
        self.k = k

    @cached_property
    def passages(self) -> np.ndarray:
        """Embeddings of all passages, float32 (N, C); computed once."""
        source = self.model.source(self.corpus, "document")
        return encode(self.model.encoder, source, batch_size=128, device=self.model.device).embeddings

    def transform(self, queries: pd.DataFrame) -> pd.DataFrame:
        """One row for each ranked passage, best first; equal scores are in trec_eval's order."""
        pt.validate.query_frame(queries, extra_columns=["query"])
        columns = [*queries.columns, "docno", "text", "score", "rank"]
        if queries.empty:  # by which PyTerrier finds out what a pipeline gives
            return pd.DataFrame(columns=columns)
        embeddings = torch.from_numpy(self.model.encode(list(queries["query"]), "query"))
        own = self.corpus.rows_of([qid if qid in self.data.left_out else "" for qid in queries["qid"]])
        ties = self.corpus.tie_order()
        scores, rows = leaving_out(lambda k: top_k(embeddings, self.passages, k, ties), self.k, own)
        found = []
        for query, of_query, values in zip(queries.to_dict("records"), rows.tolist(), scores.tolist(), strict=True):
            there = [row for row in of_query if row >= 0]
            ids, texts = self.corpus.id_of(there), self.corpus.take(there)
            for rank, (docno, text, score) in enumerate(zip(ids, texts, values, strict=False)):
                found.append(query | {"docno": docno, "text": text, "score": score, "rank": rank})
        return pd.DataFrame(found, columns=columns)


def topics_and_qrels(run: PastRun) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The run's test queries and their judgements, in PyTerrier's columns."""
    data = run.test()
    topics = pd.DataFrame({"qid": data.query_ids, "query": data.queries})
    judged = [(qid, docno, grade) for qid, of_query in data.qrels.items() for docno, grade in of_query.items()]
    return topics, pd.DataFrame(judged, columns=["qid", "docno", "label"])


def main(run_dir: str) -> pd.DataFrame:
    """Prints and returns the table of the experiment."""
    run = PastRun.open(run_dir)
    topics, qrels = topics_and_qrels(run)
    systems: dict[str, pt.Transformer | pd.DataFrame] = {}
    for method in run.methods:
        systems[method] = RunRetriever(run, method, run.config.top_k)
        for path in (run.folder / "runs").glob(f"{run.name}_{method}.trec*"):
            systems[f"{method} as written"] = pt.io.read_results(str(path))
    found = pt.Experiment(list(systems.values()), topics, qrels, MEASURES, names=list(systems))
    sys.stdout.write(f"{found.to_string(index=False)}\n")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
