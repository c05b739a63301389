"""The plan of a run: counted by hand and against a real run, short, and an error for a disk that is too small."""

from __future__ import annotations

import json
import shutil
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import random_texts

import maw.experiment.plan.disk_space
import maw.experiment.plan.plan
import maw.experiment.plan.workload
import tier_1
from maw.config.methods import METHODS
from maw.config.tier1_config import Tier1Config
from maw.data.datasets.local_needs import local_needs
from maw.data.download.needs import Needs, SourceFile
from maw.errors import MAWError
from maw.evaluation.routing.routed_texts import MOST_DOCUMENTS, MOST_QUERIES
from maw.experiment.plan import encoding_speed
from maw.experiment.plan.encoding_speed import Rate
from maw.experiment.plan.plan import make_plan
from maw.experiment.plan.plan_text import plan_text
from maw.models.pretrained import model_spec
from maw.storage.disk import size_text

Usage = namedtuple("Usage", "total used free")
GB = 10**9


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No model is loaded but where a test is about that."""
    monkeypatch.setattr(maw.experiment.plan.plan, "measure", lambda *_: Rate(200, 20_000, 2.0, "cpu"))


@pytest.fixture
def spec(models):
    return model_spec(Tier1Config(model=str(models("bert"))))  # 3 layers, hidden size 16, 64 tokens


def source(folder: Path, name: str, size: int | None = 2 * GB) -> SourceFile:
    return SourceFile(name, f"https://files.example.org/some/path/{name}", folder / name, size)


def public(folder: Path) -> list[Needs]:
    """Needs like those of the four public datasets; two of them share a corpus."""
    wikipedia = source(folder, "psgs_w100.tsv.gz", 5 * GB)
    train = {"train": 58_880, "validation": 6515}
    return [
        Needs("msmarco", (source(folder, "collection.tar.gz"),), {"msmarco": 8_841_823}, 4 * GB, 335, {"test": 6980}),
        Needs("nq", (wikipedia, source(folder, "nq.zip")), {"nq": 2_681_468, "w": 21_015_324}, 15 * GB, 600, train),
        Needs("hotpotqa", (source(folder, "hotpotqa.zip", None),), {"hotpotqa": 5_233_329}, 2 * GB, 290, {}),
        Needs("triviaqa", (wikipedia,), {"w": 21_015_324}, 14 * GB, 630, {"train": None, "test": 8837}),
    ]


def config_of(tmp_path, models, **changes) -> Tier1Config:
    folders = {"cache_dir": str(tmp_path / "not" / "yet"), "log_dir": str(tmp_path / "logs" / "deep")}
    return Tier1Config(**({"model": str(models("bert"))} | folders | changes))


def test_counts_by_hand(tmp_path, models, spec):
    config = config_of(tmp_path, models, num_epochs=4, num_negatives=2, corpus_size=1000, val_corpus_size=300)
    config.train_samples, config.val_samples, config.test_samples = 50, 20, 30
    needs = Needs("x", passages={"a": 5000, "b": 200}, mean_characters=82, queries={"train": 40, "test": 99})
    (work,) = make_plan(config, spec, [needs]).works
    assert (work.searched, work.validated, work.shared) == (1000, 200, False)
    assert work.queries == {"train": 40, "validation": 20, "test": 30}
    assert work.encoded == {"test": 3 * 1030, "validation": 2 * 4 * 220, "training": 2 * 4 * (40 + 40 * 3)}
    assert work.tokens == {"document": round(82 / 4.2) + 2, "query": round(50 / 4.2) + 2}
    once = (1000 + 200 + 120) * work.tokens["document"] + (40 + 20 + 30) * work.tokens["query"]
    assert work.activation_bytes == once * 16 * 4
    upper = 3 * (1000 * 22 + 30 * 14) + 2 * 4 * (200 * 22 + 20 * 14) + (120 * 22 + 40 * 14) * 4 * (3 + 2 + 3)
    diagnosed = (32 + 2) * 20 * (14 + 22)
    assert work.token_passes == pytest.approx(2 / 3 * once + 1 / 3 * (upper + diagnosed))
    assert work.kept_passes == pytest.approx(2 / 3 * once)


@pytest.mark.parametrize(
    ("changes", "looks"),
    [
        ({"diagnostics": "none"}, 0),
        ({}, 1),
        ({"diagnostics": "all", "num_epochs": 4}, 4),
        ({"seeds": 3}, 3),
        ({"methods": ["zero_shot", "lora"]}, 0),
        ({"methods": ["maw", "maw_fixed"]}, 2),
    ],
)
def test_what_diagnostics_encode(changes, looks):
    queries, tokens = {"test": 20, "validation": 300}, {"query": 14, "document": 22}
    found = maw.experiment.plan.workload._diagnosed_tokens(queries, tokens, Tier1Config(depth_dim=5, **changes))
    assert found == looks * (5 * (256 * 14 + 64 * 22) + 2 * 300 * (14 + 22))
    assert maw.experiment.plan.workload.DIAGNOSED == {"query": MOST_QUERIES, "document": MOST_DOCUMENTS}


def test_a_run_whose_frozen_layers_an_earlier_one_has_run_takes_less_time(tmp_path, models, spec, monkeypatch):
    rate = Rate(texts=200, tokens=1000, seconds=60.0, device="cpu")
    monkeypatch.setattr(maw.experiment.plan.plan, "measure", lambda *_: rate)
    config = config_of(tmp_path, models)
    needs = Needs("x", passages={"a": 5000}, mean_characters=82, queries={"train": 40, "test": 99})
    shown = lambda **changes: " ".join(plan_text(make_plan(replace(config, **changes), spec, [needs])).split())
    said = "if an earlier run has stored the frozen layers' output for these texts"
    assert said not in shown()
    entry = tmp_path / "not" / "yet" / "activations" / "entry"
    entry.mkdir(parents=True)
    assert said not in shown()
    (entry / "states").write_bytes(bytes(9))
    plan = make_plan(config, spec, [needs])
    (work,) = plan.works
    whole, less = plan.seconds(work), plan.seconds(work, kept=True)
    assert whole == pytest.approx(work.token_passes * 60 / 1000)
    assert less == pytest.approx((work.token_passes - work.kept_passes) * 60 / 1000)
    assert 0 < less < whole
    assert f"{less / 3600:.1f} h {said}" in shown()
    assert said not in shown(prefix_cache_gb=0.0)


@pytest.mark.parametrize("encoder_update, samples, group", [("sampled", 1, 0.25 * 5), ("all_group", 5, 5)])
def test_only_methods_whose_router_is_rewarded_cost_more_than_training(encoder_update, samples, group):
    config = Tier1Config(grpo_group_size=5, encoder_update=encoder_update)
    trained = [method.name for method in METHODS if method.trained]
    passes = {method: maw.experiment.plan.workload._training_passes(method, config) for method in trained}
    assert passes == dict.fromkeys(trained, 3) | dict.fromkeys(("maw", "maw_qv"), group + 3 * samples)


def test_seeds_trials_and_folds_are_counted(tmp_path, models, spec):
    config = config_of(tmp_path, models, num_epochs=4, corpus_size=1000, val_corpus_size=300, seeds=3, tune=5, folds=4)
    config.train_samples, config.val_samples, config.test_samples = 50, 20, 30
    needs = Needs("x", passages={"a": 5000}, mean_characters=82, queries={"train": 40, "test": 99})
    (work,) = make_plan(config, spec, [needs]).works
    pooled, fold = 40 + 20 + 30, 22
    assert work.queries == {"train": pooled - 2 * fold, "validation": fold, "test": pooled}
    assert work.encoded == {
        "test": (1000 + pooled) + 2 * 3 * (4 * 1000 + pooled),
        "validation": 2 * 4 * (3 + 5) * 4 * (300 + fold),
        "training": 2 * 4 * (3 + 5) * 4 * 3 * (pooled - 2 * fold),
    }
    checkpoints = {}
    for seeds, folds in ((1, 0), (3, 4)):
        config = config_of(tmp_path, models, seeds=seeds, folds=folds, run_files="none")
        plan = make_plan(config, spec, [needs])
        (room,) = (room for disk in plan.disks for room in disk.requirements if room.what == "results and checkpoints")
        checkpoints[seeds] = (
            room.size
            - maw.experiment.plan.disk_space.LOG_BYTES
            - maw.experiment.plan.disk_space.state_bytes(config, spec, plan.works)
        )
    assert checkpoints[3] == 12 * checkpoints[1]
    assert "trained ones on each of 3 seeds and 4 folds" in " ".join(plan_text(plan).split())


def test_run_files_need_room(tmp_path, models, spec):
    """A ranking of zero-shot and one of every seed of the two methods that train: 500 passages for 1,000 queries."""
    needs, sizes = Needs("x", passages={"a": 500}, mean_characters=100), {}
    for form in ("none", "auto", "plain"):
        plan = make_plan(config_of(tmp_path, models, run_files=form, seeds=3), spec, [needs])
        (room,) = (room for disk in plan.disks for room in disk.requirements if room.what == "results and checkpoints")
        sizes[form] = room.size
    lines = (1 + 2 * 3) * 500 * 1000
    assert sizes["auto"] - sizes["none"] == lines * maw.experiment.plan.disk_space.RUN_LINE_BYTES_GZIP
    assert sizes["plain"] - sizes["none"] == lines * maw.experiment.plan.disk_space.RUN_LINE_BYTES


def test_zero_shot_alone_needs_no_other_split(tmp_path, models, spec):
    config = config_of(tmp_path, models, methods=["zero_shot"])
    (work,) = make_plan(config, spec, [Needs("x", passages={"a": 500}, mean_characters=100)]).works
    assert work.encoded == {"test": 1500, "validation": 0, "training": 0} and work.shared
    assert work.queries == {"train": 0, "validation": 0, "test": 1000}


@pytest.mark.parametrize(
    "more, less",
    [
        ({"num_epochs": 20}, {"num_epochs": 10}),
        ({"corpus_size": 200_000}, {"corpus_size": 100_000}),
        ({"corpus_size": "full"}, {"corpus_size": 200_000}),
        ({"prefix_cache_gb": 0}, {"prefix_cache_gb": 20}),
        ({"prefix_cache_gb": 0.001}, {"prefix_cache_gb": 20}),
        ({"methods": ["zero_shot", "lora", "maw"]}, {"methods": ["zero_shot", "lora"]}),
        ({"grpo_group_size": 16}, {"grpo_group_size": 4}),
        ({"encoder_update": "all_group"}, {"encoder_update": "sampled"}),
        ({"methods": ["maw"]}, {"methods": ["maw_soft"]}),
        ({"methods": ["maw_qv"]}, {"methods": ["full_lowrank"]}),
        ({"seeds": 3}, {"seeds": 2}),
        ({"tune": 3}, {"tune": 0}),
        ({"folds": 5}, {"folds": 3}),
    ],
)
def test_more_to_do_takes_longer(tmp_path, models, spec, more, less):
    needs = [Needs("x", passages={"a": 10**6}, mean_characters=400)]
    plans = [make_plan(config_of(tmp_path, models, **each), spec, needs) for each in (more, less)]
    seconds = [plan.seconds(plan.works[0]) for plan in plans]
    assert seconds[0] > seconds[1] > 0


def test_four_datasets_fit_a_screen(tmp_path, models, spec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = make_plan(config_of(Path(), models), spec, public(tmp_path / "ir"))  # long paths would take lines
    shown = plan_text(plan)
    assert max(map(len, shown.splitlines())) <= 100 and shown.isascii()
    assert len(shown.splitlines()) <= 32
    for expected in ("8,841,823", "2,000 / 500 / 1,000", "psgs_w100.tsv.gz (5.0 GB) from files.example.org"):
        assert expected in shown
    for expected in ("hotpotqa.zip (size not known)", "an estimate", "100 tokens each", "total", "Memory"):
        assert expected in " ".join(shown.split())
    lines = {line.split()[0]: " ".join(line.split()[1:4]) for line in shown.splitlines() if line.strip()}
    assert [lines[name] for name in ("nq", "hotpotqa", "total")] == [
        "7.0 GB 23,696,792",
        "unknown 5,233,329 100,000",
        "9.0 GB +",
    ]
    assert shown.count("psgs_w100.tsv.gz") == 1, "what two datasets share is fetched once"
    assert "Resumed" not in shown
    resumed = replace(plan, config=replace(plan.config, resume="logs"))
    assert "Resumed   the plan is for the whole run" in plan_text(resumed)
    downloads = next(room for disk in plan.disks for room in disk.requirements if room.what == "downloads")
    assert (downloads.size, downloads.folder) == (9 * GB, tmp_path / "ir")
    stores = next(room for disk in plan.disks for room in disk.requirements if room.what == "passage stores")
    assert stores.size == 21 * GB, "and stored once"
    assert not list(tmp_path.rglob("*")), "nothing is written"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"maw_layers": "1,2"}, "maw: a text has several depths (2 MAW layers)"),
        ({"route_by": "token"}, "maw: a text has several depths (--route-by token)"),
        ({"route_by": "token", "grpo_group": "sampled"}, ""),
        ({"route_by": "token", "methods": ["zero_shot", "lora", "maw_soft"]}, ""),
    ],
)
def test_groups_that_may_repeat_a_depth_are_named(tmp_path, models, spec, changes, words):
    shown = " ".join(plan_text(make_plan(config_of(tmp_path, models, **changes), spec, public(tmp_path))).split())
    assert (words in shown) if words else ("several depths" not in shown)


def test_files_that_are_there_are_not_fetched(tmp_path, models, spec):
    needs = public(tmp_path)
    for each in needs:
        for file in each.files:
            file.path.touch()
    plan = make_plan(config_of(tmp_path, models), spec, needs)
    assert plan.files == () and "Download  nothing" in plan_text(plan)
    assert all(room.what != "downloads" for disk in plan.disks for room in disk.requirements)


def test_a_disk_that_is_too_small_stops_the_run(tmp_path, models, spec, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 * GB, 0, 30 * GB))
    config, needs = config_of(tmp_path, models), public(tmp_path / "ir")
    plan = make_plan(config, spec, needs)
    with pytest.raises(MAWError) as caught:
        plan.check_disks()
    message = str(caught.value)
    for expected in ("too small", "30 GB free", "9.0 GB for downloads", "21 GB for passage stores", "--cache-dir"):
        assert expected in message
    for expected in ("IR_DATASETS_HOME", "--prefix-cache-gb", "--corpus-size", str(tmp_path / "not" / "yet")):
        assert expected in message
    assert "\n" not in message and "is too small" in " ".join(plan_text(plan).split())
    make_plan(config, spec, needs[:1]).check_disks()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 * GB, 0, 90 * GB))
    make_plan(config, spec, needs).check_disks()


def test_disks_are_told_apart(tmp_path, models, spec, monkeypatch):
    """Folders on two disks: each has to hold its own part only."""
    where = {"ir": 1, "not": 2, "logs": 2}
    home = Path("/").stat()

    class Elsewhere(type(tmp_path)):
        def stat(self, **options):
            found = super().stat(**options)
            name = next((part for part in where if f"{tmp_path}/{part}" in str(self)), None)
            return namedtuple("Stat", "st_dev st_mode")(where[name], home.st_mode) if name else found

    for name in where:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(maw.experiment.plan.disk_space, "Path", Elsewhere)
    monkeypatch.setattr(maw.experiment.plan.disk_space, "cache_folder", lambda config: Elsewhere(config.cache_dir))
    plan = make_plan(config_of(tmp_path, models), spec, public(tmp_path / "ir"))
    assert [sorted(room.what for room in disk.requirements) for disk in plan.disks] == [
        ["downloads"],
        ["activations", "embeddings", "passage stores", "results and checkpoints"],
    ]


def test_a_folder_that_is_not_there_yet_is_on_its_parents_disk(tmp_path):
    assert maw.experiment.plan.disk_space._existing(tmp_path / "a" / "b") == tmp_path
    (tmp_path / "file").touch()
    assert maw.experiment.plan.disk_space._existing(tmp_path / "file" / "b") == tmp_path
    assert maw.experiment.plan.disk_space._existing(Path("relative/nowhere")) == Path.cwd()


def test_activations_are_bounded_by_their_limit(tmp_path, models, spec):
    needs = [Needs("x", passages={"a": 10**6}, mean_characters=400)]
    for limit in (0, 0.01, 5):
        plan = make_plan(config_of(tmp_path, models, prefix_cache_gb=limit), spec, needs)
        sizes = [room.size for disk in plan.disks for room in disk.requirements if room.what == "activations"]
        assert all(size <= limit * GB for size in sizes) and bool(sizes) == (limit > 0)
    every = config_of(tmp_path, models, finetune_layers="all")
    assert make_plan(every, spec, needs).works[0].activation_bytes == 0, "no layer is frozen"


@pytest.mark.parametrize(
    "settings, kept, spilled",
    [
        ({}, 10**6, 0),
        ({"embedding_cache_gb": 0}, 0, 0),
        ({"embedding_cache_gb": 0.063}, 0, 0),
        ({"methods": ["lora"]}, 0, 0),
        ({"corpus_size": "full"}, 2 * 10**7, 2 * 10**7),
        ({"corpus_size": "full", "methods": ["zero_shot"]}, 2 * 10**7, 0),
        ({"corpus_size": "full", "methods": ["zero_shot"], "embedding_cache_gb": 1}, 0, 2 * 10**7),
        ({"embedding_precision": "float16"}, 10**6 / 2, 0),
        ({"store_embeddings_on_disk": True}, 10**6, 10**6),
    ],
)
def test_embeddings_are_kept_within_their_limit_or_spilled(tmp_path, models, spec, settings, kept, spilled):
    needs = [Needs("x", passages={"a": 2 * 10**7}, mean_characters=400)]
    plan = make_plan(config_of(tmp_path, models, **({"corpus_size": 10**6} | settings)), spec, needs)
    sizes = [room.size for disk in plan.disks for room in disk.requirements if room.what == "embeddings"]
    assert sum(sizes) == (kept + spilled) * 16 * 4
    width = 2 if "embedding_precision" in settings else 4
    most = 0 if "store_embeddings_on_disk" in settings else 10**9
    assert plan.memory["embeddings"] == min(plan.works[0].searched * 16 * width, most), "the rest is in a file"


# --------------------------------------------------------------------------------------------------- local data


def test_pystdlib_is_known_about(tmp_path):
    config = Tier1Config(cache_dir=str(tmp_path))
    assert local_needs("pystdlib", config).passages == {"pystdlib": 5600}
    import platform

    store = tmp_path / "corpora" / f"pystdlib-{platform.python_version()}-abc"
    store.mkdir(parents=True)
    (store / "manifest.json").write_text(json.dumps({"count": 4321}))
    known = local_needs("pystdlib", config)
    assert (known.passages, known.disk_bytes) == ({"pystdlib": 4321}, 0)
    (store / "manifest.json").write_text("{")
    assert local_needs("pystdlib", config).passages == {"pystdlib": 5600}


def beir(folder: Path, texts: list[str], queries: int = 9) -> Path:
    (folder / "qrels").mkdir(parents=True)
    rows = [json.dumps({"_id": f"d{i}", "title": "", "text": text}) for i, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    (folder / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"q{i}", "text": f"{texts[i]} {i}"}) for i in range(queries))
    )
    for number, split in enumerate(("train", "dev", "test")):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(number, queries, 3))]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_small_folder_is_counted(tmp_path):
    texts = random_texts(60, seed=3)
    folder = beir(tmp_path / "tiny", texts)
    needs = local_needs(f"beir:{folder}", Tier1Config(cache_dir=str(tmp_path / "cache")))
    assert needs.passages == {str(folder / "corpus.jsonl"): 60}
    assert needs.mean_characters == round(sum(map(len, texts)) / 60)
    assert needs.queries == {"train": 3, "validation": 3, "test": 3}
    assert needs.disk_bytes > 0


def test_distractors_join_what_is_searched(tmp_path, models, spec):
    main, other = beir(tmp_path / "main", random_texts(60, seed=3)), beir(tmp_path / "other", random_texts(25, seed=4))
    config = config_of(tmp_path, models, datasets=[f"beir:{main}"], distractors=[str(other)], num_negatives=0)
    (work,) = make_plan(config, spec).works
    assert (work.searched, work.validated, work.shared) == (85, 85, True)
    (plain,) = make_plan(config_of(tmp_path, models, datasets=[f"beir:{main}"], num_negatives=0), spec).works
    assert (plain.searched, plain.validated, plain.shared) == (60, 60, True)
    tokens = work.tokens["document"]
    training = 3  # passages that training reads beside those that are searched
    assert work.activation_bytes - plain.activation_bytes == (25 + training) * tokens * 16 * 4


def test_a_large_folder_is_estimated_from_parts_of_it(tmp_path):
    """Half of the lines are twenty times as long as the others, so the first thousand would mislead."""
    texts = ["short text of a passage"] * 6000 + ["long text of a passage " * 20] * 6000
    folder = beir(tmp_path / "large", texts)
    started = time.perf_counter()
    needs = local_needs(f"beir:{folder}", Tier1Config(cache_dir=str(tmp_path / "cache")))
    assert time.perf_counter() - started < 1
    (count,) = needs.passages.values()
    assert abs(count - 12_000) < 2400
    assert abs(needs.mean_characters - sum(map(len, texts)) / 12_000) < 50
    assert needs.estimated and not local_needs(f"beir:{beir(tmp_path / 'small', texts[:10])}", Tier1Config()).estimated


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"{not json\n[]\n\xff\n"])
def test_what_is_malformed_is_left_to_the_loader(tmp_path, content):
    folder = beir(tmp_path / "broken", random_texts(9, seed=1))
    (folder / "corpus.jsonl").unlink()
    if content is not None:
        (folder / "corpus.jsonl").write_bytes(content)
    needs = local_needs(f"beir:{folder}", Tier1Config(cache_dir=str(tmp_path / "cache")))
    assert needs.dataset == f"beir:{folder}" and sum(needs.passages.values()) in (0, 3)
    assert local_needs("beir:/no/such/folder", Tier1Config()) == Needs("beir:/no/such/folder")


# --------------------------------------------------------------------------------------------------------- time


@pytest.fixture
def real(monkeypatch):
    monkeypatch.setattr(maw.experiment.plan.plan, "measure", encoding_speed.measure)


def test_the_rate_is_measured_with_the_runs_model(models, spec):
    config = Tier1Config(model=str(models("bert")), device="cpu")
    started = time.perf_counter()
    found = encoding_speed.measure(config, spec, 120)
    assert time.perf_counter() - started < 20
    assert found.device == "cpu" and 0 < found.texts <= encoding_speed.TEXTS and found.seconds > 0
    assert found.texts * 3 <= found.tokens <= found.texts * 64


@pytest.mark.parametrize("characters", [1, 60, 437, 5000])
def test_texts_to_measure_with_are_real_and_of_the_length(characters):
    texts = encoding_speed.docstrings(characters, 50)
    assert len(texts) == 50 and len(set(texts)) > 20
    assert all(0 < len(text) <= characters for text in texts)
    assert sum(map(len, texts)) / 50 > 0.6 * characters
    assert encoding_speed.docstrings(characters, 50) == texts


@pytest.mark.usefixtures("real")
def test_a_model_that_would_have_to_be_downloaded_is_not_measured(tmp_path, models, spec, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    away = replace(spec, folder=None, name="nobody/has-this-model")
    needs = [Needs("x", passages={"a": 500}, mean_characters=100)]
    plan = make_plan(config_of(tmp_path, models), away, needs)
    shown = plan_text(plan)
    assert "not measured: the model is not on this machine" in shown
    assert "the model nobody/has-this-model, from its hub" in shown
    assert any(room.what == "the model" and room.size > 0 for disk in plan.disks for room in disk.requirements)
    assert plan.seconds(plan.works[0]) is None


@pytest.mark.usefixtures("real")
def test_unknown_data_is_said_to_be_unknown(tmp_path, models, spec):
    plan = make_plan(config_of(tmp_path, models), spec, [Needs("x")])
    assert "not measured: the size of the data is not known before it is loaded" in plan_text(plan)
    assert "unknown" in plan_text(plan)


@pytest.mark.parametrize(
    "size, text", [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (21e6, "21 MB"), (1.24e9, "1.2 GB"), (3e12, "3.0 TB")]
)
def test_sizes(size, text):
    assert size_text(int(size)) == text


# -------------------------------------------------------------------------------------------------------- a run


@pytest.mark.parametrize(
    "protocol", [{}, {"seeds": 2, "tune": 2, "num_epochs": 1}, {"tune": 1, "folds": 3, "num_epochs": 1}]
)
def test_a_run_encodes_what_the_plan_says(tmp_path, tiny_settings, monkeypatch, capsys, protocol):
    import maw.encoding.embedding_cache
    import maw.experiment.benchmark

    folder = beir(tmp_path / "tiny", list(dict.fromkeys(random_texts(80, seed=11)))[:50], queries=30)
    encoded = {"test": 0, "validation": 0}
    real = maw.encoding.embedding_cache.encode_sharded

    def counting(encoder, texts, **options):
        encoded[options["label"].split()[0]] += len(texts)
        return real(encoder, texts, **options)

    monkeypatch.setattr(maw.encoding.embedding_cache, "encode_sharded", counting)
    config = tiny_settings(datasets=[f"beir:{folder}"], patience=0, num_negatives=0, **protocol)
    (work,) = make_plan(config, model_spec(config)).works
    maw.experiment.benchmark.run_complete_benchmark(config)
    assert encoded == {part: work.encoded[part] for part in encoded}
    assert "Plan\n====" in capsys.readouterr().out


def test_a_dry_run_shows_the_plan_and_nothing_else(tmp_path, tiny_settings, capsys):
    from maw.experiment.benchmark import run_complete_benchmark

    folder = beir(tmp_path / "tiny", random_texts(50, seed=2))
    before = sorted(tmp_path.rglob("*"))
    assert run_complete_benchmark(tiny_settings(datasets=[f"beir:{folder}"], dry_run=True)) == {}
    assert capsys.readouterr().out.startswith("Plan\n====")
    cache = tmp_path / "cache"
    assert [path for path in sorted(tmp_path.rglob("*")) if not path.is_relative_to(cache)] == before
    assert {path.name for path in cache.iterdir()} == {"corpora", "checks"}, "the passages that a run then uses"


def test_a_dry_run_from_the_shell_leaves_nothing_behind(tmp_path, models, capsys):
    logs, cache = tmp_path / "logs", tmp_path / "cache"
    words = ["--preset", "offline", "--model", models("bert"), "--log-dir", logs, "--cache-dir", cache, "--dry-run"]
    assert tier_1.main([str(word) for word in words]) == 0
    assert "pystdlib" in capsys.readouterr().out
    assert not logs.exists() and not cache.exists()


def test_a_run_stops_before_it_loads_anything(tmp_path, tiny_settings, monkeypatch):
    import maw.experiment.benchmark
    import maw.experiment.dataset_run

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 99, 1))
    monkeypatch.setattr(maw.experiment.dataset_run, "load_collection", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(MAWError, match="is too small"):
        maw.experiment.benchmark.run_complete_benchmark(tiny_settings())


def test_datasets_side_by_side_need_room_at_the_same_time(tmp_path, models, spec):
    needs = [Needs(name, passages={name: 10**6}, mean_characters=400) for name in "abc"]
    plans = [
        make_plan(config_of(tmp_path, models, parallel_datasets=side, store_embeddings_on_disk=True), spec, needs)
        for side in (False, True)
    ]
    rooms = [{room.what: room.size for disk in plan.disks for room in disk.requirements} for plan in plans]
    for what in ("activations", "embeddings"):
        assert rooms[1][what] > rooms[0][what], what
    assert rooms[1]["results and checkpoints"] > rooms[0]["results and checkpoints"]
    assert plans[1].memory["model"] == 3 * plans[0].memory["model"]
    assert plans[1].memory["libraries"] == 4 * plans[0].memory["libraries"], "and the process that only looks on"
