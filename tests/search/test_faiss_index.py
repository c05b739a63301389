"""FAISS's candidates, re-ranked: the exact order of equal scores, complete lists, and recall counted by hand."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maw.errors import MAWError
from maw.evaluation.evaluate import evaluate_retriever
from maw.experiment.config_checks import validate
from maw.models.retriever import BaselineRetriever
from maw.search import faiss_index
from maw.search.exact import top_k
from maw.search.faiss_index import faiss_top_k, recall, sampled_recall

faiss = pytest.importorskip("faiss")


def whole_numbers(seed: int, queries: int, passages: int, size: int, most: int):
    """Embeddings of small whole numbers: their products are exact, and most scores tie."""
    random = np.random.default_rng(seed)
    return (
        random.integers(-most, most + 1, (queries, size)).astype(np.float32),
        random.integers(-most, most + 1, (passages, size)).astype(np.float32),
        random.permutation(passages),
    )


def unit(seed: int, count: int, size: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((count, size), dtype=np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def same(found, expected) -> bool:
    """Whether scores and rows are equal to the last bit, and of the types that are promised."""
    types = (found[0].dtype, found[1].dtype) == (torch.float32, torch.int64)
    return types and torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


# ------------------------------------------------------------------------------------------------------------ flat


@pytest.mark.parametrize("most", [0, 1, 4, 60])
@pytest.mark.parametrize("k", [1, 9, 100, 1999, 2500])
def test_flat_is_exact_where_most_scores_tie(most, k):
    queries, passages, ties = whole_numbers(k + most, 11, 2000, 3, most)
    found = faiss_top_k("flat", queries, passages, k, ties)
    assert same(found, top_k(queries, passages, k, ties))


@pytest.mark.parametrize("size", [32, 100, 384, 768])
def test_flat_is_exact_on_real_numbers(size):
    queries, passages, ties = unit(0, 23, size), unit(1, 3000, size), np.random.default_rng(2).permutation(3000)
    scores, rows, facts = faiss_top_k("flat", queries, passages, 200, ties)
    expected_scores, expected_rows = top_k(queries, passages, 200, ties)
    torch.testing.assert_close(scores, expected_scores, rtol=0, atol=1e-6)
    for own, exact, score in zip(rows, expected_rows, expected_scores, strict=True):
        assert torch.equal(own, exact) or (score.diff().abs() < 1e-6).any()
    assert facts["fetched"] == 200 + 25 + 64
    assert facts["searched_exactly"] < 23 / 2  # most queries are settled by what FAISS fetched


def test_a_tie_that_reaches_past_what_was_fetched_is_settled_by_exact_search():
    passages = unit(3, 1000, 16)
    passages[100:500] = passages[100]  # 400 copies, of which the first 30 places belong to the last in the tie order
    ties = np.arange(1000)[::-1].copy()
    scores, rows, facts = faiss_top_k("flat", passages[100:101], passages, 30, ties)
    assert rows.tolist() == [list(range(499, 469, -1))]
    assert len(scores.unique()) == 1 and facts["searched_exactly"] == 1
    index = faiss.IndexFlatIP(16)
    index.add(passages)
    assert index.search(passages[100:101], 30)[1].tolist() != rows.tolist()  # FAISS alone has another order


def test_a_tie_within_what_was_fetched_is_settled_without_it():
    passages = unit(4, 1000, 16)
    passages[200:240] = passages[200]
    ties = np.arange(1000)[::-1].copy()
    _, rows, facts = faiss_top_k("flat", passages[200:201], passages, 30, ties)
    assert rows.tolist() == [list(range(239, 209, -1))]
    assert facts["searched_exactly"] == 0


# ------------------------------------------------------------------------------------------------- ivf and hnsw


def test_ivf_that_searches_every_list_is_exact():
    queries, passages, ties = unit(5, 20, 48), unit(6, 4000, 48), np.random.default_rng(7).permutation(4000)
    scores, rows, facts = faiss_top_k("ivf", queries, passages, 100, ties, nprobe=65_536)
    expected_scores, expected_rows = top_k(queries, passages, 100, ties)
    torch.testing.assert_close(scores, expected_scores, rtol=0, atol=1e-6)
    assert (rows == expected_rows).float().mean() > 0.99  # the last bit of a score may swap neighbours
    assert facts["nlist"] == facts["nprobe"] == 102  # 4000 // 39, below 4 * sqrt(4000)
    assert sampled_recall(rows.numpy(), torch.from_numpy(queries), passages, 100, ties)["recall"]["10"] == 1.0


def test_ivf_finds_more_in_more_lists():
    queries, passages, ties = unit(5, 50, 24), unit(6, 4000, 24), np.arange(4000)
    _, exact = top_k(queries, passages, 20, ties)
    found = [faiss_top_k("ivf", queries, passages, 20, ties, nprobe=lists)[1].numpy() for lists in (4, 30)]
    few, many = (recall(rows, exact.numpy(), [20])["20"] for rows in found)
    assert 0.1 < few < many < 1.0


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_scores_are_the_exact_products_in_the_exact_order(kind):
    queries, passages, ties = whole_numbers(8, 15, 1500, 4, 2)
    scores, rows, _ = faiss_top_k(kind, queries, passages, 40, ties, nprobe=3)
    expected = np.einsum("qc,qkc->qk", queries, passages[rows.numpy()])
    np.testing.assert_array_equal(scores.numpy(), expected)
    for own_scores, own_rows in zip(scores.numpy(), rows.numpy(), strict=True):
        np.testing.assert_array_equal(np.lexsort((ties[own_rows], -own_scores)), np.arange(40))
        assert len(set(own_rows.tolist())) == 40


def test_hnsw_finds_nearly_all():
    queries, passages, ties = unit(9, 30, 16), unit(10, 2000, 16), np.arange(2000)
    _, rows, facts = faiss_top_k("hnsw", queries, passages, 50, ties)
    facts |= sampled_recall(rows.numpy(), torch.from_numpy(queries), passages, 50, ties)
    assert set(facts["recall"]) == {"10", "50"} and facts["recall_queries"] == 30
    assert min(facts["recall"].values()) > 0.9
    assert facts["ef_search"] == facts["fetched"] == 50 + 6 + 64


def test_a_list_that_falls_short_is_completed_by_exact_search():
    queries, passages, ties = unit(11, 6, 8), unit(12, 800, 8), np.arange(800)
    scores, rows, facts = faiss_top_k("ivf", queries, passages, 300, ties, nprobe=1)  # a list holds about 40
    assert facts["searched_exactly"] == 6
    assert same((scores, rows), top_k(queries, passages, 300, ties))


def test_rows_of_minus_one_are_never_passages(monkeypatch):
    class Short:
        """Finds too little for the second of three queries."""

        is_trained = True
        add = staticmethod(lambda part: None)

        @staticmethod
        def search(queries, count):
            rows = np.tile(np.arange(count), (len(queries), 1))
            rows[0, 5:] = rows[1, 2:] = -1
            return np.zeros(rows.shape, np.float32), rows

    monkeypatch.setattr(faiss_index, "_index", lambda *_: (Short, {}))
    queries, passages, ties = unit(13, 3, 8), unit(14, 100, 8), np.arange(100)
    _, rows, facts = faiss_top_k("hnsw", queries, passages, 4, ties)
    _, exact = top_k(queries, passages, 4, ties)
    assert facts["searched_exactly"] == 1 and torch.equal(rows[1], exact[1])
    assert sorted(rows[0].tolist()) != exact[0].tolist() and set(rows[0].tolist()) <= set(range(5))
    assert (rows >= 0).all()


# ---------------------------------------------------------------------------------------------- recall and the rest


def test_recall_by_hand():
    exact = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = np.array([[2, 1, 9, 3], [8, 7, 0, 5]])
    # cut at 2: {2, 1} holds both of {1, 2}, {8, 7} neither of {5, 6}; at 4: 3 of 4 and 3 of 4; at 1: 0 and 0
    assert recall(found, exact, [1, 2, 4, 10]) == {"1": 0.0, "2": 0.5, "4": 0.75, "10": 0.75}


def test_recall_is_measured_on_queries_spread_over_all():
    queries, passages = unit(15, 250, 8), unit(16, 300, 8)
    _, rows = top_k(queries, passages, 12, np.arange(300))
    facts = sampled_recall(rows.numpy(), torch.from_numpy(queries), passages, 12, np.arange(300))
    assert facts == {"recall": {"10": 1.0, "12": 1.0}, "recall_queries": 100}


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_memory_map_and_half_precision(kind, tmp_path):
    queries, passages, ties = whole_numbers(17, 5, 400, 6, 3)
    np.save(tmp_path / "passages.npy", passages.astype(np.float16))
    mapped = np.load(tmp_path / "passages.npy", mmap_mode="r")
    found = faiss_top_k(kind, queries, mapped, 400, ties, nprobe=1000)
    assert same(found, top_k(queries, passages, 400, ties))
    index, _ = faiss_index._index(kind, 6, 400, 400, 64, torch.device("cpu"), half=True)
    codes = faiss.downcast_index(index.storage) if kind == "hnsw" else index
    assert codes.code_size == 6 * 2, "two bytes a number"


def test_nothing_to_search_or_to_ask():
    for queries, passages in ((3, 0), (0, 30), (2, 1)):
        for kind in ("flat", "ivf", "hnsw"):
            found = faiss_top_k(
                kind, np.ones((queries, 4), np.float32), np.ones((passages, 4), np.float32), 5, np.arange(passages)
            )
            assert found[0].shape == found[1].shape == (queries, min(5, passages))


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_is_named(kind, value):
    queries, passages, ties = whole_numbers(18, 6, 500, 4, 2)
    passages[311, 0] = value
    with pytest.raises(MAWError, match=r"passage row 311\b"):
        faiss_top_k(kind, queries, passages, 10, ties)
    with pytest.raises(MAWError, match=r"query row 311\b"):
        faiss_top_k(kind, passages, queries, 2, np.arange(6))


def test_a_score_beyond_float32_is_named():
    passages = np.ones((200, 1), np.float32)
    passages[70] = 1e30
    with pytest.raises(MAWError, match="query row 0 and passage row 70 is beyond float32"):
        faiss_top_k("flat", np.full((1, 1), 1e30, np.float32), passages, 5, np.arange(200))


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_of_several_queries_the_one_whose_score_is_beyond_float32_is_named(kind):
    passages = np.linspace(1, 2, 400, dtype=np.float32)[:, None]
    passages[70] = 1e30
    queries = np.array([[1.0], [1.0], [1e30], [1.0]], np.float32)
    with pytest.raises(MAWError, match="query row 2 and passage row 70 is beyond float32"):
        faiss_top_k(kind, queries, passages, 5, np.arange(400), nprobe=400)


@pytest.mark.parametrize("fetched, nprobe, moved", [(2048, 64, True), (2049, 64, False), (2048, 2049, False)])
def test_an_index_is_on_the_gpu_within_what_faiss_allows_there(monkeypatch, fetched, nprobe, moved):
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "GpuClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda *words: words, raising=False)
    index, facts = faiss_index._index("ivf", 8, 10**7, fetched, nprobe, torch.device("cuda:3"))
    assert facts["nprobe"] == nprobe and isinstance(index, tuple) is moved
    if moved:
        assert index[:2] == ("resources", 3) and index[2].nprobe == nprobe


def test_without_faiss_the_message_says_what_to_install(monkeypatch, tiny_settings):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MAWError, match="pip install faiss-cpu") as caught:
        faiss_top_k("flat", np.ones((1, 2), np.float32), np.ones((3, 2), np.float32), 1, np.arange(3))
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MAWError, match="search: ivf needs FAISS"):
        validate(tiny_settings(search="ivf"))
    validate(tiny_settings(search="exact"))


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_evaluation_by_faiss(kind, tiny_settings, tiny_data, caplog):
    config = tiny_settings()
    model = BaselineRetriever(config)
    exact = evaluate_retriever(model, tiny_data, config, "cpu")
    config.search, config.nprobe = kind, 100
    with caplog.at_level("INFO"):
        found = evaluate_retriever(model, tiny_data, config, "cpu")
    np.testing.assert_allclose(found.run["scores"], exact.run["scores"], atol=1e-5)
    assert found["ndcg_cut_10"] == pytest.approx(exact["ndcg_cut_10"], abs=1e-6)
    assert "search" not in exact.facts and found.facts["search"]["index"] == kind
    assert "index_bytes" not in exact.facts and found.facts["index_bytes"] >= found.facts["embedding_bytes"]
    assert found.facts["embedding_bytes"] == found.facts["documents"] * 16 * 4
    assert (kind == "flat") == ("recall" not in found.facts["search"])
    assert (kind == "flat") == ("against exact search" not in caplog.text)


@pytest.mark.parametrize("form", [np.float32, np.float16])
@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_an_index_has_the_size_of_its_file(kind, form):
    queries, passages = unit(13, 3, 24), unit(14, 4000, 24).astype(form)
    index, _ = faiss_index._index(kind, 24, len(passages), 100, 8, torch.device("cpu"), form is np.float16)
    faiss_index._fill(index, passages)
    size = faiss_top_k(kind, queries, passages, 20, np.arange(4000), nprobe=8)[2]["index_bytes"]
    of_its_file = len(faiss.serialize_index(index))
    assert of_its_file * 0.9 < size <= of_its_file
    assert (size == passages.nbytes) == (kind == "flat")


@pytest.mark.gpu
@pytest.mark.parametrize("form", [np.float32, np.float16])
@pytest.mark.parametrize("k", [100, 3000])  # 3000 are more than FAISS fetches on a GPU
@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_gpu_agrees(kind, k, form):
    queries, passages, ties = whole_numbers(19, 50, 3000, 6, 2)
    found = faiss_top_k(kind, torch.from_numpy(queries).cuda(), passages.astype(form), k, ties, nprobe=2048)
    assert found[2]["index"] == kind
    if kind != "hnsw" or k == 3000:
        assert same(found, top_k(queries, passages, k, ties))
