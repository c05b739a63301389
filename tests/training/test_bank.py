"""Passages of earlier batches as more negatives: which they are, and what they change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from maw.data.from_dicts import as_retrieval_data
from maw.training.contrastive import PassageBank, TrainingPairs
from maw.training.objective import ContrastiveObjective, build_objective
from training.test_grpo_step import setting

QUERIES = {f"q{i}": f"query number {i}" for i in range(8)}
DOCS = {f"d{i}": f"passage number {i}" for i in range(8)}
QRELS = {f"q{i}": {f"d{i}": 1} for i in range(8)} | {"q7": {"d7": 1, "d0": 1}}


def pairs(**options):
    data = as_retrieval_data({"queries": QUERIES, "docs": DOCS, "qrels": QRELS}, "train")
    return TrainingPairs(data, **options)


def test_a_batch_names_the_passages_of_the_batches_before_it():
    training = pairs(bank=2, seed=3)
    batches = list(training.batches(1, 2))
    assert [batch.bank_candidate_mask.shape[1] for batch in batches] == [0, 2, 4, 4]
    for number, batch in enumerate(batches):
        earlier = [row for each in batches[max(0, number - 2) : number] for row in each.passages]
        for q, query in enumerate(batch.queries):
            relevant = {f"q{i}": set(QRELS[f"q{i}"]) for i in range(8)}[f"q{query}"]
            expected = [f"d{row}" not in relevant for row in earlier]
            assert batch.bank_candidate_mask[q].tolist() == expected
    assert next(b.bank_candidate_mask.shape[1] for b in training.batches(2, 2)) == 0, "a new epoch starts with none"


def test_without_a_bank_batches_are_the_same():
    for with_bank, without in zip(pairs(bank=3).batches(1, 2), pairs().batches(1, 2), strict=True):
        np.testing.assert_array_equal(with_bank.queries, without.queries)
        np.testing.assert_array_equal(with_bank.passages, without.passages)
        assert torch.equal(with_bank.candidate_mask, without.candidate_mask)
        assert without.bank_candidate_mask.shape == (len(without.queries), 0)


def test_the_bank_holds_what_the_next_batch_is_compared_with():
    bank, kept = PassageBank(), []
    for number, batch in enumerate(pairs(bank=2).batches(1, 2)):
        held = bank.embeddings(batch)
        expected = torch.cat(kept[-2:]) if kept else torch.empty(0)
        assert torch.equal(held, expected)
        kept.append(torch.full((len(batch.passages), 3), float(number), requires_grad=True))
        bank.add(kept[-1])
    assert not bank.embeddings(batch).requires_grad


def by_hand(query_BC, passage_PC, batch, bank_KC, temperature):
    """Each query's loss, candidate by candidate."""
    losses = []
    for i, query in enumerate(query_BC):
        others = [p for p, allowed in zip(passage_PC, batch.candidate_mask[i]) if allowed]
        others += [p for p, allowed in zip(bank_KC, batch.bank_candidate_mask[i]) if allowed]
        scores = torch.stack([query @ p for p in others]) / temperature
        losses.append(scores.logsumexp(0) - query @ passage_PC[i] / temperature)
    return torch.stack(losses).mean()


def test_the_loss_counts_the_bank_and_only_what_may_count():
    texts = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    embed = lambda rows: {"embedding": F.normalize(texts[rows["rows"]], dim=-1)}
    objective = ContrastiveObjective(embed, 0.2)
    seen, checked = [], 0
    for batch in pairs(bank=2, seed=1).batches(1, 2):
        queries, passages = {"rows": torch.from_numpy(batch.queries)}, {"rows": torch.from_numpy(8 + batch.passages)}
        got, _ = objective(queries, passages, batch, 0)
        bank_KC = torch.cat(seen[-2:]) if seen else torch.empty(0, 5)
        arguments = embed(queries)["embedding"], embed(passages)["embedding"], batch, bank_KC, 0.2
        torch.testing.assert_close(got, by_hand(*arguments), atol=1e-6, rtol=0)
        seen.append(embed(passages)["embedding"])
        checked += len(bank_KC)
    assert checked


@pytest.mark.parametrize("router", ["grpo", "supervised", "random", "soft"])
def test_every_router_trains_with_a_bank(tiny_settings, router):
    """The second batch sees the first's passages, in the loss and, where there is one, in the reward."""
    losses, rewards = [], []
    for bank in (True, False):
        model, config, queries, passages, batch = setting(tiny_settings, router=router)
        model.encoder.eval()
        objective = build_objective(model.encoder, model.encoder, config, 0.3, 2)
        objective(queries, passages, batch, 0)
        count = len(batch.passages) if bank else 0
        again = type(batch)(
            batch.queries, batch.passages, batch.candidate_mask, torch.ones(4, count, dtype=torch.bool)
        )
        loss, statistics = objective(queries, passages, again, 1)
        losses.append(float(loss.detach()))
        rewards.append(float(statistics.get("reward_mean", torch.tensor(-float(bank)))))
    assert losses[0] > losses[1] + 1e-3, "more candidates, a higher loss"
    assert rewards[0] < rewards[1] - 1e-3, "and a lower log-probability of the positive"


@pytest.mark.parametrize("update", ["all_group", "mcl", "sampled"])
def test_of_every_depth_the_bank_keeps_the_one_that_the_policy_drew(tiny_settings, update):
    changes = {"maw_layers": [3], "grpo_group": "all", "encoder_update": update, "num_negatives": 1}
    model, config, queries, passages, batch = setting(tiny_settings, **changes)
    with torch.no_grad():
        (attention,) = model.encoder.maw_attention
        for parameter in attention.router.parameters():
            parameter.zero_()
        attention.router.bias[..., 2] = 50.0  # sure of depth 2
    model.encoder.eval()
    size = len(batch.queries)
    with torch.no_grad():
        wanted = model.encoder(passages)["embedding"]
        positives = {name: each[:size] for name, each in passages.items()}
        first = model.encoder(positives, mode="group", depths=[torch.zeros(size, 1, 1, 1, dtype=torch.long)])
    assert not torch.allclose(first["embedding"][:, 0], wanted[:size], atol=1e-3), "else any depth would do"
    objective = build_objective(model.encoder, model.encoder, config, 0.3, 2)
    objective(queries, passages, batch, 0)
    (kept,) = objective.bank.state_dict()["parts"]
    torch.testing.assert_close(kept, wanted, atol=1e-5, rtol=0)
