"""Row 11: NaN and infinity in losses, gradients, rewards and embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

import maw.training.router.grpo as grpo
import maw.training.router.learner as router_learner
import maw.training.router.rollout as rollout
import maw.training.router.supervised as supervised
import maw.training.trainer as training
from faults.tools import Watched
from maw.errors import NotFiniteError
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.training.checkpoint import save_checkpoint
from maw.training.train import train_retriever

METHODS = {
    "lora": (BaselineRetriever, {"use_lora": True}),
    "maw": (MAWRetriever, {}),
    "maw_soft": (MAWRetriever, {"router": "soft"}),
    "maw_supervised": (MAWRetriever, {"router": "supervised"}),
    "maw_all": (MAWRetriever, {"grpo_group": "all"}),
    "maw_distinct": (MAWRetriever, {"grpo_group": "distinct"}),
}
REWARDED = ("maw", "maw_supervised", "maw_all", "maw_distinct")
VALUES = {"NaN": math.nan, "infinity": math.inf, "minus infinity": -math.inf}
STEPS_AN_EPOCH = 3  # 24 queries by 8


class Planted:
    """A training in which one number of one step is not finite, and what the model was before that step."""

    def __init__(self, model, step: int):
        self.model, self.step = model, step
        self.now = -1
        self.before: dict[str, torch.Tensor] = {}

    @property
    def due(self) -> bool:
        return self.now == self.step

    def objective(self, real, kind: str, value: float):
        """An objective that counts steps, and spoils the loss if that is wanted."""

        def call(queries, passages, batch, step):
            self.now = step
            if self.due:
                self.before = {name: each.detach().clone() for name, each in self.model.encoder.named_parameters()}
            loss, statistics = real(queries, passages, batch, step)
            return (loss * value if kind == "loss" and self.due else loss), statistics

        return Watched(real, call)

    def gradient(self, value: float) -> None:
        parameter = next(each for each in self.model.parameters() if each.requires_grad)
        parameter.register_hook(lambda grad: grad * value if self.due else grad)

    def embedding(self, value: float) -> None:
        real = self.model.encoder._pool

        def pool(hidden, padding):
            found = real(hidden, padding)
            return torch.cat((found[:1] * value, found[1:])) if self.due else found

        self.model.encoder._pool = pool

    def reward(self, value: float, monkeypatch) -> None:
        real = rollout.task_reward

        def reward(*words):
            found = real(*words).clone()
            if self.due:
                found[0, 0] = value
            return found

        monkeypatch.setattr(rollout, "task_reward", reward)


def stops_before_the_update(make, data, folder, monkeypatch, kind: str, value: float, method: str, step: int) -> None:
    """Plants the number and trains: an error that names all, weights as before the step, a finite checkpoint."""
    retriever, options = METHODS[method]
    config = make(num_epochs=4, patience=0, kernel_init_std=0.3, **options)
    model = retriever(config)
    planted = Planted(model, step)
    with monkeypatch.context() as patch:
        build = training.build_objective
        patch.setattr(training, "build_objective", lambda *words: planted.objective(build(*words), kind, value))
        if kind == "reward":
            planted.reward(value, patch)
        elif kind != "loss":
            getattr(planted, kind)(value)

        def keep(record, improved):
            save_checkpoint(
                folder / "latest", model, dataset="tiny", method=method, epoch=record["epoch"],
                best_val_metric=0.0, training_history=[],
            )  # fmt: skip

        try:
            train_retriever(model, data, data, config, "cpu", "tiny", method, on_epoch=keep)
        except NotFiniteError as error:
            text = str(error)
        else:
            raise AssertionError("the training went on")
    assert text.startswith(f"tiny {method}: step {step}: ") and "not finite" in text and "\n" not in text, text
    for name, weights in model.encoder.named_parameters():
        if kind == "reward" or "router" not in name:
            assert torch.equal(weights, planted.before[name]), f"{name} was changed"
        assert weights.isfinite().all(), f"{name} is not finite"
    saved = list((folder / "latest").glob("*.safetensors"))
    assert bool(saved) == (step >= STEPS_AN_EPOCH)
    assert all(each.isfinite().all() for path in saved for each in load_file(path).values())


CASES = [
    (kind, method)
    for kind, methods in {
        "loss": ("lora", "maw", "maw_soft"),
        "gradient": ("lora", "maw", "maw_soft"),
        "reward": REWARDED,
        "embedding": ("lora", "maw", "maw_soft"),
    }.items()
    for method in methods
]


@pytest.mark.parametrize(("kind", "method"), CASES)
@pytest.mark.parametrize("value", VALUES)
def test_a_number_that_is_not_finite_stops_the_training(
    tiny_settings, tiny_data, tmp_path, monkeypatch, request, trial, kind, method, value
):
    full = request.config.getoption("--faults-full")
    if not full and value != ("NaN" if kind != "reward" else "minus infinity"):
        pytest.skip("in full only")
    for step in (0, 4, 7) if full else (4,):
        with trial(11, f"{kind}, {method}", f"{value} at step {step}"):
            folder = tmp_path / f"{step}"
            stops_before_the_update(tiny_settings, tiny_data, folder, monkeypatch, kind, VALUES[value], method, step)


@pytest.mark.parametrize("kind", ["loss", "reward"])
def test_control_a_training_that_does_not_look_is_noticed(tiny_settings, tiny_data, tmp_path, monkeypatch, kind):
    class Careless:
        isfinite = staticmethod(lambda value: True)

        def __getattr__(self, name):
            return getattr(math, name)

    for place in (training, router_learner):
        monkeypatch.setattr(place, "math", Careless())
    with pytest.raises(AssertionError):
        stops_before_the_update(tiny_settings, tiny_data, tmp_path, monkeypatch, kind, math.nan, "maw", 4)


def test_an_embedding_that_is_not_finite_in_validation_is_placed(tiny_settings, tiny_data):
    config = tiny_settings(use_lora=True)
    model = BaselineRetriever(config)
    real: Callable = model.encoder._pool

    def pool(hidden, padding):
        found = real(hidden, padding)
        return found if model.encoder.architecture.layers(model.encoder.backbone)[2].training else found * math.nan

    model.encoder._pool = pool
    with pytest.raises(NotFiniteError) as caught:
        train_retriever(model, tiny_data, tiny_data, config, "cpu", "tiny", "lora")
    assert str(caught.value).startswith("tiny lora: after epoch 1, step 3: the embedding of text ")


def test_both_learners_check_before_they_step():
    assert supervised.SupervisedLearner._step is grpo.GRPOLearner._step
