"""Exported models load without this package and compute the same embeddings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES, IN_SHORT, random_texts
from safetensors.torch import load_file, save_file

import tier_1
from maw.config.methods import find_method
from maw.errors import ConfigError, MAWError, ModelError
from maw.experiment.model_card import model_card
from maw.experiment.past_run import PastRun
from maw.models.export.sentence_transformers import export_retriever
from maw.storage.checksummed import read_signed, write_signed
from maw.training.checkpoint import RETRIEVERS, load_checkpoint, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
TEXTS = random_texts(12, seed=5, longest=20)
LOADER = """
import importlib.util, json, sys
import numpy as np
assert importlib.util.find_spec("maw") is None and importlib.util.find_spec("tier_1") is None
from sentence_transformers import SentenceTransformer
folders, texts = json.load(open("asked.json"))
found = {}
for number, folder in enumerate(folders):
    model = SentenceTransformer(folder, trust_remote_code=True, device="cpu", local_files_only=True)
    found[f"query{number}"] = model.encode_query(texts, batch_size=5)
    found[f"document{number}"] = model.encode_document(texts, batch_size=5)
    found[f"one{number}"] = model.encode_document(texts[0])
    similarity = model.similarity(found[f"query{number}"][:2], found[f"document{number}"][:3]).numpy()
    found[f"similarity{number}"] = similarity
np.savez("found.npz", **found)
"""
USUAL = [kind for kind in FAMILIES if kind not in IN_SHORT]
CASES = [
    *((kind, "maw", {"route_by": "token" if "roberta" in kind else "head"}) for kind in USUAL),
    ("bert", "maw", {"route_by": "sequence", "maw_layers": [1, 3], "depth_kernel": "low_rank"}),
    ("bert", "maw", {"route_by": "head", "depth_kernel": "gated", "kernel_rank": 3}),
    ("bert", "maw", {"route_by": "token"}),
    ("modernbert", "maw", {"depth_kernel": "low_rank", "route_by": "token"}),
    ("bert", "maw_qv", {"route_by": "head"}),
    ("modernbert", "maw_qv", {"depth_kernel": "low_rank"}),
    ("distilbert", "maw_soft", {"route_by": "head"}),
    ("bert", "maw_fixed", {"fixed_depth": 2}),
    ("qwen3", "maw", {"depth_kernel": "low_rank", "maw_layers": [2, 3], "finetune_layers": [3]}),
    ("qwen3", "lora", {}),
    ("electra", "full_lowrank", {}),
    ("bert", "lora", {}),
    ("modernbert", "lora_matched", {}),
    ("roberta", "full", {}),
    ("distilbert", "zero_shot", {"similarity": "dot", "pooling": "cls"}),
    ("bert", "maw", {"query_prefix": "get the ", "document_prefix": "text ", "max_query_length": 7}),
]

IN_FULL = [  # of the other families, for `make faults`
    *((kind, "maw", {"route_by": "token", "maw_layers": [1, 3]}) for kind in IN_SHORT),
    *((kind, "lora", {}) for kind in ("mpnet", "gemma3_text", "deberta", "deberta-v2")),
    *((kind, "full", {"finetune_layers": "all"}) for kind in ("t5", "mistral", "deberta-v2")),
    *((kind, "maw_qv", {"depth_kernel": "low_rank"}) for kind in ("mpnet", "t5", "gte")),
]

RUN_METHODS = ("maw", "lora", "zero_shot")


def built(tiny_settings, model_type, method, changes, scale=0.3):
    """A method's retriever with everything moved that training moves."""
    settings = {"kernel_init_std": 0.5, "kernel_rank": 2} | changes
    config = find_method(method).configure(tiny_settings(model_type, **settings))
    model = RETRIEVERS[find_method(method).retriever](config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not name.endswith("router.bias"):
                # Texts this short are much alike to a router: it must look closely to tell them apart.
                size = 3.0 if name.endswith("router.weight") else scale
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def loaded_elsewhere(folders, tmp_path, texts=TEXTS):
    """What sentence-transformers computes in a fresh interpreter that does not know this project."""
    (tmp_path / "asked.json").write_text(json.dumps([list(map(str, folders)), texts]))
    environment = {name: each for name, each in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOADER], cwd=tmp_path, capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(tmp_path / "found.npz")


def exports(cases, models, tmp_path):
    """The models of all cases, and the folders of their exports."""
    from maw.config.tier1_config import Tier1Config

    def settings(model_type, **changes):
        known = {"model": str(models(model_type)), "depth_dim": 4, "precision": "float32", "device": "cpu"}
        known |= {"router_start": "uniform"}  # with depths that differ before they are trained
        return Tier1Config(**(known | changes))

    made = [built(settings, *case) for case in cases]
    return made, [export_retriever(model, tmp_path / str(number)) for number, model in enumerate(made)]


@pytest.fixture(scope="module")
def exported(models, tiny_run, tmp_path_factory):
    """Every case, exported, and what another program makes of all of them, of a run's models and of a wrong one.

    That program is started once, since loading its libraries is what takes time.
    """
    tmp_path = tmp_path_factory.mktemp("exports")
    made, folders = exports(CASES, models, tmp_path)
    for method in RUN_METHODS:
        folders.append(tmp_path / method)
        assert tier_1.main(["export", str(tiny_run), "--method", method, str(folders[-1])]) == 0
    folders.append(with_another_kernel(folders[0], tmp_path / "wrong"))
    return made, folders, loaded_elsewhere(folders, tmp_path)


def with_another_kernel(folder, copy):
    """The same export with its depths in another order."""
    shutil.copytree(folder, copy)
    whole = load_file(copy / "model.safetensors")
    (name,) = [each for each in whole if each.endswith("self.kernels.up")]
    whole[name] = whole[name].flip(1)
    save_file(whole, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def apart(first, second):
    return np.abs(np.asarray(first) - np.asarray(second)).max()


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{c[0]}-{c[1]}-{i}" for i, c in enumerate(CASES)])
def test_another_program_computes_the_same(exported, number):
    made, _, found = exported
    model = made[number]
    for kind in ("query", "document"):
        assert apart(found[f"{kind}{number}"], model.encode(TEXTS, kind)) < 1e-5
    assert apart(found[f"one{number}"], model.encode(TEXTS[:1])[0]) < 1e-5, "without padding too"
    own = model.encode(TEXTS[:2], "query") @ model.encode(TEXTS[:3]).T
    assert apart(found[f"similarity{number}"], own) < 1e-4


@pytest.mark.faults
def test_another_program_computes_the_same_in_the_other_families(models, tmp_path):
    made, folders = exports(IN_FULL, models, tmp_path)
    found = loaded_elsewhere(folders, tmp_path)
    for number, (model, case) in enumerate(zip(made, IN_FULL, strict=True)):
        for kind in ("query", "document"):
            assert apart(found[f"{kind}{number}"], model.encode(TEXTS, kind)) < 1e-5, case
        assert apart(found[f"one{number}"], model.encode(TEXTS[:1])[0]) < 1e-5, case
        if case[1] == "maw":
            share = model.encoder(model.source(TEXTS, "document").batch(range(len(TEXTS))))["depth_share"]
            assert any(len(layer.unique(dim=0)) > 1 for layer in share.unbind(1)), case


def test_depths_of_values_that_heads_share_are_refused(tiny_settings, tmp_path):
    with pytest.raises(ModelError, match="values shared by groups of heads"):
        export_retriever(built(tiny_settings, "qwen3", "maw_qv", {}), tmp_path / "out")


def test_the_cases_have_something_to_get_wrong(exported):
    """Texts take different depths, prefixes and lengths matter, and training has moved what is computed."""
    made, _, found = exported
    for model, case in zip(made, CASES):
        encoder = model.encoder
        if case[1] in ("maw", "maw_qv"):
            source = model.source(TEXTS, "document")
            share = encoder(source.batch(range(len(TEXTS))))["depth_share"]
            assert any(len(layer.unique(dim=0)) > 1 for layer in share.unbind(1)), case
    last = len(CASES) - 1
    assert apart(found[f"query{last}"], found[f"document{last}"]) > 1e-3
    assert apart(found["document0"], found["document1"]) > 1e-3


def test_a_wrong_depth_would_be_noticed(exported):
    made, folders, found = exported
    assert apart(found[f"document{len(folders) - 1}"], made[0].encode(TEXTS)) > 1e-3


def test_only_depths_need_code_and_plain_models_are_of_their_family(exported):
    _, folders, _ = exported
    for folder, (model_type, method, _) in zip(folders, CASES):
        config = json.loads((folder / "config.json").read_text())
        depths = find_method(method).retriever == "maw"
        assert config["model_type"] == (f"maw-{model_type}" if depths else model_type)
        assert (folder / "modeling_maw.py").exists() == depths == ("auto_map" in config)
        assert not list(folder.glob("*.bin")) and not list(folder.rglob("*.pkl"))


def test_without_trust_nothing_is_loaded_in_its_place(exported):
    """A plain BERT made of the weights, without the depths, would be a silent mistake."""
    from transformers import AutoModel

    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModel.from_pretrained(exported[1][0], trust_remote_code=False)


def test_a_plain_export_is_a_model_for_this_project_too(exported, tiny_settings):
    from maw.config.tier1_config import Tier1Config
    from maw.models.retriever import BaselineRetriever

    made, folders, _ = exported
    number = next(i for i, case in enumerate(CASES) if case[1] == "lora")
    again = BaselineRetriever(Tier1Config(model=str(folders[number]), precision="float32", device="cpu"))
    assert apart(again.encode(TEXTS), made[number].encode(TEXTS)) < 1e-5


@pytest.mark.parametrize("case", [("bert", "lora"), ("modernbert", "lora_matched")])
def test_lora_is_an_adapter_of_peft_too(exported, case):
    from peft import PeftModel
    from transformers import AutoModel

    made, folders, _ = exported
    number = next(i for i, each in enumerate(CASES) if each[:2] == case)
    model = made[number]
    base = AutoModel.from_pretrained(model.spec.folder)
    assert json.loads((folders[number] / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    adapted = PeftModel.from_pretrained(base, folders[number] / "adapter").eval()
    batch = model.source(TEXTS, "document").batch(range(len(TEXTS)))
    with torch.no_grad():
        hidden = adapted(**batch).last_hidden_state
        expected = model.encoder(batch)["embedding"]
        got = model.encoder._pool(hidden, batch["attention_mask"])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    unchanged = model.source(TEXTS[:3], "document")
    assert any("lora_" in name for name, _ in model.encoder.named_parameters()), "the caller's model stays unmerged"
    assert len(unchanged) == 3


def test_a_control_at_random_depths_is_refused(tiny_settings, tmp_path):
    with pytest.raises(ModelError, match="random depths"):
        export_retriever(built(tiny_settings, "bert", "maw_random", {}), tmp_path / "out")


def test_a_folder_in_use_is_left_alone_and_a_failure_leaves_none(tiny_settings, tmp_path, monkeypatch):
    model = built(tiny_settings, "bert", "zero_shot", {})
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("x")
    with pytest.raises(MAWError, match="not empty"):
        export_retriever(model, tmp_path / "used")

    def fail(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maw.models.export.sentence_transformers._write_sentence_files", fail)
    with pytest.raises(MAWError, match="No space left"):
        export_retriever(model, tmp_path / "out")
    left = {path.name for path in tmp_path.iterdir()}
    assert "used" in left and not any("out" in name for name in left)


# -------------------------------------------------------------------------------------------------------- the command


def test_the_command_exports_a_runs_models(exported, tiny_run):
    _, _, found = exported
    run, first = PastRun.open(tiny_run), len(CASES)
    for number, method in enumerate(RUN_METHODS, start=first):
        model = run.model(method)
        for kind in ("query", "document"):
            assert apart(found[f"{kind}{number}"], model.encode(TEXTS, kind)) < 1e-5
    assert apart(found[f"document{first}"], found[f"document{first + 2}"]) > 1e-4, "training has changed something"
    best = load_checkpoint(tiny_run / "checkpoints" / "beir_small_maw_best")
    assert apart(run.model("maw").encode(TEXTS), best.encode(TEXTS)) == 0


def test_the_card_has_what_was_measured_and_what_not(tiny_run, tmp_path, capsys):
    tier_1.main(["export", str(tiny_run), str(tmp_path / "out")])
    assert f'SentenceTransformer("{tmp_path / "out"}", trust_remote_code=True)' in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    run = PastRun.open(tiny_run)
    for name in ("zero_shot", "maw"):
        assert f"{run.record(name)['metrics']['ndcg_cut_10']:.4f}" in card
    assert card.startswith("---\nlibrary_name: sentence-transformers\n")
    assert 'SentenceTransformer("this/folder", trust_remote_code=True)' in card
    for words in (
        "4 depths in layer 3",
        "One training seed",
        "Its licence applies",
        run.result["venue"],
        'query "get "',
    ):
        assert words in card
    assert "license:" not in card, "a licence that nobody has looked up is not stated"


def test_each_best_checkpoint_has_a_card(tiny_run):
    run = PastRun.open(tiny_run)
    for method in RUN_METHODS:
        path = tiny_run / "checkpoints" / f"beir_small_{method}_best" / "README.md"
        assert path.exists() == find_method(method).trained
        if path.exists():
            card = path.read_text()
            assert card.startswith(f"# {run.record(method)['approach']}, trained on {run.result['venue']}\n")
            assert f"| nDCG@10 | {run.record('zero_shot')['metrics']['ndcg_cut_10']:.4f} |" in card
            assert f"--method {method}`" in card and 'load_checkpoint("this/folder")' in card
            assert f"seed 42; weights of epoch {run.record(method)['best_epoch']}" in card
            assert f"- test: {run.result['data']['splits']['test']['queries']:,} queries" in card
            assert ("4 depths in layer 3" in card) == (method == "maw")
            assert "Its licence applies" in card and "sentence-transformers\npipeline_tag" not in card


def test_a_card_goes_with_the_model_that_it_describes(tiny_run, tmp_path):
    folder = tmp_path / "beir_small_maw_best"
    shutil.copytree(tiny_run / "checkpoints" / folder.name, folder)
    model = load_checkpoint(folder)
    assert (folder / "README.md").is_file(), "it does not disturb the checkpoint"
    about = {name: model.checkpoint[name] for name in ("dataset", "method", "epoch", "best_val_metric")}
    save_checkpoint(folder, model, training_history=[], **about)
    assert not (folder / "README.md").exists(), "of a model that is gone"


def test_the_card_of_one_of_several_trainings(tiny_run):
    run = PastRun.open(tiny_run)
    record = run.record("maw")
    record["runs"] = [
        record["runs"][0] | {"seed": seed, "metrics": {"ndcg_cut_10": value}}
        for seed, value in ((42, 0.25), (43, 0.75))
    ]
    run = replace(run, config=replace(run.config, seeds=2))
    card = model_card(run.model("zero_shot").spec, run, "maw", seed=43)
    assert "Means over 2 trainings. This model alone reached nDCG@10 0.7500." in card
    assert "seed 43; weights" in card and "--method maw --seed 43`" in card


def test_what_the_run_does_not_have_is_said_in_one_line(tiny_run, tmp_path, capsys):
    cases = {
        ("export", str(tmp_path), "out"): "has no results",
        ("export", str(tiny_run), "--method", "full", "out"): "no method 'full'",
        ("export", str(tiny_run), str(tiny_run)): f"{tiny_run}: is not empty",
        ("export", str(tiny_run), "--seed", "7", "out"): "no seed 7; the only seed is 42",
        ("export", str(tiny_run), "--fold", "2", "out"): "no fold 2; the run had no folds",
        ("export", str(tiny_run), "--dataset", "beir_smal", "out"): "did you mean beir_small?",
    }
    for words, expected in cases.items():
        assert tier_1.main(list(words)) == 2
        head, line = capsys.readouterr().err.splitlines()
        assert head == "tier_1.py: cannot run:" and expected in line
    assert tier_1.main(["export", str(tiny_run)]) == 2
    assert "export: the following arguments are required: OUT; see" in capsys.readouterr().err


def test_an_export_may_be_read_by_whoever_may_read_the_others(tiny_run, tmp_path):
    for method in ("lora", "maw"):
        assert tier_1.main(["export", str(tiny_run), "--method", method, str(tmp_path / method)]) == 0
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "new").touch()
    assert modes == {(tmp_path / "new").stat().st_mode & 0o777}


def test_seeds_and_folds_that_a_run_of_several_does_not_have(tiny_run):
    run = PastRun.open(tiny_run)
    run = replace(run, config=replace(run.config, seeds=3, folds=5))
    run.check_training(44, 5)
    with pytest.raises(ConfigError, match=r"no seed 45; it had seeds 42 to 44"):
        run.checkpoint("maw", seed=45)
    with pytest.raises(ConfigError, match=r"no fold 0; it had folds 1 to 5"):
        run.checkpoint("maw", fold=0)


def test_a_checkpoint_of_another_run_is_refused(tiny_run, tmp_path):
    other = tmp_path / "logs"
    shutil.copytree(tiny_run, other)
    path = other / "checkpoints" / "beir_small_maw_best" / "checkpoint.json"
    record = read_signed(path)
    record["config"]["quiet"] = not record["config"]["quiet"]  # as in a run that went on with another console
    write_signed(path, record)
    PastRun.open(other).model("maw")
    record["config"]["num_epochs"] = 7
    write_signed(path, record)
    with pytest.raises(MAWError, match=r"from another run than .*differ in num_epochs"):
        PastRun.open(other).model("maw")
