"""Measures how fast this machine encodes, with the run's model and 200 texts, for two seconds.

The texts are cut from docstrings of Python's own modules. Time is counted for each token, since texts differ in
length. Only the time estimate of `maw.experiment.plan.plan` uses it.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass

from maw.config.tier1_config import Tier1Config
from maw.errors import MAWError
from maw.models.model_files import WEIGHTS
from maw.models.pretrained import ModelSpec

TEXTS = 200
SECONDS = 2.0  # no batch starts after this time
_BATCH = 10
_MODULES = ("argparse", "collections", "decimal", "enum", "inspect", "json", "logging", "pathlib", "re", "threading")
_WEIGHTS = (WEIGHTS, f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Rate:
    """A measurement of encoding speed."""

    texts: int
    tokens: int
    seconds: float
    device: str


def measure(config: Tier1Config, spec: ModelSpec, characters: int) -> Rate:
    """Encodes texts of about `characters` characters with the run's model.

    Raises:
        MAWError: the model's weights are not on this machine, or the model cannot be run.
    """
    if not weights_are_here(spec):
        raise MAWError("the model is not on this machine")
    from maw.models.encode import encode
    from maw.models.retriever import BaselineRetriever
    from maw.models.tokenized import ListTexts
    from maw.runtime.devices import pick_device

    device = pick_device(config)
    model = BaselineRetriever(config).to(device)
    source = model.source(ListTexts(docstrings(characters, TEXTS)), "document")
    tokens = source.batch(range(TEXTS))["attention_mask"].sum(1).tolist()
    warm_up = model.source(source.texts.texts[:4], "document")
    encode(model.encoder, warm_up, device=device)
    done, started = 0, time.perf_counter()
    while done < TEXTS and time.perf_counter() - started < SECONDS:
        part = source.texts.texts[done : done + _BATCH]
        encode(model.encoder, model.source(part, "document"), batch_size=_BATCH, device=device)
        done += len(part)
    return Rate(done, sum(tokens[:done]), time.perf_counter() - started, device.type)


def weights_are_here(spec: ModelSpec) -> bool:
    """Whether the model can be loaded without a download."""
    if spec.folder is not None:
        return True
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(spec.name, name), str) for name in _WEIGHTS)


def docstrings(characters: int, count: int) -> list[str]:
    """`count` texts of about `characters` characters each, from docstrings of Python's own modules."""
    modules = [importlib.import_module(name) for name in _MODULES]
    holders = [each for module in modules for each in (module, *(value for value in vars(module).values()))]
    members = [m for each in holders for m in (each, *(vars(each).values() if isinstance(each, type) else ()))]
    found = dict.fromkeys(m.__doc__ for m in members if isinstance(getattr(m, "__doc__", None), str))
    words = " ".join(found).split()
    size = max(1, round(characters / 6))  # words; one is about five letters and a blank
    starts = [number * max(1, len(words) // count) % len(words) for number in range(count)]
    return [" ".join((words[start:] + words)[:size])[:characters] for start in starts]
