"""Stages and their sums, operations against torch's own count, and the files and tables of a profiled run."""

from __future__ import annotations

import json
import threading
import time

import pytest
import torch
from conftest import random_texts
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maw.models import cpu_kernels
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.models.tokenized import ListTexts
from maw.report.text.profile import profile_text
from maw.runtime import profiler as profiles
from maw.runtime.profiler import current, peak_rate, profiling, stage, waiting, watch
from maw.training.train import train_retriever

MODEL_TYPES = ["bert", "roberta", "electra", "distilbert", "modernbert"]


@pytest.fixture(autouse=True)
def small_peak(monkeypatch):
    monkeypatch.setattr(profiles, "_SIDES", {"cpu": 64})


# ---------------------------------------------------------------------------------------------------------- stages


def test_stages_are_nested_in_the_order_of_their_first_call():
    with profiling() as profile:
        for _ in range(2):
            with stage("b"):
                with stage("d"):
                    time.sleep(0.01)
                with stage("c"):
                    pass
        with stage("a"), stage("c"):
            pass
    b, a = profile.content()["stages"]
    assert (b["name"], b["calls"], [each["name"] for each in b["stages"]]) == ("b", 2, ["d", "c"])
    assert (a["name"], a["calls"], [each["name"] for each in a["stages"]]) == ("a", 1, ["c"])
    assert b["seconds"] >= b["stages"][0]["seconds"] >= 0.02


def test_shares_add_up():
    with profiling() as profile:
        for name in "ab":
            with stage(name):
                time.sleep(0.02)
                with stage("inner"):
                    time.sleep(0.02)
    content = profile.content()
    assert sum(each["share"] for each in content["stages"]) == pytest.approx(1, abs=0.1)
    assert sum(each["seconds"] for each in content["stages"]) <= content["seconds"]
    for each in content["stages"]:
        (inner,) = each["stages"]
        assert each["self_seconds"] + inner["seconds"] == pytest.approx(each["seconds"], abs=1e-9)
        assert each["share"] == pytest.approx(each["seconds"] / content["seconds"], abs=1e-9)
    assert content["peak_flops_per_second"] is None and "flops" not in content["stages"][0]


def test_a_stage_that_fails_is_closed():
    with profiling() as profile:
        with pytest.raises(KeyError), stage("a"), stage("b"):
            raise KeyError
        with stage("c"):
            pass
    assert [each["name"] for each in profile.content()["stages"]] == ["a", "c"]
    assert current() is None


def test_without_a_profile_stages_do_nothing_and_cost_next_to_nothing():
    assert stage("a") is stage("b")
    with profiling(wanted=False) as profile:
        assert profile is None and current() is None
    started = time.process_time()
    for _ in range(10_000):
        with stage("a"):
            pass
    assert time.process_time() - started < 0.1
    assert list(waiting("a", range(3))) == [0, 1, 2]


def test_only_the_wait_for_items_is_timed():
    def slow():
        for number in range(3):
            time.sleep(0.01)
            yield number

    with profiling() as profile, stage("all"):
        taken = []
        for item in waiting("waiting", slow()):
            taken.append(item)
            time.sleep(0.03)
    (everything,) = profile.content()["stages"]
    (found,) = everything["stages"]
    assert taken == [0, 1, 2]
    assert found["calls"] == 4  # the last finds that there are no more
    assert 0.03 <= found["seconds"] <= everything["seconds"] - 0.09


def test_other_threads_do_not_disturb_the_stages_and_may_add_work():
    def aside():
        with stage("aside"):
            current().add_flops(5)

    with profiling() as profile, stage("main"):
        thread = threading.Thread(target=aside)
        thread.start()
        thread.join()
    (found,) = profile.content()["stages"]
    assert (found["name"], found["stages"], found["flops"]) == ("main", [], 5)


def test_a_gpu_is_waited_for_at_both_ends_and_only_where_there_is_a_profile(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    with stage("a"):
        pass
    with profiling("cpu"), stage("a"):
        pass
    assert waits == []
    with profiling("cuda:1"), stage("a"):
        assert waits == [torch.device("cuda:1")]
    assert len(waits) == 2


def test_peak_rate_is_that_of_real_products():
    assert 1e7 < peak_rate(torch.float32, "cpu") < 1e14


# ------------------------------------------------------------------------------------------------------------ work


def counted(call) -> tuple[float, float]:
    """Operations as watched, and as torch counts them."""
    with profiling() as profile, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as reference:
        call()
    return profile.root.flops, reference.get_total_flops()


def unpadded(retriever, texts: int = 3):
    """A batch of one text over and over: nothing of it is padding."""
    text = " ".join(["file"] * 30)
    batch = retriever.source(ListTexts([text] * texts), "document").batch(range(texts))
    width = int(batch["attention_mask"][0].sum())
    return {name: each[:, :width] for name, each in batch.items()}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_work_is_what_torch_counts(model_type, tiny_settings):
    retriever = BaselineRetriever(tiny_settings(model_type))
    inputs = unpadded(retriever)

    def forward():
        watch(retriever.encoder)
        with torch.inference_mode():
            retriever.encoder(inputs)

    ours, reference = counted(forward)
    # torch also counts the products that make tables of rotary angles
    assert ours == pytest.approx(reference, rel=0.02 if model_type == "modernbert" else 1e-9)
    assert ours > 0


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_work_of_training_is_what_torch_counts(model_type, tiny_settings):
    """One whole layer trained over two frozen ones: the first products of it need no gradient of their input."""
    retriever = BaselineRetriever(tiny_settings(model_type))
    retriever.encoder.architecture.layers(retriever.encoder.backbone)[-1].requires_grad_(True)
    inputs = unpadded(retriever)

    def train():
        watch(retriever.encoder)
        retriever.encoder(inputs)["embedding"].sum().backward()

    ours, reference = counted(train)
    assert ours == pytest.approx(reference, rel=1e-9)


@pytest.mark.parametrize("changes", [{"use_lora": True}, {"router": "fixed"}])
def test_work_of_adapters_and_depths_is_counted_nearly(changes, tiny_settings):
    """Depth kernels are not counted, and LoRA's attention needs no gradient of its keys."""
    config = tiny_settings(**changes)
    retriever = BaselineRetriever(config) if config.use_lora else MAWRetriever(config)
    inputs = unpadded(retriever)

    def train():
        watch(retriever.encoder)
        retriever.encoder(inputs)["embedding"].sum().backward()

    ours, reference = counted(train)
    assert ours == pytest.approx(reference, rel=0.1)


def test_padding_is_no_work(tiny_settings):
    retriever = BaselineRetriever(tiny_settings())
    source = retriever.source(ListTexts(["file", " ".join(["file"] * 30)]), "document")
    flops = []
    for rows in ([0, 1], [0], [1]):
        inputs = source.batch(rows)
        with profiling() as profile, torch.inference_mode():
            watch(retriever.encoder)
            retriever.encoder(inputs)
        flops.append(profile.root.flops)
    assert flops[0] == pytest.approx(flops[1] + flops[2], rel=1e-9)


def test_work_of_a_run_with_sampled_routings(tiny_settings, tiny_data, monkeypatch):
    """GRPO's rollouts, its routers and the step of the encoder, with padding counted, as torch counts it."""
    monkeypatch.setattr(profiles._Watcher, "_enter", lambda *_: None)
    monkeypatch.setattr(cpu_kernels, "_PACKABLE", False)  # torch counts no products of packed weights
    config = tiny_settings(router="grpo", num_epochs=1, num_negatives=0, prefix_cache_gb=0)

    def train():
        model = MAWRetriever(config)
        watch(model.encoder)
        train_retriever(model, tiny_data, tiny_data, config)

    ours, reference = counted(train)
    assert ours == pytest.approx(reference, rel=0.1)


def test_a_missing_map_would_be_noticed(tiny_settings):
    retriever = BaselineRetriever(tiny_settings())
    inputs = unpadded(retriever)

    def forward():
        watch(retriever.encoder)
        layer = retriever.encoder.architecture.layers(retriever.encoder.backbone)[0]
        layer.intermediate.dense._forward_hooks.clear()
        with torch.inference_mode():
            retriever.encoder(inputs)

    ours, reference = counted(forward)
    assert ours < 0.97 * reference


# ------------------------------------------------------------------------------------------------- the main command


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tiny"
    (folder / "qrels").mkdir(parents=True)
    passages = list(dict.fromkeys(random_texts(90, seed=3)))[:60]
    corpus = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(passages)]
    queries = [{"_id": f"q{i}", "text": f"query {i} {text}"} for i, text in enumerate(passages[:24])]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    for number, split in enumerate(("train", "dev", "test")):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(8 * number, 8 * number + 8))]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def names_of(stages):
    return {each["name"]: names_of(each["stages"]) for each in stages}


def find(stages, *path):
    each = next(each for each in stages if each["name"] == path[0])
    return find(each["stages"], *path[1:]) if path[1:] else each


def test_a_profiled_run(beir, tiny_settings, tmp_path, capsys):
    from maw.experiment.benchmark import run_complete_benchmark

    run_complete_benchmark(tiny_settings(datasets=[f"beir:{beir}"], profile=True, num_epochs=1))
    (path,) = (tmp_path / "logs").glob("beir_tiny_*/profile.json")
    content = json.loads(path.read_text())
    assert set(names_of(content["stages"])) == {
        "loading data", "negatives", "zero_shot", "lora", "maw", "significance and report", "writing",
    }  # fmt: skip
    evaluation = {"encoding documents", "encoding queries", "search", "metrics"}
    for method in ("lora", "maw"):
        assert set(find(content["stages"], method, "training", "validation")["stages"][0]) >= {"name", "calls"}
        training = names_of(find(content["stages"], method, "training")["stages"])
        assert {"forward and backward", "reading batches", "optimizer", "validation"} <= set(training)
        assert set(training["validation"]) == evaluation
        learnt = find(content["stages"], method, "training", "forward and backward")
        assert 0 < learnt["share_of_peak"] and learnt["flops"] > 0
    assert set(names_of(find(content["stages"], "zero_shot", "evaluation")["stages"])) == evaluation
    encoding = find(content["stages"], "zero_shot", "evaluation", "encoding documents")
    assert names_of(encoding["stages"]) == {"waiting for batches": {"frozen layers": {}}, "model": {}}
    assert 0.7 < sum(each["share"] for each in content["stages"]) <= 1
    shown = capsys.readouterr().out
    table = shown[shown.index("Where the time went:") :]
    for words in ("loading data", "  training", "    validation", "      encoding documents", "GFLOP/s", "Peak: "):
        assert words in table
    assert profile_text(content) in shown
    assert current() is None


def test_a_run_without_it_has_no_profile(beir, tiny_settings, tmp_path, capsys):
    from maw.experiment.benchmark import run_complete_benchmark

    run_complete_benchmark(tiny_settings(datasets=[f"beir:{beir}"], methods=["zero_shot"]))
    assert list((tmp_path / "logs").glob("beir_tiny_*/dataset.json"))
    assert not list((tmp_path / "logs").rglob("profile.json"))
    assert "Where the time went" not in capsys.readouterr().out


def test_the_table():
    inner = {"name": "inner", "calls": 1200, "seconds": 2.0, "share": 0.2, "self_seconds": 2.0, "stages": []}
    inner |= {"flops": 3e9, "flops_per_second": 1.5e9, "share_of_peak": 0.5}
    outer = {"name": "outer", "calls": 1, "seconds": 6.0, "share": 0.6, "self_seconds": 4.0, "stages": [inner]}
    content = {"seconds": 10.0, "device": "cpu", "threads": 1, "precision": "float32", "stages": [outer]}
    assert profile_text(content | {"peak_flops_per_second": 3e9}).splitlines() == [
        "Where the time went:",
        "stage    calls  seconds   share  GFLOP/s  of peak",
        "outer        1     6.00   60.0%",
        "  inner  1,200     2.00   20.0%      1.5    50.0%",
        "  other            4.00   40.0%",
        "other              4.00   40.0%",
        "all               10.00  100.0%",
        "Peak: 3.0 GFLOP/s, the best of large square matrix products in float32 on cpu, 1 thread; padding not counted",
    ]
