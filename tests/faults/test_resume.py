"""Rows 1 and 4: a run that was killed anywhere, or stopped after any step, resumes to the identical result."""

from __future__ import annotations

import copy
import random
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from faults.runs import beir_folder, outcome, stray_files
from maw.config.method_files import load_method
from maw.config.methods import find_method
from maw.data.from_dicts import as_retrieval_data
from maw.encoding.activation_cache import ActivationStore
from maw.experiment import method_trainer
from maw.experiment.method_trainer import MethodTrainer
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.runtime import energy
from maw.training.state import Saved
from maw.training.train import train_retriever
from maw.training.trainer import Trainer

# ------------------------------------------------------------------------------------------------ whole runs, killed


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    return beir_folder(tmp_path_factory.mktemp("data") / "tiny")


KINDS = {
    "plain": ["--grpo-reference", "slow", "--bank-batches", 2],
    "tuned": ["--tune", 2, "--seeds", 2, "--methods", "maw,peft:pissa", "--router-start", "clusters"],
    "folds": ["--folds=3", "--methods=zero_shot,maw,peft:dora", "--maw-layers=2,3", "--gradient-accumulation-steps=2"],
}
"""What an interruption must not change: learners, banks, searches, seeds, folds, base weights that PEFT computes."""


@pytest.fixture(scope="module")
def flags(beir, models, tmp_path_factory):
    """`flags(log_dir, "tuned")` is the command line of a run of a second or two that saves at nearly every step."""
    cache = tmp_path_factory.mktemp("cache")

    def make(log_dir: Path, kind: str) -> list:
        small = ["--num-epochs", 2, "--batch-size", 4, "--depth-dim", 4, "--grpo-group-size", 3, "--permutations", 50]
        where = ["--device", "cpu", "--log-dir", log_dir, "--cache-dir", cache, "--embedding-cache-gb", 0]
        data = ["--datasets", f"beir:{beir}", "--model", models("bert"), "--top-k", 20, "--precision", "float32"]
        return [*data, *small, *where, "--learning-rate" if kind != "tuned" else "--router-learning-rate", 0.01,
                "--save-every", 1e-9, *KINDS[kind]]  # fmt: skip

    return make


@pytest.fixture(scope="module")
def whole(server, flags, tmp_path_factory):
    """`whole("tuned")` is how an uninterrupted run of that kind ended, and its outcome; it is made once."""
    found = {}

    def make(kind: str) -> tuple:
        if kind not in found:
            folder = tmp_path_factory.mktemp("whole") / "run"
            done = server.run(flags(folder, kind))
            assert done.code == 0, done.output
            assert not stray_files(folder)
            found[kind] = done, outcome(folder)
        return found[kind]

    return make


def test_two_uninterrupted_runs_are_the_same(server, flags, whole, tmp_path):
    """What all else rests on; and the comparison sees a run that is not the same."""
    assert server.run(flags(tmp_path / "again", "plain")).code == 0
    assert outcome(tmp_path / "again") == whole("plain")[1]
    assert server.run([*flags(tmp_path / "other", "plain"), "--seed", 43]).code == 0
    assert outcome(tmp_path / "other") != whole("plain")[1]


def test_killed_anywhere_and_resumed(server, flags, whole, tmp_path, repeats, trial):
    """Half of the kills strike after a random time, half at a random boundary, every other one inside a save."""
    count, in_saves = repeats(2, 50), 0
    for seed in range(count):
        source, kind = random.Random(seed), list(KINDS)[seed % len(KINDS)]
        with trial(1, f"SIGKILL and --resume, {kind}", seed):
            (run, expected), folder = whole(kind), tmp_path / f"run{seed}"
            how = (
                {"signals": [[source.uniform(0.05, 0.95) * run.seconds, signal.SIGKILL]]},
                {"save_boundary": source.randint(1, run.in_saves)},
                {"boundary": source.randint(1, run.boundaries)},
                {"save_boundary": source.randint(1, run.in_saves)},
            )[seed % 4]
            done = server.run(flags(folder, kind), **how)
            in_saves += done.code == -signal.SIGKILL and done.in_save
            if done.code != 0:
                assert done.code == -signal.SIGKILL, done.output
                again = flags(folder, kind) if not (folder / "state" / "run.json").exists() else ["--resume", folder]
                done = server.run(again)
            assert done.code == 0, done.output
            assert outcome(folder) == expected
            assert not stray_files(folder)
    assert in_saves >= (10 if count == 50 else 1)


INSIDE = [
    pytest.param("tuned", "peft_pissa", signal.SIGKILL, -9, id="SIGKILL"),
    pytest.param("folds", "peft_dora", signal.SIGTERM, 143, id="SIGTERM", marks=pytest.mark.faults),  # 6 s of a run
]


@pytest.mark.parametrize(("kind", "method", "number", "code"), INSIDE)
def test_stopped_inside_a_training_of_peft_and_resumed(server, flags, whole, tmp_path, kind, method, number, code):
    """A checkpoint holds only what is trained; the weights below it are computed again where the run goes on."""
    folder, expected = tmp_path / "run", whole(kind)[1]
    begun = [str(folder), f"checkpoints/*_{method}_*_latest"]  # a checkpoint inside its first training
    done = server.run(flags(folder, kind), signals=[[0.01, number]], await_file=begun)
    assert done.code == code, done.output
    assert server.run(["--resume", folder]).code == 0
    assert outcome(folder) == expected


@pytest.mark.faults
def test_killed_again_and_again(server, flags, whole, tmp_path, repeats, trial):
    """Interruptions of what goes on after interruptions."""
    for seed in range(repeats(3, 6)):
        source, kind = random.Random(100 + seed), list(KINDS)[seed % len(KINDS)]
        with trial(1, f"SIGKILL up to four times and --resume last, {kind}", seed):
            (run, expected), folder = whole(kind), tmp_path / f"run{seed}" / "run"
            for chance in (3, 3, 3, 3, 0):
                begun = (folder / "state" / "run.json").exists()
                command = ["--resume", "last", "--log-dir", folder.parent] if begun else flags(folder, kind)
                done = server.run(command, boundary=source.randint(1, run.boundaries // chance) if chance else 0)
                if done.code == 0:
                    break
            assert done.code == 0, done.output
            assert outcome(folder) == expected


# ----------------------------------------------------------------------------------------------- one training, stopped


def of_peft(name):
    """What builds the retriever of a method of PEFT from a configuration."""
    method = load_method(f"peft:{name}")
    return lambda config: BaselineRetriever(method.configure(config), method)


ARMS = {
    "lora": (BaselineRetriever, {"use_lora": True, "gradient_accumulation_steps": 2}),
    "maw": (MAWRetriever, {"grpo_reference": "slow", "bank_batches": 2, "diagnostics": "all"}),
    "mcl": (MAWRetriever, {"encoder_update": "mcl", "mcl_start_temperature": 5.0, "gradient_accumulation_steps": 3}),
    "supervised": (MAWRetriever, {"router": "supervised", "route_by": "head"}),
    "soft": (MAWRetriever, {"router": "soft", "maw_layers": [2, 3], "checkpoint_compression": False}),
    "random": (MAWRetriever, {"router": "random", "patience": 1, "num_epochs": 4}),
    "peft_dora": (of_peft("dora"), {"gradient_accumulation_steps": 2}),
    "peft_pissa": (of_peft("pissa"), {}),
}


SMALL = {"batch_size": 7, "num_epochs": 2, "learning_rate": 0.01}


class StoppedError(Exception):
    """Where the training was stopped."""


class Memory:
    """Keeps every state of a training; stops it after the `stop`th, and has the one to go on from."""

    def __init__(self, stop: int | None = None, saved: Saved | None = None):
        self.stop, self.saved, self.states = stop, saved, []

    def load(self):
        return self.saved

    def due(self):
        return True

    def save(self, model, saved, **_):
        self.states.append(Saved(saved.weights, copy.deepcopy(saved.state)))  # optimizers go on with the same tensors
        if len(self.states) == self.stop:
            raise StoppedError


@pytest.fixture
def training(tiny_settings, tiny_data, tmp_path):
    """`training("lora", writer)` trains an arm anew and gives all that came of it."""

    def train(arm, writer, noise=0):
        retriever, options = ARMS[arm]
        config = tiny_settings(**(SMALL | options))
        torch.manual_seed(noise)  # what ran before in the process must not matter
        model = retriever(config)
        with ActivationStore(tmp_path / "activations", 1) as store:
            history = train_retriever(model, tiny_data, tiny_data, config, "cpu", activations=store, writer=writer)
        records = [{key: value for key, value in each.items() if key != "seconds"} for each in history]
        return model.trained_state(), records, history.validation.per_query

    return train


@pytest.fixture
def uninterrupted(training):
    """`uninterrupted("lora")` is what comes of an arm that is never stopped, and its states after each step."""

    def train(arm):
        if arm not in _uninterrupted:
            writer = Memory()
            _uninterrupted[arm] = training(arm, writer), writer.states
        return _uninterrupted[arm]

    return train


_uninterrupted: dict = {}


def through_files(saved, folder):
    """A state written to disk and read back."""
    from maw.storage.checksummed_tensors import read_bundle, read_tensors, write_bundle
    from maw.training.state import joined, separated

    facts, tensors = separated(saved.state)
    write_bundle(folder, {"facts": facts}, {"weights": saved.weights, "training": tensors})
    record = read_bundle(folder)
    state = joined(record["facts"], read_tensors(folder, record, "training"))
    return Saved(read_tensors(folder, record, "weights"), state)


def same(first, second):
    """Whether two trainings ended alike: weights to the last bit, records but for times, values of every query."""
    weights, values = (first[0], second[0]), (first[2], second[2])
    return (
        all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] | weights[1])
        and first[1] == second[1]
        and all((values[0][name] == values[1][name]).all() for name in values[0])
    )


@pytest.mark.parametrize("arm", sorted(ARMS))
def test_a_training_goes_on_after_any_step(training, uninterrupted, tmp_path, arm, repeats, trial):
    """All steps in the full count; in the suite, the first and one inside the second epoch."""
    expected, states = uninterrupted(arm)
    assert len(states) >= 10
    for number in range(1, len(states) + 1) if repeats(0, 1) else (1, len(states) // 2 + 2):
        with trial(4, f"resume after a step, {arm}", number):
            stopped = Memory(stop=number)
            with pytest.raises(StoppedError):
                training(arm, stopped, noise=1)
            resumed = Memory(saved=through_files(stopped.states[-1], tmp_path / "saved"))
            assert same(training(arm, resumed, noise=2), expected)


def test_a_training_that_goes_on_counts_the_time_that_it_took_before(tiny_settings, tiny_data):
    """In the record of its arm too, so that what it cost is not only what the last process did."""
    collection = SimpleNamespace(train=as_retrieval_data(tiny_data, "train"), name="tiny")
    collection.validation = collection.test = collection.train
    config = tiny_settings(**SMALL, methods=["lora"])
    stopped = Memory(stop=2)
    with pytest.raises(StoppedError):
        MethodTrainer(find_method("lora"), config, torch.device("cpu")).run(collection, 42, writer=stopped)
    saved = stopped.states[-1]
    assert 0 < saved.state["seconds"] < 500
    resumed = Memory(saved=Saved(saved.weights, saved.state | {"seconds": 1000.0}))
    run = MethodTrainer(find_method("lora"), config, torch.device("cpu")).run(collection, 42, writer=resumed)
    assert 1000 < run.record["training_seconds"] < run.record["runtime_seconds"] < 1500
    assert min(each.state["seconds"] for each in resumed.states) > 1000, "and when it is interrupted again"


@pytest.mark.parametrize(
    "before, training, devices",
    [({"processors": 1000.0}, 1005.0, ["processors"]), ({}, None, []), (None, None, [])],
    ids=["measured", "not measured", "saved by an earlier version"],
)
def test_a_training_that_goes_on_counts_the_energy_that_it_took_before(
    before, training, devices, tiny_settings, tiny_data, monkeypatch
):
    """Or none, where the process before could not measure it."""
    collection = SimpleNamespace(train=as_retrieval_data(tiny_data, "train"), name="tiny")
    collection.validation = collection.test = collection.train
    config = tiny_settings(**SMALL, methods=["lora"])
    amounts = {"microjoules": 0}
    counters = lambda gpus: {"processors": [energy._Counter(lambda: amounts["microjoules"])], "GPUs": []}
    monkeypatch.setattr(energy, "_find_counters", counters)
    stopped = Memory(stop=2)
    with pytest.raises(StoppedError):
        MethodTrainer(find_method("lora"), config, torch.device("cpu")).run(collection, 42, writer=stopped)
    saved = stopped.states[-1]
    assert saved.state.pop("joules") == {"processors": 0.0}
    resumed = Memory(saved=Saved(saved.weights, saved.state | ({} if before is None else {"joules": before})))
    evaluate = method_trainer.evaluate_retriever

    def evaluated(*arguments, **options):
        amounts["microjoules"] += 2_000_000
        return evaluate(*arguments, **options)

    def trained(*arguments, **options):
        amounts["microjoules"] += 5_000_000
        return train_retriever(*arguments, **options)

    monkeypatch.setattr(method_trainer, "evaluate_retriever", evaluated)
    monkeypatch.setattr(method_trainer, "train_retriever", trained)
    record = (
        MethodTrainer(find_method("lora"), config, torch.device("cpu"))
        .run(collection, 42, writer=resumed)
        .record["energy"]
    )
    evaluation = 2.0 if devices else None
    whole = training + evaluation if devices else None
    assert record == {
        "training_joules": training,
        "evaluation_joules": evaluation,
        "measured_joules": whole,
        "measured_devices": devices,
    }
    now = {"processors": 1005.0} if devices else {}
    assert [each.state["joules"] for each in resumed.states] == [now] * len(resumed.states), "to be taken up once more"


def without(saved, path, fresh):
    """A state in which one part is as it is in a training that has not begun."""

    def replaced(value, keys, new):
        return value | {keys[0]: replaced(value[keys[0]], keys[1:], new[keys[0]])} if keys else new

    return Saved(saved.weights, saved.state | {"trainer": replaced(saved.state["trainer"], path.split("."), fresh)})


PLANTED = [
    ("lora", "optimizer"),
    ("lora", "random"),
    ("lora", "gradients"),
    ("lora", "schedule"),
    ("maw", "objective.bank"),
    ("maw", "objective.learner.reference"),
    ("maw", "objective.learner.optimizer"),
    ("supervised", "objective.learner.optimizer"),
]


@pytest.mark.parametrize(("arm", "part"), PLANTED)
def test_a_state_without_one_of_its_parts_is_noticed(training, uninterrupted, tiny_settings, tiny_data, arm, part):
    """Planted: what is left out of the state must change the result, or the tests above show nothing."""
    expected, states = uninterrupted(arm)
    retriever, options = ARMS[arm]
    config = tiny_settings(**(SMALL | options))
    data = as_retrieval_data(tiny_data, "train")
    fresh = Trainer(retriever(config), data, config, torch.device("cpu"), "fresh", None).state_dict()
    saved = states[2]  # inside the first epoch; where batches are accumulated, with gradients half gathered
    parts = saved.state["trainer"]["objective"]["bank"]["parts"]
    fresh["objective"]["bank"] = {"parts": [torch.zeros_like(each) for each in parts]}  # an empty one is an error
    assert not same(training(arm, Memory(saved=without(saved, part, fresh))), expected)
