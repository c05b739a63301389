"""Compares a training step of MAW with one of `full`, which trains the same layer without depths, of LoRA and of PEFT.

    python -m bench.step

The methods have the settings of the offline preset and train on the first queries of Python's library. They take turns
by epoch in one process and share the activations of the frozen layers, which are stored before anything is timed. An
epoch has the same batches for all. Validation, diagnostics and loading are not part of a step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.common import ROUNDS, alternate, claim, median, quick_parser, ratio, report, results_folder
from maw.config.method_files import load_methods
from maw.config.methods import find_method
from maw.config.tier1_config import Tier1Config
from maw.data.registry import load_collection
from maw.encoding.activation_cache import ActivationStore
from maw.experiment.method_trainer import MethodTrainer
from maw.runtime.devices import pick_device
from maw.training.prepare import prepare_training
from maw.training.trainer import Trainer

PEFT = ("dora", "rslora", "pissa", "vera", "ia3", "oft")
METHODS = ("lora", "full", "maw", *(f"peft:{name}" for name in PEFT))
QUERIES, FEW = 320, 64
TARGETS = {("maw", "full"): "<= 1.6"}


def epochs_of(config: Tier1Config, activations: ActivationStore) -> tuple[dict[str, Callable[[], object]], int]:
    """A call for each method that trains for one epoch, and the steps of an epoch."""
    device, (dataset,) = pick_device(config), config.datasets
    data = prepare_training(load_collection(dataset, config), config, None, activations)
    assert not load_methods(config.methods), "PEFT's methods are no code of their own, so nothing can be wrong"
    sides: dict[str, Callable[[], object]] = {}
    for name in config.methods:
        method = MethodTrainer(find_method(name), config, device, activations)
        model = method.build(method.configure(config.seed))
        trainer = Trainer(model, data.train, model.config, device, name, activations)
        sides[name] = partial(trainer.run_epoch, 1)
    return sides, trainer.pairs.count_batches(1, config.batch_size)


def main() -> None:
    """Times the steps and reports them."""
    quick = quick_parser(__doc__).parse_args().quick
    config = Tier1Config.from_preset("offline", methods=list(METHODS), train_samples=FEW if quick else QUERIES)
    with tempfile.TemporaryDirectory() as name, ActivationStore(Path(name), config.prefix_cache_gb) as activations:
        sides, steps = epochs_of(config, activations)
        seconds = alternate(sides, 1 if quick else ROUNDS)
    rows = [
        [
            method,
            steps,
            median(seconds[method]) / steps,
            ratio(seconds, method, "full"),
            ratio(seconds, method, "lora"),
        ]
        for method in seconds
    ]
    claims = [
        claim(f"a training step of {method}, times as long", base, ratio(seconds, method, base), target)
        for (method, base), target in TARGETS.items()
    ]
    report("step", ["method", "steps", "s a step", "x full", "x LoRA"], rows, results_folder(quick), claims)


if __name__ == "__main__":
    main()
