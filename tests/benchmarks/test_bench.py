"""The arithmetic of the measurements: claims, operations, the deeper model, the turns, the page. Nothing is timed."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, TrainerControl, TrainerState

from bench import common, encoding, layer, metrics, offline, performance, plan, training, validation_corpus
from bench.flops import encoder_flops, matmul_flops
from bench.stacking import stack_layers
from maw.config.tier1_config import Tier1Config
from maw.data.from_dicts import as_retrieval_data
from maw.models.retriever import BaselineRetriever

# ------------------------------------------------------------------------------------------------------- claims


@pytest.mark.parametrize(
    "measured, target, met",
    [
        (2.5, ">= 2.5", True),
        (2.499, ">= 2.5", False),
        (0.002, "<= 0.002", True),
        (0.0021, "<= 0.002", False),
        (1e-6, "<= 1e-5", True),
        (float("inf"), ">= 2", True),
        (float("nan"), ">= 2", False),
        (float("nan"), "<= 2", False),
        (None, ">= 2", None),
    ],
)
def test_a_claim_is_met_when_its_target_holds(measured, target, met):
    assert common.claim("speed", "peer", measured, target)["met"] is met


@pytest.mark.parametrize("target", ["2.5", ">=2.5", "> 2.5", "about 2", ""])
def test_a_target_that_cannot_be_read_is_refused(target):
    with pytest.raises(ValueError, match="must be like"):
        common.claim("speed", "peer", 3.0, target)


def test_a_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians():
    seconds = {"slow": [2.0, 30.0, 4.0], "fast": [1.0, 10.0, 4.0]}
    assert common.ratio(seconds, "slow", "fast") == 2.0
    assert common.median(seconds["slow"]) / common.median(seconds["fast"]) == 1.0


def test_sides_take_turns_after_a_run_that_does_not_count():
    calls = []
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = common.alternate(sides, rounds=2)
    assert calls == ["a", "b"] * 3
    assert {name: len(each) for name, each in seconds.items()} == {"a": 2, "b": 2}


def test_a_report_is_written_whole(tmp_path, capsys):
    wanted = common.claim("speed", "peer", 3.0, ">= 2")
    common.report("tiny", ["side", "s"], [["ours", 0.25]], tmp_path, claims=[wanted])
    content = json.loads((tmp_path / "tiny.json").read_text())
    assert content["rows"] == [{"side": "ours", "s": 0.25}]
    assert content["claims"] == [wanted]
    assert content["machine"]["torch"] == torch.__version__
    assert {"measured_at", "commit", "busy", "others_cores"} <= content.keys()
    shown = capsys.readouterr().out
    assert "0.250" in shown and ">= 2" in shown and "yes" in shown


def test_a_report_needs_no_claims(tmp_path):
    common.report("tiny", ["n"], [[1]], tmp_path)
    assert json.loads((tmp_path / "tiny.json").read_text())["claims"] == []


@pytest.mark.parametrize("others, busy", [(0.0, False), (0.05, False), (0.5, True)])
def test_a_machine_is_busy_when_others_use_it(monkeypatch, others, busy):
    """Ten seconds in which this process took three, and others so many cores."""
    clock, everything, own = iter([0.0, 10.0]), iter([100.0, 103.0 + 10 * others]), iter([7.0, 10.0])
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(common, "_all_seconds", lambda: next(everything))
    monkeypatch.setattr(common, "_own_seconds", lambda: next(own))
    found = common.Processors().others()
    assert found == {"others_cores": pytest.approx(others), "busy": busy}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell")
def test_a_peak_is_that_of_the_call_and_above_what_was_there():
    size = 64 << 20
    np.ones(2 * size, np.uint8)  # an earlier and higher peak, whose memory is free again
    held = np.ones(size, np.uint8)
    assert 0.9 * size < common.peak_above_now(lambda: np.ones(size, np.uint8)) < 1.1 * size
    assert common.peak_above_now(lambda: held.sum()) < 0.1 * size


def test_a_quick_measurement_never_takes_the_place_of_a_real_one(monkeypatch):
    """The metrics', with our own values in place of ranx's, which come in the order of the queries' ids."""
    reported = []
    monkeypatch.setattr("sys.argv", ["metrics", "--quick"])
    monkeypatch.setattr(metrics, "report", lambda name, header, rows, folder: reported.append((name, rows, folder)))
    monkeypatch.setattr(metrics, "ranx_objects", lambda *case: case)
    monkeypatch.setattr(
        metrics,
        "ranx_values",
        lambda *case: {key: values[np.argsort(case[0])] for key, values in metrics.ours(*case).items()},
    )
    metrics.main()
    ((name, rows, folder),) = reported
    assert (name, folder) == ("metrics", common.RESULTS / "quick")
    assert [row[4] for row in rows if row[3] == "<= 1e-9"] == [True, True]


def test_where_the_system_does_not_tell_nothing_is_said(monkeypatch):
    monkeypatch.setattr(common, "_all_seconds", lambda: None)
    assert common.Processors().others() == {"others_cores": None, "busy": None}


# -------------------------------------------------------------------------------------------------- operations


@pytest.fixture(scope="module")
def tiny_bert(models):
    return AutoModel.from_pretrained(models("bert"), attn_implementation="eager").eval()


@pytest.mark.parametrize("batch, length", [(1, 1), (3, 7), (2, 16)])
def test_operations_equal_those_that_torch_counts(tiny_bert, batch, length):
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.full((batch, length), 7)
    hidden = tiny_bert.embeddings(input_ids=ids)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for layer in tiny_bert.encoder.layer:
            hidden = layer(hidden)
    assert encoder_flops([length] * batch, tiny_bert.config) == counter.get_total_flops()


def test_linear_maps_alone_take_two_operations_for_each_parameter_and_token(tiny_bert):
    weights = sum(p.numel() for n, p in tiny_bert.encoder.named_parameters() if p.ndim == 2)
    assert encoder_flops([3, 5], tiny_bert.config, attention=False) == 2 * weights * 8
    assert encoder_flops([3, 5], tiny_bert.config) > 2 * weights * 8


def test_a_product_has_two_operations_for_each_term():
    assert matmul_flops(2, 3, 5) == 60


# ---------------------------------------------------------------------------------------------------- encoding


def side_by_words(texts, kind):
    """A vector of word counts for each text."""
    words = sorted({"file", "path", "json", "sort"})
    return np.array([[text.split().count(word) for word in words] for text in texts], dtype=np.float32)


def test_a_ranking_is_measured_over_the_passages_given():
    docs = ["sort", "path", "json", "sort sort"]
    queries = ["json", "path", "sort"]
    data = as_retrieval_data({"queries": queries, "docs": docs, "qrels": {0: {2: 1}, 1: {1: 1}, 2: {0: 1}}}, "test")
    right = encoding.Side("ours", "float32", side_by_words)
    assert encoding.ndcg(right, data, [1, 2]) == 1.0  # the third query's passage is not there
    assert encoding.ndcg(right, data, range(4)) == pytest.approx((1 + 1 + 1 / np.log2(3)) / 3)
    wrong = encoding.Side("ours", "float32", lambda texts, kind: -side_by_words(texts, kind) * (kind == "query" or -1))
    assert encoding.ndcg(wrong, data, range(4)) < 0.7


def test_encoding_is_claimed_for_documents_by_pairs():
    pairs = {"default": ("ours a", "theirs b"), "float32": ("ours b", "theirs b"), "bfloat16": ("ours a", "theirs a")}
    document = {"ours a": [1.0, 1.0], "ours b": [3.0, 3.0], "theirs a": [2.0, 2.0], "theirs b": [4.0, 4.0]}
    scores = {"ours a": 0.5, "ours b": 0.5, "theirs a": 0.503, "theirs b": 0.501}
    claims = encoding.speed_claims({"document": document, "query": {}}, scores, pairs)
    assert [(each["measured"], each["met"]) for each in claims[:3]] == [(4.0, True), (4 / 3, False), (2.0, True)]
    assert [each["met"] for each in claims[3:]] == [True, True, False]


def test_operations_are_counted_with_and_without_padding(tiny_settings):
    model = BaselineRetriever(tiny_settings())
    texts = ["open", "open the file", "sort the list of words in the file and write the path to the file"]
    counted = encoding.operations(model, texts)
    assert encoding.token_counts(model, texts, "document").tolist() == [3, 5, 17]
    shape = model.encoder.backbone.config
    assert counted["real tokens"] == encoder_flops([3, 5, 17], shape)
    assert counted["padding included"] == encoder_flops([32] * 3, shape)  # one batch, a multiple of sixteen long
    assert counted["real tokens, linear maps alone"] < counted["real tokens"] < counted["padding included"]


# ---------------------------------------------------------------------------------------------- a deeper model


def test_a_stacked_model_runs_the_layers_again(models, tmp_path, tiny_bert):
    folder = stack_layers(models("bert"), tmp_path / "deep", 2)
    deep = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    assert deep.config.num_hidden_layers == len(deep.encoder.layer) == 6
    ids = torch.tensor([[2, 7, 9, 11, 3]])
    with torch.no_grad():
        expected = tiny_bert.embeddings(input_ids=ids)
        for layer in [*tiny_bert.encoder.layer, *tiny_bert.encoder.layer]:
            expected = layer(expected)
        found = deep(ids).last_hidden_state
        once = tiny_bert(ids).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found, once, atol=1e-2)


def test_a_stacked_model_is_a_retriever(models, tmp_path, tiny_settings):
    folder = stack_layers(models("bert"), tmp_path / "deep", 2)
    config = Tier1Config.from_dict(tiny_settings().to_dict() | {"model": str(folder), "use_lora": True})
    model = BaselineRetriever(config)
    assert model.layers["finetune"] == (6,) and model.layers["prefix"] == 5
    assert model.encode(["open the file"]).shape == (1, 16)


# ---------------------------------------------------------------------------------------------------- training


@pytest.fixture
def task(tiny_data):
    return training.training_data(as_retrieval_data(copy.deepcopy(tiny_data), "train"), 12)


def test_every_query_has_a_negative_that_is_not_relevant_to_it(task):
    assert len(task) == 12 and set(task.negatives) == set(task.query_ids)
    for query, (negative,) in task.negatives.items():
        assert negative not in task.qrels[query]
    columns = training.triplets(task)
    assert {len(texts) for texts in columns.values()} == {12}
    assert all(p != n for p, n in zip(columns["positive"], columns["negative"]))


def test_one_of_our_epochs_runs_before_each_of_theirs():
    timing, events = training.Timing(), []
    turns = training.TakeTurns(lambda epoch: events.append(f"ours {epoch}"), timing)
    for epoch in (1, 2):
        turns.on_epoch_begin(None, TrainerState(), TrainerControl())
        events.append(f"theirs {epoch}")
        turns.on_epoch_end(None, TrainerState(), TrainerControl())
    assert events == ["ours 1", "theirs 1", "ours 2", "theirs 2"]
    assert [len(each) for each in timing.seconds.values()] == [2, 2]
    assert [len(each) for each in timing.later().values()] == [1, 1]


def test_both_sides_train_the_same_numbers_on_the_same_texts(tiny_settings, task):
    config = tiny_settings(use_lora=True, num_negatives=1, negative_source="given", num_epochs=3)
    timing = training.time_training(config, task)
    assert timing.parameters == 2 * (16 * 8 + 8 * 16)
    assert {side: len(each) for side, each in timing.seconds.items()} == {training.OURS: 3, training.THEIRS: 3}
    ours, theirs = timing.loss[training.OURS], timing.loss[training.THEIRS]
    assert ours == pytest.approx(theirs, rel=0.5) and ours > 0


def test_a_whole_training_of_both_sides_ranks_the_validation_queries(tiny_settings, task):
    config = tiny_settings(use_lora=True, num_negatives=1, negative_source="given", num_epochs=2, val_samples=8)
    ours, theirs = training.time_whole(config, task, task)
    assert [ours[0], theirs[0]] == [training.OURS, training.THEIRS]
    assert ours[2:4] == theirs[2:4] == [len(task.query_ids), 2]
    assert ours[6] == pytest.approx(theirs[4] / ours[4]) and theirs[6] == 1
    assert ours[5] == pytest.approx(theirs[5], abs=0.2) and 0 < ours[5] <= 1


# ----------------------------------------------------------------------------------------------------- offline


def offline_run(tree: str, seconds: float, ndcg: float) -> offline.Run:
    record = {"runtime_seconds": seconds, "metrics": {"ndcg_cut_10": ndcg, "map": ndcg / 2}}
    content = {
        "runtime_summary": {"total_dataset_seconds": seconds},
        "results": {"1_normal_retriever": record},
        "model": {},
    }
    return offline.Run(tree, seconds + 1, content)


def test_offline_runs_are_compared_round_by_round():
    runs = {
        offline.BEFORE: [offline_run(offline.BEFORE, seconds, 0.5) for seconds in (90.0, 60.0, 80.0)],
        offline.NOW: [offline_run(offline.NOW, 20.0, 0.4) for _ in range(3)],
        offline.ALIKE: [offline_run(offline.ALIKE, 16.0, 0.4) for _ in range(3)],
        offline.FLOAT32: [offline_run(offline.FLOAT32, 20.0, 0.5 + 4e-6)],
    }
    speed, alike, ndcg, largest = offline.claims_of(runs, "abc")
    assert alike["measured"] == 5.0 and "without diagnostics" in alike["claim"]
    assert speed["measured"] == 4.0 and speed["met"] and "abc" in speed["against"]
    assert ndcg["measured"] == pytest.approx(4e-6) and ndcg["met"]
    assert largest["measured"] == pytest.approx(4e-6) and largest["met"]
    runs[offline.FLOAT32] = [offline_run(offline.FLOAT32, 20.0, 0.5001)]
    assert [each["met"] for each in offline.claims_of(runs, "abc")] == [True, True, False, False]


def test_a_method_that_did_not_run_has_no_numbers():
    row = dict(zip(offline.HEADER, offline.row_of(offline_run("baseline", 9.0, 0.5), "abc", 1), strict=True))
    assert row["s zeroshot"] == 9.0 and row["nDCG@10 zeroshot"] == 0.5 and row["s process"] == 10.0
    assert row["s lora"] is None and row["nDCG@10 maw"] is None


# ---------------------------------------------------------------------------------------------------- the page

MACHINE = {"python": "3.11.7", "torch": "2.13.0", "threads": 2, "cores": 2, "processor": "A", "units": [], "gpu": None}


def result(**changes):
    made = {
        "measured_at": "2026-01-02T03:04+00:00",
        "commit": "abc1234",
        "machine": MACHINE,
        "others_cores": 0.0,
        "busy": False,
        "rows": [{"side": "ours", "s": 0.25}],
        "claims": [common.claim("twice as fast", "peer", 1.5, ">= 2")],
    }
    return made | changes


def test_the_page_says_what_was_met_missed_and_not_measured():
    page = performance.performance_page({"encoding": result()}, ["encoding", "growth"])
    assert "| [encoding](#encoding) | twice as fast | peer | 1.500 | >= 2 | **no** |" in page
    assert "| [growth](#growth) | all of its claims |  | not measured |  |  |" in page
    assert "| side | s |\n| --- | --- |\n| ours | 0.250 |" in page
    assert "commit abc1234." in page and "Other programs" not in page
    assert page.count("Not measured.") == 1


def test_claims_may_be_rows_of_the_table():
    row = {"claim": "exact", "measured": 0.0, "target": "<= 0", "met": True, "side": None}
    page = performance.performance_page({"metrics": result(claims=[], rows=[{"side": "ours"}, row])}, ["metrics"])
    assert "| [metrics](#metrics) | exact |  | 0 | <= 0 | yes |" in page
    assert "| side |\n| --- |\n| ours |\n" in page
    words = [{"claim": "exact", "measured": "0", "target": "0", "met": "no"}]
    assert "| exact |  | 0 | 0 | **no** |" in performance.performance_page(
        {"metrics": result(rows=words)}, ["metrics"]
    )


def test_a_claim_without_a_number_is_not_measured():
    page = performance.performance_page(
        {"layer": result(claims=[common.claim("memory", "peer", None, "<= 2")])}, ["layer"]
    )
    assert "| memory | peer | not measured | <= 2 | not measured |" in page


def test_a_busy_machine_is_named_as_such():
    page = performance.performance_page({"layer": result(busy=True, others_cores=0.8)}, ["layer"])
    assert "**Other programs had 0.8 cores in use: times are worth less.**" in page


def test_a_shortened_workload_is_marked_where_its_numbers_stand():
    page = performance.performance_page({"layer": result(shortened=True), "step": result()}, ["layer", "step"])
    assert "| [layer](#layer), shortened | twice as fast |" in page and "| [step](#step) | twice as fast |" in page
    assert page.count("a shortened workload (without `--full`)") == 1


@pytest.mark.parametrize("words, shortened", [([], True), (["--full"], False)])
def test_less_than_the_whole_work_is_marked(monkeypatch, words, shortened):
    reported = {}
    monkeypatch.setattr("sys.argv", ["layer", *words])
    monkeypatch.setattr(
        layer, "measure", lambda *_: {"plain": (1.0, 1.0, 1.0)} | dict.fromkeys(layer.KINDS, (1.0, 1.0, 1.0))
    )
    monkeypatch.setattr(layer, "report", lambda *_, **kept: reported.update(kept))
    layer.main()
    assert reported == {"shortened": shortened}


def test_two_tables_of_one_script_and_two_machines():
    results = {"encoding": result(), "encoding_peak": result(machine=MACHINE | {"processor": "B"}, claims=[])}
    page = performance.performance_page(results, ["encoding"])
    assert page.count("## encoding\n") == 1 and page.count("| ours | 0.250 |") == 2
    assert "Machine of encoding: A;" in page and "Machine of encoding_peak: B;" in page


def test_the_page_without_any_result_invents_nothing():
    page = performance.performance_page({})
    assert page.count("| not measured |") == page.count("Not measured.") == len(performance.SCRIPTS)
    assert "yes" not in page.split("## layer")[0].split("## Claims")[1]


def test_a_result_that_names_this_machine_is_refused():
    with pytest.raises(ValueError, match="names this machine"):
        performance.performance_page({"layer": result(rows=[{"file": str(common.ROOT / "x")}])}, ["layer"])


def test_the_page_is_written_from_a_folder(tmp_path, monkeypatch):
    common.report("layer", ["side"], [["ours"]], tmp_path / "results", [common.claim("fast", "peer", 3, ">= 2")])
    monkeypatch.setattr(
        "sys.argv", ["performance", "--results", str(tmp_path / "results"), "--out", str(tmp_path / "docs" / "p.md")]
    )
    performance.main()
    assert "| fast | peer | 3 | >= 2 | yes |" in (tmp_path / "docs" / "p.md").read_text()


# ------------------------------------------------------------------------------------------------------- the plan


def plan_inputs():
    return json.loads(plan.INPUT.read_text(encoding="utf-8"))


def test_the_plan_multiplies_what_was_measured():
    inputs = plan_inputs()
    inputs["measured"] |= {
        "encoding": {"flops_per_second": 1e12},
        "search": {"queries": 1000, "passages": 1000, "size": 384, "seconds": 2.0},
        "tokens": {"a": 100.0},
    }
    gpu = {"half_tflops": 100, "single_tflops": 10, "gigabytes": 2}
    inputs["assumed"] |= {
        "padding": {"value": 1.5, "source": ""},
        "share_of_peak": {"value": 0.5, "source": ""},
        "search_share_of_peak": {"value": 0.5, "source": ""},
        "host_to_gpu_gigabytes_per_second": {"value": 1, "source": ""},
        "gpus": {"one": gpu},
    }
    corpora = [plan.Corpus("x", 10**6, "a", 500)]
    operations = 10**6 * encoder_flops([100], plan.BERT_BASE)
    ((_, passages, work, cpu, hours),) = plan.encoding_rows(inputs, corpora)
    assert (passages, work) == (10**6, operations)
    assert cpu == pytest.approx(operations / 1e12 / 3600) and hours == pytest.approx(cpu * 1.5 / 0.5 / 100)
    ((_, text, single, half, share, count),) = plan.storage_rows(inputs, corpora)
    assert (text, single, half, share, count) == (5 * 10**8, 3072 * 10**6, 1536 * 10**6, 384 * 10**6, 1)
    ((_, two_cores, seconds),) = plan.search_rows(inputs, corpora)
    assert two_cores == pytest.approx(2.0 * 1000 * 2)  # a thousand times the passages, twice the size
    assert seconds == pytest.approx(1.536)  # a GB a second; the product takes less
    inputs["assumed"]["host_to_gpu_gigabytes_per_second"]["value"] = 1e6
    assert plan.search_rows(inputs, corpora)[0][2] == pytest.approx(2 * 1000 * 768 * 10**6 / 5e12)


def test_the_page_has_the_plan_of_the_inputs():
    page = plan.PAGE.read_text(encoding="utf-8")
    assert plan.written(page, plan.plan_text(plan_inputs())) == page, "run python -m bench.plan --write"
    with pytest.raises(ValueError, match=r"no <!-- bench.plan -->"):
        plan.written("# A page", "a plan")


def test_the_plan_takes_its_measurements_from_the_results(tmp_path):
    about = {"measured_at": "2030-01-02T03:04+00:00", "machine": {"processor": "P", "threads": 4}}
    rows = {
        "encoding_peak": [{"operations": "encoding, real tokens", "GFLOP/s": 7.0, "share of peak": 0.25}],
        "search": [{"search": "exact", "median s": 3.0}],
    }
    for name, each in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(about | {"rows": each}))
    found = plan.refreshed(plan_inputs(), tmp_path)["measured"]
    assert found["encoding"]["flops_per_second"] == 7e9 and found["search"]["seconds"] == 3.0
    assert "P, 4 threads" in found["source"] and "search 2030-01-02" in found["source"]
    assert found["tokens"] == plan_inputs()["measured"]["tokens"]
    (tmp_path / "search.json").write_text(json.dumps(about | {"rows": rows["search"], "shortened": True}))
    with pytest.raises(SystemExit, match="search: measured without --full"):
        plan.refreshed(plan_inputs(), tmp_path)


def test_recall_is_one_where_everything_is_looked_at():
    random = np.random.default_rng(0)
    passages = random.standard_normal((400, 16)).astype(np.float32)
    rows = plan.recall_rows(passages[:20], passages, k=10)
    assert {size for size, *_ in rows} == {50, 100, 200, 400}
    assert all(0 < found <= again <= 1 for _, _, found, again in rows)
    assert all(again > 0.99 for _, name, _, again in rows if name in ("float16", "8 bits"))


# ------------------------------------------------------------------------------------------------ validation corpus


def test_what_is_left_of_a_ranking_is_the_ranking_of_the_part():
    random = np.random.default_rng(0)
    scores = random.normal(size=(7, 60))
    part = random.choice(60, 25, replace=False)
    whole = np.argsort(-scores, axis=1)[:, :50]
    alone = part[np.argsort(-scores[:, part], axis=1)[:, :10]]
    assert (validation_corpus.restricted(whole, part, 60) == alone).all()
    with pytest.raises(ValueError, match="--top-k"):
        validation_corpus.restricted(whole[:, :12], part, 60)


def test_the_smaller_corpus_costs_what_its_choice_has_less_on_the_full_one():
    full = np.array([[0.50, 0.53], [0.52, np.nan], [0.53, 0.51]])
    assert validation_corpus.choice(full) == (0, 1)  # of equal ones the first
    small = np.array([[0.70, 0.71], [0.75, np.nan], [0.60, 0.72]])
    assert validation_corpus.lost(full, small) == pytest.approx(0.01)
    assert validation_corpus.lost(full, full) == 0


def test_the_smallest_size_is_one_at_which_no_choice_loses_more():
    losses = {1000: [0, 0.003], 1500: [0.002, 0], 2000: [0, 0]}
    assert validation_corpus.smallest(losses) == 1500
    assert validation_corpus.smallest({1000: [0.1]}) is None
