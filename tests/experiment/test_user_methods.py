"""Methods of users: a class in a file goes through a whole run, and what a run cannot have is refused in one line."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_texts

import maw
import tier_1 as program
from maw.config.method_files import code_of, load_method, load_methods
from maw.config.methods import METHODS, claim, find_method, in_order
from maw.config.tier1_config import Tier1Config
from maw.data.from_dicts import as_retrieval_data
from maw.encoding.activation_cache import ActivationStore
from maw.errors import ConfigError, ModelError
from maw.evaluation import confirmatory
from maw.experiment.benchmark import run_complete_benchmark
from maw.experiment.config_checks import find_problems
from maw.experiment.method_trainer import MethodTrainer
from maw.experiment.past_run import PastRun
from maw.models.changes import frozen_hashes
from maw.models.export.sentence_transformers import export_retriever
from maw.report.rebuild import find_folders, write_reports
from maw.training.checkpoint import RETRIEVERS, load_checkpoint
from maw.training.method_checks import cache_disagreement, check_method
from maw.training.train import train_retriever

ROOT = Path(__file__).resolve().parents[2]
HEAD = "import torch\nfrom torch import nn\n\nimport maw\n\n"
SCALE = (
    HEAD
    + '''
class Scale(maw.Method):
    """One trained factor for every output of a layer's linear maps, and a gate with a rate of its own."""

    name, label, learning_rate = "scale", "Scaled maps", 0.02
    rates = {"gate_learning_rate": 0.05}

    def adapt(self, backbone, context):
        factors, gates = [], []
        for linear in maps(context):
            linear.factor = nn.Parameter(torch.ones(linear.out_features))
            linear.gate = nn.Parameter(torch.ones(1))
            linear.hook = linear.register_forward_hook(scale)
            factors.append(linear.factor)
            gates.append(linear.gate)
        return {"learning_rate": factors, "gate_learning_rate": gates}

    def merge(self, backbone, context):
        for linear in maps(context):
            linear.hook.remove()
            factor = (linear.factor * linear.gate).detach()
            linear.weight.data *= factor[:, None]
            linear.bias.data *= factor
            del linear.factor, linear.gate


def maps(context):
    modules = (module for layer in context.layers.values() for module in layer.modules())
    return [module for module in modules if isinstance(module, nn.Linear)]


def scale(linear, inputs, output):
    return output * linear.factor * linear.gate
'''
)
RATES = {"learning_rate", "gate_learning_rate"}
OWN = 'name, label, learning_rate = "own", "Own", 0.01'
HOOK = """
layer = context.architecture.layers(backbone)[{layer}]
layer.factor = nn.Parameter(torch.ones(()))
layer.register_forward_hook(lambda layer, inputs, output: output * layer.factor)
return [layer.factor]
"""


def method(body: str, facts: str = OWN) -> str:
    """A file with one method, whose class is in line 6 and the body of whose `adapt` begins in line 10."""
    lines = textwrap.indent(textwrap.dedent(body).strip("\n"), " " * 8)
    return f"{HEAD}class Own(maw.Method):\n    {facts}\n\n    def adapt(self, backbone, context):\n{lines}\n"


@pytest.fixture
def mine(tmp_path):
    """`mine(code)` writes a file of a user and gives FILE.py:CLASS, of the first class in it."""

    def write(code: str, name: str = "mine.py") -> str:
        path = tmp_path / "elsewhere" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
        first = next(line for line in code.splitlines() if line.startswith("class "))
        return f"{path}:{first.split()[1].partition('(')[0].rstrip(':')}"

    return write


@pytest.fixture
def build(tiny_settings):
    """`build(reference)` gives the untrained retriever of a user's method, as a run makes it."""

    def make(reference, **changes):
        own = load_method(reference)
        return RETRIEVERS[own.retriever](own.configure(tiny_settings(methods=[reference], **changes)), own)

    return make


@pytest.fixture
def train(tiny_settings, tiny_data, tmp_path):
    """`train(reference)` trains a user's method as a run does, with stored activations; returns the model."""

    def run(reference):
        config = tiny_settings(methods=[reference], num_epochs=1)
        with ActivationStore(tmp_path / "activations", 1.0) as activations:
            trainer = MethodTrainer(load_method(reference), config, torch.device("cpu"), activations)
            model = trainer.build(trainer.configure(42))
            trainer.train(model, *(as_retrieval_data(tiny_data, part) for part in ("train", "validation")), "tiny")
        return model

    return run


@pytest.fixture
def tier_1(monkeypatch, capsys):
    """`tier_1("search", ...)` gives what the program says, as if its process had loaded no method of a user."""

    def say(*words, code=0):
        monkeypatch.setattr("maw.config.methods._KNOWN", {each.name: each for each in METHODS})
        capsys.readouterr()
        got, said = program.main(words), capsys.readouterr()
        assert got == code, said
        return said.out + said.err

    return say


# ------------------------------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_beir, models):
    """A finished run of zero-shot, LoRA and a user's method, tuned, with two seeds and its own claim."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "mine.py").write_text(SCALE)
    where = {"log_dir": str(folder / "logs"), "cache_dir": str(folder / "cache"), "model": str(models("bert"))}
    small = {"num_epochs": 1, "batch_size": 8, "permutations": 200, "precision": "float32", "device": "cpu"}
    methods = ["zero_shot", "lora", f"{folder}/mine.py:Scale"]
    claimed = {"datasets": [f"beir:{tiny_beir}"], "methods": methods, "compare": "scale", "tune": 2, "seeds": 2}
    return folder, run_complete_benchmark(Tier1Config(**where, **small, **claimed))


def test_a_file_of_forty_lines_is_enough():
    assert len(SCALE.strip().splitlines()) <= 40


def test_it_stands_in_every_report_and_has_its_own_claim(run):
    folder, results = run
    (result,) = results.values()
    record = result["results"]["scale_retriever"]
    assert set(record["runs"][0]["rates"]) == RATES
    assert record["trained_parameters"] == 5 * 16 + 24 + 6
    assert [set(trial["rates"]) for trial in record["tuning"][0]["trials"]] == [RATES, RATES]
    assert list(result["confirmatory"]["comparisons"]) == ["scale_vs_lora"]
    assert result["significance"]["scale_vs_lora"]["ndcg_cut_10"]["family"] == "confirmatory"
    assert result["significance"]["scale_vs_zeroshot"]["ndcg_cut_10"]["family"] == "exploratory"
    summary = folder / "logs" / "summary"
    for name in ("benchmark_summary.txt", "report.html", "tables.tex", "tables.md"):
        assert "Scaled maps" in (summary / name).read_text(), name
    for name in ("metrics_comparison.csv", "costs.csv"):
        assert "scale" in (summary / name).read_text().lower(), name
    assert "Scaled maps and LoRA" in " ".join((summary / "benchmark_summary.txt").read_text().split())


def test_reports_need_no_code(run, tmp_path, tier_1):
    """In a process that never loaded the file, and where it is gone."""
    folder, _ = run
    logs = tmp_path / "logs"
    shutil.copytree(folder / "logs", logs)
    tier_1("report", str(logs))  # colours go by the methods that a process has seen, and this one may have seen others
    page = (logs / "summary" / "report.html").read_text()
    for path in (*logs.glob("*/dataset.json"), logs / "summary" / "all_results.json"):
        path.write_text(path.read_text().replace(f"{folder}/mine.py", "/gone/mine.py"))
    tier_1("report", str(logs))
    assert (logs / "summary" / "report.html").read_text().replace("/gone/", f"{folder}/") == page


def test_another_subject_than_the_planned_one_is_exploratory(run):
    logs = run[0] / "logs"
    before = {path.name: path.read_bytes() for path in (logs / "summary").iterdir()}
    write_reports(logs, find_folders(logs), subject="lora")
    other = logs / "summary_lora"
    assert {path.name: path.read_bytes() for path in (logs / "summary").iterdir()} == before
    assert not (other / "confirmatory.json").exists()
    tests = json.loads((other / "exploratory.json").read_text())["comparisons"]
    assert {each["comparison"] for each in tests} == {"scale_vs_lora", "scale_vs_zeroshot", "lora_vs_zeroshot"}
    assert len(tests) == 3 * 10, "that which was confirmatory is one of them"
    assert "This run has no planned comparison of LoRA." in " ".join(
        (other / "benchmark_summary.txt").read_text().split()
    )
    with pytest.raises(ConfigError, match=r"'scael' is no method of this run \(did you mean scale\?\)"):
        write_reports(logs, find_folders(logs), subject="scael")


def test_code_is_loaded_only_where_the_user_names_it(run, tmp_path, tier_1):
    folder, logs, texts = run[0], str(run[0] / "logs"), random_texts(5)
    best = folder / "logs" / "checkpoints" / f"{PastRun.open(logs).name}_scale_seed42_best"
    expected = PastRun.open(logs).model("scale").encode(texts)
    marker, copy, out = tmp_path / "executed", tmp_path / "copy.py", tmp_path / "exported"
    copy.write_text(SCALE)
    (folder / "mine.py").write_text(f"open({str(marker)!r}, 'w').close()\n{SCALE}")
    try:
        for words in (["search", logs, "sort a list"], ["export", logs, str(out)]):
            said = tier_1(*words, "--method", "scale", code=1).splitlines()[-1]
            assert said.startswith("error: ") and f"--method-file {folder}/mine.py:Scale" in said
        with pytest.raises(ModelError, match="no code is loaded from a place that a file names"):
            load_checkpoint(best)
        assert not marker.exists(), "the file that a checkpoint names was executed"
    finally:
        (folder / "mine.py").write_text(SCALE)
    assert np.abs(load_checkpoint(best, method=f"{copy}:Scale").encode(texts) - expected).max() == 0
    tier_1("export", logs, str(out), "--method", "scale", "--method-file", f"{copy}:Scale")
    from sentence_transformers import SentenceTransformer

    exported = SentenceTransformer(str(out), device="cpu").encode_document(texts)
    assert np.abs(exported - expected).max() < 1e-5
    copy.write_text(method("return []", OWN.replace("own", "other")))
    with pytest.raises(ModelError, match=r"adapted by the method scale, and .*copy.py:6 is other"):
        load_checkpoint(best, method=f"{copy}:Own")


KILL = """
import os, sys, tier_1
from maw.training import checkpoint_writer
left, save = [int(sys.argv.pop(1))], checkpoint_writer.save_checkpoint

def counted(folder, model, **about):
    save(folder, model, **about)
    left[0] -= about["method"] == "scale"
    if not left[0]:
        os._exit(9)

checkpoint_writer.save_checkpoint = counted
sys.exit(tier_1.main(sys.argv[1:]))
"""


def test_killed_and_resumed_it_reaches_the_same_numbers(run, tmp_path, tiny_beir, models, tier_1, forks):
    """The run of `run`, killed inside of its second trial."""
    _, whole = run
    log_dir, own = tmp_path / "cut", tmp_path / "mine.py"
    own.write_text(SCALE)
    words = ["--model", str(models("bert")), "--datasets", f"beir:{tiny_beir}", "--num-epochs", "1", "--seeds", "2"]
    words += ["--tune", "2", "--batch-size", "8", "--permutations", "200", "--precision", "float32", "--device", "cpu"]
    words += ["--methods", f"zero_shot,lora,{own}:Scale", "--compare", "scale", "--save-every", "0.000001"]
    words = [*words, "--log-dir", str(log_dir), "--cache-dir", str(tmp_path / "cache")]
    killed = forks.run("-c", KILL, 5, *words, cwd=tmp_path, path=(ROOT,))
    assert killed.returncode == 9, killed.stderr
    record = json.loads((log_dir / "state" / "run.json").read_text())
    assert '"claim": {"controls": ["lora"], "subject": "scale"}' in json.dumps(record, sort_keys=True)
    own.write_text(SCALE.replace("torch.ones(1)", "torch.ones(1) + 0"))
    said = tier_1("--resume", str(log_dir), code=2)
    assert f"code {own}: was " in said
    own.write_text(SCALE)
    assert "compare: was scale, is lora" in tier_1("--resume", str(log_dir), "--compare", "lora", code=2)
    tier_1("--resume", str(log_dir))
    (found,) = (json.loads(path.read_text()) for path in log_dir.glob("*/dataset.json"))
    (expected,) = json.loads(json.dumps(whole)).values()
    for key, record in expected["results"].items():
        got = found["results"][key]
        assert got["metrics"] == record["metrics"], key
        assert [_learnt(each) for each in got["runs"]] == [_learnt(each) for each in record["runs"]], key


def _learnt(run):
    return run.get("rates"), [epoch["train_loss"] for epoch in run.get("training_history", ())]


# ---------------------------------------------------------------------------------------- what is found without trust


def first_layer(model):
    """The first changed layer, and how many layers below it are stored."""
    return model.changes.first_layer, model.encoder.prefix_layers


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (HOOK.format(layer=0), (1, 0)),
        (HOOK.format(layer=1), (2, 1)),
        (HOOK.format(layer=2), (3, 2)),
        ("backbone.embeddings.LayerNorm.weight.requires_grad_(True)", (1, 0)),
        ("backbone.embeddings.register_forward_hook(lambda *_: None)" + HOOK.format(layer=2), (1, 0)),
        ("context.architecture.layers(backbone)[0].output.dense.weight.data += 1" + HOOK.format(layer=2), (1, 0)),
        ("context.architecture.layers(backbone)[1].output.dropout = nn.Identity()" + HOOK.format(layer=2), (2, 1)),
        ("low = context.architecture.layers(backbone)[0]\nlow.forward = low.forward" + HOOK.format(layer=2), (1, 0)),
        ("context.architecture.layers(backbone)[0].output.LayerNorm.eps = 0.1" + HOOK.format(layer=2), (1, 0)),
    ],
    ids=["hook1", "hook2", "hook3", "embeddings", "embeddings_hook", "weight", "module", "forward", "attribute"],
)
def test_the_first_changed_layer_is_found(build, mine, body, expected):
    assert first_layer(build(mine(method(body)))) == expected


@pytest.mark.parametrize("own", METHODS, ids=lambda own: own.name)
def test_the_benchmarks_own_methods_follow_the_rules(tiny_settings, tiny_data, own):
    """Their first changed layer is that of the run, caches agree, and training changes nothing that is frozen."""
    config = own.configure(tiny_settings(num_epochs=1, learning_rate=0.01))
    model = RETRIEVERS[own.retriever](config, own)
    assert first_layer(model) == ((3, 2) if own.trained else (None, 2))
    if own.trained:
        tokens = model.source(random_texts(8), "document").batch(range(8))
        assert cache_disagreement(model, tokens, tokens, config) < 1e-5
        before, trained = frozen_hashes(model.encoder), model.trained_state()
        train_retriever(model, tiny_data, tiny_data, config, "cpu")
        assert frozen_hashes(model.encoder) == before
        assert any((trained[name] != each).any() for name, each in model.trained_state().items())


def test_a_patched_class_is_found_by_its_effect(build, mine, caplog, monkeypatch):
    from transformers.models.bert.modeling_bert import BertIntermediate

    monkeypatch.setattr(BertIntermediate, "forward", BertIntermediate.forward)  # puts it back at the end
    body = "from transformers.models.bert.modeling_bert import BertIntermediate as B\nold = B.forward\n"
    body += "B.forward = lambda self, hidden: old(self, hidden) * 1.01" + HOOK.format(layer=2)
    assert first_layer(build(mine(method(body)))) == (3, 0)
    assert "not visibly change" in caplog.text


DRIFT = """
low = context.architecture.layers(backbone)[0].output
layer = context.architecture.layers(backbone)[2]
layer.factor = nn.Parameter(torch.ones(()))

def drift(layer, inputs, output):
    if layer.training:
        {what}
    return output * layer.factor

layer.register_forward_hook(drift)
return [layer.factor]
"""


def test_an_edited_frozen_parameter_is_refused(mine, train, caplog):
    reference = mine(method(DRIFT.format(what="low.dense.weight.data.mul_(1.5)")))
    with pytest.raises(ModelError, match=r"mine.py:6: own: .*layer.0.output.dense.weight is not trained, but"):
        train(reference)
    assert "nothing is stored for it" in caplog.text, "after one step the stored activations were another model's"


def test_a_lower_layer_that_drifts_is_not_stored(mine, train, caplog):
    """The output of layer 1 changes in training, by a number that is no parameter: only the comparison finds it."""
    model = train(mine(method(DRIFT.format(what="low.LayerNorm.eps = 0.5"))))
    assert model.encoder.prefix_layers == 0 and "nothing is stored for it" in caplog.text
    assert model.encoder.pretrained_layers == 0
    caplog.clear()
    model = train(mine(method(HOOK.format(layer=2)), "good.py"))
    assert model.encoder.prefix_layers == 2 and "stored" not in caplog.text


def test_a_hook_on_layer_one_trains_as_without_stored_activations(mine, build, train, tiny_data):
    reference = mine(method(HOOK.format(layer=0)))
    plain = build(reference, num_epochs=1, learning_rate=load_method(reference).learning_rate)
    train_retriever(plain, tiny_data, tiny_data, plain.config, "cpu")
    (stored,), (without,) = (model.trained_state().values() for model in (train(reference), plain))
    assert stored == without != 1


# ----------------------------------------------------------------------------------------------------- one line each


@pytest.mark.parametrize(
    ("code", "line", "words"),
    [
        ("import nothing_like_this\n" + SCALE, 1, "No module named 'nothing_like_this'"),
        (HEAD + "class Own(maw.Method)\n    pass\n", 6, "SyntaxError"),
        (HEAD + "1 / 0\nclass Own(maw.Method):\n    pass\n", 6, "ZeroDivisionError"),
        (HEAD + "class Own:\n    pass\n", 6, "must be a class that inherits from maw.Method"),
        (method("pass", OWN.replace("own", "lora")), 6, "'lora' is taken"),
        (method("pass", OWN.replace("own", "a_vs_b")), 6, "name must be"),
        (method("pass", 'name, label = "own", "Own"'), 6, "needs a learning_rate"),
        (method("pass", OWN.replace("0.01", "3")), 6, "above 0 and at most 1, got 3"),
        (method("pass", OWN + '\n    rates = {"gate": -1}'), 6, "gate must be"),
        (method("pass", OWN + '\n    tuned = ["gate"]'), 6, "no learning rate"),
        (HEAD + f"class Own(maw.Method):\n    {OWN}\n", 6, "must define adapt"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(mine, code, line, words):
    reference = mine(code)
    (problem,) = load_methods([reference])
    assert problem.startswith(f"{reference.rpartition(':')[0]}:{line}: ")
    assert words in problem and "\n" not in problem


def test_two_methods_of_one_name_a_missing_class_and_a_missing_file(mine):
    first, second = mine(method("pass"), "a.py"), mine(method("pass"), "b.py")
    (problem,) = load_methods([first, second])
    assert "b.py:6: the name 'own' is taken by" in problem and "a.py" in problem
    assert "no class 'Owm' (did you mean Own?)" in load_methods([f"{first[:-3]}Owm"])[0]
    assert "cannot be read: No such file" in load_methods(["/nowhere/at/all.py:Own"])[0]


@pytest.mark.parametrize(
    ("body", "line", "words"),
    [
        ("return []", 6, "leaves nothing to train"),
        ("1 / 0", 10, "ZeroDivisionError"),
        ("return [nn.Parameter(torch.ones(1))]", 6, "parameters that are not in the encoder"),
        ("return {'speed': context.layers[3].parameters()}", 6, "names the rate 'speed'"),
        ("backbone.register_forward_hook(lambda *_: None)" + HOOK.format(layer=2), 6, "so this has no effect"),
        (
            "layer = context.layers[3]\nlayer.own = nn.Linear(5, 5)\n"
            "layer.register_forward_hook(lambda layer, inputs, output: layer.own(output))\nreturn [layer.own.weight]",
            12,
            "RuntimeError",
        ),
        (
            "context.layers[3].attention.self.query = nn.Linear(16, 7)\nreturn context.layers[3].parameters()",
            6,
            "RuntimeError",
        ),
        (HOOK.format(layer=2).replace("ones(())", "tensor(float('nan'))"), 6, "NaN or infinite embeddings"),
        (
            "layer = context.layers[3]\nlayer.own = nn.Parameter(torch.ones(3))\nreturn [layer.own]",
            6,
            "no output depends",
        ),
        (
            HOOK.format(layer=2).replace("output * layer.factor", "output + 0 * layer.factor.sub(1).abs().sqrt()"),
            6,
            "the gradient of",
        ),
    ],
    ids=["nothing", "error", "outside", "rate", "unused", "shape", "map", "nan", "unused_parameter", "nan_gradient"],
)
def test_a_mistake_of_adapt_is_one_line(build, mine, body, line, words):
    reference = mine(method(body))
    with pytest.raises(ModelError) as caught:
        check_method(load_method(reference), lambda: build(reference))
    place = f"{reference.rpartition(':')[0]}:{line}: own: "
    assert str(caught.value).startswith(place) and words in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_tells_a_mistake_before_it_trains(mine, tiny_settings, tiny_beir):
    reference = mine(method("return []"))
    config = tiny_settings(methods=["zero_shot", reference], datasets=[f"beir:{tiny_beir}"])
    with pytest.raises(ModelError, match="leaves nothing to train"):
        run_complete_benchmark(config)
    assert not list(Path(config.log_dir).glob("*/*_metrics.json"))


def test_what_cannot_be_merged_is_not_exported(build, mine, tmp_path):
    with pytest.raises(ModelError, match=r"mine.py:6: own: is not exported: it adds modules or hooks.*no merge"):
        export_retriever(build(mine(method(HOOK.format(layer=2)))), tmp_path / "out")
    wrong = mine(SCALE.replace("weight.data *= factor", "weight.data *= 2 * factor"), "wrong.py")
    with pytest.raises(ModelError, match=r"wrong.py:7: scale: is not exported: after merge the output differs by"):
        export_retriever(build(wrong), tmp_path / "out")
    whole = build(mine(method("return context.layers[3].parameters()"), "whole.py"))
    assert (export_retriever(whole, tmp_path / "out") / "model.safetensors").exists()


# -------------------------------------------------------------------------------------------------- other ways to name


class Half(maw.Method):
    """The output of the last layer, halved: nothing is trained."""

    name, label, trained = "half", "Half", False

    def adapt(self, backbone, context):
        context.layers[3].register_forward_hook(lambda layer, inputs, output: output / 2)
        return []


def test_a_class_from_python(tiny_settings):
    config = tiny_settings(methods=["zero_shot", Half])
    assert config.methods == ["zero_shot", f"{Path(__file__).absolute()}:Half"]
    assert [each.label for each in in_order(config.methods)] == ["Zero-shot", "Half"]
    assert Tier1Config.from_dict(json.loads(json.dumps(config.to_dict()))).methods == config.methods

    class Local(Half):
        name = "local"

    (reference,) = tiny_settings(methods=[Local]).methods
    assert reference == "python:Local" and load_methods([reference]) == []
    assert find_method("local").description == "Half" and find_method("local").key == "local_retriever"
    assert "was defined in Python and is not known here" in load_methods(["python:Gone"])[0]
    with pytest.raises(ConfigError, match="must be a class that inherits from maw"):
        tiny_settings(methods=[dict])


def test_a_method_of_an_installed_package(tiny_settings, tmp_path, monkeypatch):
    (tmp_path / "bottle.py").write_text(method(HOOK.format(layer=2), OWN.replace("own", "bottle")))
    about = tmp_path / "maw_bottle-1.5.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: maw-bottle\nVersion: 1.5\n")
    (about / "entry_points.txt").write_text("[maw.methods]\nbottle = bottle:Own\nbroken = bottle:Gone\n")
    monkeypatch.syspath_prepend(tmp_path)
    (reference,) = tiny_settings(methods=["bottle"]).methods
    assert reference == "installed:bottle" and load_methods([reference]) == []
    assert find_method("bottle").origin.digest == "1.5" and find_method("bottle") is find_method(reference)
    assert code_of([reference]) == {"maw-bottle": "1.5"}
    (problem,) = load_methods(["installed:broken"])
    assert problem.startswith("maw-bottle 1.5, entry point broken = bottle:Gone: AttributeError")
    with pytest.raises(ConfigError, match="'bottel'"):
        tiny_settings(methods=["bottel"])


def test_reading_a_configuration_executes_nothing(mine, tmp_path):
    marker = tmp_path / "executed"
    reference = mine(f"open({str(marker)!r}, 'w').close()\n" + SCALE)
    config = Tier1Config(methods=["zero_shot", reference])
    assert Tier1Config.from_dict(config.to_dict()).methods == config.methods
    assert code_of(config.methods) and not marker.exists()
    load_methods(config.methods)
    assert marker.exists()


@pytest.mark.parametrize(
    ("compare", "words"),
    [
        ("mow", "'mow' is no method of this run"),
        ("maw:lora,full", "'full' is no method"),
        ("lora:lora", "its own control"),
        ("lora", None),
        ("maw:zero_shot,lora", None),
    ],
)
def test_a_claim_is_checked(tiny_settings, compare, words):
    config = tiny_settings(methods=["zero_shot", "lora", "maw"], compare=compare)
    problems = [str(each) for each in find_problems(config, [])[0]]
    assert [words in problem for problem in problems] == [True] if words else not problems


def test_the_default_claim_and_that_of_another_subject(tiny_settings):
    every = tiny_settings(methods=["all"])
    assert claim(every) == {"subject": "maw", "controls": ["lora", "lora_matched", "full", "full_lowrank"]}
    assert claim(tiny_settings(methods=["zero_shot", "lora"])) is None
    config = tiny_settings(methods=["zero_shot", "lora", "full", "maw"], compare="full")
    assert claim(config) == {"subject": "full", "controls": ["lora", "maw"]}
    keys = [confirmatory.key_of(*pair) for pair in confirmatory.pairs(config)]
    assert keys == ["full_vs_lora", "maw_vs_full"], "the later method in the order comes first"
