"""Training of a retriever: contrastive loss, AdamW, validation after every epoch, best weights kept.

    from tier_1 import train_retriever
    history = train_retriever(model, train_data, val_data, config, device, "my_dataset", "lora")
    history[0]["train_loss"], history.best["epoch"], history.validation.per_query["ndcg_cut_10"]

Every arm runs through this one loop, with the same batches in the same order (`maw.contrastive`); arms differ in
what is trainable, in the objective (`maw.objective`) and in the learning rate.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maw import distributed, shards, signals, tracking
from maw.chunks import LengthChunks
from maw.config import Tier1Config
from maw.console import at, bar
from maw.contrastive import Batch, TrainingPairs
from maw.cpu import packed_weights
from maw.data.collection import RetrievalData, as_retrieval_data
from maw.diagnostics import routing_diagnostics
from maw.errors import MAWError, NotFiniteError, placed
from maw.evaluation import evaluate_retriever
from maw.inputs import ListTexts, TextSource
from maw.logs import log_event
from maw.memory import advising
from maw.metrics import EvaluationResult
from maw.objective import Statistics, build_objective
from maw.parallel import device_of, replicate, unwrap
from maw.parameters import parameter_groups, rates
from maw.prefix import ActivationStore, PrefixSource
from maw.profile import stage
from maw.progress import VALIDATION_METRIC, History, Keeper, Progress
from maw.retriever import BaselineRetriever, MAWRetriever
from maw.router_start import start_from_clusters
from maw.training_state import (
    State,
    load_optimizer_state,
    load_random_state,
    optimizer_state,
    random_state,
)

logger = logging.getLogger(__name__)

TAKES_LESS_MEMORY = (
    "lower --max-document-length, --num-negatives or --grpo-group-size, or use --precision bfloat16. A smaller "
    "--batch-size helps too, and is not chosen here: the passages of a batch are each other's negatives, so it is "
    "another experiment, to be made with all methods"
)


def train_retriever(
    model: BaselineRetriever,
    train_data: RetrievalData | Mapping[str, Any],
    val_data: RetrievalData | Mapping[str, Any],
    config: Tier1Config,
    device: torch.device | str | None = None,
    dataset_name: str = "",
    model_type: str = "",
    *,
    activations: ActivationStore | None = None,
    on_epoch: Callable[[dict[str, Any], bool], None] | None = None,
    keeper: Keeper | None = None,
) -> History:
    """Trains what of the model is trainable, and leaves it with the weights of its best epoch on validation.

    Args:
        model: a `BaselineRetriever` with LoRA or whole layers to train, or a `MAWRetriever`; it may be inside a
            DataParallel.
        train_data: a split of a collection, or a plain dictionary as for `evaluate_retriever`, with optional
            "negatives" {query: [document]}.
        val_data: the same; nDCG@10 on it decides which epoch is best.
        config: epochs, batches, learning rates, and how routers are trained.
        device: where to compute; where the model is, if not given.
        dataset_name: for messages and the progress bar.
        model_type: for messages and the progress bar.
        activations: stored activations of the frozen layers, shared with other calls of a run.
        on_epoch: called after every epoch with its record and whether it is the best so far.
        keeper: saves the training, and has what an interrupted one is to go on from.

    Returns:
        One record for each epoch: loss, validation nDCG@10, learning rate, seconds, steps (batches) and optimizer
        steps, in float16 how many were left out (`overflow_steps`), what the router did in training and, as
        "val_routing", on validation (see `maw.diagnostics`). The list's `validation` has the best epoch's value of
        every query.

    Raises:
        MAWError: nothing to train.
        NotFiniteError: a loss, gradient, reward or embedding that is not finite; before anything is changed by it.
        MemoryLimitError: a batch does not fit memory.
        Stopped: a signal asked for it; the training is saved (`maw.signals`).
    """
    device, model = device_of(model, device), unwrap(model)
    with at(dataset=dataset_name, method=model_type):
        trainer = Trainer(
            model,
            as_retrieval_data(train_data, "train"),
            config,
            device,
            f"{dataset_name} {model_type}".strip() or "training",
            activations,
        )
        validation = as_retrieval_data(val_data, "validation", config.relevance_level)
        progress = Progress(model, trainer, keeper)
        history = progress.history
        diagnostics = routing_diagnostics(model, config, device, activations)

        def evaluate() -> EvaluationResult:
            where = f"{trainer.label}: after epoch {trainer.epoch}, step {trainer.step}"
            with placed(where), at(epoch=trainer.epoch, epochs=config.num_epochs):
                return evaluate_retriever(
                    model, validation, config, device, "validation", activations=activations, inspect=diagnostics
                )

        for epoch in range(trainer.epoch, config.num_epochs + 1):
            if config.patience and history and history[-1]["epoch"] - history.best["epoch"] >= config.patience:
                logger.info("%s: no better epoch in %d, stopping", trainer.label, config.patience)
                break
            with signals.held_back():
                record = trainer.run_epoch(epoch, progress.after_step)
            with progress.saved_when_stopped():
                with stage("validation"):
                    result = evaluate()
                improved = progress.judge(record, result)
                if diagnostics:
                    diagnostics.after_epoch(record, improved)
            with signals.held_back():
                tracking.log_epoch(trainer.step, record)
                progress.add(record, result, improved)
            if on_epoch:
                on_epoch(record, improved)
            log_event(logger, "epoch", training=trainer.label, best=improved, **record)
            logger.info(
                "%s: epoch %d/%d, loss %.4f, validation nDCG@10 %.4f%s%s",
                trainer.label,
                epoch,
                config.num_epochs,
                record["train_loss"],
                result[VALIDATION_METRIC],
                " (best so far)" if improved else "",
                _left_out(record.get("overflow_steps", 0)),
            )
            signals.check()
        model.load_trained_state(progress.best_weights)
        (forgotten,) = distributed.any_of(diagnostics is not None and diagnostics.has_forgotten_best)
        if forgotten:
            with stage("validation"):
                evaluate()
        if diagnostics:
            diagnostics.after_training(history.best)
        return history


class Trainer:
    """The loop over one arm's epochs.

    Args: as `train_retriever`.
    """

    def __init__(
        self,
        model: BaselineRetriever,
        data: RetrievalData,
        config: Tier1Config,
        device: torch.device,
        label: str,
        activations: ActivationStore | None,
    ):
        self.model, self.config, self.device, self.label = model, config, device, label
        # Dropout, of which each process has its own; everything else draws from (seed, epoch) or (seed, step).
        torch.manual_seed(config.seed + (distributed.place().rank << 32))
        self.pairs = TrainingPairs(data, negatives=config.num_negatives, seed=config.seed, bank=config.bank_batches)
        texts = [model.source(ListTexts(data.queries), "query"), model.source(data.corpus, "document")]
        self.sources: list[TextSource | PrefixSource] = [*texts]
        if activations is not None:
            self.sources = [activations.source(source, model.encoder, device) for source in texts]
            with stage("filling activations"):
                self._fill_activations()
        if config.router_start == "clusters" and isinstance(model, MAWRetriever) and distributed.is_main():
            rows = (np.arange(len(self.pairs)), self.pairs.corpus_rows)
            start_from_clusters(model.encoder, self.sources, rows, config.seed, config.router_sharpness)
        shards.same_start(each for each in model.parameters() if each.requires_grad)
        self.engine = shards.over_processes(LengthChunks(replicate(model.encoder, config, device)))
        groups = parameter_groups(model, config)
        if not groups:
            raise MAWError(f"{label}: nothing of the model is trainable; use_lora, train_layers or MAWRetriever helps")
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = torch.optim.AdamW(groups)
        counts = [self.pairs.count_batches(epoch, config.batch_size) for epoch in range(1, config.num_epochs + 1)]
        if min(counts) == 0:
            raise MAWError(f"{label}: a single query in a batch, without negatives, has nothing to be compared with")
        self.objective = build_objective(model.encoder, self.engine, config, model.spec.temperature, sum(counts))
        total = sum(math.ceil(count / config.gradient_accumulation_steps) for count in counts)
        warmup = math.ceil(config.warmup_ratio * total)
        rate = next(iter(rates(model, config).values()))  # of the layers, where any are trained
        self._shown_group = [group["lr"] for group in groups].index(rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: _warmup_decay(step, warmup, total)
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=model.precision == torch.float16)
        self.step = 0
        self.epoch, self.done, self._overflows = 1, 0, 0
        self._sums: dict[str, Tensor] = {}
        self._started = time.perf_counter()
        self._goes_on = False

    def state_dict(self, epoch_over: bool = False) -> State:
        """All that the trainer needs to go on from here but the model's weights.

        Args:
            epoch_over: go on with the next epoch. Else in this one, where gradients may be half gathered.
        """
        here = {"done": self.done, "sums": self._sums, "seconds": self._seconds(), "overflows": self._overflows}
        next_one = {"done": 0, "sums": {}, "seconds": 0.0, "overflows": 0}
        return {
            "step": self.step,
            "position": {"epoch": self.epoch + 1} | next_one if epoch_over else {"epoch": self.epoch} | here,
            "optimizer": optimizer_state(self.optimizer),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_state(self.device),
            "objective": self.objective.state_dict(),
            "gradients": {
                str(i): shards.of_every_process(each.grad)
                for i, each in enumerate(self.parameters)
                if each.grad is not None and not epoch_over
            },
        }

    def load_state_dict(self, state: State) -> None:
        """Takes back what `state_dict` gave; `run_epoch` of the epoch it is in then goes on where that was left."""
        position = state["position"]
        self.step, self.epoch, self.done = state["step"], position["epoch"], position["done"]
        self._overflows = position["overflows"]
        self._sums = {name: each.to(self.device) for name, each in position["sums"].items()}
        self._started, self._goes_on = time.perf_counter() - position["seconds"], True
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.schedule.load_state_dict(dict(state["schedule"]))
        self.scaler.load_state_dict(dict(state["scaler"]))
        self.objective.load_state_dict(state["objective"])
        for number, gradient in state["gradients"].items():
            self.parameters[int(number)].grad = shards.of_this_process(gradient).to(self.device)
        load_random_state(state["random"])

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _fill_activations(self) -> None:
        """Passes the training texts through the frozen layers, in batches of like length, before they are shuffled.

        Of several processes each passes a text when it first comes to it: it may never.
        """
        if distributed.together():
            return
        for source, rows in zip(self.sources, (np.arange(len(self.pairs)), self.pairs.corpus_rows), strict=True):
            if isinstance(source, PrefixSource):
                source.fill(rows, "texts through the frozen layers")

    def run_epoch(self, epoch: int, after_step: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """One pass over the training queries, or what is left of it; gives the epoch's record.

        Args:
            epoch: from 1.
            after_step: called after each batch.
        """
        if not self._goes_on:
            self.epoch, self.done, self._sums, self._started = epoch, 0, {}, time.perf_counter()
            self._overflows = 0
        self._goes_on = False
        with packed_weights(trained=False), at(epoch=epoch, epochs=self.config.num_epochs):
            return self._run_epoch(epoch, after_step)

    def _run_epoch(self, epoch: int, after_step: Callable[[], None]) -> dict[str, Any]:
        batches = list(self.pairs.batches(epoch, self.config.batch_size))
        self.engine.train()
        with bar("training", len(batches), "batch", done=self.done) as progress:
            for batch in batches[self.done :]:
                loss = self._run_batch(batch, len(batches))
                if loss is not None:
                    progress.note(loss=loss)
                progress.update()
                after_step()
        self.engine.eval()
        means = {name: float(value) / len(batches) for name, value in self._sums.items()}
        overflows = {"overflow_steps": self._overflows} if self.scaler.is_enabled() else {}
        return {
            "epoch": epoch,
            "learning_rate": self._rate(),
            "seconds": self._seconds(),
            "steps": len(batches),
            "optimizer_steps": math.ceil(len(batches) / self.config.gradient_accumulation_steps) - self._overflows,
            **overflows,
            **means,
        }

    def _run_batch(self, batch: Batch, count: int) -> float | None:
        """One batch of `count`; its loss, where it ends a step of the optimizer."""
        accumulate, number = self.config.gradient_accumulation_steps, self.done + 1
        with stage("reading batches"):
            positives = len(batch.queries)
            parts = [[positives], [positives, len(batch.passages) - positives]]
            queries, passages = (
                shards.read_batch(source, rows, self.device, sizes)
                for source, rows, sizes in zip(self.sources, self.pairs.source_rows(batch), parts, strict=True)
            )
        with stage("forward and backward"), self._step_in_words():
            loss, statistics = self.objective(queries, passages, batch.to(self.device), self.step)
            tail = count % accumulate
            self.scaler.scale(loss / (tail if number > count - tail else accumulate)).backward()
        for name, value in (statistics | {"train_loss": loss}).items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        updated = None
        if number % accumulate == 0 or number == count:
            with stage("optimizer"), self._step_in_words():
                updated = self._update(loss, statistics)
        self.step, self.done = self.step + 1, number
        if updated is not None and math.ceil(number / accumulate) % tracking.every(count / accumulate) == 0:
            tracking.log(self.step, {"train/loss": updated, "train/learning_rate": self._rate()})
        return updated

    def _rate(self) -> float:
        """The learning rate now, of the layers where any are trained, else of the kernels."""
        return self.schedule.get_last_lr()[self._shown_group]

    @contextlib.contextmanager
    def _step_in_words(self) -> Iterator[None]:
        """Names dataset, method and step in what goes wrong inside the block."""
        where = f"{self.label}: step {self.step}"
        with placed(where), advising(where, TAKES_LESS_MEMORY):
            yield

    def _update(self, loss: Tensor, statistics: Statistics) -> float:
        """One optimizer step; the only point of a step that waits for the device.

        In float16 a gradient beyond its range is no fault: the step is left out, and the next are scaled less.

        Raises:
            NotFiniteError: what the routers learnt from, or the encoder, is not finite; neither was changed by it.
        """
        shards.sum_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        router_loss = statistics.get("router_loss", torch.zeros_like(norm))
        own = torch.stack((loss.detach(), norm, router_loss))
        found = torch.cat((own, self.objective.watched())).cpu().numpy()
        self.objective.check(found[len(own) :].tolist())
        value, norm, router_loss = found[: len(own)]
        if math.isfinite(value) and math.isfinite(norm) and math.isfinite(router_loss):
            self.optimizer.step()
            self.schedule.step()
        elif math.isfinite(value) and math.isfinite(router_loss) and self._can_scale_less():
            self._overflows += 1
            logger.debug("%s: step %d: the gradient is beyond float16, and left out", self.label, self.step)
        else:
            raise NotFiniteError(
                f"loss {value}, gradient norm {norm} or router loss {router_loss} is not finite; the encoder was not "
                "changed by it. Try lower learning rates"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        return float(value)

    def _can_scale_less(self) -> bool:
        """Whether a gradient that is not finite may be the scale's doing."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1


def _left_out(steps: int) -> str:
    return f"; {steps} step{'s' * (steps != 1)} beyond float16 left out" if steps else ""


def _warmup_decay(step: int, warmup: int, total: int) -> float:
    """Linear from zero to one over the warm-up, then linear to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))
