"""Training: what it changes, what it leaves alone, and the same result every time."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from faults.tools import Watched

from maw.config.methods import find_method
from maw.data.from_dicts import as_retrieval_data
from maw.encoding.activation_cache import ActivationStore
from maw.errors import ConfigError, MAWError
from maw.evaluation.evaluate import evaluate_retriever
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.runtime import signals
from maw.training.optimizer import parameter_groups, rates
from maw.training.state import History
from maw.training.train import train_retriever
from maw.training.trainer import Trainer

ARMS = {
    "lora": (BaselineRetriever, {"use_lora": True}),
    "maw": (MAWRetriever, {}),
    "low_rank": (MAWRetriever, {"depth_kernel": "low_rank", "kernel_rank": 2}),
    "gated": (MAWRetriever, {"depth_kernel": "gated", "kernel_rank": 2}),
    "head": (MAWRetriever, {"route_by": "head", "maw_layers": [2, 3]}),
    "token": (MAWRetriever, {"route_by": "token"}),
    "all_group": (MAWRetriever, {"encoder_update": "all_group"}),
    "mcl": (MAWRetriever, {"encoder_update": "mcl", "grpo_reference": "slow"}),
    "supervised": (MAWRetriever, {"router": "supervised", "route_by": "head"}),
    "soft": (MAWRetriever, {"router": "soft"}),
    "random": (MAWRetriever, {"router": "random"}),
    "fixed": (MAWRetriever, {"router": "fixed", "fixed_depth": 2}),
    "lora_matched": (BaselineRetriever, {"use_lora": True, "lora_targets": "all", "adapt_maw_layers": True}),
    "full": (BaselineRetriever, {"train_layers": True, "adapt_maw_layers": True}),
    "static": (MAWRetriever, {"router": "fixed", "depth_dim": 1, "depth_kernel": "low_rank"}),
    "values": (MAWRetriever, {"depth_values": True}),
    "low_rank_values": (MAWRetriever, {"depth_values": True, "depth_kernel": "low_rank", "route_by": "head"}),
    "soft_values": (MAWRetriever, {"depth_values": True, "router": "soft", "maw_layers": [2, 3]}),
}


def build(tiny_settings, arm, **changes):
    retriever, options = ARMS[arm]
    config = tiny_settings(**{"weight_decay": 0.0, "num_epochs": 2, "patience": 0, **options, **changes})
    return retriever(config), config


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.encoder.named_parameters()}


@pytest.fixture
def held(tiny_data):
    """Validation that takes next to no time, where nothing is asked of it."""
    return {"queries": tiny_data["queries"][:2], "docs": tiny_data["docs"][:4], "qrels": {0: {0: 1}, 1: {1: 1}}}


@pytest.mark.parametrize("arm", sorted(ARMS))
def test_every_trainable_parameter_moves_and_no_frozen_one(tiny_settings, tiny_data, held, arm):
    model, config = build(tiny_settings, arm, num_epochs=5, diagnostics="none")
    model.load_trained_state = lambda state: None  # look at the last weights, not at the best
    before = snapshot(model)
    trainable = {name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad}
    train_retriever(model, tiny_data, held, config, "cpu")
    moved = {name for name, parameter in model.encoder.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == trainable
    if arm not in ("lora", "lora_matched", "full", "fixed"):
        (kernels,) = [name for name in moved if name.endswith(("kernels.weight", "kernels.up"))][-1:]
        change = (dict(model.encoder.named_parameters())[kernels] - before[kernels]).abs()
        assert (change.amax(dim=[0, *range(2, change.ndim)]) > 0).all(), "every depth is trained"


def test_a_maw_layer_outside_the_layers_to_fine_tune_keeps_its_weights(tiny_settings, tiny_data):
    model, config = build(tiny_settings, "maw", maw_layers=[1, 3], finetune_layers=[3])
    before = snapshot(model)
    assert model.layers["prefix"] == 0
    train_retriever(model, tiny_data, tiny_data, config, "cpu")
    changed = {name for name, p in model.encoder.named_parameters() if not torch.equal(p, before[name])}
    first = {name.rpartition("layer.0.")[2] for name in changed if "layer.0." in name}
    assert first and all("kernels" in name or "router" in name for name in first)


@pytest.mark.parametrize("arm", ["lora", "maw", "token", "random"])
def test_the_same_seed_gives_the_same_weights(tiny_settings, tiny_data, arm):
    states, histories = [], []
    for noise in (1, 2):
        torch.manual_seed(noise)  # whatever ran before must not matter
        model, config = build(tiny_settings, arm)
        history = train_retriever(model, tiny_data, tiny_data, config, "cpu")
        states.append(model.trained_state())
        histories.append([{k: v for k, v in record.items() if k != "seconds"} for record in history])
    assert histories[0] == histories[1]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    model, config = build(tiny_settings, arm, seed=7, diagnostics="none")
    train_retriever(model, tiny_data, tiny_data, config, "cpu")
    assert any(not torch.equal(states[0][name], each) for name, each in model.trained_state().items())


@pytest.mark.parametrize("arm", ["lora", "maw", "token", "soft"])
def test_stored_activations_change_no_loss(tiny_settings, tiny_data, tmp_path, arm):
    losses = []
    for limit in (None, 1.0, 2e-5):  # without; all stored; only the first few texts stored
        model, config = build(tiny_settings, arm, diagnostics="none")
        if limit is None:
            history = train_retriever(model, tiny_data, tiny_data, config, "cpu")
        else:
            with ActivationStore(tmp_path / "activations", limit) as store:
                history = train_retriever(model, tiny_data, tiny_data, config, "cpu", activations=store)
                assert store.free_bytes < limit * 1e9
        losses.append([record["train_loss"] for record in history])
    assert not list((tmp_path / "activations").iterdir())
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] == pytest.approx(losses[0], abs=1e-5)


def test_the_history_keeps_what_the_best_epoch_scored(tiny_settings, tiny_data):
    model, config = build(tiny_settings, "lora", num_epochs=5, gradient_accumulation_steps=2)
    history = train_retriever(model, tiny_data, tiny_data, config, "cpu")
    assert isinstance(history, list) and json.loads(json.dumps(history)) == history
    scores = [record["val_ndcg_cut_10"] for record in history]
    assert history.best is history[scores.index(max(scores))]
    assert history.validation["ndcg_cut_10"] == max(scores) and len(history.validation.query_ids) == 24
    again = evaluate_retriever(model, tiny_data, config, "cpu")
    assert (again.per_query["ndcg_cut_10"] == history.validation.per_query["ndcg_cut_10"]).all(), (
        "the model is left so"
    )
    assert [(record["steps"], record["optimizer_steps"]) for record in history] == [(3, 2)] * 5
    assert History().validation is None


@pytest.mark.parametrize(
    ("arm", "used"),
    [("lora", {"learning_rate"}), ("fixed", {"learning_rate", "kernel_learning_rate"}), ("soft", None), ("maw", None)],
)
def test_the_rates_in_use(tiny_settings, arm, used):
    wanted = {"learning_rate": 0.1, "kernel_learning_rate": 0.2, "router_learning_rate": 0.3}
    model, config = build(tiny_settings, arm, **wanted)
    assert rates(model, config) == {name: wanted[name] for name in used or wanted}


def test_frozen_layers_never_drop_out(tiny_settings):
    model, _ = build(tiny_settings, "maw")
    model.train()
    layers = model.encoder.architecture.layers(model.encoder.backbone)
    assert [any(m.training for m in layer.modules()) for layer in layers] == [False, False, True]
    assert not model.encoder.backbone.embeddings.dropout.training


def test_kernels_and_vectors_are_not_decayed(tiny_settings):
    model, config = build(tiny_settings, "maw", weight_decay=0.1, learning_rate=0.1)
    for group in parameter_groups(model, config):
        names = {n for n, p in model.encoder.named_parameters() for q in group["params"] if p is q}
        assert not any("router" in name for name in names), "a learner's routers have their own optimizer"
        if group["weight_decay"]:
            assert names and not any("kernels" in n or "LayerNorm" in n or n.endswith("bias") for n in names)
    model, config = build(tiny_settings, "values", weight_decay=0.1, learning_rate=0.1)
    decays = {id(p): group["weight_decay"] for group in parameter_groups(model, config) for p in group["params"]}
    of_values = [p for n, p in model.encoder.named_parameters() if "value_kernels" in n]
    assert of_values and all(decays[id(parameter)] == 0 for parameter in of_values)
    model, config = build(tiny_settings, "soft", learning_rate=0.1)
    trained = {id(p) for group in parameter_groups(model, config) for p in group["params"]}
    assert all(id(p) in trained for p in model.parameters() if p.requires_grad)


def test_accumulated_batches_are_averaged(tiny_settings, tiny_data):
    """Two batches of 12 accumulated: one update an epoch, with the mean of the two gradients."""
    model, config = build(tiny_settings, "lora", batch_size=12, gradient_accumulation_steps=2, num_epochs=1)
    history = train_retriever(model, tiny_data, tiny_data, config, "cpu")
    assert history[0]["learning_rate"] == 0.0, "the one update of the run used the whole schedule"


class Recorded(torch.optim.SGD):
    """Notes the gradient of every update and changes nothing."""

    def __init__(self, groups):
        super().__init__(groups, lr=0.0)
        self.seen = []

    def step(self):
        self.seen.append([p.grad.clone() for group in self.param_groups for p in group["params"]])


@pytest.mark.parametrize("accumulate", [1, 2, 3, 100])
def test_an_update_has_the_mean_gradient_of_its_batches(tiny_settings, tiny_data, monkeypatch, accumulate):
    """24 queries by 5: four batches of 5 and one of 4; the last update may have fewer batches than the others."""
    monkeypatch.setattr("torch.optim.AdamW", Recorded)
    found = {}
    for steps in (1, accumulate):
        model, config = build(
            tiny_settings, "lora", batch_size=5, gradient_accumulation_steps=steps, max_grad_norm=1e6
        )
        with torch.no_grad():
            for name, parameter in model.encoder.named_parameters():
                if "lora_B" in name:
                    parameter.add_(0.1)
        trainer = Trainer(model, as_retrieval_data(tiny_data, "train"), config, torch.device("cpu"), "tiny", None)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer.run_epoch(1)
        found[steps] = trainer.optimizer.seen
    batches = found[1]
    assert len(batches) == 5 and len(found[accumulate]) == -(-5 // accumulate)
    for number, update in enumerate(found[accumulate]):
        parts = batches[number * accumulate : (number + 1) * accumulate]
        for got, *each in zip(update, *parts):
            torch.testing.assert_close(got, torch.stack(each).mean(0), atol=1e-6, rtol=1e-4)


def test_a_long_gradient_is_cut_and_the_rate_warms_up_and_decays(tiny_settings, tiny_data, monkeypatch):
    monkeypatch.setattr("torch.optim.AdamW", Recorded)
    model, config = build(tiny_settings, "lora", batch_size=6, max_grad_norm=1e-3, warmup_ratio=0.5, num_epochs=2)
    trainer = Trainer(model, as_retrieval_data(tiny_data, "train"), config, torch.device("cpu"), "tiny", None)
    rate = trainer.schedule.base_lrs[0]
    rates = []
    step = trainer.schedule.step
    trainer.schedule.step = lambda: (rates.append(trainer.optimizer.param_groups[0]["lr"]), step())
    for epoch in (1, 2):
        trainer.run_epoch(epoch)
    assert rates == pytest.approx([rate * each for each in (0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25)])
    for gradients in trainer.optimizer.seen:
        norm = torch.stack([each.norm() for each in gradients]).norm()
        assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_every_step_of_a_run_has_a_number_of_its_own_and_runs_with_dropout(tiny_settings, tiny_data):
    model, config = build(tiny_settings, "maw")
    trainer = Trainer(model, as_retrieval_data(tiny_data, "train"), config, torch.device("cpu"), "tiny", None)
    steps, modes = [], []
    objective = trainer.objective

    def call(queries, passages, batch, step):
        steps.append(step)
        modes.append(model.encoder.architecture.layers(model.encoder.backbone)[2].training)
        return objective(queries, passages, batch, step)

    trainer.objective = Watched(objective, call)
    for epoch in (1, 2):
        trainer.run_epoch(epoch)
    assert steps == list(range(6)) and all(modes)
    assert not model.encoder.training


def test_kernels_have_a_rate_of_their_own(tiny_settings):
    model, config = build(tiny_settings, "maw", weight_decay=0.1, learning_rate=1e-4, kernel_learning_rate=0.05)
    rates = {id(p): group["lr"] for group in parameter_groups(model, config) for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in parameter_groups(model, config) for p in group["params"]}
    for name, parameter in model.encoder.named_parameters():
        if id(parameter) in rates:
            kernel = "kernels" in name
            assert rates[id(parameter)] == (0.05 if kernel else 1e-4), name
            assert decays[id(parameter)] == (0.1 if parameter.ndim >= 2 and not kernel else 0.0), name


def test_the_best_epoch_is_kept_and_patience_ends_training(tiny_settings, tiny_data, monkeypatch):
    scores = iter([0.3, 0.5, 0.4, 0.45, 0.9])

    class Fixed(dict):
        facts = {}  # noqa: RUF012

    monkeypatch.setattr("maw.training.train.evaluate_retriever", lambda *a, **k: Fixed(ndcg_cut_10=next(scores)))
    model, config = build(tiny_settings, "lora", num_epochs=5, patience=2)
    seen = []

    def on_epoch(record, best):
        seen.append((record["epoch"], best, model.trained_state()))

    history = train_retriever(model, tiny_data, tiny_data, config, "cpu", on_epoch=on_epoch)
    assert [(epoch, best) for epoch, best, _ in seen] == [(1, True), (2, True), (3, False), (4, False)]
    assert len(history) == 4
    assert all(torch.equal(each, seen[1][2][name]) for name, each in model.trained_state().items())


def test_what_cannot_be_trained_is_said(tiny_settings, tiny_data):
    config = tiny_settings()
    with pytest.raises(MAWError, match="nothing of the model is trainable"):
        train_retriever(BaselineRetriever(config), tiny_data, tiny_data, config, "cpu", "tiny", "zero_shot")
    one = {"queries": ["a"], "docs": ["a file"], "qrels": {0: {0: 1}}}
    model, config = build(tiny_settings, "lora")
    with pytest.raises(MAWError, match="a single query in a batch"):
        train_retriever(model, one, tiny_data, config, "cpu")


def test_a_loss_that_is_not_finite_stops_before_the_update(tiny_settings, tiny_data):
    model, config = build(tiny_settings, "lora", learning_rate=1e-2)
    before = snapshot(model)
    model.spec.__dict__["temperature"] = float("nan")
    with pytest.raises(MAWError, match="step 0"):
        train_retriever(model, tiny_data, tiny_data, config, "cpu", "tiny", "lora")
    assert all(torch.equal(p, before[name]) for name, p in model.encoder.named_parameters())


def test_a_router_that_is_not_finite_stops_the_run(tiny_settings, tiny_data):
    model, config = build(tiny_settings, "maw")
    with torch.no_grad():
        model.encoder.maw_attention[0].router.weight.fill_(torch.nan)
    before = {name: each for name, each in snapshot(model).items() if "router" not in name}
    with pytest.raises(MAWError, match=r"tiny maw: .*router loss nan"):
        train_retriever(model, tiny_data, tiny_data, config, "cpu", "tiny", "maw")
    assert all(torch.equal(p, before[n]) for n, p in model.encoder.named_parameters() if n in before)


def test_layers_that_leave_nothing_to_do_are_refused(tiny_settings):
    with pytest.raises(ConfigError, match="maw_layers: none"):
        MAWRetriever(tiny_settings(maw_layers="none"))
    with pytest.raises(ConfigError, match="finetune_layers: none"):
        BaselineRetriever(tiny_settings(use_lora=True, finetune_layers="none"))
    with pytest.raises(ConfigError, match="maw_layers: no layer 7"):
        MAWRetriever(tiny_settings(maw_layers=[7]))


@pytest.mark.parametrize("where", ["step", "between steps", "validation"])
def test_a_signal_saves_the_very_step(tiny_settings, tiny_data, monkeypatch, where):
    """A step is finished first, and what is trained is saved although the epoch is not over."""
    saved = []

    class CheckpointWriter:
        load = staticmethod(lambda: None)

        @staticmethod
        def due():
            asked = signals.stop_asked()
            if where == "between steps" and len(steps) == 4:
                os.kill(os.getpid(), signal.SIGTERM)  # too late for this step, so it is saved after the next
            return asked

        save = staticmethod(lambda model, now, **_: saved.append((now.step, now.epoch, now.state)))

    model, config = build(tiny_settings, "maw", num_epochs=2)
    real, steps = Trainer._run_batch, []

    def run_batch(self, *arguments):
        steps.append(self.step)
        if where == "step" and len(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    def evaluate(*arguments, **options):
        if where == "validation":
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate_retriever(*arguments, **options)

    monkeypatch.setattr(Trainer, "_run_batch", run_batch)
    monkeypatch.setattr("maw.training.train.evaluate_retriever", evaluate)
    with signals.handlers(), pytest.raises(signals.Stopped):
        train_retriever(model, tiny_data, tiny_data, config, "cpu", writer=CheckpointWriter)
    step, epoch, state = saved[-1]
    position = {key: state["trainer"]["position"][key] for key in ("epoch", "done")}
    if where != "validation":
        assert len(steps) == 5 and (step, epoch) == (5, 2) and position == {"epoch": 2, "done": 2}
    else:
        assert len(steps) == 3 and (step, epoch) == (3, 1) and position == {"epoch": 1, "done": 3}


@pytest.mark.parametrize(("layers", "shown"), [([2], 1e-4), ("none", 0.2)])
def test_the_rate_of_an_epoch_is_that_of_the_layers(tiny_settings, tiny_data, layers, shown):
    """MAW below the layers that are trained whole: the optimizer's first group is then the kernels'."""
    settings = {"maw_layers": [1], "finetune_layers": layers, "learning_rate": 1e-4, "kernel_learning_rate": 0.2}
    model, config = build(tiny_settings, "maw", **settings, batch_size=12, num_epochs=1, warmup_ratio=0.0)
    assert parameter_groups(model, config)[0]["lr"] == 0.2
    trainer = Trainer(model, as_retrieval_data(tiny_data, "train"), config, torch.device("cpu"), "a run", None)
    assert trainer._rate() == pytest.approx(shown)


def test_a_model_from_python_trains_with_a_configuration_that_asks_for_trials(tiny_settings, tiny_data):
    """`tune` is the benchmark's: a training has one rate, here the method's default."""
    config = tiny_settings(tune=3, num_epochs=1)
    history = train_retriever(MAWRetriever(config), tiny_data, tiny_data, config)
    assert history[0]["learning_rate"] <= find_method("maw").learning_rate and len(history) == 1


def test_a_model_that_no_method_describes_needs_a_rate(tiny_settings, tiny_data):
    config = tiny_settings(num_epochs=1)
    model = BaselineRetriever(config)
    model.encoder.backbone.encoder.layer[2].attention.self.query.weight.requires_grad_(True)
    with pytest.raises(ConfigError, match="learning_rate: no method describes what is trained"):
        train_retriever(model, tiny_data, tiny_data, config)


def test_training_is_that_without_the_judgements_of_what_is_not_there(tiny_data, tiny_settings):
    """A missing document is no positive, and a query without another one, or without a text, is not trained on."""
    queries, docs = (dict(enumerate(tiny_data[key])) for key in ("queries", "docs"))
    clean = {"queries": queries, "docs": docs, "qrels": tiny_data["qrels"]}
    judged = {query: grades | {"gone": 2} for query, grades in clean["qrels"].items()}
    marred = {"queries": queries | {"lost": "a lost query"}, "docs": docs}
    marred["qrels"] = judged | {"lost": {"gone": 1, 0: 0}, "unknown": {0: 1}}
    histories = []
    for data in (clean, marred):
        model, config = build(tiny_settings, "lora", num_epochs=1)
        history = train_retriever(model, data, clean, config, "cpu")
        histories.append([(record["train_loss"], record["steps"]) for record in history])
    assert histories[0] == histories[1]
