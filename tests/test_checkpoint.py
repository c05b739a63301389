"""Checkpoints come back as the retriever that was saved, and damage is noticed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import random_texts, write_model
from safetensors import SafetensorError

from maw.checkpoint import load_checkpoint, save_checkpoint
from maw.errors import MAWError, ModelError
from maw.retriever import BaselineRetriever, MAWRetriever


def save(model, folder, **changes):
    facts = {
        "dataset": "tiny",
        "method": "maw",
        "epoch": 2,
        "best_val_metric": 0.5,
        "training_history": [{"epoch": 1}],
    }
    return save_checkpoint(folder, model, **(facts | changes))


def perturbed(tiny_settings, retriever=MAWRetriever, **changes):
    model = retriever(tiny_settings(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return model


@pytest.mark.parametrize(
    ("retriever", "changes"),
    [
        (MAWRetriever, {}),
        (MAWRetriever, {"depth_kernel": "low_rank", "route_by": "head", "maw_layers": [2, 3]}),
        (BaselineRetriever, {"use_lora": True}),
        (MAWRetriever, {"checkpoint_compression": False}),
    ],
)
def test_a_checkpoint_comes_back_as_it_was(tiny_settings, tmp_path, retriever, changes):
    model = perturbed(tiny_settings, retriever, **changes)
    texts = random_texts(10)
    loaded = load_checkpoint(save(model, tmp_path / "best"))
    assert type(loaded) is retriever and not loaded.training
    np.testing.assert_array_equal(loaded.encode(texts), model.encode(texts))
    assert loaded.checkpoint["epoch"] == 2 and loaded.checkpoint["training_history"] == [{"epoch": 1}]


def test_only_what_was_trained_is_stored(tiny_settings, tmp_path):
    sizes = {}
    for name, changes in {"trained": {}, "whole": {"checkpoint_compression": False}}.items():
        folder = save(perturbed(tiny_settings, BaselineRetriever, use_lora=True, **changes), tmp_path / name)
        (weights,) = folder.glob("*.safetensors")
        sizes[name] = weights.stat().st_size
    assert sizes["trained"] < 0.2 * sizes["whole"]


def test_saving_again_replaces_and_leaves_two_files(tiny_settings, tmp_path):
    save(perturbed(tiny_settings), tmp_path / "best")
    second = perturbed(tiny_settings, seed=5)
    save(second, tmp_path / "best", epoch=3)
    assert len(list((tmp_path / "best").iterdir())) == 2
    assert load_checkpoint(tmp_path / "best").checkpoint["epoch"] == 3


def test_an_interrupted_save_leaves_the_old_checkpoint(tiny_settings, tmp_path, monkeypatch):
    first = perturbed(tiny_settings)
    folder = save(first, tmp_path / "best")

    def stop(*args):
        raise KeyboardInterrupt

    for place in ("maw.checkpoint.save_file", "maw.checkpoint.write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(place, stop)
            with pytest.raises(KeyboardInterrupt):
                save(perturbed(tiny_settings, seed=5), folder, epoch=9)
        assert load_checkpoint(folder).checkpoint["epoch"] == 2


def test_damage_is_noticed_and_named(tiny_settings, tmp_path):
    folder = save(perturbed(tiny_settings), tmp_path / "best")
    (weights,) = folder.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(MAWError, match=weights.name):
        load_checkpoint(folder)
    weights.unlink()
    with pytest.raises(MAWError, match="not in the folder"):
        load_checkpoint(folder)
    (folder / "checkpoint.json").write_text("{}")
    with pytest.raises(MAWError, match="not a checkpoint record"):
        load_checkpoint(folder)
    with pytest.raises(MAWError, match=r"nowhere.checkpoint\.json"):
        load_checkpoint(tmp_path / "nowhere")


def test_a_record_cannot_point_outside_its_folder(tiny_settings, tmp_path):
    folder = save(perturbed(tiny_settings), tmp_path / "best")
    record = json.loads((folder / "checkpoint.json").read_text())
    (tmp_path / "other.safetensors").write_bytes(next(folder.glob("*.safetensors")).read_bytes())
    (folder / "checkpoint.json").write_text(json.dumps(record | {"weights": "../other.safetensors"}))
    with pytest.raises(MAWError, match="not in the folder"):
        load_checkpoint(folder)


def test_weights_of_another_shape_are_refused(tiny_settings, tmp_path):
    folder = save(perturbed(tiny_settings), tmp_path / "best")
    record = json.loads((folder / "checkpoint.json").read_text())
    record["config"]["depth_dim"] = 5
    (folder / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match="do not fit"):
        load_checkpoint(folder)


def test_other_pretrained_weights_are_refused(tiny_settings, tmp_path):
    model_folder = write_model(tmp_path / "model", seed=1)
    folder = save(perturbed(tiny_settings, model=str(model_folder)), tmp_path / "best")
    write_model(model_folder, seed=2)
    with pytest.raises(ModelError, match="other weights"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"config": [1]},
        {"config": None},
        {"weights": 5},
        {"retriever": ["maw"]},
        {"weights_sha256": None},
        {"pretrained_sha256": 1},
    ],
)
def test_a_record_of_other_types_is_refused(tiny_settings, tmp_path, change):
    folder = save(perturbed(tiny_settings), tmp_path / "best")
    record = json.loads((folder / "checkpoint.json").read_text())
    without = {key: value for key, value in record.items() if key not in change}
    for wrong in (record | change, without):
        (folder / "checkpoint.json").write_text(json.dumps(wrong))
        with pytest.raises(MAWError, match="not a checkpoint record"):
            load_checkpoint(folder)


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(tiny_settings, tmp_path, monkeypatch):
    folder = save(perturbed(tiny_settings), tmp_path / "best")

    def full(weights, path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("maw.checkpoint.save_file", full)
    with pytest.raises(MAWError, match=r"best.*No space left"):
        save(perturbed(tiny_settings, seed=5), folder, epoch=9)
    assert load_checkpoint(folder).checkpoint["epoch"] == 2
    assert len(list(folder.iterdir())) == 2
