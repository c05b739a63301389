"""Training batches and their loss: which passages are negatives of which queries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maw.data.from_dicts import as_retrieval_data
from maw.errors import DataError
from maw.training.contrastive import TrainingPairs, contrastive_loss

DATA = {
    "queries": {"q0": "read a file", "q1": "write a file", "q2": "parse json", "q3": "lower text"},
    "docs": {
        "a": "open and read", "b": "open and write", "c": "load json", "d": "lower the text",
        "a2": "Open  and READ", "n": "something else",
    },
    "qrels": {"q0": {"a": 1}, "q1": {"b": 1, "a": 2}, "q2": {"c": 1, "n": 0}, "q3": {"d": 1}},
    "negatives": {"q0": ["n", "c"], "q2": ["a2"]},
}  # fmt: skip


def pairs(**options):
    return TrainingPairs(as_retrieval_data(DATA, "train"), **options)


def named(training, batch):
    """Each query's comparable passages, by id."""
    ids = as_retrieval_data(DATA, "train").corpus.id_of(training.corpus_rows)
    passages = [ids[row] for row in batch.passages]
    return {
        f"q{query}": [p for p, allowed in zip(passages, batch.candidate_mask[i].tolist()) if allowed]
        for i, query in enumerate(batch.queries)
    }, passages


def test_relevant_passages_and_their_copies_do_not_count_against_a_query():
    training = pairs(negatives=2)
    (batch,) = training.batches(1, 4)
    candidate_mask, passages = named(training, batch)
    assert sorted(passages[:4]) in (["a", "a", "c", "d"], ["a", "b", "c", "d"])
    assert sorted(passages[4:]) == ["a2", "c", "n"]
    own = dict(zip((f"q{query}" for query in batch.queries), passages))
    for query, allowed in candidate_mask.items():
        relevant = {"q0": {"a", "a2"}, "q1": {"a", "b", "a2"}, "q2": {"c"}, "q3": {"d"}}[query]
        assert [p for p in allowed if p in relevant] == [own[query]], "its positive, once, and no other relevant one"
        assert set(allowed) - relevant == set(passages) - relevant, "all others count"
    assert "n" in candidate_mask["q2"], "a passage judged non-relevant counts against it"


def test_negatives_given_are_used_up_to_the_number_asked():
    (batch,) = pairs(negatives=1).batches(1, 4)
    assert len(batch.passages) == 4 + 2
    (batch,) = pairs().batches(1, 4)
    assert len(batch.passages) == 4


def test_order_follows_from_seed_and_epoch_alone():
    def orders(seed, epoch):
        return np.concatenate([batch.queries for batch in pairs(seed=seed).batches(epoch, 2)]).tolist()

    assert orders(1, 1) == orders(1, 1)
    assert sorted(orders(1, 2)) == [0, 1, 2, 3]
    assert len({tuple(orders(seed, epoch)) for seed in range(3) for epoch in range(3)}) > 3


def test_a_single_query_without_negatives_is_no_batch():
    assert [len(batch.queries) for batch in pairs().batches(1, 3)] == [3]
    assert pairs().count_batches(1, 3) == 1


def test_loss_against_cross_entropy_written_out():
    generator = torch.Generator().manual_seed(0)
    queries, passages = torch.randn(3, 4, generator=generator), torch.randn(5, 4, generator=generator)
    candidate_mask = torch.ones(3, 5, dtype=torch.bool)
    candidate_mask[0, 2] = candidate_mask[1, 4] = False
    got = contrastive_loss(queries, passages, candidate_mask, temperature=0.5)
    for i in range(3):
        scores = [float(queries[i] @ passages[j]) / 0.5 for j in range(5) if candidate_mask[i, j]]
        expected = -np.log(np.exp(float(queries[i] @ passages[i]) / 0.5) / np.exp(scores).sum())
        assert float(got[i]) == pytest.approx(expected, rel=1e-5)
    samples = contrastive_loss(queries.expand(2, 3, 4), passages.expand(2, 5, 4), candidate_mask, 0.5)
    torch.testing.assert_close(samples, got.expand(2, 3))


def test_a_passage_that_the_corpus_lacks_is_named():
    wrong = DATA | {"negatives": {"q0": ["nowhere"]}}
    with pytest.raises(DataError, match="nowhere"):
        TrainingPairs(as_retrieval_data(wrong, "train"), negatives=1)


def test_the_number_of_batches_is_that_of_the_epoch():
    """A last batch of one counts if its query has negatives, so epochs differ."""
    training = pairs(negatives=1)
    counted = [training.count_batches(epoch, 3) for epoch in range(12)]
    assert counted == [len(list(training.batches(epoch, 3))) for epoch in range(12)]
    assert set(counted) == {1, 2}


def test_every_relevant_passage_of_a_query_is_its_positive_in_some_epoch():
    training = pairs()
    ids = as_retrieval_data(DATA, "train").corpus.id_of(training.corpus_rows)
    drawn = {
        ids[batch.passages[list(batch.queries).index(1)]]
        for epoch in range(20)
        for batch in training.batches(epoch, 4)
    }
    assert drawn == {"a", "b"}
