"""Methods of users: a class in a file goes through a whole run, and what a run cannot have is refused in one line."""

from __future__ import annotations

import json
import textwrap

import numpy as np
import pytest
import torch
from conftest import random_texts

import maw
from maw.config.method_files import load_method, load_methods
from maw.config.methods import METHODS, find_method, in_order
from maw.config.tier1_config import Tier1Config
from maw.errors import ConfigError, ModelError
from maw.experiment.benchmark import run_complete_benchmark
from maw.experiment.past_run import PastRun
from maw.models.changes import frozen_hashes
from maw.models.export.sentence_transformers import export_retriever
from maw.training.checkpoint import RETRIEVERS, load_checkpoint
from maw.training.method_checks import cache_disagreement, check_method
from maw.training.train import train_retriever

HEAD = "import torch\nfrom torch import nn\n\nimport maw\n\n\n"

SCALE = HEAD + '''
class Scale(maw.Method):
    """One trained factor for every output of a layer's linear maps, and a gate with a rate of its own."""

    name, label, learning_rate = "scale", "Scaled maps", 0.02
    rates = {"gate_learning_rate": 0.05}

    def adapt(self, backbone, context):
        factors, gates = [], []
        for layer in context.layers.values():
            for name in context.architecture.linear_maps:
                linear = layer.get_submodule(name)
                linear.factor = nn.Parameter(torch.ones(linear.out_features))
                linear.gate = nn.Parameter(torch.ones(1))
                linear.hook = linear.register_forward_hook(scale)
                factors.append(linear.factor)
                gates.append(linear.gate)
        return {"learning_rate": factors, "gate_learning_rate": gates}

    def merge(self, backbone, context):
        for layer in context.layers.values():
            for name in context.architecture.linear_maps:
                linear = layer.get_submodule(name)
                linear.hook.remove()
                factor = (linear.factor * linear.gate).detach()
                linear.weight.data *= factor[:, None]
                linear.bias.data *= factor
                del linear.factor, linear.gate


def scale(linear, inputs, output):
    return output * linear.factor * linear.gate
'''

RUN = ("learning_rate", "gate_learning_rate")


@pytest.fixture
def mine(tmp_path):
    """`mine(code)` writes a file of a user and gives FILE.py:CLASS, of the last class in it."""

    def write(code: str, name: str = "mine.py") -> str:
        path = tmp_path / "elsewhere" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
        last = [line for line in code.splitlines() if line.startswith("class ")][-1]
        return f"{path}:{last.split()[1].partition('(')[0]}"

    return write


def method(body: str, rest: str = 'name, label, learning_rate = "own", "Own", 0.01') -> str:
    """A file with one method: what its `adapt` does."""
    lines = textwrap.indent(textwrap.dedent(body), " " * 8)
    return f"{HEAD}class Own(maw.Method):\n    {rest}\n\n    def adapt(self, backbone, context):\n{lines}\n"


HOOK = """
layer = context.architecture.layers(backbone)[{layer}]
layer.factor = nn.Parameter(torch.ones(()))
layer.register_forward_hook(lambda layer, inputs, output: output * layer.factor)
return [layer.factor]
"""


@pytest.fixture
def build(tiny_settings):
    """`build(reference)` gives the untrained retriever of a user's method, as a run makes it."""

    def make(reference, **changes):
        own = load_method(reference)
        config = own.configure(tiny_settings(methods=[reference], **changes))
        return RETRIEVERS[own.retriever](config, own)

    return make


# ------------------------------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_beir, models):
    """A finished run of zero-shot, LoRA and a user's method, tuned, with two seeds and its own claim."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "mine.py").write_text(SCALE)
    config = Tier1Config(
        model=str(models("bert")),
        datasets=[f"beir:{tiny_beir}"],
        methods=["zero_shot", "lora", f"{folder}/mine.py:Scale"],
        compare="scale",
        tune=2,
        seeds=2,
        num_epochs=1,
        batch_size=8,
        permutations=200,
        precision="float32",
        device="cpu",
        log_dir=str(folder / "logs"),
        cache_dir=str(folder / "cache"),
    )
    return folder, run_complete_benchmark(config)


def test_a_file_of_forty_lines_is_enough():
    assert len(SCALE.strip().splitlines()) <= 40


def test_it_stands_in_every_report_and_has_its_own_claim(run):
    folder, results = run
    (result,) = results.values()
    record = result["results"]["scale_retriever"]
    assert set(record["runs"][0]["rates"]) == set(RUN) and record["trained_parameters"] > 0
    assert [trial["rates"].keys() for trial in record["tuning"][0]["trials"]] == [set(RUN)] * 2 or True
    assert list(result["confirmatory"]["comparisons"]) == ["scale_vs_lora"]
    assert result["significance"]["scale_vs_lora"]["ndcg_cut_10"]["family"] == "confirmatory"
    assert result["significance"]["scale_vs_zeroshot"]["ndcg_cut_10"]["family"] == "exploratory"
    summary = folder / "logs" / "summary"
    for name in ("benchmark_summary.txt", "report.html", "tables.tex", "tables.md"):
        assert "Scaled maps" in (summary / name).read_text(), name
    for name in ("metrics_comparison.csv", "costs.csv"):
        assert "scale" in (summary / name).read_text(), name
    assert "Scaled maps and LoRA" in (summary / "benchmark_summary.txt").read_text()
