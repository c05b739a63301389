"""Methods of the PEFT library: each starts as the pretrained model, trains, is stored and exported, or is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_texts

from maw.config import peft_methods
from maw.config.method_files import code_of, load_method, load_methods
from maw.config.methods import METHOD_NAMES, comparisons, find_method
from maw.config.peft_methods import OFFERED, REFUSED
from maw.config.tier1_config import Tier1Config
from maw.data.from_dicts import as_retrieval_data
from maw.errors import ConfigError, ModelError
from maw.evaluation.confirmatory import key_of, pairs
from maw.experiment.benchmark import run_complete_benchmark
from maw.experiment.method_trainer import MethodTrainer
from maw.experiment.past_run import PastRun
from maw.experiment.run_state import changes, open_run
from maw.models.changes import frozen_hashes
from maw.models.export.sentence_transformers import _merged_state, export_retriever
from maw.models.retriever import BaselineRetriever
from maw.training.checkpoint import RETRIEVERS, load_checkpoint, save_checkpoint
from maw.training.method_checks import cache_disagreement
from maw.training.optimizer import parameter_groups, with_rates

RUN = ("lora", "pissa")
SMALL = {
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 64},
    "road": {"group_size": 8},
    "waveft": {"n_frequency": 64},
}
"""Settings that a model of hidden size 16 needs, where PEFT's defaults are for larger ones."""
TEXTS = random_texts(6)


@pytest.fixture
def build(tiny_settings):
    """`build("peft:dora")` gives the untrained retriever of a method, as a run makes it."""

    def make(name, model_type="bert", **changes):
        own = find_method(name) if name in METHOD_NAMES else load_method(name)
        small = SMALL.get(name.removeprefix("peft:"))
        if small:
            own = copy.copy(own)
            own.adapter = replace(own.adapter, settings={**own.adapter.settings, **small})
        config = tiny_settings(model_type, **({"methods": [name], "num_epochs": 1, "lora_rank": 2} | changes))
        return RETRIEVERS[own.retriever](with_rates(own.configure(config), {"learning_rate": 0.01}), own)

    return make


@pytest.fixture(scope="module")
def pretrained(models):
    """The embeddings of `TEXTS` by the pretrained model."""
    return BaselineRetriever(Tier1Config(model=str(models("bert")), device="cpu", precision="float32")).encode(TEXTS)


@pytest.fixture
def adapter_config(tmp_path):
    """`adapter_config(r=4)` writes an adapter_config.json and gives what names it in `methods`."""

    def write(**keys):
        path = tmp_path / "mine" / "adapter_config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(keys))
        return f"peft:{path}"

    return write


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_beir, models):
    """A finished run of the methods of `RUN` beside LoRA, with a claim."""
    folder = tmp_path_factory.mktemp("peft")
    where = {"log_dir": str(folder / "logs"), "cache_dir": str(folder / "cache"), "model": str(models("bert"))}
    small = {"num_epochs": 1, "batch_size": 8, "permutations": 200, "precision": "float32", "device": "cpu"}
    methods = ["zero_shot", "lora", *(f"peft:{name}" for name in RUN)]
    claimed = {"datasets": [f"beir:{tiny_beir}"], "methods": methods, "compare": "lora"}
    (result,) = run_complete_benchmark(Tier1Config(**where, **small, **claimed)).values()
    return folder / "logs", result


def test_a_run_compares_them_with_lora(run, tmp_path):
    logs, result = run
    assert set(result["confirmatory"]["comparisons"]) == {f"peft_{name}_vs_lora" for name in RUN}
    assert "PiSSA (PEFT)" in (logs / "summary" / "tables.md").read_text()
    past, out = PastRun.open(logs), tmp_path / "exported"
    best = logs / "checkpoints" / f"{past.name}_peft_pissa_best"
    assert np.array_equal(load_checkpoint(best).encode(TEXTS), past.model("peft_pissa").encode(TEXTS))
    export_retriever(past.model("peft_pissa"), out)
    plain = BaselineRetriever(Tier1Config(model=str(out), device="cpu", precision="float32"))
    assert np.abs(plain.encode(TEXTS) - past.model("peft_pissa").encode(TEXTS)).max() < 1e-5
    assert not (out / "adapter").exists(), "the adapter would stand on other weights than the pretrained ones"


def test_lora_of_peft_is_lora_to_the_last_bit(run):
    logs, result = run
    own, theirs = (result["results"][key] for key in ("2_lora_fine_tuned_retriever", "peft_lora_retriever"))
    assert own["metrics"] == theirs["metrics"]
    first, second = (PastRun.open(logs).model(name).trained_state() for name in ("lora", "peft_lora"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def take_steps(model, tokens, steps=3):
    """Trains a model away from where it is, on texts without a meaning."""
    optimizer = torch.optim.AdamW(parameter_groups(model, model.config))
    model.encoder.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model.encoder(tokens)["embedding"][:, 0].sum().backward()
        optimizer.step()
    model.encoder.eval()


@pytest.mark.parametrize("name", OFFERED)
def test_it_starts_as_pretrained_trains_and_is_stored(build, pretrained, name):
    reference = f"peft:{name}"
    model = build(reference)
    assert np.abs(model.encode(TEXTS) - pretrained).max() < 1e-5
    assert (model.changes.first_layer, model.encoder.prefix_layers) == (3, 2)
    tokens = model.source(random_texts(8), "document").batch(range(8))
    assert cache_disagreement(model, tokens, tokens, model.config) < 1e-5
    before = frozen_hashes(model.encoder)
    take_steps(model, tokens)
    assert frozen_hashes(model.encoder) == before
    trained = model.encode(TEXTS)
    assert np.abs(trained - pretrained).max() > 1e-5
    again = build(reference)
    again.load_trained_state(model.trained_state())
    assert np.array_equal(again.encode(TEXTS), trained)
    if OFFERED[name].merged:
        merged = _merged_state(model)  # compares the plain model's output with that of the adapted one
        assert not [each for each in merged if "base_layer" in each]
    else:
        with pytest.raises(ModelError, match=f"peft_{name}: is not exported: .* has no merge"):
            _merged_state(model)


@pytest.fixture
def other_signs(monkeypatch):
    """Decompositions from now on have other signs, as another library for the same products may choose them."""

    def turned(matrix, dim):
        return matrix * (1 - 2 * (torch.arange(matrix.shape[dim]) % 2).unsqueeze(-1 if dim == -2 else 0))

    def patch():
        svd, lowrank, qr, eigh = torch.linalg.svd, torch.svd_lowrank, torch.linalg.qr, torch.linalg.eigh

        def other_svd(*args, **options):
            left, values, right = svd(*args, **options)
            return turned(left, -1), values, turned(right, -2)

        def other_lowrank(*args, **options):
            left, values, right = lowrank(*args, **options)
            return turned(left, -1), values, turned(right, -1)

        def other_qr(*args, **options):
            left, right = qr(*args, **options)
            return turned(left, -1), turned(right, -2)

        def other_eigh(*args, **options):
            values, vectors = eigh(*args, **options)
            return values, turned(vectors, -1)

        monkeypatch.setattr(torch.linalg, "svd", other_svd)
        monkeypatch.setattr(torch, "svd_lowrank", other_lowrank)
        monkeypatch.setattr("peft.tuners.lora.layer.svd_lowrank", other_lowrank)
        monkeypatch.setattr(torch.linalg, "qr", other_qr)
        monkeypatch.setattr(torch.linalg, "eigh", other_eigh)

    return patch


def stored(model, folder):
    """A checkpoint of the model after some steps, and the model's embeddings."""
    take_steps(model, model.source(random_texts(8), "document").batch(range(8)))
    about = {"epoch": 1, "best_val_metric": None, "training_history": []}
    save_checkpoint(folder, model, dataset="tiny", method=model.method.name, **about)
    return model.encode(TEXTS)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", [each for each in OFFERED if each not in SMALL])
def test_a_checkpoint_is_the_same_model_where_decompositions_have_other_signs(
    build, tmp_path, other_signs, name, whole
):
    model = build(f"peft:{name}", checkpoint_compression=not whole)
    trained = stored(model, tmp_path)
    other_signs()
    np.testing.assert_allclose(load_checkpoint(tmp_path).encode(TEXTS), trained, atol=1e-6)


@pytest.mark.parametrize("name", ["frod", "mica", "psoft", "tinylora"])
def test_computing_what_is_frozen_anew_would_be_noticed(build, tmp_path, other_signs, name):
    model = build(f"peft:{name}")
    assert model.made
    model.made = {}  # as checkpoints were before they had such tensors
    trained = stored(model, tmp_path)
    np.testing.assert_allclose(load_checkpoint(tmp_path).encode(TEXTS), trained, atol=1e-6)
    other_signs()
    assert np.abs(load_checkpoint(tmp_path).encode(TEXTS) - trained).max() > 1e-4


def test_a_frozen_tensor_of_another_shape_is_refused(build):
    model = build("peft:mica")
    state = model.trained_state()
    name = next(iter(model.made))
    with pytest.raises(ModelError, match=f"{name} has another shape"):
        build("peft:mica").load_trained_state(state | {name: state[name][:1]})


@pytest.mark.parametrize("model_type", ["modernbert", "t5", "distilbert"])
@pytest.mark.parametrize("name", ["dora", "vera", "ia3", "ln_tuning"])
def test_other_families_have_them(build, model_type, name):
    model, plain = build(f"peft:{name}", model_type), build("zero_shot", model_type)
    assert np.abs(model.encode(TEXTS) - plain.encode(TEXTS)).max() < 1e-5
    assert model.trained_parameters and model.changes.layers == (3,)


@pytest.mark.parametrize("compare", ["peft_dora", "peft:dora", "peft:dora:lora,peft:pissa"])
def test_a_claim_about_a_method_that_is_named_last_has_all_of_its_tests(tiny_settings, compare):
    config = tiny_settings(methods=["lora", "peft:pissa", "peft:dora"], compare=compare)
    assert not load_methods(config.methods)
    planned = [key_of(*pair) for pair in pairs(config)]
    tested = [key_of(*pair) for pair in comparisons(config.methods)]
    assert planned == ["peft_dora_vs_lora", "peft_dora_vs_peft_pissa"] and set(planned) <= set(tested)


def test_they_change_the_layers_and_maps_of_lora(build):
    ours, theirs = (build(name, finetune_layers="2,3").changes.paths for name in ("lora", "peft:dora"))
    maps = [{path for path in paths if path.endswith((".query", ".value"))} for paths in (ours, theirs)]
    assert maps[0] == maps[1] and len(maps[0]) == 4


def test_vera_shares_its_projections_and_trains_vectors(build):
    model = build("peft:vera", finetune_layers="2,3")
    adapters = [each for each in model.encoder.modules() if hasattr(each, "vera_A")]
    assert len(adapters) == 4 and len({each.vera_A["default"].data_ptr() for each in adapters}) == 1
    assert all("vera_lambda" in name for name in model.trained_state() if name not in model.made)
    assert len(model.made) == 2, "the shared projections, once"
    assert model.trained_parameters == 4 * (256 + 16)


def test_pissa_trains_the_first_singular_directions(build):
    model = build("peft:pissa")
    query = model.encoder.backbone.encoder.layer[2].attention.self.query
    pretrained = build("zero_shot").encoder.backbone.encoder.layer[2].attention.self.query.weight
    product = query.lora_B["default"].weight @ query.lora_A["default"].weight * query.scaling["default"]
    torch.testing.assert_close(product + query.base_layer.weight, pretrained, atol=1e-5, rtol=0)
    left, values, right = torch.linalg.svd(pretrained)
    torch.testing.assert_close(product, left[:, :2] * values[:2] @ right[:2], atol=1e-5, rtol=0)


def test_a_configuration_file_says_what_and_the_run_says_where(build, adapter_config):
    about = {"base_model_name_or_path": "other", "inference_mode": True, "task_type": "FEATURE_EXTRACTION"}
    reference = adapter_config(peft_type="LORA", use_dora=True, r=3, target_modules=["key"], bias=None, **about)
    method = load_method(reference)
    assert (method.name, method.label) == ("peft_mine", "DoRA of mine (PEFT)")
    assert method.adapter.from_run == {"lora_alpha": "lora_alpha"}
    model = build(reference)
    assert {name.split(".")[6] for name in model.trained_state()} == {"key"} and model.changes.layers == (3,)
    assert model.trained_parameters == 3 * 2 * 16 + 16
    every = build(adapter_config(peft_type="LORA", target_modules=["key"], layers_to_transform=[0, 2]))
    assert every.changes.layers == (1, 3) and every.encoder.prefix_layers == 0
    assert build(adapter_config(peft_type="LORA", layers_to_transform=1)).changes.layers == (2,)
    assert code_of([reference]).keys() == {"peft", reference.removeprefix("peft:")}


def test_a_checkpoint_needs_the_file_it_was_trained_with(build, adapter_config, tmp_path):
    reference = adapter_config(peft_type="IA3", target_modules=["key"])
    model, about = build(reference), {"epoch": 1, "best_val_metric": None, "training_history": []}
    folder = save_checkpoint(tmp_path / "checkpoint", model, dataset="tiny", method="peft_mine", **about)
    assert np.array_equal(load_checkpoint(folder).encode(TEXTS), model.encode(TEXTS))
    file = Path(adapter_config(peft_type="IA3", target_modules=["value"]).removeprefix("peft:"))
    for gone in (False, True):
        if gone:
            file.rename(tmp_path / "mine.json")
        with pytest.raises(ModelError, match=rf"peft_mine, and peft:{file} is gone or has changed .* --method-file"):
            load_checkpoint(folder)
    (tmp_path / "mine.json").write_text(json.dumps({"peft_type": "IA3", "target_modules": ["key"]}))
    given = load_checkpoint(folder, method=f"peft:{tmp_path}/mine.json")
    assert np.array_equal(given.encode(TEXTS), model.encode(TEXTS))


def test_resume_names_a_file_that_has_changed(adapter_config, tiny_settings):
    reference = adapter_config(peft_type="LORA", r=3)
    config, file = tiny_settings(methods=[reference]), reference.removeprefix("peft:")
    record = open_run(config, {}).record
    assert changes(record, config) == []
    adapter_config(peft_type="LORA", r=4)
    (line,) = changes(record, config)
    assert line.startswith(f"  code {file}: was ")
    Path(file).unlink()
    assert changes(record, config) == [f"  methods: {file} cannot be read: No such file or directory"]


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_no_method_of_a_run_is_refused_with_its_reason(name):
    assert load_methods([f"peft:{name}"]) == [f"peft:{name}: PEFT's {name} is no method of a run: {REFUSED[name]}"]


def test_every_kind_of_peft_is_offered_or_refused():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kinds = {kind.lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert kinds == {each.kind.lower() for each in OFFERED.values()} | set(REFUSED)


@pytest.mark.parametrize("name", ["pissa", "peft_pissa", "PEFT:PiSSA"])
def test_a_name_without_the_prefix_is_told_how_it_is_written(tiny_settings, name):
    with pytest.raises(ConfigError, match=f"methods: '{name}' is a method of PEFT: write peft:pissa"):
        tiny_settings(methods=["lora", name])


def test_the_name_of_a_file_holds_no_vs(tmp_path):
    """It stands between the two names of a comparison, so a report would take the name apart."""
    for name, expected in (("loss_vs_no_loss", "peft_loss_no_loss"), ("vs", "peft"), ("us-VS", "peft_us")):
        (tmp_path / f"{name}.json").write_text('{"peft_type": "LORA"}')
        assert load_method(f"peft:{tmp_path}/{name}.json").name == expected


def test_an_unknown_name_has_a_suggestion_and_the_list():
    (problem,) = load_methods(["peft:dorra"])
    assert problem.startswith(
        "peft:dorra: no method of PEFT is called 'dorra' here (did you mean dora?); there are lora"
    )


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "must be an object with PEFT's keys"),
        ({"peft_type": "LORAX"}, "did you mean lora?"),
        ({"peft_type": "PROMPT_TUNING"}, "puts trained vectors before the text"),
        ({"peft_type": "LORA", "rr": 4}, "'rr' is no key of LoraConfig (did you mean r?)"),
        ({"peft_type": "LORA", "init_lora_weights": "eva"}, "pass over training texts"),
        ({"peft_type": "LORA", "use_qalora": True}, "made for quantised weights"),
        ({"peft_type": "LORA", "alora_invocation_tokens": [1]}, "in the text of a decoder"),
        ({"peft_type": "LORA", "r": 0}, "r must be a whole number of at least 1, got 0"),
        ({"peft_type": "LORA", "r": "8"}, "r must be a number, got '8'"),
        ({"peft_type": "LORA", "lora_alpha": float("nan")}, "lora_alpha must be a number, got nan"),
        ({"peft_type": "LORA", "target_modules": 5}, "target_modules must be a list of names"),
        ({"peft_type": "LORA", "modules_to_save": ["pooler"]}, "the method full trains whole layers"),
        ({"peft_type": "LORA", "layers_pattern": "layer"}, "ValueError"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(adapter_config, keys, words):
    reference = adapter_config(**keys)
    (problem,) = load_methods([reference])
    assert problem.startswith(reference.removeprefix("peft:")) and words in problem and "\n" not in problem
    assert "cannot be read: No such file" in load_methods(["peft:/nowhere/adapter_config.json"])[0]
    folder = str(Path(reference.removeprefix("peft:")).parent)
    assert load_methods([f"peft:{folder}"]) == [f"peft:{folder}: is a folder; give its file: {reference}"]


def test_a_target_that_no_layer_has_is_one_line(build, adapter_config):
    words = r"\['q_proj'\] are in no layer that the run adapts; its linear maps are query, key, value, dense"
    with pytest.raises(ModelError, match=rf"adapter_config.json: peft_mine: ValueError: target_modules {words}$"):
        build(adapter_config(peft_type="LORA", target_modules=["q_proj"]))


def test_a_tensor_that_training_changes_unseen_is_refused(adapter_config, tiny_settings, tiny_data, monkeypatch):
    """VeLoRA sets a buffer in its first batch. Were it offered, the check after training would refuse it."""
    reference = adapter_config(peft_type="LORA", velora_config={"num_groups": 4})
    assert "checkpoints do not hold it" in load_methods([reference])[0]
    monkeypatch.delitem(peft_methods._REFUSED_KEYS, "velora_config")
    trainer = MethodTrainer(load_method(reference), tiny_settings(methods=[reference]), torch.device("cpu"))
    parts = (as_retrieval_data(tiny_data, part) for part in ("train", "validation"))
    with pytest.raises(ModelError, match=r"peft_mine: .*velora.* is not trained, but training has changed it"):
        trainer.train(trainer.build(trainer.configure(42)), *parts, "tiny")
