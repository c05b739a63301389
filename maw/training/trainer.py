"""The training loop of all methods: contrastive loss and AdamW.

All methods get the same batches in the same order (`maw.training.contrastive`). They differ in their trainable
parameters, in the objective (`maw.training.objective`) and in the learning rate.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maw.config.tier1_config import Tier1Config
from maw.data.collection import RetrievalData
from maw.encoding.activation_cache import FILLING, ActivationSource, ActivationStore
from maw.encoding.length_chunks import LengthChunks
from maw.errors import MAWError, NotFiniteError, error_context
from maw.models.cpu_kernels import packed_weights
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.models.tokenized import ListTexts, Source
from maw.runtime import distributed, trackers
from maw.runtime.devices import replicate
from maw.runtime.out_of_memory import advising
from maw.runtime.profiler import stage
from maw.runtime.progress_bars import bar
from maw.training import sharded_batch
from maw.training.contrastive import Batch, TrainingPairs
from maw.training.objective import Statistics, build_objective, untrained_routers
from maw.training.optimizer import learning_rate, parameter_groups, rates, warmup_decay
from maw.training.router.cluster_start import start_from_clusters
from maw.training.state import State, load_optimizer_state, load_random_state, random_state

logger = logging.getLogger(__name__)


TAKES_LESS_MEMORY = (
    "lower --max-document-length, --num-negatives or --grpo-group-size, or use --precision bfloat16. A smaller "
    "--batch-size helps too, and is not chosen here: the passages of a batch are each other's negatives, so it is "
    "another experiment, to be made with all methods"
)


class Trainer:
    """The training loop of one method; arguments as `train_retriever`."""

    def __init__(
        self,
        model: BaselineRetriever,
        data: RetrievalData,
        config: Tier1Config,
        device: torch.device,
        label: str,
        activations: ActivationStore | None,
    ):
        config = replace(config, learning_rate=learning_rate(model, config) or None, tune=0)  # of this one training
        self.model, self.config, self.device, self.label = model, config, device, label
        # Dropout, of which each process has its own; everything else draws from (seed, epoch) or (seed, step).
        torch.manual_seed(config.seed + (distributed.this_process().rank << 32))
        self.pairs = TrainingPairs(data, negatives=config.num_negatives, seed=config.seed, bank=config.bank_batches)
        texts = [model.source(ListTexts(data.queries), "query"), model.source(data.corpus, "document")]
        self.sources: list[Source] = [*texts]
        if activations is not None:
            self.sources = [activations.source(source, model.encoder, device) for source in texts]
            with stage("filling activations"):
                self._fill_activations()
        if config.router_start == "clusters" and isinstance(model, MAWRetriever) and distributed.is_main():
            rows = (np.arange(len(self.pairs)), self.pairs.corpus_rows)
            start_from_clusters(model.encoder, self.sources, rows, config.seed, config.router_sharpness)
        sharded_batch.same_start(each for each in model.parameters() if each.requires_grad)
        self.start_routers = untrained_routers(model.encoder)
        self.engine = sharded_batch.over_processes(LengthChunks(replicate(model.encoder, config, device)))
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
        shown = next(iter(rates(model, config)))  # the layers' rate, where any layer is trained
        self._shown_group = [group["name"] for group in groups].index(shown)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_decay(step, warmup, total)
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=model.precision == torch.float16)
        self.step = 0
        self.epoch, self.done, self._overflows = 1, 0, 0
        self._sums: dict[str, Tensor] = {}
        self._started = time.perf_counter()
        self._goes_on = False

    def state_dict(self, epoch_over: bool = False) -> State:
        """What resuming needs beside the model's weights.

        Args:
            epoch_over: resume with the next epoch; otherwise inside of this one, with the gradients summed so far.
        """
        here = {"done": self.done, "sums": self._sums, "seconds": self._seconds(), "overflows": self._overflows}
        next_one = {"done": 0, "sums": {}, "seconds": 0.0, "overflows": 0}
        return {
            "step": self.step,
            "position": {"epoch": self.epoch + 1} | next_one if epoch_over else {"epoch": self.epoch} | here,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_state(self.device),
            "objective": self.objective.state_dict(),
            "gradients": {
                str(i): distributed.of_every_process(each.grad)
                for i, each in enumerate(self.parameters)
                if each.grad is not None and not epoch_over
            },
        }

    def load_state_dict(self, state: State) -> None:
        """Loads what `state_dict` gave; the next `run_epoch` continues the epoch where it was saved."""
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
            self.parameters[int(number)].grad = distributed.of_this_process(gradient).to(self.device)
        load_random_state(state["random"])

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _fill_activations(self) -> None:
        """Passes all training texts through the frozen layers, in batches of similar length.

        With several processes, each one passes a text when it first reads it, since it may read only some of them.
        """
        if distributed.is_distributed():
            return
        for source, rows in zip(self.sources, (np.arange(len(self.pairs)), self.pairs.corpus_rows), strict=True):
            if isinstance(source, ActivationSource):
                source.fill(rows, FILLING)

    @packed_weights(trained=False)
    def run_epoch(self, epoch: int, after_step: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Trains for one epoch, or the rest of it; returns the epoch's record."""
        if not self._goes_on:
            self.epoch, self.done, self._sums, self._started = epoch, 0, {}, time.perf_counter()
            self._overflows = 0
        self._goes_on = False
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
        """Trains on one of `count` batches; returns the loss if the batch ends an optimizer step, else None."""
        accumulate, number = self.config.gradient_accumulation_steps, self.done + 1
        with stage("reading batches"):
            positives = len(batch.queries)
            parts = [[positives], [positives, len(batch.passages) - positives]]
            queries, passages = (
                sharded_batch.read_batch(source, rows, self.device, sizes)
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
        if updated is not None and math.ceil(number / accumulate) % trackers.every(count / accumulate) == 0:
            trackers.log(self.step, {"train/loss": updated, "train/learning_rate": self._rate()})
        return updated

    def _rate(self) -> float:
        """The learning rate now, of the layers where any are trained, else of the kernels."""
        return self.schedule.get_last_lr()[self._shown_group]

    @contextlib.contextmanager
    def _step_in_words(self) -> Iterator[None]:
        """Adds dataset, method and step to the errors of the block."""
        where = f"{self.label}: step {self.step}"
        with error_context(where), advising(where, TAKES_LESS_MEMORY):
            yield

    def _update(self, loss: Tensor, statistics: Statistics) -> float:
        """Takes one optimizer step, and returns the loss; only here a step waits for the device.

        In float16 a gradient may leave the range: the step is skipped, and the following ones are scaled less.

        Raises:
            NotFiniteError: the loss, a gradient or what the routers learn from is not finite; it changed nothing.
        """
        sharded_batch.sum_gradients(self.parameters)
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
        elif (  # the scale of the loss may be too large
            math.isfinite(value)
            and math.isfinite(router_loss)
            and self.scaler.is_enabled()
            and self.scaler.get_scale() > 1
        ):
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
