"""Methods of the PEFT library: each starts as the pretrained model, trains, is stored and exported, or is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import random_texts

from maw.config.method_files import load_method
from maw.config.methods import METHOD_NAMES, find_method
from maw.config.tier1_config import Tier1Config
from maw.experiment.benchmark import run_complete_benchmark
from maw.experiment.past_run import PastRun
from maw.training.checkpoint import RETRIEVERS, load_checkpoint
from maw.training.optimizer import with_rates

RUN = ("lora", "rslora", "dora", "pissa", "vera", "ia3", "oft")
TEXTS = random_texts(6)


@pytest.fixture
def build(tiny_settings):
    """`build("peft:dora")` gives the untrained retriever of a method, as a run makes it."""

    def make(name, model_type="bert", **changes):
        own = find_method(name) if name in METHOD_NAMES else load_method(name)
        config = tiny_settings(model_type, methods=[name], **changes)
        return RETRIEVERS[own.retriever](with_rates(own.configure(config), {"learning_rate": 0.01}), own)

    return make


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_beir, models):
    """A finished run of the methods of `RUN` beside LoRA, tuned, with two seeds and a claim."""
    folder = tmp_path_factory.mktemp("peft")
    where = {"log_dir": str(folder / "logs"), "cache_dir": str(folder / "cache"), "model": str(models("bert"))}
    small = {"num_epochs": 1, "batch_size": 8, "permutations": 200, "precision": "float32", "device": "cpu"}
    methods = ["zero_shot", "lora", *(f"peft:{name}" for name in RUN)]
    claimed = {"datasets": [f"beir:{tiny_beir}"], "methods": methods, "compare": "lora", "tune": 2, "seeds": 2}
    (result,) = run_complete_benchmark(Tier1Config(**where, **small, **claimed)).values()
    return folder / "logs", result


def test_a_run_compares_them_with_lora(run):
    logs, result = run
    assert set(result["confirmatory"]["comparisons"]) == {f"peft_{name}_vs_lora" for name in RUN}
    for name in RUN:
        record = result["results"][f"peft_{name}_retriever"]
        assert len(record["runs"]) == 2 and len(record["tuning"][0]["trials"]) == 2
        assert record["trained_parameters"] > 0
    assert "DoRA (PEFT)" in (logs / "summary" / "tables.md").read_text()
    best = sorted((logs / "checkpoints").glob("*_peft_pissa_seed42_best"))[0]
    assert (
        np.abs(load_checkpoint(best).encode(TEXTS) - PastRun.open(logs).model("peft_pissa").encode(TEXTS)).max() == 0
    )


def test_lora_of_peft_is_lora_to_the_last_bit(run):
    logs, result = run
    own, theirs = (result["results"][key] for key in ("2_lora_fine_tuned_retriever", "peft_lora_retriever"))
    assert own["metrics"] == theirs["metrics"]
    first, second = (PastRun.open(logs).model(name).trained_state() for name in ("lora", "peft_lora"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
