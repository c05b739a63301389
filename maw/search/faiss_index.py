"""Top-k with FAISS, for corpora where exact search takes too long, with the scores and the order of exact search.

    scores, rows, facts = faiss_top_k("ivf", queries, passages, 1000, corpus.tie_order(), nprobe=64)

`maw.evaluation.evaluate` uses it for `--search flat`, `ivf` and `hnsw`. FAISS proposes somewhat more than k passages
for each query. These are scored again by a matrix product as in `maw.search.exact`, packed into keys and cut at k. So
scores are inner products in float32, and equal scores stand in trec_eval's order.

* flat: `IndexFlatIP`, which compares everything. Always exact: where the k-th score is not above the last proposal's
  by more than rounding, ties may reach past what FAISS proposed, and `maw.search.exact` searches the query again.
* ivf: `IndexIVFFlat` with 4 * sqrt(N) lists, trained on 64 passages a list; each query compares the passages of
  `nprobe` lists. K-means finds the lists, which costs as much as comparing some thousand queries with everything.
* hnsw: `IndexHNSWFlat` with 32 links a passage, FAISS's default effort in building, and in searching as many
  candidates as passages are fetched. With several threads its graph, and so its results, differ a little between runs.

A query for which the index finds fewer than k passages is searched exactly, so that every list is complete. `facts`
say how many these were. The index holds a copy of the passages, in their own number format, float32 or float16.

With faiss-gpu and a CUDA device, flat and ivf run there, up to 2048 passages fetched and 2048 lists searched; its flat
index rounds queries to the passages' format. Without faiss-gpu, `maw.search.exact` does a flat search on a CUDA
device, which compares everything too.

Letters: Q queries, N passages, C embedding size, K results per query, F passages fetched per query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maw.errors import MAWError
from maw.search.checks import LARGEST, as_tensor, check_arguments, largest, padded, rows_by_tie
from maw.search.exact import full_precision, top_k
from maw.search.left_out import leaving_out
from maw.search.sort_keys import NOTHING, best, pack, scores_of, ties_of

EXTRA = 64  # passages fetched beyond k and an eighth of k: room for ties and rounding at the cut
LINKS = 32
TRAINING_PASSAGES = 64  # per list; FAISS warns below 39 and uses 256 where there are as many
MOST_ON_GPU = 2048  # FAISS's own limit there, to what a query fetches and to the lists that it searches
SAMPLE = 100  # queries on which recall is measured
_BLOCK = 65_536
_TILE_ROWS, _TILE_COLUMNS, _COLUMN_MULTIPLE = 16, 1024, 64  # the smallest product that rounds as larger ones do


def faiss_top_k(
    kind: str,
    queries: Tensor | np.ndarray,
    passages: np.ndarray,
    k: int,
    tie_order: Tensor | np.ndarray,
    *,
    nprobe: int = 64,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Each query's k best passages among those that a FAISS index proposes.

    Args:
        kind: "flat", "ivf" or "hnsw".
        queries, passages, k, tie_order: as in `maw.search.exact.top_k`; FAISS uses the queries' CUDA device if it can.
        nprobe: number of lists that a query searches, for ivf.

    Shapes:
        queries (Q, C), passages (N, C), tie_order (N,); both results (Q, min(k, N)).

    Returns:
        Scores, float32, best first; the passages' rows, int64; and facts: the index and its parameters,
        "searched_exactly", the number of queries that `maw.search.exact` searched again, and "index_bytes".

    Raises:
        MAWError: FAISS is not installed; an embedding that is not a finite number, with its row.
        ValueError: shapes that do not agree, k below one, a tie order that is not a permutation.
    """
    queries_QC = as_tensor(queries).float()
    device = queries_QC.device
    check_arguments(queries_QC, passages, k)
    row_of_tie = rows_by_tie(tie_order, len(passages))
    largest(queries_QC, "query", 0)
    if not len(passages) or not len(queries_QC):
        return *top_k(queries_QC, passages, k, tie_order), {"index": kind}
    k = min(k, len(passages))
    fetched = min(len(passages), k + k // 8 + EXTRA)
    if kind == "flat" and device.type == "cuda" and not _faiss().get_num_gpus():
        found = top_k(queries_QC, passages, k, tie_order)
        return *found, {"index": kind, "fetched": k, "searched_exactly": len(queries_QC)}
    half = passages.dtype == np.float16
    index, facts = _index(kind, queries_QC.shape[1], len(passages), fetched, nprobe, device, half)
    longest = _fill(index, passages)
    queries_QC = queries_QC.cpu()
    proposed_QF, rows_QF = index.search(queries_QC.numpy(), fetched)
    keys_QF = _exact_keys(queries_QC, passages, torch.from_numpy(rows_QF), as_tensor(tie_order).cpu().long())
    keys_QK = best(keys_QF, k, ordered=True)
    scores_QK, result_QK = scores_of(keys_QK), row_of_tie[ties_of(keys_QK).clamp(max=len(passages) - 1)]
    redo_Q = keys_QK[:, -1] == NOTHING
    most_Q = longest * queries_QC.norm(dim=1)  # no score is larger
    if not (most_Q < LARGEST / 2).all():  # exact search of all queries names the first score beyond float32
        redo_Q[:] = True
    if kind == "flat" and fetched < len(passages):
        digits = torch.finfo(torch.float16 if half and device.type == "cuda" else torch.float32)
        rounding_Q = queries_QC.shape[1] * digits.eps * most_Q
        redo_Q |= ~(scores_QK[:, -1] > torch.from_numpy(proposed_QF[:, -1]) + rounding_Q)
    if redo_Q.any():
        scores_QK[redo_Q], result_QK[redo_Q] = top_k(queries_QC[redo_Q].to(device), passages, k, tie_order)
    facts |= {"fetched": fetched, "searched_exactly": int(redo_Q.sum())}
    return scores_QK, result_QK, facts | {"index_bytes": _bytes(index, passages.shape, facts, half)}


def recall(found: np.ndarray, exact: np.ndarray, cutoffs: Sequence[int]) -> dict[str, float]:
    """For each cutoff k, the share of the exact k best that are among the k best found; the mean over the queries.

    Args:
        found: rows of passages, best first, (Q, K).
        exact: the same from exact search.
        cutoffs: where to cut both; one beyond K counts as K.
    """
    pairs = list(zip(found, exact, strict=True))
    return {
        str(k): float(np.mean([np.isin(wanted[:k], listed[:k]).mean() for listed, wanted in pairs])) for k in cutoffs
    }


def sampled_recall(
    rows: np.ndarray,
    queries: Tensor,
    passages: np.ndarray,
    k: int,
    tie_order: np.ndarray,
    left_out: np.ndarray | None = None,
) -> dict[str, Any]:
    """Recall of an approximate search at 10, 100 and k, on up to 100 queries spread evenly over all.

    Args:
        rows: rows of the passages that the search found for all queries, (Q, K).
        queries, passages, k, tie_order: as in `maw.search.exact.top_k`.
        left_out: as in `maw.search.left_out.leaving_out`.
    """
    sample = np.unique(np.linspace(0, len(queries) - 1, min(SAMPLE, len(queries))).astype(int))
    own = None if left_out is None else left_out[sample]
    _, exact = leaving_out(lambda size: top_k(queries[sample], passages, size, tie_order), k, own)
    cutoffs = sorted({min(cutoff, k) for cutoff in (10, 100, k)})
    return {"recall": recall(rows[sample], exact.numpy(), cutoffs), "recall_queries": len(sample)}


def _index(
    kind: str, size: int, passages: int, fetched: int, nprobe: int, device: torch.device, half: bool = False
) -> tuple[Any, dict[str, Any]]:
    """An empty index and its parameters; with `half` it holds passages in float16."""
    faiss = _faiss()
    facts: dict[str, Any] = {"index": kind}
    product, form = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_fp16
    on_gpu = device.type == "cuda" and faiss.get_num_gpus() > 0 and fetched <= MOST_ON_GPU
    if kind == "hnsw":
        index = faiss.IndexHNSWSQ(size, form, LINKS, product) if half else faiss.IndexHNSWFlat(size, LINKS, product)
        index.hnsw.efSearch = fetched
        return index, facts | {"links": LINKS, "ef_construction": index.hnsw.efConstruction, "ef_search": fetched}
    if kind == "ivf":
        lists = max(1, min(round(4 * math.sqrt(passages)), passages // 39))
        quantizer = faiss.IndexFlatIP(size)
        index = (
            faiss.IndexIVFScalarQuantizer(quantizer, size, lists, form, product, False)
            if half
            else faiss.IndexIVFFlat(quantizer, size, lists, product)
        )
        index.nprobe = min(nprobe, lists)
        index.cp.max_points_per_centroid = TRAINING_PASSAGES
        facts |= {"nlist": lists, "nprobe": index.nprobe}
        on_gpu = on_gpu and index.nprobe <= MOST_ON_GPU
    elif half and not on_gpu:
        index = faiss.IndexScalarQuantizer(size, form, product)
    else:
        index = faiss.IndexFlatIP(size)
    if on_gpu:
        options = faiss.GpuClonerOptions()
        options.useFloat16 = half
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index, options)
    return index, facts


def _faiss() -> Any:
    """The library, loaded only here, with as many threads as torch has."""
    try:
        import faiss
    except ImportError as error:
        raise MAWError(
            "--search flat, ivf and hnsw need FAISS, which is not installed: pip install faiss-cpu, or faiss-gpu with "
            "an NVIDIA GPU, never both; or use --search exact"
        ) from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def _fill(index: Any, passages: np.ndarray) -> float:
    """Trains the index, adds the passages in blocks, and returns the largest Euclidean length of a passage."""
    if not index.is_trained:
        count = min(len(passages), index.nlist * TRAINING_PASSAGES)
        rows = np.linspace(0, len(passages) - 1, count).astype(int)
        sample_SC = np.ascontiguousarray(passages[rows], dtype=np.float32)
        for place in np.flatnonzero(~np.isfinite(sample_SC).all(1))[:1]:  # FAISS would not say which
            largest(as_tensor(sample_SC[place : place + 1]), "passage", int(rows[place]))
        index.train(sample_SC)
    longest = 0.0
    for start in range(0, len(passages), _BLOCK):
        part_BC = np.ascontiguousarray(passages[start : start + _BLOCK], dtype=np.float32)
        part = as_tensor(part_BC)
        largest(part, "passage", start)
        index.add(part_BC)
        longest = max(longest, float(torch.linalg.vector_norm(part, dim=1).max()))
    return longest


def _bytes(index: Any, shape: tuple[int, int], facts: dict[str, Any], half: bool) -> int:
    """The bytes that an index holds: passages in float32, or float16 with `half`; for ivf also the passages' numbers
    and the lists' centres, in float32; for hnsw also the links."""
    count, width = shape
    size = count * width * np.dtype(np.float16 if half else np.float32).itemsize
    if "nlist" in facts:
        centres = facts["nlist"] * width * np.dtype(np.float32).itemsize
        size += count * np.dtype(np.int64).itemsize + centres
    if "links" in facts:
        size += index.hnsw.neighbors.size() * np.dtype(np.int32).itemsize
    return size


def _exact_keys(queries_QC: Tensor, passages: np.ndarray, rows_QF: Tensor, ties_N: Tensor) -> Tensor:
    """The keys of each query's own passages, (Q, F), from exact products; `NOTHING` where the row is -1.

    A product of few rows or columns takes another path in the library, which rounds otherwise. Padded to the smallest
    size that does not, it gives the scores of `maw.search.exact`.
    """
    keys_QF = torch.full(rows_QF.shape, NOTHING)
    width = max(_TILE_COLUMNS, -(-rows_QF.shape[1] // _COLUMN_MULTIPLE) * _COLUMN_MULTIPLE)
    with torch.no_grad(), full_precision(torch.device("cpu")):
        for query_C, rows_F, keys_F in zip(queries_QC, rows_QF, keys_QF, strict=True):
            found_F = rows_F >= 0
            own = rows_F[found_F]
            part_BC = torch.from_numpy(np.asarray(passages[own.numpy()], dtype=np.float32))
            scores_B = (padded(query_C[None], _TILE_ROWS) @ padded(part_BC, width).T)[0, : len(own)]
            keys_F[found_F] = pack(scores_B, ties_N[own])
    return keys_QF
