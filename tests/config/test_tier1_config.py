"""Tier1Config: defaults, presets, refused values and their messages, layers, and settings files."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from conftest import beir_outline

import tier_1
from maw.cli.config_file import LARGEST_FILE, read_settings
from maw.cli.flags import field_documentation
from maw.config.layers import parse_layers
from maw.config.methods import METHOD_NAMES
from maw.config.presets import PRESETS
from maw.config.tier1_config import Tier1Config, cache_folder, gather, group_kind, kernel_noise, kinds
from maw.errors import ConfigError
from maw.experiment.config_checks import validate
from maw.models.pretrained import ModelSpec


@pytest.fixture
def spec():
    """A model of 6 layers that is on no disk."""
    return ModelSpec("m", None, "bert", 6, 4, 32, "mean", "cosine", 0.05, "", "", 64, 64, max_positions=64)


def problems_of(make) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


# ---------------------------------------------------------------------------------------------------- good values


def test_the_defaults_are_the_users():
    config = Tier1Config()
    assert (config.train_samples, config.val_samples, config.test_samples) == (2000, 500, 1000)
    assert (config.batch_size, config.eval_batch_size, config.num_epochs) == (32, 128, 10)
    assert (config.use_lora, config.lora_rank, config.lora_alpha) == (False, 8, 16)
    assert config.use_multi_gpu and not config.parallel_datasets
    assert config.keep_only_best_checkpoint and config.checkpoint_compression and config.compress_logs
    assert config.datasets == ["msmarco", "nq", "hotpotqa", "triviaqa"]
    assert config.methods == ["zero_shot", "lora", "maw"]
    assert config.learning_rate is None and config.maw_layers is None and config.finetune_layers is None


def test_lists_are_not_shared_between_configurations():
    Tier1Config().datasets.append("x")
    assert Tier1Config().datasets == ["msmarco", "nq", "hotpotqa", "triviaqa"]


def test_every_field_has_one_line_of_documentation():
    lines = field_documentation()
    assert set(lines) == set(kinds())
    assert all(line.endswith(".") and "\n" not in line for line in lines.values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("offline", (2000, 500, 1000, 3)),
        ("quick", (500, 500, 500, 3)),
        ("medium", (1000, 500, 1000, 5)),
        ("full", (2000, 500, 1000, 10)),
        ("production", (5000, 500, 2000, 20)),
    ],
)
def test_presets(name, expected):
    config = Tier1Config.from_preset(name)
    assert (config.train_samples, config.val_samples, config.test_samples, config.num_epochs) == expected


def test_full_is_the_default_and_offline_needs_no_network():
    assert Tier1Config.from_preset("full") == Tier1Config()
    offline = Tier1Config.from_preset("offline", seed=7)
    assert (offline.model, offline.datasets, offline.seed) == ("packaged:all-MiniLM-L6-v2", ["pystdlib"], 7)
    assert set(PRESETS) == {"offline", "quick", "medium", "full", "production"}


def test_an_unknown_preset_is_refused_with_a_suggestion():
    (problem,) = problems_of(lambda: Tier1Config.from_preset("ofline"))
    assert problem.startswith("preset: must be one of offline") and problem.endswith("(did you mean offline?)")


def test_to_dict_and_back():
    config = Tier1Config(maw_layers=[10, 11, 12], finetune_layers="all", temperature=0.1, query_prefix="query: ")
    values = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert Tier1Config.from_dict(values) == config


def test_an_int_is_fine_where_a_float_is_asked_and_a_tuple_where_a_list_is():
    config = Tier1Config(max_grad_norm=2, datasets=("pystdlib",), maw_layers=(1, 2), finetune_layers=3)
    assert (config.max_grad_norm, type(config.max_grad_norm)) == (2.0, float)
    assert (config.datasets, config.maw_layers, config.finetune_layers) == (["pystdlib"], [1, 2], [3])


@pytest.mark.parametrize(
    "good",
    [
        {"seed": 0}, {"seed": 2**32 - 1}, {"patience": 0}, {"warmup_ratio": 0}, {"grpo_kl": 0.0}, {"learning_rate": 1},
        {"grpo_reference_decay": 1.0}, {"prefix_cache_gb": 0}, {"device": "cuda:3"}, {"device": "cpu"},
        {"embedding_cache_gb": 0},
        {"query_prefix": ""}, {"query_prefix": "Instruct: find\nQuery: "}, {"depth_dim": 1}, {"batch_size": 1},
        {"fixed_depth": 31}, {"corpus_size": "full"}, {"val_corpus_size": 1}, {"distractors": ["a", "b"]},
        {"maw_layers": []}, {"maw_layers": "NONE"}, {"maw_layers": "5, 6"}, {"methods": ["maw"]},
    ],
)  # fmt: skip
def test_values_at_the_edge_are_taken(good):
    config = Tier1Config(**good)
    assert Tier1Config.from_dict(config.to_dict()) == config


def test_cache_folder_prefers_the_setting_then_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MAW_CACHE", str(tmp_path / "env"))
    assert cache_folder(Tier1Config(cache_dir=str(tmp_path / "set"))) == tmp_path / "set"
    assert cache_folder(Tier1Config()) == tmp_path / "env"
    monkeypatch.delenv("MAW_CACHE")
    assert cache_folder(Tier1Config()).parts[-2:] == (".cache", "maw")


# ----------------------------------------------------------------------------------------------------- bad values

NAN, INF = math.nan, math.inf
INTEGERS = [
    "hidden_dim", "num_heads", "num_layers", "max_query_length", "max_document_length", "train_samples", "val_samples",
    "test_samples", "batch_size", "num_negatives", "num_epochs", "gradient_accumulation_steps", "patience", "seed",
    "eval_batch_size", "top_k", "permutations", "lora_rank", "lora_alpha", "depth_dim", "kernel_rank", "fixed_depth",
    "grpo_group_size", "grpo_inner_epochs", "relevance_level", "nprobe", "bank_batches",
    "seeds", "tune", "folds", "max_log_files",
]  # fmt: skip
FLOATS = [
    "temperature", "learning_rate", "weight_decay", "warmup_ratio", "max_grad_norm", "kernel_init_std",
    "kernel_learning_rate", "router_learning_rate", "grpo_clip", "grpo_kl", "grpo_reference_decay", "mcl_temperature",
    "prefix_cache_gb", "hard_negative_ratio", "negative_margin", "embedding_cache_gb",
    "router_balance", "router_sharpness", "router_entropy_floor", "mcl_start_temperature", "save_every",
    "grpo_exploration", "grpo_share",
]  # fmt: skip
SWITCHES = [
    "use_lora", "use_multi_gpu", "parallel_datasets", "clear_cuda_cache", "keep_only_best_checkpoint",
    "save_epoch_checkpoints", "checkpoint_compression", "compress_logs", "dry_run", "verify_sources", "profile",
    "train_layers", "adapt_maw_layers", "depth_values", "restart", "tf32", "deterministic", "quiet", "json_progress",
    "verbose", "store_embeddings_on_disk", "train_dense",
]  # fmt: skip
CHOICES = [
    "pooling", "similarity", "depth_kernel", "router", "route_by", "grpo_reference", "reward", "encoder_update",
    "negative_source", "precision", "search", "grpo_group", "router_start", "lora_targets", "diagnostics", "run_files",
    "embedding_precision", "report_to", "self_passages",
]  # fmt: skip
AMOUNTS = ["corpus_size", "val_corpus_size"]
BAD_VALUES = [
    *((name, value, "whole number or full") for name in AMOUNTS for value in (True, 1.0, "3", "all", NAN, None)),
    *((name, 0, "at least 1") for name in AMOUNTS),
    ("distractors", [], "at least one"),
    ("distractors", "nq", "must be a list of names"),
    *((name, value, "whole number") for name in INTEGERS for value in (True, 1.0, "3", NAN)),
    *((name, -1, "must be at least") for name in INTEGERS),
    *((name, 10**400, "at most") for name in INTEGERS),
    *((name, value, "finite") for name in FLOATS for value in (NAN, INF, -INF)),
    *((name, value, "must be a number") for name in FLOATS for value in (False, "1e-5", [0.1])),
    *((name, -0.5, "must be") for name in FLOATS),
    *((name, 10**400, "must be") for name in FLOATS),
    *((name, value, "true or false") for name in SWITCHES for value in (1, "yes", None)),
    *((name, value, "must be one of") for name in CHOICES for value in ("nosuch", "", 3, ["mean"])),
    *((name, None, "must be") for name in ("batch_size", "weight_decay", "router", "datasets", "model", "log_dir")),
    *((name, 0, "at least 1") for name in ("batch_size", "train_samples", "top_k", "depth_dim", "lora_rank")),
    *((name, 1, "at least 2") for name in ("grpo_group_size", "grpo_inner_epochs")),
    *((name, 0, "above 0") for name in ("temperature", "learning_rate", "max_grad_norm", "grpo_clip")),
    *((name, 1, "below 1") for name in ("warmup_ratio", "grpo_clip")),
    *((name, value, "must ") for name in ("model", "log_dir", "cache_dir") for value in ("", " ", "a\nb", "a\0b", 5)),
    *(("resume", value, "must ") for value in ("", " ", "a\nb", 5)),
    *(("device", value, "cpu, cuda, cuda:N or mps") for value in ("", "gpu", "cuda:", "cuda:-1", "cpu\n")),
    ("seed", 2**32, "at most 4294967295"),
    ("permutations", 19, "at least 20"),
    *(("folds", value, "must be 0, or at least 3: training, validation and test need") for value in (1, 2)),
    ("seeds", 0, "at least 1"),
    ("query_prefix", 3, "must be text"),
    ("query_prefix", "\0", "NUL"),
    ("query_prefix", "\udcff", "valid Unicode"),
    ("document_prefix", "x" * 5000, "4096 characters"),
    ("fixed_depth", 32, "no depth 32: depth_dim 32 allows 0 to 31"),
    ("methods", ["mwa"], "(did you mean maw?)"),
    ("methods", ["lora", "lora"], "'lora' more than once"),
    ("methods", [], "at least one"),
    ("methods", "lora", "must be a list of names"),
    ("datasets", ["nq", "nq"], "'nq' more than once"),
    ("datasets", [], "at least one"),
    ("datasets", [1], "must be a list of names"),
    ("datasets", {"nq"}, "must be a list of names"),
    *(("compare", value, "must ") for value in ("", " ", "a\nb", 5)),
    *(("method_rates", value, "must be names with numbers") for value in ("gate", ["gate"], {1: 0.1}, None)),
    *(("method_rates", {"gate": value}, "gate must be a number above 0 and at most 1") for value in (0, 2, "1", True)),
    ("methods", [dict], "must be a class that inherits from maw.Method"),
    *(("maw_layers", value, "layer") for value in ("1st", "5,", "5;6", "", 1.0, [1.5], [True], 0, [3, 0], {3}, "1-3")),
    *(("finetune_layers", value, "layer") for value in ("12a", [None], {"a": 1}, ["1"], "0")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "words"), BAD_VALUES)
def test_a_bad_value_is_one_problem_that_names_the_field(name, value, words):
    (problem,) = problems_of(lambda: Tier1Config(**{name: value}))
    assert problem.startswith(f"{name}: ") and words in problem
    assert len(problem) < 300


def test_there_are_enough_bad_values():
    assert len(BAD_VALUES) >= 100
    assert {*INTEGERS, *FLOATS, *SWITCHES, *CHOICES, *AMOUNTS} | {
        "model", "query_prefix", "document_prefix", "datasets", "methods", "maw_layers", "finetune_layers",
        "device", "log_dir", "cache_dir", "distractors", "resume", "compare", "method_rates",
    } == set(kinds())  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tune": 3, "learning_rate": 0.01}, "tune: learning_rate is set, so there is nothing to tune"),
        ({"resume": "logs/a", "restart": True}, "restart: a run cannot resume and restart at once"),
        ({"seed": 2**32 - 2, "seeds": 3}, "seeds: seed 4294967294 and the 2 after it must be below 2**32"),
    ],
)
def test_settings_of_the_protocol_that_contradict_each_other(settings, words):
    (problem,) = problems_of(lambda: Tier1Config(**settings))
    assert problem.startswith(words)
    assert Tier1Config(tune=3).learning_rate is None and Tier1Config(seed=2**32 - 3, seeds=3).seeds == 3


def test_all_problems_are_reported_together():
    bad = {"batch_size": 0, "router": "gpo", "temperature": NAN, "seed": True, "methods": ["mav"], "model": None}
    problems = problems_of(lambda: Tier1Config(**bad))
    assert {problem.split(":")[0] for problem in problems} == set(bad)


DIAGONAL = {"depth_kernel": "diagonal"}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"use_lora": True, "train_layers": True}, "train_layers: LoRA does not train whole layers"),
        ({"depth_values": True, "route_by": "token"}, "route_by: all query tokens share the values"),
        ({"methods": ["maw", "maw_qv"], "route_by": "token"}, "route_by: all query tokens share the values"),
        ({"methods": ["all"], "route_by": "token"}, "route_by: all query tokens share the values"),
        (DIAGONAL | {"kernel_init_std": 0.1}, "router_start: clusters needs depths that start equal"),
        (DIAGONAL | {"router_start": "uniform", "kernel_init_std": 0}, "kernel_init_std: 0 keeps all depths equal"),
        ({"kernel_init_std": 0.0}, "kernel_init_std: 0 makes all depths the same change"),
        (
            {"grpo_group": "all", "route_by": "head"},
            "grpo_group: all needs route_by sequence, not head; or use sampled",
        ),
        ({"grpo_group": "distinct", "route_by": "token"}, "grpo_group: distinct needs route_by sequence, not token"),
    ],
)
def test_settings_that_contradict_each_other(settings, problem):
    (found,) = problems_of(lambda: Tier1Config(**settings))
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("settings", "noise"),
    [
        ({}, 1.0),
        ({"kernel_init_std": 0.5}, 0.5),
        (DIAGONAL | {"router_start": "uniform"}, 0.02),
        (DIAGONAL | {"router_start": "clusters"}, 0),
        (DIAGONAL | {"router_start": "clusters", "kernel_init_std": 0}, 0),
        (DIAGONAL | {"router_start": "uniform", "kernel_init_std": 0.3}, 0.3),
        ({"router_start": "clusters", "kernel_init_std": 0.3, "depth_kernel": "low_rank"}, 0.3),
    ],
)
def test_the_noise_of_depths_follows_from_the_start_of_the_router(settings, noise):
    assert kernel_noise(Tier1Config(**settings)) == noise


@pytest.mark.parametrize(
    ("settings", "layers", "kind"),
    [
        ({"depth_dim": 8, "grpo_group_size": 8}, 1, "all"),
        ({"depth_dim": 9, "grpo_group_size": 8}, 1, "distinct"),
        ({}, 1, "distinct"),
        ({"depth_dim": 8, "grpo_group_size": 8}, 2, "sampled"),
        ({"depth_dim": 4, "route_by": "head"}, 1, "sampled"),
        ({"depth_dim": 32, "grpo_group": "all"}, 1, "all"),
        ({"depth_dim": 4, "grpo_group": "sampled"}, 1, "sampled"),
        ({"depth_dim": 9, "grpo_group": "distinct"}, 1, "distinct"),
        ({"depth_dim": 8, "grpo_group": "distinct"}, 1, "all"),
    ],
)
def test_a_group_has_different_depths_where_a_text_has_one(settings, layers, kind):
    assert group_kind(Tier1Config(**settings), layers) == kind


def test_a_removed_setting_of_an_earlier_run_is_read_where_it_did_nothing():
    assert Tier1Config.from_dict({"kernel_shared_rank": 0}) == Tier1Config()
    (problem,) = problems_of(lambda: Tier1Config.from_dict({"kernel_shared_rank": 4}))
    assert problem.startswith("kernel_shared_rank")


def test_all_methods():
    assert Tier1Config(methods=["all"]).methods == list(METHOD_NAMES)
    assert Tier1Config(methods=["maw", "all"]).methods == ["maw", *(name for name in METHOD_NAMES if name != "maw")]
    assert Tier1Config.from_dict({"methods": ["all"]}).methods == list(METHOD_NAMES)
    (problem,) = problems_of(lambda: Tier1Config(methods=["all", "mwa_qv"]))
    assert "(did you mean maw_qv?)" in problem
    config = Tier1Config(datasets=["pystdlib"])
    config.methods = ["all"]
    config.recheck()
    assert config.methods == list(METHOD_NAMES)


def test_what_follows_from_a_bad_value_is_not_judged():
    problems = problems_of(lambda: Tier1Config(depth_dim="4", fixed_depth=40))
    assert problems == ["depth_dim: must be a whole number, got '4'"]


def test_unknown_settings_are_refused_with_a_suggestion():
    problems = problems_of(lambda: Tier1Config.from_dict({"batchsize": 3, "zzz": 1, 5: 2, "seed": "x"}))
    assert problems == [
        "batchsize: no such setting (did you mean batch_size?)",
        "zzz: no such setting",
        "5: no such setting",
        "seed: must be a whole number, got 'x'",
    ]


def test_gather_keeps_what_is_good():
    config, problems = gather({"batch_size": -1, "num_epochs": 7})
    assert (config.batch_size, config.num_epochs, len(problems)) == (32, 7, 1)


# --------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, (6,)), ("last", (6,)), ("ALL", (1, 2, 3, 4, 5, 6)), ("none", ()), ([], ()), ("5,6", (5, 6)),
        ("6 5", (5, 6)), (" 5 , 6 ", (5, 6)), (3, (3,)), (-1, (6,)), ([-1, -2], (5, 6)), ([-6, 6, -1], (1, 6)),
        ("-1", (6,)), ((2, 2), (2,)),
    ],
)  # fmt: skip
def test_layers(value, expected):
    assert parse_layers(value, 6) == expected


@pytest.mark.parametrize("value", [7, -7, [1, 13], "1,-9"])
def test_a_layer_that_the_model_does_not_have(value):
    (problem,) = problems_of(lambda: parse_layers(value, 6, "--maw-layers"))
    assert problem.startswith("--maw-layers: no layer")
    assert problem.endswith("in a model of 6 layers; use 1 to 6, or -1 to -6 from the end")


# ----------------------------------------------------------------------------------------------------- whole runs


def test_a_run_that_fits_its_model_passes(spec):
    assert validate(Tier1Config(datasets=["pystdlib"], maw_layers="4,5", hidden_dim=32), spec) is spec


@pytest.mark.parametrize(
    ("settings", "start", "words"),
    [
        ({"maw_layers": [7]}, "maw_layers", "use 1 to 6"),
        ({"finetune_layers": "-7"}, "finetune_layers", "no layer -7"),
        ({"maw_layers": "none"}, "maw_layers", "take maw out of methods"),
        ({"maw_layers": []}, "maw_layers", "take maw out of methods"),
        ({"maw_layers": "none", "methods": ["lora", "full_lowrank"]}, "maw_layers", "take full_lowrank out of"),
        ({"maw_layers": "none", "methods": ["all"]}, "maw_layers", "the methods full_lowrank, maw_fixed, maw_random"),
        (
            {"finetune_layers": [], "maw_layers": [], "methods": ["full"]},
            "finetune_layers",
            "take full out of methods",
        ),
        (
            {"finetune_layers": [], "methods": ["all"]},
            "finetune_layers",
            "none leaves the method lora nothing to train",
        ),
        ({"finetune_layers": "none"}, "finetune_layers", "take lora out of methods"),
        ({"hidden_dim": 768}, "hidden_dim", "m has 32"),
        ({"num_heads": 12}, "num_heads", "m has 4"),
        ({"num_layers": 12}, "num_layers", "m has 6"),
        ({"lora_rank": 33}, "lora_rank", "hidden size 32"),
        ({"kernel_rank": 33}, "kernel_rank", "hidden size 32"),
        (
            {"grpo_group": "all", "maw_layers": "all"},
            "grpo_group",
            "all needs one decision for each text, but there are 6",
        ),
        ({"grpo_group": "distinct", "maw_layers": "5,6"}, "grpo_group", "distinct needs one decision for each text"),
        ({"batch_size": 1}, "batch_size", "at least 2"),
        ({"train_samples": 1}, "train_samples", "at least 2"),
        ({"datasets": ["msmarko"]}, "datasets", "(did you mean msmarco?)"),
        ({"datasets": ["pystdlb"]}, "datasets", "(did you mean pystdlib?)"),
        ({"datasets": ["../etc"]}, "datasets", "unknown dataset"),
        ({"datasets": ["x" * 300]}, "datasets", "unknown dataset"),
        ({"datasets": ["a\0b"]}, "datasets", "unknown dataset"),
        ({"datasets": ["beir:"]}, "datasets", "needs a folder"),
        ({"datasets": ["beir:/no/such/folder"]}, "datasets", "no such folder"),
        ({"datasets": ["beir:" + "x" * 300]}, "datasets", "no such folder"),
        ({"datasets": ["beir:a\0b"]}, "datasets", "no such folder"),
        ({"log_dir": __file__}, "log_dir", "is a file, not a folder"),
        ({"log_dir": "~nosuchuser/logs"}, "log_dir", "home directory"),
        ({"cache_dir": __file__}, "cache_dir", "is a file, not a folder"),
        ({"cache_dir": "x" * 300}, "cache_dir", "xxx"),
    ],
)
def test_a_run_that_cannot_work(spec, settings, start, words):
    (problem,) = problems_of(lambda: validate(Tier1Config(**({"datasets": ["pystdlib"]} | settings)), spec))
    assert problem.startswith(f"{start}: ") and words in problem


def test_none_for_layers_is_fine_for_methods_that_need_none(spec):
    common = {"datasets": ["pystdlib"], "maw_layers": "none"}
    assert validate(Tier1Config(**common, methods=["zero_shot", "lora"]), spec) is spec
    assert validate(Tier1Config(**common, methods=["zero_shot"], finetune_layers="none", batch_size=1), spec) is spec
    assert validate(Tier1Config(datasets=["pystdlib"], methods=["maw"], finetune_layers="none"), spec) is spec


def test_test_judgements_of_a_beir_folder(spec, tmp_path):
    qrels = beir_outline(tmp_path / "some", "test", "dl19", "dl20") / "qrels"
    name = f"beir:{tmp_path}/some"
    assert validate(Tier1Config(datasets=[name, f"{name}@dl19", f"{name}@dl20"]), spec) is spec
    for wrong, message in [
        (f"{name}@dl21", f"{qrels / 'dl21.tsv'} is missing"),
        (f"{name}@", "'' is not a name"),
        (f"{name}@..", "'..' is not a name"),
        (f"beir:{tmp_path}/nowhere@dl19", "there is no such folder"),
        (f"{name}@x/y", "there is no such folder"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            validate(Tier1Config(datasets=[wrong]), spec)
    beir_outline(tmp_path / "some_dl19")
    with pytest.raises(ConfigError, match="both be called 'beir_some_dl19'"):
        validate(Tier1Config(datasets=[f"{name}@dl19", f"{name}_dl19"]), spec)
    beir_outline(tmp_path / "some@dl21")
    with pytest.raises(ConfigError, match="some@dl21': the folder's name becomes"):  # a folder of the whole name wins
        validate(Tier1Config(datasets=[f"{name}@dl21"]), spec)


def test_beir_folders(spec, tmp_path):
    for name in ("a/same", "b/same"):
        beir_outline(tmp_path / name)
    first, second = f"beir:{tmp_path}/a/same", f"beir:{tmp_path}/b/same"
    validate(Tier1Config(datasets=[first, "pystdlib"]), spec)
    (problem,) = problems_of(lambda: validate(Tier1Config(datasets=[first, second]), spec))
    assert "called 'beir_same'" in problem


@pytest.mark.parametrize("file, what", [("corpus", "passages"), ("queries", "queries"), ("qrels/test", "test judge")])
@pytest.mark.parametrize("lacks", ["is missing", "is empty"])
def test_a_beir_folder_without_content_is_refused_in_one_line(spec, tmp_path, file, what, lacks):
    (path,) = beir_outline(tmp_path / "some").glob(f"{file}.*")
    path.unlink() if lacks == "is missing" else path.write_text("")
    (problem,) = problems_of(lambda: validate(Tier1Config(datasets=[f"beir:{tmp_path}/some"]), spec))
    assert f"{path} {lacks}; a folder in BEIR layout has its {what}" in problem


def test_an_empty_beir_folder_is_refused_before_anything_is_planned(tmp_path, capsys):
    (tmp_path / "some").mkdir()
    words = ["--datasets", f"beir:{tmp_path}/some", "--model", "packaged:all-MiniLM-L6-v2"]
    assert tier_1.main(words) == 2
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 2
    assert told.err.splitlines()[1].startswith(
        f"--datasets: 'beir:{tmp_path}/some': {tmp_path}/some/corpus.jsonl is m"
    )


def test_settings_changed_after_the_start_are_checked_again(spec):
    config = Tier1Config(datasets=["pystdlib"])
    config.batch_size, config.maw_layers = "many", (9,)
    problems = problems_of(lambda: validate(config, spec))
    assert [problem.split(":")[0] for problem in problems] == ["batch_size", "maw_layers"]


def test_a_model_that_cannot_be_used_is_a_problem_like_others(tmp_path):
    config = Tier1Config(model=str(tmp_path), datasets=["pystdlib", "nosuch"])
    problems = problems_of(lambda: validate(config))
    assert [problem.split(" ")[0] for problem in problems] == ["datasets:", "model"]


# ---------------------------------------------------------------------------------------------------------- files


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def from_file(path):
    """The settings of a file, as the command line checks them before it looks at data and model."""
    values, positions = read_settings(path)
    config, problems = gather(values)
    if problems:
        raise ConfigError([f"{positions.get(problem.name, path)}: {problem}" for problem in problems])
    return config


def test_yaml(tmp_path):
    text = "# a run\nseed: 7\nlearning_rate: 1e-5\nmaw_layers: 5,-1\ndatasets: pystdlib\nuse_lora: yes\ncache_dir: ~\n"
    config = from_file(write(tmp_path, "run.yaml", text))
    assert (config.seed, config.learning_rate, config.maw_layers) == (7, 1e-5, [5, -1])
    assert (config.datasets, config.use_lora, config.cache_dir) == (["pystdlib"], True, None)


def test_json_and_what_to_dict_wrote(tmp_path):
    config = Tier1Config(seed=9, finetune_layers=[1, 2], learning_rate=2e-4)
    assert from_file(write(tmp_path, "run.json", json.dumps(config.to_dict(), indent=2))) == config


def test_an_empty_yaml_file_changes_nothing(tmp_path):
    assert from_file(write(tmp_path, "run.yml", b"\xef\xbb\xbf# nothing\r\n")) == Tier1Config()


@pytest.mark.parametrize(
    ("name", "text", "line", "words"),
    [
        ("c.yaml", "seed: 1\nbatchsize: 3\n", ":2", "did you mean batch_size?"),
        ("c.yaml", "seed: 1\n\nbatch_size: '3'\n", ":3", "batch_size: must be a whole number"),
        ("c.yaml", "seed: 1\nseed: 2\n", ":2", "more than once"),
        ("c.yaml", "temperature: .nan\n", ":1", "finite"),
        ("c.yaml", "- seed\n", ":1", "one mapping"),
        ("c.yaml", "seed\n", ":1", "one mapping"),
        ("c.yaml", "seed: 1\na: b: c\n", ":2", "not YAML"),
        ("c.yaml", "seed: [1\n", "", "not YAML"),
        ("c.yaml", "model: !!python/object/apply:os.system [true]\n", ":1", "not YAML"),
        ("c.yaml", "model: 2020-99-99\n", "", "not YAML"),
        ("c.yaml", "seed: 1\nmodel: a\x00b\n", ":2", "not YAML"),
        ("c.yaml", b"seed: 1\nmodel: \xff\n", ":2", "not UTF-8"),
        ("c.yaml", "seed: 1\nmodel: 2020-01-01\n", ":2", "must be text"),
        ("c.yaml", "[" * 3000, "", "nested too deeply"),
        ("c.yaml", "#" * (LARGEST_FILE + 1), "", "larger than"),
        ("c.json", '{"seed": 1,\n "seed": 2}', ":1", "more than once"),
        ("c.json", '{"seed": 1,\n "batch_size": 0}', ":2", "at least 1"),
        ("c.json", '{"seed": 1,\n "temperature": NaN}', ":2", "finite"),
        ("c.json", '{"seed": 1,\n', ":2", "not JSON"),
        ("c.json", "[]", ":1", "one mapping"),
        ("c.json", '{"seed": ' + "9" * 5000 + "}", "", "not JSON"),
        ("c.json", "[" * 100_000, "", "nested too deeply"),
        ("c.toml", "seed = 1\n", "", "ends in .yaml, .yml or .json"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, text, line, words):
    path = write(tmp_path, name, text)
    (problem,) = problems_of(lambda: from_file(path))
    assert f"{path}{line}" in problem and words in problem


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path):
    (tmp_path / "d.yaml").mkdir()
    assert "No such file" in problems_of(lambda: from_file(tmp_path / "no.yaml"))[0]
    assert "directory" in problems_of(lambda: from_file(tmp_path / "d.yaml"))[0]


def test_all_problems_of_a_file_are_reported(tmp_path):
    path = write(tmp_path, "c.yaml", "seed: x\nrouter: y\nzzz: 1\ndepth_dim: 4\nfixed_depth: 4\n")
    problems = problems_of(lambda: from_file(path))
    assert [problem.split(": ")[0] for problem in problems] == [f"{path}:{line}" for line in (1, 2, 3, 5)]


def test_a_number_of_more_digits_than_python_writes_is_refused_like_any_other():
    with pytest.raises(ConfigError, match="batch_size: must be at least 1 and at most 65536, got a int too long"):
        Tier1Config(batch_size=10**5000)


def test_the_table_of_presets_is_what_they_are():
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    for name in PRESETS:
        config = Tier1Config.from_preset(name)
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        sizes = f"{config.train_samples:,} / {config.val_samples:,} / {config.test_samples:,}"
        assert row.endswith(f"| {sizes} | {config.num_epochs} | {config.num_negatives} |")
