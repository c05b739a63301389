"""Real collections, where available: zero-shot nDCG@10 against a computation that shares no code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from maw.config.tier1_config import Tier1Config
from maw.data.registry import load_collection
from maw.evaluation.evaluate import evaluate_retriever
from maw.models.retriever import BaselineRetriever

COLLECTIONS = Path(__file__).resolve().parents[3] / "shared" / "data"
QUERIES, PASSAGES, LENGTH = 60, 200, 64
"""A part of the queries and of the corpus, and a quarter of the model's length limit, for the sake of time."""


def part_of(folder: Path, target: Path) -> Path:
    """The judgements of the first `QUERIES`, their passages, and as many others as make `PASSAGES`."""
    head, *judgements = (folder / "qrels" / "test.tsv").read_text().splitlines()
    asked = list(dict.fromkeys(line.split("\t")[0] for line in judgements))[:QUERIES]
    judgements = [line for line in judgements if line.split("\t")[0] in asked]
    judged = {line.split("\t")[1] for line in judgements}
    lines = (folder / "corpus.jsonl").read_text("utf-8").splitlines()
    needed = [line for line in lines if json.loads(line)["_id"] in judged]
    others = [line for line in lines if json.loads(line)["_id"] not in judged]
    (target / "qrels").mkdir(parents=True)
    kept = [*needed, *others[: PASSAGES - len(needed)]]
    (target / "corpus.jsonl").write_text("\n".join(kept) + "\n", "utf-8")
    shutil.copy(folder / "queries.jsonl", target)
    (target / "qrels" / "test.tsv").write_text("\n".join([head, *judgements]) + "\n")
    return target


def independent_ndcg(folder: Path) -> float:
    """sentence-transformers, a matrix product and ir_measures, on files read by hand."""
    import ir_measures
    from sentence_transformers import SentenceTransformer

    from maw.models.model_files import find_model

    def lines(name):
        return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]

    rows = [line.split("\t") for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]]
    qrels = [ir_measures.Qrel(query, passage, int(grade)) for query, passage, grade in rows]
    asked = {qrel.query_id for qrel in qrels}
    queries = {line["_id"]: line["text"] for line in lines("queries.jsonl") if line["_id"] in asked}
    passages = {line["_id"]: f"{line.get('title') or ''} {line['text']}".strip() for line in lines("corpus.jsonl")}
    model = SentenceTransformer(str(find_model("packaged:all-MiniLM-L6-v2")), device="cpu")
    query = model.encode(list(queries.values()), show_progress_bar=False)
    model.max_seq_length = LENGTH
    scores = query @ model.encode(list(passages.values()), show_progress_bar=False).T
    ids = list(passages)
    run = [
        ir_measures.ScoredDoc(query_id, ids[column], float(scores[row, column]))
        for row, query_id in enumerate(queries)
        for column in scores[row].argsort()[-100:]
    ]
    return ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)[ir_measures.nDCG @ 10]


@pytest.mark.skipif(not (COLLECTIONS / "nq").is_dir(), reason="the nq collection is not beside the project")
def test_zero_shot_on_nq_is_that_of_an_independent_computation(tmp_path):
    folder = part_of(COLLECTIONS / "nq", tmp_path / "nq")
    config = Tier1Config.from_preset(
        "offline",
        datasets=[f"beir:{folder}"],
        methods=["zero_shot"],
        max_document_length=LENGTH,
        cache_dir=str(tmp_path / "cache"),
    )
    collection = load_collection(config.datasets[0], config)
    ours = evaluate_retriever(BaselineRetriever(config), collection.test, config, "cpu")
    assert len(collection.test.query_ids) == QUERIES and len(collection.test.corpus) == PASSAGES
    assert ours["ndcg_cut_10"] == pytest.approx(independent_ndcg(folder), abs=0.003)
