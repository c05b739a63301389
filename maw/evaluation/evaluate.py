"""Evaluates a retriever: encodes queries and documents, searches, and computes 36 metrics.

    from tier_1 import evaluate_retriever
    results = evaluate_retriever(model, test_data, config, device)
    results["ndcg_cut_10"], results.per_query["ndcg_cut_10"]

Letters: Q queries, N documents, k ranked documents, V metrics, M MAW layers, D depths.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from maw.config.tier1_config import Tier1Config
from maw.data.collection import RetrievalData
from maw.data.from_dicts import as_retrieval_data
from maw.encoding.activation_cache import ActivationStore
from maw.encoding.embedding_cache import Embedder
from maw.errors import MemoryLimitError, is_out_of_memory
from maw.evaluation.answer_match import answer_match
from maw.evaluation.metrics import METRICS, EvaluationResult, compute_metrics
from maw.models.encode import Embeddings
from maw.models.retriever import BaselineRetriever
from maw.models.tokenized import ListTexts
from maw.runtime import distributed
from maw.runtime.devices import device_of, unwrap
from maw.runtime.profiler import stage
from maw.search.faiss_index import faiss_top_k, sampled_recall
from maw.search.left_out import leaving_out
from maw.search.sharded import sharded_top_k

logger = logging.getLogger(__name__)

LARGEST_BLOCK, SMALLEST_BLOCK = 16_384, 256
"""Passages that exact search scores at once: by default, and the smallest number when memory runs out."""

Inspect = Callable[[RetrievalData, Embeddings, Embeddings], None]


def evaluate_retriever(
    model: BaselineRetriever,
    test_data: RetrievalData | Mapping[str, Any],
    config: Tier1Config,
    device: torch.device | str | None = None,
    split: str = "test",
    *,
    activations: ActivationStore | None = None,
    inspect: Inspect | None = None,
) -> EvaluationResult:
    """Ranks the whole corpus for every query and computes the 36 metrics of `maw.evaluation.metrics`.

    Args:
        model: a `BaselineRetriever` or `MAWRetriever`, at any stage of training; it may be inside a DataParallel.
        test_data: a split of a collection, or a plain dictionary: "queries" and "docs" as lists or as {id: text},
            "qrels" as {query: {document: grade}} by position or id; its relevance level is the configuration's, and so
            is the rule for queries that are documents too (`maw.data.self_passages`), where both have ids.
        config: settings of encoding and search; `top_k` is the number of passages ranked for a query.
        device: device that computes; by default the model's.
        split: name of the split, for messages.
        activations: stored activations of the frozen layers, shared with other calls of a run.
        inspect: called with the data and the embeddings of queries and documents, for
            `maw.evaluation.routing.diagnostics`.

    Returns:
        Means by trec_eval's key; `per_query` values; the `run` (rows of the corpus and scores, best first; -1 at the
        end of a ranking of all documents but the one that is left out); and
        `facts`: counts, seconds, queries per second; "embeddings", whether those of documents were "computed" or read
        "from cache" ("encode_seconds" is then not the cost of encoding), and their "embedding_bytes"; facts of FAISS,
        its "index_bytes" and, for approximate search, its recall; the answer match (`maw.evaluation.answer_match`) if
        the data has answers; the relevance level if it is not 1; for MAW, how often each depth was used.

    Raises:
        DataError: data that cannot be evaluated.
    """
    device, model = device_of(model, device), unwrap(model)
    data = as_retrieval_data(test_data, split, config.relevance_level, config.self_passages)
    started = time.perf_counter()
    embedder = Embedder(model, config, device, activations)
    documents = embedder.encode(data.corpus, "document", f"{split} documents", fill=True)
    queries = embedder.encode(ListTexts(data.queries), "query", f"{split} queries", fill=True)
    encoded = time.perf_counter()
    with stage("search"):
        scores, rows, search_facts = search(queries, documents, data, config, device)
    searched = time.perf_counter()
    with stage("metrics"):
        result = _measured(data, rows, scores)
    result.run = {"rows": rows, "scores": scores}
    result.facts = {
        "split": split,
        "queries": len(data.query_ids),
        "documents": len(data.corpus),
        "embeddings": "from cache" if documents.from_cache else "computed",
        "encode_seconds": encoded - started,
        "search_seconds": searched - encoded,
        "queries_per_second": len(data.query_ids) / (searched - encoded),
        "embedding_bytes": documents.embeddings.nbytes,
    } | search_facts
    if data.left_out:
        result.facts["left_out"] = len(data.left_out)
    if data.relevance_level != 1:
        result.facts["relevance_level"] = data.relevance_level
    if data.answers and distributed.is_main():
        result.facts["answer_match"] = answer_match(data, rows)
    if documents.depth_share is not None and queries.depth_share is not None:
        result.facts["routing"] = {
            "query": depth_use(queries.depth_share),
            "document": depth_use(documents.depth_share),
        }
    if inspect is not None:
        inspect(data, queries, documents)
    return result


def _measured(data: RetrievalData, rows: np.ndarray, scores: np.ndarray) -> EvaluationResult:
    """The metrics; of several processes the main process computes them for all."""

    def computed() -> EvaluationResult:
        ids, values = data.corpus.rankings(rows, scores)
        return compute_metrics(data.query_ids, ids, values, data.qrels, relevance_level=data.relevance_level)

    if not distributed.is_distributed():
        return computed()
    ordered = list(dict.fromkeys([*data.query_ids, *data.qrels]))  # the order of `compute_metrics`
    values_VQ = torch.zeros(len(METRICS), len(ordered), dtype=torch.float64)
    if distributed.is_main():
        values_VQ[:] = torch.from_numpy(np.stack([computed().per_query[name] for name in METRICS]))
    values = distributed.from_main_(values_VQ).numpy()
    return EvaluationResult(ordered, dict(zip(METRICS, values, strict=True)))


def search(
    queries: Embeddings, documents: Embeddings, data: RetrievalData, config: Tier1Config, device: torch.device
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Finds each query's best documents with the configured search.

    Returns:
        Scores and corpus rows, (Q, k) each, in trec_eval's order, without the documents that queries leave out; and
        facts: "search" with the parameters of FAISS and, for approximate search, its recall on a sample of queries.
    """
    on_device = torch.from_numpy(queries.embeddings).to(device)
    passages, ties, left_out = documents.embeddings, data.corpus.tie_order(), data.left_out_rows()
    if config.search == "exact":
        scores, rows = leaving_out(lambda k: _fitting_top_k(on_device, passages, k, ties), config.top_k, left_out)
        return np.asarray(scores), np.asarray(rows), {}
    if distributed.is_distributed():
        return _searched_by_main(queries, documents, data, config, device)

    def find(k: int) -> tuple[Any, ...]:
        return faiss_top_k(config.search, on_device, passages, k, ties, nprobe=config.nprobe)

    scores, rows, facts = leaving_out(find, config.top_k, left_out)
    if config.search != "flat" and len(on_device):
        facts |= sampled_recall(np.asarray(rows), on_device, passages, config.top_k, ties, left_out)
        found = ", ".join(f"{value:.3f} at {cutoff}" for cutoff, value in facts["recall"].items())
        logger.info(
            "recall of %s against exact search: %s (%d queries)", config.search, found, facts["recall_queries"]
        )
    size = {"index_bytes": facts.pop("index_bytes")} if "index_bytes" in facts else {}  # no index without queries
    return np.asarray(scores), np.asarray(rows), {"search": facts} | size


def _searched_by_main(
    queries: Embeddings, documents: Embeddings, data: RetrievalData, config: Tier1Config, device: torch.device
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Searches with FAISS, which has threads of its own, in the main process; all processes get the results."""
    shape = len(queries.embeddings), min(config.top_k, len(documents.embeddings))
    scores, rows = torch.zeros(shape), torch.zeros(shape, dtype=torch.int64)
    facts: dict[str, Any] = {}
    if distributed.is_main():
        with distributed.alone():
            found, found_rows, facts = search(queries, documents, data, config, device)
        scores[:], rows[:] = torch.from_numpy(found), torch.from_numpy(found_rows.astype(np.int64))
    return distributed.from_main_(scores).numpy(), distributed.from_main_(rows).numpy(), facts


def _fitting_top_k(queries: torch.Tensor, *wanted: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact search; smaller blocks of passages if memory runs out."""
    block = LARGEST_BLOCK
    while True:
        try:
            return sharded_top_k(queries, *wanted, block=block)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if block == SMALLEST_BLOCK:
                text = f"out of memory with blocks of {block} passages; rank fewer with --top-k, or free memory"
                raise MemoryLimitError(f"search: {text}") from error
        torch.cuda.empty_cache()
        block = max(SMALLEST_BLOCK, block // 4)
        logger.warning("search: out of memory; continuing with blocks of %d passages", block)


def depth_use(share_NMD: np.ndarray) -> dict[str, list[Any]]:
    """How often each depth was used in each MAW layer.

    Args:
        share_NMD: how often each text used each depth, summing to one over D.

    Returns:
        "depth_histogram", the mean share of each depth; "effective_depths", exp of the histogram's entropy, from 1
        (all texts use one depth) to D; "top_share", the share of the most used depth.
    """
    histogram_MD = share_NMD.mean(0, dtype=np.float64)
    entropy = -np.where(histogram_MD > 0, histogram_MD * np.log(histogram_MD.clip(min=1e-12)), 0).sum(1)
    return {
        "depth_histogram": histogram_MD.round(6).tolist(),
        "effective_depths": np.exp(entropy).tolist(),
        "top_share": histogram_MD.max(1).tolist(),
    }
