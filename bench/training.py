"""Compares LoRA training of the last layer with SentenceTransformerTrainer and PEFT.

    python -m bench.training
    python -m bench.training --full     # also deeper, and a whole training of each side: an hour

Both sides train the same 12,288 numbers: adapters of rank 8 on query and value of the last layer. They share weights,
texts (first paragraphs of docstrings, their functions, and one random other function as a negative), batches of 32,
length limit, loss (in-batch softmax at the same temperature), learning rate and number format. In bfloat16 the other
side uses autocast with float32 weights, as its `bf16=True` does. All other settings of the other trainer are its
defaults, without logging and saving.

In the first table the sides take turns by epoch in one process, and nothing is evaluated: at the start of each epoch
of the other side, a callback first runs one epoch of this project. The first epoch is left out on both sides. Before
its first epoch this project stores the activations of the frozen layers; the rows show that epoch's time with storing.
The layers below the last run in training mode on the other side and in evaluation mode here, as each side treats
frozen layers.

The second table has a whole training of each side, one after the other: three epochs on 2,000 queries, and a ranking
of the 500 validation queries after each epoch, by the other side's InformationRetrievalEvaluator. The time includes
everything after the model is loaded: tokenising, storing activations, training, ranking, and nDCG@10.

No real weights of a 12-layer model were available. The 12-layer model is all-MiniLM-L6-v2 with its six layers twice.
Weights do not change the time of a pass.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from bench.common import claim, median, quick_parser, ratio, report, results_folder
from bench.peer import first_queries, sentence_transformer, settings, texts_of_python
from bench.stacking import stack_layers
from maw.config.tier1_config import Tier1Config
from maw.data.collection import RetrievalData
from maw.data.hash_sampling import draw
from maw.encoding.activation_cache import ActivationStore
from maw.models.retriever import BaselineRetriever
from maw.runtime.precision import name_of
from maw.training.optimizer import learning_rate
from maw.training.state import VALIDATION_METRIC
from maw.training.train import train_retriever
from maw.training.trainer import Trainer

EXAMPLES = 64
EPOCHS = 6  # one to warm up and five that count
FEW_EPOCHS = 3
TARGETS = {6: ">= 3.5", 12: ">= 6"}
WHOLE_EPOCHS, WHOLE_TARGET = 3, ">= 5"
DEPTHS = {6: 1, 12: 2}
"""Layers -> how often the model's own six are stacked."""
PRECISIONS = ("bfloat16", "float32")
OURS, THEIRS = "this project", "sentence-transformers"


@dataclass
class Timing:
    """Times of one pair of trainings.

    Attributes:
        seconds: side -> seconds of each epoch, the first included.
        storing: seconds to store the activations of the frozen layers before our first epoch.
        loss: side -> mean loss over all epochs, as a check that both learn the same thing.
        parameters: how many numbers both train.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], THEIRS: []})
    storing: float = 0.0
    loss: dict[str, float] = field(default_factory=dict)
    parameters: int = 0

    def later(self) -> dict[str, list[float]]:
        """Seconds of the epochs from the second on."""
        return {side: seconds[1:] for side, seconds in self.seconds.items()}


class TakeTurns(TrainerCallback):
    """Runs one of our epochs before each of theirs, and times both.

    Args:
        ours: runs one of our epochs, by its number.
        timing: where the seconds go.
    """

    def __init__(self, ours: Callable[[int], Any], timing: Timing):
        self.ours, self.timing = ours, timing
        self.epoch, self.started = 0, 0.0

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Our epoch; theirs starts when this returns."""
        self.epoch += 1
        started = time.perf_counter()
        self.ours(self.epoch)
        self.timing.seconds[OURS].append(time.perf_counter() - started)
        self.started = time.perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Their epoch is over."""
        self.timing.seconds[THEIRS].append(time.perf_counter() - self.started)


def training_data(data: RetrievalData, count: int) -> RetrievalData:
    """`count` queries of a split, each with one passage drawn from the others as its negative."""
    queries = data.query_ids[:count]
    passages = data.corpus.id_of(range(len(data.corpus)))
    drawn = draw(passages, count + 1, 42, "bench negatives")
    negatives = {q: [next(d for d in drawn[i : i + 2] if d not in data.qrels[q])] for i, q in enumerate(queries)}
    qrels = {q: data.qrels[q] for q in queries}
    return replace(data, query_ids=queries, queries=data.queries[:count], qrels=qrels, negatives=negatives)


def triplets(data: RetrievalData) -> dict[str, list[str]]:
    """The same as columns of text, as the other side takes them."""
    positives = [next(d for d, grade in data.qrels[q].items() if grade >= 1) for q in data.query_ids]
    negatives = [data.negatives[q][0] for q in data.query_ids]
    corpus = data.corpus
    return {
        "anchor": data.queries,
        "positive": corpus.take(corpus.rows_of(positives)),
        "negative": corpus.take(corpus.rows_of(negatives)),
    }


def configuration(folder: Path | None, precision: str, epochs: int) -> Tier1Config:
    """LoRA on the last layer, one given negative; of the packaged model, or of a folder."""
    model = {} if folder is None else {"model": str(folder)}
    options = {"use_lora": True, "num_negatives": 1, "negative_source": "given", "num_epochs": epochs}
    return settings(precision=precision, **options, **model)


def their_trainer(
    model: BaselineRetriever,
    columns: Mapping[str, list[str]],
    folder: Path,
    turns: TakeTurns | None = None,
    evaluator: Any = None,
) -> Any:
    """SentenceTransformerTrainer over the same weights, texts and settings."""
    from datasets import Dataset
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    config, spec = model.config, model.spec
    peer = sentence_transformer(spec.folder, "float32", spec.max_document_length)
    lora = LoraConfig(
        task_type="FEATURE_EXTRACTION",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules=["query", "value"],
        layers_to_transform=[spec.num_layers - 1],
        layers_pattern="layer",
    )
    peer.add_adapter(lora)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.num_epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=learning_rate(model, config),
        warmup_steps=config.warmup_ratio,  # below one it is a share of the steps
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=model.precision == torch.bfloat16,
        use_cpu=True,
        seed=config.seed,
        eval_strategy="no" if evaluator is None else "epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    loss = MultipleNegativesRankingLoss(peer, scale=1 / spec.temperature)
    dataset = Dataset.from_dict(dict(columns))
    callbacks = [] if turns is None else [turns]
    return SentenceTransformerTrainer(
        peer, arguments, train_dataset=dataset, loss=loss, evaluator=evaluator, callbacks=callbacks
    )


def their_evaluator(data: RetrievalData) -> Any:
    """sentence-transformers' own ranking of a split's queries, with its defaults and nDCG@10."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    rows = range(len(data.corpus))
    return InformationRetrievalEvaluator(
        queries=dict(zip(data.query_ids, data.queries, strict=True)),
        corpus=dict(zip(data.corpus.id_of(rows), data.corpus.take(rows), strict=True)),
        relevant_docs={q: {d for d, grade in data.qrels[q].items() if grade >= 1} for q in data.query_ids},
    )


def time_whole(config: Tier1Config, train: RetrievalData, validation: RetrievalData) -> list[list[Any]]:
    """A row under `WHOLE_HEADER` for each side: a training with a ranking after each epoch, one after the other."""
    model = BaselineRetriever(config)
    with tempfile.TemporaryDirectory() as name, ActivationStore(Path(name), config.prefix_cache_gb) as activations:
        theirs = their_trainer(model, triplets(train), Path(name) / "theirs", evaluator=their_evaluator(validation))
        started = time.perf_counter()
        history = train_retriever(model, train, validation, config, "cpu", "bench", "lora", activations=activations)
        ours_took = time.perf_counter() - started
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            theirs.train()
        theirs_took = time.perf_counter() - started
    found = [each["eval_cosine_ndcg@10"] for each in theirs.state.log_history if "eval_cosine_ndcg@10" in each]
    best = history.best[f"val_{VALIDATION_METRIC}"]
    precision, examples = name_of(model.precision), len(train.query_ids)
    return [
        [OURS, precision, examples, config.num_epochs, ours_took, best, theirs_took / ours_took],
        [THEIRS, precision, examples, config.num_epochs, theirs_took, max(found), 1.0],
    ]


def time_training(config: Tier1Config, data: RetrievalData) -> Timing:
    """Trains both sides in turns."""
    timing, losses = Timing(), []
    model = BaselineRetriever(config)
    timing.parameters = model.trained_parameters
    with tempfile.TemporaryDirectory() as name, ActivationStore(Path(name), config.prefix_cache_gb) as activations:
        started = time.perf_counter()
        trainer = Trainer(model, data, config, torch.device("cpu"), "bench", activations)
        timing.storing = time.perf_counter() - started

        def our_epoch(epoch: int) -> None:
            losses.append(trainer.run_epoch(epoch)["train_loss"])

        turns = TakeTurns(our_epoch, timing)
        theirs = their_trainer(model, triplets(data), Path(name) / "theirs", turns)
        trainable = sum(each.numel() for each in theirs.model.parameters() if each.requires_grad)
        assert trainable == timing.parameters, f"{trainable} numbers there, {timing.parameters} here"
        with contextlib.redirect_stdout(io.StringIO()):  # their summary, a bare dictionary
            output = theirs.train()
    timing.loss = {OURS: float(np.mean(losses)), THEIRS: output.training_loss}
    return timing


def rows_of(timing: Timing, layers: int, precision: str, examples: int) -> list[list[Any]]:
    """One row for each side."""
    first = {OURS: timing.storing + timing.seconds[OURS][0], THEIRS: timing.seconds[THEIRS][0]}
    later = timing.later()
    speedup = ratio(later, THEIRS, OURS)
    return [
        [
            layers,
            precision,
            side,
            examples,
            timing.parameters,
            median(later[side]),
            examples / median(later[side]),
            first[side],
            timing.loss[side],
            speedup if side == OURS else 1.0,
        ]
        for side in (OURS, THEIRS)
    ]


HEADER = (
    "layers",
    "precision",
    "side",
    "examples",
    "trained",
    "s an epoch",
    "examples/s",
    "s first epoch",
    "mean loss",
    "times as fast",
)


WHOLE_HEADER = ("side", "precision", "queries", "epochs", "seconds", "best validation nDCG@10", "times as fast")


def main() -> None:
    """Times both depths in both formats; in short only the model's own."""
    arguments = quick_parser(__doc__).parse_args()
    quick, full = arguments.quick, arguments.full
    examples, epochs = (16, 2) if quick else (EXAMPLES, EPOCHS if full else FEW_EPOCHS)
    collection = texts_of_python()
    data = training_data(collection.train, examples)
    rows, claims = [], []
    with tempfile.TemporaryDirectory() as name:
        packaged = BaselineRetriever(settings()).spec.folder
        for layers, times in DEPTHS.items() if full or quick else [(6, 1)]:
            folder = None if times == 1 else stack_layers(packaged, Path(name) / str(layers), times)
            for precision in PRECISIONS:
                timing = time_training(configuration(folder, precision, epochs), data)
                rows += rows_of(timing, layers, precision, examples)
                what = f"LoRA on the last of {layers} layers, {precision}, examples a second from the second epoch on"
                speedup = ratio(timing.later(), THEIRS, OURS)
                claims.append(claim(f"{what}, times as many", f"{THEIRS} and PEFT", speedup, TARGETS[layers]))
    report("training", HEADER, rows, results_folder(quick), claims, shortened=not full)
    if full or quick:
        train = training_data(collection.train, examples if quick else len(collection.train.query_ids))
        validation = first_queries(collection.validation, 8, settings()) if quick else collection.validation
        rows = time_whole(configuration(None, "auto", 1 if quick else WHOLE_EPOCHS), train, validation)
        what = f"LoRA on the last of 6 layers, {rows[0][1]}, a whole training with validation, times as fast"
        claims = [claim(what, f"{THEIRS} and PEFT", rows[0][-1], WHOLE_TARGET)]
        report("training_whole", WHOLE_HEADER, rows, results_folder(quick), claims)


if __name__ == "__main__":
    main()
