"""Routing diagnostics of a model: their values, when they are computed, and that they change nothing."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from maw.data.from_dicts import as_retrieval_data
from maw.encoding.activation_cache import ActivationStore
from maw.evaluation.evaluate import evaluate_retriever
from maw.evaluation.routing.diagnostics import RoutingDiagnostics, compare_with_seeds, routing_diagnostics
from maw.evaluation.routing.routed_texts import depth_distance
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.training.train import train_retriever

CPU = torch.device("cpu")
CHEAP = {"depth_histogram", "effective_depths", "top_share", "texts", "depth_distance", "same_output_share"}
POLICY = {"policy_entropy", "kl_to_uniform", "text_depth_mutual_information"}
FULL = {"per_depth", "best_depth", "best_fixed", "greedy", "shuffled", "oracle", "learnable_headroom"}


def retriever(tiny_settings, **options):
    """A model whose depths differ, and whose router picks different ones."""
    config = tiny_settings(kernel_init_std=0.7, **options)
    model = MAWRetriever(config)
    torch.manual_seed(2)
    for attention in model.encoder.maw_attention:
        if hasattr(attention.router, "weight"):
            torch.nn.init.normal_(attention.router.weight, std=0.5)
    return model, config


def diagnosed(model, config, data, activations=None, start=None):
    diagnostics = RoutingDiagnostics(model, config, CPU, activations, start)
    result = evaluate_retriever(model, data, config, CPU, inspect=diagnostics, activations=activations)
    return diagnostics, result


@pytest.fixture
def hard_data(tiny_data):
    """Queries that are not always answered at first."""
    return tiny_data | {"queries": [" ".join(query.split()[1:3]) or query for query in tiny_data["queries"]]}


@pytest.mark.parametrize("options", [{}, {"route_by": "token"}, {"maw_layers": [2, 3], "depth_kernel": "low_rank"}])
def test_a_fixed_router_is_a_column_of_the_matrix(tiny_settings, hard_data, options):
    """Queries at depth d over documents at depth d, ranked at once and by evaluating that model."""
    columns = []
    for depth in range(4):
        model, config = retriever(tiny_settings, router="fixed", fixed_depth=depth, **options)
        diagnostics, result = diagnosed(model, config, hard_data)
        queries, documents = diagnostics.split.sides
        expected = result.per_query["ndcg_cut_10"]
        np.testing.assert_allclose(queries.matrix.ndcg_QD[:, depth], expected, atol=1e-9)
        np.testing.assert_allclose(queries.matrix.greedy_Q, expected, atol=1e-9)
        np.testing.assert_allclose(documents.matrix.ndcg_QD[:, depth], expected[documents.query_Q], atol=1e-9)
        columns.append(expected)
    if "depth_kernel" not in options:
        assert np.ptp(np.array(columns), axis=0).max() > 0.1, "depths must matter for this to say anything"


def test_the_matrix_mixes_query_depths_with_greedy_documents(tiny_settings, hard_data):
    model, config = retriever(tiny_settings)
    data = as_retrieval_data(hard_data)
    diagnostics, _ = diagnosed(model, config, data)
    fixed, _ = retriever(tiny_settings, router="fixed", fixed_depth=2)
    fixed.encoder.load_state_dict(model.encoder.state_dict(), strict=False)
    scores = fixed.encode(data.queries, "query") @ model.encode(data.corpus.take(range(len(data.corpus)))).T
    rank = 1 + (scores > scores[np.arange(len(data)), np.arange(len(data))][:, None]).sum(1)
    expected = np.where(rank <= 10, 1 / np.log2(1 + rank), 0)
    np.testing.assert_allclose(diagnostics.split.sides[0].matrix.ndcg_QD[:, 2], expected, atol=1e-9)


def test_greedy_is_the_evaluation_and_what_follows_from_the_matrix(tiny_settings, hard_data):
    model, config = retriever(tiny_settings)
    diagnostics, result = diagnosed(model, config, hard_data)
    found = diagnostics.cheap()["query"] | diagnostics.full()["query"]
    queries = diagnostics.split.sides[0]
    matrix = queries.matrix.ndcg_QD
    assert found["greedy"] == pytest.approx(result["ndcg_cut_10"])
    assert found["greedy"] == pytest.approx(matrix[np.arange(24), queries.greedy.depth_B].mean())
    assert found["per_depth"] == pytest.approx(matrix.mean(0), abs=1e-6)
    assert found["best_fixed"] == pytest.approx(max(found["per_depth"]), abs=1e-6)
    assert found["per_depth"][found["best_depth"]] == max(found["per_depth"])
    assert found["best_fixed"] <= found["oracle"] == pytest.approx(matrix.max(1).mean())
    assert found["learnable_headroom"] == pytest.approx(found["split_gain"] - found["split_gain_of_noise"])
    assert found["greedy_mutual_information"][0] == pytest.approx(
        np.log(result.facts["routing"]["query"]["effective_depths"][0]), abs=1e-5
    )
    assert found["policy_entropy"][0] + found["kl_to_uniform"][0] == pytest.approx(np.log(4))
    assert found["zero_variance_share"] == 0.0 and found["reward_mean"] < 0


def test_the_same_every_time_and_with_stored_activations(tiny_settings, hard_data, tmp_path):
    model, config = retriever(tiny_settings)
    first = diagnosed(model, config, hard_data)[0].full()
    assert diagnosed(model, config, hard_data)[0].full() == first
    with ActivationStore(tmp_path / "activations", 1) as store:
        again = diagnosed(model, config, hard_data, store)[0].full()
    for side in ("query", "document"):
        assert again[side]["per_depth"] == pytest.approx(first[side]["per_depth"])
        assert again[side]["learnable_headroom"] == pytest.approx(first[side]["learnable_headroom"])


def test_a_sample_of_a_larger_split(tiny_settings, hard_data, monkeypatch):
    monkeypatch.setattr("maw.evaluation.routing.routed_texts.MOST_QUERIES", 10)
    monkeypatch.setattr("maw.evaluation.routing.routed_texts.MOST_DOCUMENTS", 7)
    model, config = retriever(tiny_settings)
    diagnostics, result = diagnosed(model, config, hard_data)
    queries, documents = diagnostics.split.sides
    assert (len(queries.rows_B), len(documents.query_Q)) == (10, 7)
    np.testing.assert_allclose(queries.matrix.greedy_Q, result.per_query["ndcg_cut_10"][queries.rows_B])
    assert diagnostics.full()["query"]["ranked"] == 10


def test_all_texts_are_compared_with_the_start_though_a_sample_is_put_at_every_depth(
    tiny_settings, hard_data, monkeypatch
):
    model, config = retriever(tiny_settings)
    start = start_of(model)
    whole = diagnosed(model, config, hard_data, start=start)[0].full()
    monkeypatch.setattr("maw.evaluation.routing.routed_texts.MOST_QUERIES", 10)
    monkeypatch.setattr("maw.evaluation.routing.routed_texts.MOST_DOCUMENTS", 7)
    sampled = diagnosed(model, config, hard_data, start=start)[0].full()
    for side, ranked in (("query", 10), ("document", 7)):
        assert sampled[side]["ranked"] == sampled[side]["learnt"]["against_fixed"]["n"] == ranked
        for name in ("start", "against_start", "reward_against_start"):
            assert sampled[side]["learnt"][name] == whole[side]["learnt"][name], name
        assert whole[side]["learnt"]["against_start"]["n"] > 10


def test_pairs_of_documents_share_neither_query_nor_document(tiny_settings, hard_data):
    """Two pairs of one query would count it twice in a test over queries, two of one document let a router see it."""
    shared = hard_data | {"qrels": {q: {q // 2: 1, 30: 1, 31 + q % 3: 2} for q in range(24)}}
    model, config = retriever(tiny_settings)
    diagnostics, result = diagnosed(model, config, shared, start=start_of(model))
    documents = diagnostics.split.sides[1]
    assert len(documents.query_Q) == len(set(documents.query_Q)) == len(set(documents.row_Q)) == len(documents.rows_B)
    assert 12 <= len(documents.query_Q) <= 16
    np.testing.assert_array_equal(documents.rows_B[documents.place_Q], documents.row_Q)
    expected = result.per_query["ndcg_cut_10"][documents.query_Q]
    np.testing.assert_allclose(documents.matrix.greedy_Q, expected, atol=1e-9)
    assert diagnostics.full()["document"]["learnt"]["against_fixed"]["n"] == len(documents.query_Q)


def start_of(model, seed=7):
    """Routers as before training: others than the model's."""
    torch.manual_seed(seed)
    routers = [copy.deepcopy(layer.router) for layer in model.encoder.maw_attention]
    with torch.no_grad():
        for parameter in (each for router in routers for each in router.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return routers


def test_what_was_learnt_compares_with_the_start_one_depth_and_shuffles(tiny_settings, hard_data):
    model, config = retriever(tiny_settings, permutations=500)
    start = start_of(model)
    diagnostics, result = diagnosed(model, config, hard_data, start=start)
    queries = diagnostics.split.sides[0]
    matrix, rows = queries.matrix, np.arange(24)
    with torch.no_grad():
        state = torch.from_numpy(queries.greedy.state_BF)[:, None, None]
        policy, first = (each.logits(state)[:, 0, 0].log_softmax(-1) for each in (queries.reader.routers[0], start[0]))
    before = first.argmax(-1).numpy()
    found = diagnostics.full()["query"]["learnt"]
    assert found["start"] == pytest.approx(matrix.ndcg_QD[rows, before].mean())
    gain = found["against_start"]
    assert gain["mean_difference"] == pytest.approx(result["ndcg_cut_10"] - found["start"]) and gain["n"] == 24
    reward = matrix.reward_QD[rows, queries.greedy.depth_B] - matrix.reward_QD[rows, before]
    assert found["reward_against_start"]["mean_difference"] == pytest.approx(reward.mean(), rel=1e-5)
    assert found["shuffles"] == 500 and 0 < found["against_shuffled_p_value"] <= 1
    assert found["fixed"] <= matrix.ndcg_QD.mean(0).max() + 1e-12, "chosen on the other half"
    facts = diagnostics.cheap()["query"]
    assert facts["kl_to_start"] == [pytest.approx(float((policy.exp() * (policy - first)).sum(-1).mean()), abs=1e-5)]
    assert facts["changed_share"] == [np.mean(before != queries.greedy.depth_B)] and facts["changed_share"][0] > 0


@pytest.mark.parametrize("options", [{"route_by": "head"}, {"route_by": "token"}, {"maw_layers": [2, 3]}])
def test_texts_with_several_depths_are_encoded_at_those_of_the_start_and_of_others(tiny_settings, hard_data, options):
    model, config = retriever(tiny_settings, **options)
    diagnostics, result = diagnosed(model, config, hard_data, start=start_of(model))
    found = diagnostics.full()["query"]
    assert found["shuffled"] is None
    learnt = found["learnt"]
    assert learnt["start"] + learnt["against_start"]["mean_difference"] == pytest.approx(result["ndcg_cut_10"])
    assert learnt["shuffles"] == 39 and 1 / 40 <= learnt["against_shuffled_p_value"] <= 1
    assert learnt["reward_against_start"]["mean_difference"] != 0


def test_a_router_that_has_not_moved_has_learnt_nothing(tiny_settings, hard_data):
    model, config = retriever(tiny_settings)
    start = [copy.deepcopy(layer.router) for layer in model.encoder.maw_attention]
    diagnostics, _ = diagnosed(model, config, hard_data, start=start)
    for side, found in diagnostics.full().items():
        assert found["learnt"]["against_start"]["p_value"] == found["learnt"]["reward_against_start"]["p_value"] == 1
        policy = diagnostics.cheap()[side]
        assert policy["kl_to_start"] == [0] and policy["changed_share"] == [0]


def test_depths_that_suit_are_seen_to_be_learnt(tiny_settings, hard_data):
    """The router's depths replaced by the best of each query, its start's by the worst: all tests must see it."""
    model, config = retriever(tiny_settings, permutations=2000)
    with torch.no_grad():
        model.encoder.maw_attention[0].kernels.weight.mul_(3)
    diagnostics, _ = diagnosed(model, config, hard_data, start=start_of(model))
    queries = diagnostics.split.sides[0]
    ndcg_QD = queries.matrix.ndcg_QD
    best, worst = ([np.full((1, 1, 1), depth) for depth in each] for each in (ndcg_QD.argmax(1), ndcg_QD.argmin(1)))
    queries.greedy = dataclasses.replace(queries.greedy, depths=best, start_depths=worst)
    found = queries.learnt()
    assert found["against_start"]["p_value"] < 0.05 and found["against_start"]["mean_difference"] > 0
    assert found["against_fixed"]["p_value"] < 0.05 and found["against_shuffled_p_value"] < 0.05


@pytest.mark.parametrize("router", ["soft", "fixed", "random"])
def test_routers_that_no_learner_trains_have_nothing_learnt(tiny_settings, hard_data, router):
    model, config = retriever(tiny_settings, router=router)
    diagnostics, _ = diagnosed(model, config, hard_data)
    assert "learnt" not in diagnostics.full()["query"] and "kl_to_start" not in diagnostics.cheap()["query"]


# -------------------------------------------------------------------------------------------------- within training


def train(tiny_settings, data, retriever=MAWRetriever, **options):
    config = tiny_settings(num_epochs=3, patience=0, learning_rate=0.01, **options)
    model = retriever(config)
    return train_retriever(model, data, data, config, "cpu"), model


def test_the_best_epoch_is_looked_at_in_full(tiny_settings, hard_data):
    history, model = train(tiny_settings, hard_data)
    best = max(history, key=lambda record: (record["val_ndcg_cut_10"], -record["epoch"]))
    for record in history:
        for side in ("query", "document"):
            assert CHEAP | POLICY <= set(record["val_routing"][side])
            assert (set(record["val_routing"][side]) >= FULL) == (record is best)
    fresh, _ = diagnosed(model, model.config, hard_data)
    assert best["val_routing"]["query"]["per_depth"] == pytest.approx(fresh.full()["query"]["per_depth"])
    assert best["val_routing"]["query"]["greedy"] == pytest.approx(best["val_ndcg_cut_10"])


def test_all_epochs_on_demand(tiny_settings, hard_data):
    history, _ = train(tiny_settings, hard_data, diagnostics="all")
    for record in history:
        assert set(record["val_routing"]["document"]) >= FULL
        assert record["val_routing"]["query"]["greedy"] == pytest.approx(record["val_ndcg_cut_10"])


@pytest.mark.parametrize("options", [{}, {"router": "random"}])
def test_diagnostics_change_nothing_of_training(tiny_settings, hard_data, options):
    history, model = train(tiny_settings, hard_data, diagnostics="none", **options)
    assert set(history[0]["val_routing"]["query"]) == {"depth_histogram", "effective_depths", "top_share"}
    watched, same = train(tiny_settings, hard_data, diagnostics="all", **options)
    for name, value in model.trained_state().items():
        assert torch.equal(value, same.trained_state()[name]), name
    assert [each["train_loss"] for each in history] == [each["train_loss"] for each in watched]


def test_only_models_that_route_have_diagnostics(tiny_settings, hard_data):
    config = tiny_settings(use_lora=True)
    assert routing_diagnostics(BaselineRetriever(config), config, CPU) is None
    model, config = retriever(tiny_settings, diagnostics="none")
    assert routing_diagnostics(model, config, CPU) is None
    history, _ = train(tiny_settings, hard_data, BaselineRetriever, use_lora=True)
    assert "val_routing" not in history[0]


# ---------------------------------------------------------------------------------------------- distance, seeds


def test_distance_between_depths_by_hand():
    east, north = [1.0, 0.0], [0.0, 2.0]
    # Of three depths two do the same: distances 0, 1, 1; for the second text 0, 0, 0.
    found = depth_distance(np.array([[east, east, north], [east, east, east]]))
    assert found["depth_distance"] == pytest.approx((0 + 0.5 + 0.5) / 3)
    assert found["same_output_share"] == pytest.approx(1 / 3)
    assert depth_distance(np.array([[east]])) == {"depth_distance": None, "same_output_share": None}


def test_one_model_has_no_distance_between_depths_that_were_not_set_apart(tiny_settings, hard_data):
    model, config = retriever(tiny_settings)
    with torch.no_grad():
        model.encoder.maw_attention[0].kernels.weight.fill_(1.0)
    found = diagnosed(model, config, hard_data)[0].cheap()["document"]
    assert found["depth_distance"] < 1e-6 and found["same_output_share"] == 1.0


def test_depths_against_seeds(tiny_settings, hard_data):
    model, config = retriever(tiny_settings)
    others = [retriever(tiny_settings, router="fixed", fixed_depth=depth)[0] for depth in (1, 2)]
    found = compare_with_seeds(model, others, hard_data, config)
    values = [evaluate_retriever(each, hard_data, config).per_query["ndcg_cut_10"] for each in others]
    assert found["models"] == 2
    assert found["oracle_null"] == pytest.approx(np.maximum(*values).mean())
    matrix = diagnosed(model, config, hard_data)[0].split.sides[0].matrix.ndcg_QD
    assert matrix.mean() == pytest.approx(found["depths_mean"]) and found["oracle_depths"] <= matrix.max(1).mean()
