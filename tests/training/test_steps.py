"""The overhead of a step: Python time that does not grow with the batch, and one wait for the device."""

from __future__ import annotations

import math
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import maw
from maw.data.from_dicts import as_retrieval_data
from maw.encoding.activation_cache import ActivationStore
from maw.errors import NotFiniteError
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.training.router.grpo import GRPOLearner
from maw.training.router.supervised import SupervisedLearner
from maw.training.trainer import Trainer
from training.test_grpo_step import setting

PACKAGE = str(Path(maw.__file__).parent)
ARMS = {
    "lora": (BaselineRetriever, {"use_lora": True}),
    "maw": (MAWRetriever, {"maw_layers": [2, 3], "route_by": "token"}),
    "maw_all": (MAWRetriever, {"grpo_group": "all", "encoder_update": "mcl_sampled", "grpo_reference": "slow"}),
    "maw_distinct": (MAWRetriever, {"grpo_group": "distinct"}),
    "maw_supervised": (MAWRetriever, {"router": "supervised"}),
    "accumulated": (MAWRetriever, {"gradient_accumulation_steps": 3, "bank_batches": 1, "num_negatives": 1}),
}
LOOKS = ("_local_scalar_dense", "nonzero", "masked_select")  # what float(), bool() and masks come to


def prepared(tiny_settings, tiny_data, monkeypatch, store, arm, size):
    """A trainer that computes as on a GPU, batches whole, with its texts stored and two batches behind it."""
    monkeypatch.setattr("maw.training.trainer.LengthChunks", lambda engine: engine)
    monkeypatch.setattr("maw.attention.architectures._may_look", lambda values: False)
    kind, changes = ARMS[arm]
    config = tiny_settings(**({"batch_size": size, "num_negatives": 0} | changes))
    data = as_retrieval_data(tiny_data, "train")
    trainer = Trainer(kind(config), data, config, torch.device("cpu"), "tiny", store)
    batches = list(trainer.pairs.batches(1, size))
    for batch in batches[:2]:
        trainer._run_batch(batch, len(batches))
    trainer.done = 0
    return trainer, batches[0], len(batches)


def instructions_of(run):
    """How many instructions of Python's own the package's code takes, by line."""
    found: Counter[str] = Counter()

    def note(frame, event, _):
        if event == "opcode":
            found[f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"] += 1
        return note

    def enter(frame, event, _):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        return note

    sys.settrace(enter)
    try:
        run()
    finally:
        sys.settrace(None)
    return found


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="Python 3.12 tells a tracer of no instruction")
@pytest.mark.parametrize("arm", ["lora", "maw", "maw_supervised"])
def test_no_loop_goes_over_a_batch(tiny_settings, tiny_data, monkeypatch, tmp_path, arm):
    found = []
    for size in (4, 12):
        with ActivationStore(tmp_path / str(size), 1.0) as store:
            trainer, batch, count = prepared(tiny_settings, tiny_data, monkeypatch, store, arm, size)
            found.append(instructions_of(partial(trainer._run_batch, batch, count)))
    assert sum(found[0].values()) > 1000
    assert found[1] - found[0] == Counter()


class Looks(TorchDispatchMode):
    """Counts what would make the host wait for a GPU, by the line of the package that asks for it."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.found: Counter[str] = Counter()
        for name in ("cpu", "tolist"):
            monkeypatch.setattr(torch.Tensor, name, self._watched(name, getattr(torch.Tensor, name)))

    def _watched(self, name, real):
        def call(values, *words, **options):
            self.note(name)
            return real(values, *words, **options)

        return call

    def note(self, name):
        frame = sys._getframe(2)
        while frame.f_code.co_filename == __file__:
            frame = frame.f_back
        if frame.f_code.co_filename.startswith(PACKAGE):
            self.found[f"{Path(frame.f_code.co_filename).name} {name}"] += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name.removeprefix("aten::") in LOOKS:
            self.note(function._schema.name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("model_type", "arm"), [*(("bert", arm) for arm in ARMS), ("modernbert", "maw")])
def test_a_step_looks_at_the_device_once(tiny_settings, tiny_data, monkeypatch, tmp_path, arm, model_type):
    settings = lambda **changes: tiny_settings(model_type, **changes)
    with ActivationStore(tmp_path, 1.0) as store:
        trainer, _, _ = prepared(settings, tiny_data, monkeypatch, store, arm, 4)
        batches = list(trainer.pairs.batches(1, 4))
        inputs = {id(b): [s.batch(r) for s, r in zip(trainer.sources, trainer.pairs.source_rows(b))] for b in batches}
        current = []
        monkeypatch.setattr("maw.training.sharded_batch.read_batch", lambda *words: current[0].pop(0))
        with Looks(monkeypatch) as looks:
            for batch in batches:
                current[:] = [inputs[id(batch)]]
                trainer._run_batch(batch, len(batches))
    updates = math.ceil(len(batches) / trainer.config.gradient_accumulation_steps)
    assert looks.found == Counter({"trainer.py cpu": updates})


def rewarded(monkeypatch, value):
    """Plants a reward that is not finite in the next step."""
    real = maw.evaluation.reward.task_reward

    def reward(*words):
        found = real(*words).clone()
        found[0, 0] = value
        return found

    monkeypatch.setattr("maw.training.router.rollout.task_reward", reward)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("kind", [GRPOLearner, SupervisedLearner])
def test_what_is_not_finite_stays_known_and_changes_no_router(tiny_settings, monkeypatch, kind, value):
    router = "grpo" if kind is GRPOLearner else "supervised"
    model, config, queries, passages, batch = setting(tiny_settings, router=router)
    learner = kind(model.encoder, model.encoder, config, 0.3)
    learner.step(queries, passages, batch, step=0)
    before = [each.detach().clone() for each in learner.routers.parameters()]
    learner.check(learner.watched.tolist())
    with monkeypatch.context() as patch:
        rewarded(patch, value)
        learner.step(queries, passages, batch, step=1)
    learner.step(queries, passages, batch, step=2)  # the gradients of several batches may be gathered
    assert all(torch.equal(each, old) for each, old in zip(learner.routers.parameters(), before))
    with pytest.raises(NotFiniteError, match=r"reward (nan|inf) is not finite; the routers were not changed"):
        learner.check(learner.watched.tolist())
    with pytest.raises(NotFiniteError):
        learner.state_dict()


def test_gathered_gradients_with_a_fault_in_one_batch_are_refused(tiny_settings, tiny_data, monkeypatch):
    config = tiny_settings(gradient_accumulation_steps=2, num_negatives=0)
    model = MAWRetriever(config)
    data = as_retrieval_data(tiny_data, "train")
    trainer = Trainer(model, data, config, torch.device("cpu"), "tiny", None)
    batches = list(trainer.pairs.batches(1, 4))[:4]
    before = {name: each.detach().clone() for name, each in model.encoder.named_parameters()}
    with monkeypatch.context() as patch:
        rewarded(patch, math.inf)
        trainer._run_batch(batches[0], 4)
    with pytest.raises(NotFiniteError, match=r"tiny: step 1: router loss .* largest reward inf is not finite"):
        trainer._run_batch(batches[1], 4)
    assert all(torch.equal(each, before[name]) for name, each in model.encoder.named_parameters())
