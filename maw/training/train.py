"""`train_retriever`: training of a retriever on a split of a collection or on plain dictionaries.

    from tier_1 import train_retriever
    history = train_retriever(model, train_data, val_data, config, device, "my_dataset", "lora")
    history[0]["train_loss"], history.best["epoch"], history.validation.per_query["ndcg_cut_10"]

The loss is contrastive (`maw.training.contrastive`), the optimizer AdamW (`maw.training.trainer`). Each epoch ends
with validation, and the weights of the best epoch are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from maw.config.tier1_config import Tier1Config
from maw.data.collection import RetrievalData
from maw.data.from_dicts import as_retrieval_data
from maw.encoding.activation_cache import ActivationStore
from maw.errors import error_context
from maw.evaluation.evaluate import evaluate_retriever
from maw.evaluation.metrics import EvaluationResult
from maw.evaluation.routing.diagnostics import routing_diagnostics
from maw.models.retriever import BaselineRetriever
from maw.runtime import distributed, signals
from maw.runtime.console import at
from maw.runtime.devices import device_of, unwrap
from maw.runtime.energy import EnergyMeter
from maw.runtime.profiler import stage
from maw.runtime.run_log import log_event
from maw.training.checkpoint_writer import CheckpointWriter
from maw.training.progress import Progress
from maw.training.state import VALIDATION_METRIC, History
from maw.training.trainer import Trainer

logger = logging.getLogger(__name__)


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
    writer: CheckpointWriter | None = None,
    meter: EnergyMeter | None = None,
) -> History:
    """Trains the trainable parameters of a model, and loads the weights of the best epoch on validation into it.

    Args:
        model: a `BaselineRetriever` with LoRA or whole layers to train, or a `MAWRetriever`; it may be inside a
            DataParallel.
        train_data: a split of a collection, or a plain dictionary as for `evaluate_retriever`, with optional
            "negatives" {query: [document]}.
        val_data: the same; nDCG@10 on it decides which epoch is best.
        config: epochs, batches, learning rates, and how routers are trained.
        device: computes; the model's device if not given.
        dataset_name: for messages and the progress bar.
        model_type: for messages and the progress bar.
        activations: stored activations of the frozen layers, shared with other calls of a run.
        on_epoch: is called after every epoch with its record and whether it is the best so far.
        writer: saves the training, and gives the state from which an interrupted one resumes.
        meter: measures the training's energy, which is saved with it; what it took before an interruption is added.

    Returns:
        One record for each epoch: loss, validation nDCG@10, learning rate, seconds, steps (batches) and optimizer
        steps, in float16 the number of skipped steps (`overflow_steps`), what the router did in training and, as
        "val_routing", on validation (see `maw.evaluation.routing.diagnostics`). The attribute `validation` of the
        list has the values of every validation query in the best epoch.

    Raises:
        ConfigError: a setting was changed to a value that is not allowed, or no learning rate is known.
        MAWError: nothing of the model is trainable.
        NotFiniteError: a loss, gradient, reward or embedding is not finite; it has changed no parameter.
        MemoryLimitError: a batch does not fit in memory.
        Stopped: a signal asked for the end; the training is saved (`maw.runtime.signals`).
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
        validation = as_retrieval_data(val_data, "validation", config.relevance_level, config.self_passages)
        progress = Progress(model, trainer, writer, meter)
        history = progress.history
        diagnostics = routing_diagnostics(model, config, device, activations, trainer.start_routers)

        def evaluate() -> EvaluationResult:
            where = f"{trainer.label}: after epoch {trainer.epoch}, step {trainer.step}"
            with error_context(where), at(epoch=trainer.epoch, epochs=config.num_epochs):
                return evaluate_retriever(
                    model, validation, config, device, "validation", activations=activations, inspect=diagnostics
                )

        for epoch in range(trainer.epoch, config.num_epochs + 1):
            if config.patience and history and history[-1]["epoch"] - history.best["epoch"] >= config.patience:
                logger.info("%s: no better epoch in %d, stopping", trainer.label, config.patience)
                break
            with signals.held_back(), at(epoch=epoch, epochs=config.num_epochs):
                record = trainer.run_epoch(epoch, progress.after_step)
            with progress.saved_when_stopped():
                with stage("validation"):
                    result = evaluate()
                improved = progress.judge(record, result)
                if diagnostics:
                    diagnostics.after_epoch(record, improved)
            with signals.held_back():
                progress.add(record, result, improved)
            if on_epoch:
                on_epoch(record, improved)
            left_out = record.get("overflow_steps", 0)
            log_event(logger, "epoch", training=trainer.label, best=improved, **record)
            logger.info(
                "%s: epoch %d/%d, loss %.4f, validation nDCG@10 %.4f%s%s",
                trainer.label,
                epoch,
                config.num_epochs,
                record["train_loss"],
                result[VALIDATION_METRIC],
                " (best so far)" if improved else "",
                f"; {left_out} step{'s' * (left_out != 1)} beyond float16 left out" if left_out else "",
            )
            signals.check()
        model.load_trained_state(progress.best_weights)
        (forgotten,) = distributed.any_process(diagnostics is not None and diagnostics.has_forgotten_best)
        if forgotten:
            with stage("validation"):
                evaluate()
        if diagnostics:
            diagnostics.after_training(history.best)
        return history
