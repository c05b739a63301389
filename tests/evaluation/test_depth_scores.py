"""nDCG@10 of texts at every depth, against trec_eval's own code on the whole corpus and on halves of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from maw.data.from_dicts import as_retrieval_data
from maw.evaluation.metrics import compute_metrics
from maw.evaluation.reward import task_reward
from maw.evaluation.routing.depth_scores import DepthMatrix, DepthScorer, Relevance

QUERIES, PASSAGES, SIZE, DEPTHS = 12, 60, 6, 3


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def case():
    """Graded judgements, several positives, one outside the corpus's reach, passages twice in the corpus."""
    random = np.random.default_rng(0)
    documents = unit(random.normal(size=(PASSAGES, SIZE)))
    documents[50:55] = documents[:5]  # copies: equal scores
    every = unit(documents[:QUERIES, None] + 0.7 * random.normal(size=(QUERIES, DEPTHS, SIZE)))
    greedy = unit(documents[:QUERIES] + 0.7 * random.normal(size=(QUERIES, SIZE)))
    qrels = {q: {q: 2, q + 12: 1, q + 24: 0} if q % 2 else {q: 1} for q in range(QUERIES)}
    data = as_retrieval_data(
        {
            "queries": [f"query {i}" for i in range(QUERIES)],
            "docs": [f"passage {i}" for i in range(PASSAGES)],
            "qrels": qrels,
        }
    )
    return data, every, greedy, documents


def scorer(case, reward="log_prob"):
    data, _, greedy, documents = case
    options = {"temperature": 0.1, "normalize": True, "reward": reward, "device": torch.device("cpu"), "seed": 3}
    return DepthScorer(data, greedy, documents, **options)


def trec_eval(data, query, scores_N, kept_N=None):
    """nDCG@10 of one query by trec_eval's code, among the passages kept."""
    rows = np.flatnonzero(np.ones(PASSAGES, bool) if kept_N is None else kept_N)
    name = data.query_ids[query]
    result = compute_metrics([name], [data.corpus.id_of(rows)], scores_N[None, rows], {name: data.qrels[name]})
    return result["ndcg_cut_10"]


def halves(data, query, own):
    relevant = np.zeros(PASSAGES, bool)
    relevant[[int(doc) for doc, grade in data.qrels[data.query_ids[query]].items() if grade >= 1]] = True
    return [None, own.first_half_N | relevant, ~own.first_half_N | relevant]


def test_queries_at_every_depth(case):
    data, every, greedy, documents = case
    own = scorer(case)
    matrix = own.of_queries(np.arange(QUERIES), every)
    for query in range(QUERIES):
        assert matrix.greedy_Q[query] == pytest.approx(trec_eval(data, query, documents @ greedy[query]))
        for depth in range(DEPTHS):
            scores = documents @ every[query, depth]
            whole, first, second = (trec_eval(data, query, scores, kept) for kept in halves(data, query, own))
            assert matrix.ndcg_QD[query, depth] == pytest.approx(whole)
            assert matrix.halves_2QD[:, query, depth].tolist() == pytest.approx([first, second])
    assert 0.2 < own.first_half_N.mean() < 0.8 and matrix.ndcg_QD.std() > 0.1


def test_documents_at_every_depth(case):
    data, _, greedy, documents = case
    own = scorer(case)
    query, row = own.relevance.query, own.relevance.row
    random = np.random.default_rng(5)
    moved = unit(documents[row, None] + 0.5 * random.normal(size=(len(row), DEPTHS, SIZE)))
    matrix = own.of_documents(query, row, moved)
    assert len(row) == QUERIES + QUERIES // 2
    for pair in range(len(row)):
        for depth in range(DEPTHS):
            changed = documents.copy()
            changed[row[pair]] = moved[pair, depth]
            scores = changed @ greedy[query[pair]]
            expected = [trec_eval(data, query[pair], scores, kept) for kept in halves(data, query[pair], own)]
            assert matrix.ndcg_QD[pair, depth] == pytest.approx(expected[0])
            assert matrix.halves_2QD[:, pair, depth].tolist() == pytest.approx(expected[1:])
        assert matrix.greedy_Q[pair] == pytest.approx(trec_eval(data, query[pair], documents @ greedy[query[pair]]))


def test_rewards_are_those_of_training_among_the_nearest_passages(case):
    _, every, greedy, documents = case
    own = scorer(case)
    matrix = own.of_queries(np.arange(QUERIES), every)
    for query in (0, 1):
        relevant = own.relevance.rows[query]
        others = torch.from_numpy(np.delete(documents, relevant, axis=0))
        embedding = torch.from_numpy(np.concatenate((every[query], greedy[query : query + 1])))
        positive = embedding @ torch.from_numpy(documents[relevant]).T / 0.1  # (E, P)
        expected = task_reward("log_prob", positive, (embedding @ others.T / 0.1)[:, None]).mean(1)
        found = [*matrix.reward_QD[query], matrix.greedy_reward_Q[query]]
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


def test_rewards_of_documents(case):
    _, _, greedy, documents = case
    own = scorer(case, "reciprocal_rank")
    query, row = own.relevance.query, own.relevance.row
    matrix = own.of_documents(query, row, np.repeat(documents[row][:, None], 2, axis=1))
    for pair in np.flatnonzero(row >= 5):  # the first five have copies, whose scores are equal but for rounding
        scores = documents @ greedy[query[pair]]
        others = np.delete(scores, own.relevance.rows[query[pair]])
        expected = 1 / (1 + (others > scores[row[pair]]).sum())
        assert matrix.reward_QD[pair].tolist() == pytest.approx([expected, expected])
        assert matrix.greedy_reward_Q[pair] == pytest.approx(expected)


def test_short_lists_grow_and_parts_change_nothing(case, monkeypatch):
    _, every, _, documents = case
    own, rows = scorer(case), np.arange(QUERIES)
    whole = own.of_queries(rows, every)
    positives = own.relevance.row
    moved = np.repeat(documents[positives][:, None], DEPTHS, axis=1)
    of_documents = own.of_documents(own.relevance.query, positives, moved)
    monkeypatch.setattr("maw.evaluation.routing.depth_scores.LISTED", 11)  # seldom ten of each half
    short, grown = own.of_queries(rows, every), own.of_documents(own.relevance.query, positives, moved)
    for name in ("ndcg_QD", "greedy_Q", "halves_2QD", "noise_2QD"):
        np.testing.assert_array_equal(getattr(short, name), getattr(whole, name))
        np.testing.assert_array_equal(getattr(grown, name), getattr(of_documents, name))
    monkeypatch.setattr("maw.evaluation.routing.depth_scores.ROWS_AT_ONCE", 12)
    np.testing.assert_array_equal(own.of_queries(rows, every).halves_2QD, whole.halves_2QD)


def test_any_embeddings_can_be_ranked(case):
    _, every, _, _ = case
    own, rows = scorer(case), np.array([2, 5, 7])
    np.testing.assert_array_equal(own.ndcg_of_queries(rows, every[rows]), own.of_queries(rows, every[rows]).ndcg_QD)
    query, row = own.relevance.query[:4], own.relevance.row[:4]
    moved = every[:4]
    np.testing.assert_array_equal(
        own.ndcg_of_documents(query, row, moved), own.of_documents(query, row, moved).ndcg_QD
    )


def test_borrowed_movement_keeps_the_mean_and_is_never_a_texts_own(case):
    _, every, _, _ = case
    own = scorer(case)
    own.normalize = False
    moved = own._moved(every)
    np.testing.assert_allclose(moved.mean(1), every.mean(1), atol=1e-6)
    movement, borrowed = (each - each.mean(1, keepdims=True) for each in (every, moved))
    donors = [int(np.abs(movement - each).max((1, 2)).argmin()) for each in borrowed]
    assert sorted(donors) == list(range(QUERIES)) and all(donor != text for text, donor in enumerate(donors))
    np.testing.assert_allclose(borrowed, movement[donors], atol=1e-6)


def test_relevance_reads_grades_and_leaves_out_what_is_not_relevant(case):
    data, *_ = case
    relevance = Relevance(data)
    assert relevance.gains(np.array([1, 1, 1, 1]), np.array([1, 13, 25, 0])).tolist() == [2.0, 1.0, 0.0, 0.0]
    assert relevance.rows[1].tolist() == [1, 13] and relevance.rows[2].tolist() == [2]
    assert relevance.ideal_Q[1] == pytest.approx(2 + 1 / np.log2(3)) and relevance.ideal_Q[2] == 1.0


def test_joined_matrices():
    part = DepthMatrix(*(np.ones(shape) for shape in ((2, 3), (2,), (2, 2, 3), (2, 2, 3), (2, 3), (2,))))
    whole = DepthMatrix.joined([part, part, part])
    assert (whole.ndcg_QD.shape, whole.greedy_Q.shape, whole.halves_2QD.shape) == ((6, 3), (6,), (2, 6, 3))


@pytest.mark.parametrize("passages", [PASSAGES, 16])
def test_a_passage_that_a_query_leaves_out_is_in_no_ranking(passages):
    """As if the corpus did not hold it for that query; with few passages a ranking has all of them."""
    random = np.random.default_rng(1)
    documents = unit(random.normal(size=(passages, SIZE)))
    greedy = documents[:8].copy()  # the query is passage 0 to 7, and passage 8 to 15 is relevant
    every = unit(greedy[:, None] + 0.2 * random.normal(size=(8, DEPTHS, SIZE)))
    names = [f"n{i}" for i in range(passages)]
    data = as_retrieval_data(
        {
            "queries": {names[i]: f"query {i}" for i in range(8)},
            "docs": {name: f"passage {name}" for name in names},
            "qrels": {names[i]: {names[i + 8]: 1} for i in range(8)},
        }
    )
    data = replace(data, left_out=frozenset(names[:6]))
    own = scorer((data, every, greedy, documents))
    matrix, query, row = own.of_queries(np.arange(8), every), own.relevance.query, own.relevance.row
    of_documents = own.of_documents(query, row, np.repeat(documents[row][:, None], DEPTHS, axis=1))
    plain = scorer((replace(data, left_out=frozenset()), every, greedy, documents))
    for q in range(8):
        kept = np.arange(passages) != (q if q < 6 else -1)
        rows = np.flatnonzero(kept)

        def ndcg(embedding, part, q=q, kept=kept):
            chosen = np.flatnonzero(kept & part)
            name = data.query_ids[q]
            scores = (documents @ embedding)[None, chosen]
            return compute_metrics([name], [data.corpus.id_of(chosen)], scores, {name: data.qrels[name]})[
                "ndcg_cut_10"
            ]

        first = own.first_half_N | (np.arange(passages) == q + 8)
        second = ~own.first_half_N | (np.arange(passages) == q + 8)
        assert matrix.greedy_Q[q] == pytest.approx(ndcg(greedy[q], kept))
        for depth in range(DEPTHS):
            found = [matrix.ndcg_QD[q, depth], *matrix.halves_2QD[:, q, depth]]
            assert found == pytest.approx([ndcg(every[q, depth], part) for part in (kept, first, second)])
        pair = query.tolist().index(q)
        assert of_documents.greedy_Q[pair] == pytest.approx(matrix.greedy_Q[q])
        others = torch.from_numpy(np.delete(documents[rows], rows.tolist().index(q + 8), axis=0) @ greedy[q]) / 0.1
        positive = torch.tensor([[float(documents[q + 8] @ greedy[q]) / 0.1]])
        expected = float(task_reward("log_prob", positive, others[None, None]))
        for reward in (matrix.greedy_reward_Q[q], of_documents.greedy_reward_Q[pair]):
            assert reward == pytest.approx(expected, rel=1e-4)
    assert matrix.greedy_Q[:6].sum() > plain.of_queries(np.arange(8), every).greedy_Q[:6].sum()
