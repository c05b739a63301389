"""Checkpoints load as the saved retriever, and damage is noticed."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_texts, write_model

from maw.errors import MAWError, ModelError
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.storage.checksummed import read_signed, write_signed
from maw.training.checkpoint import cleanup_checkpoints, load_checkpoint, save_checkpoint


def save(model, folder, **changes):
    facts = {
        "dataset": "tiny",
        "method": "maw",
        "epoch": 2,
        "best_val_metric": 0.5,
        "training_history": [{"epoch": 1}],
    }
    return save_checkpoint(folder, model, **(facts | changes))


def change(folder, **values):
    """Changes a record as if it had been written so."""
    path = folder / "checkpoint.json"
    write_signed(path, read_signed(path) | values)


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
        (MAWRetriever, {"depth_kernel": "gated"}),
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

    for place in (
        "maw.storage.checksummed_tensors.write_atomically",
        "maw.storage.checksummed.write_atomically",
        "maw.storage.checksummed_tensors.write_signed",
    ):
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
    with pytest.raises(MAWError, match=rf"{weights.name}: cannot be read .*checkpoint\.json names it"):
        load_checkpoint(folder)
    (folder / "checkpoint.json").write_text("{}")
    with pytest.raises(MAWError, match=r"checkpoint\.json: damaged"):
        load_checkpoint(folder)
    with pytest.raises(MAWError, match=r"nowhere.checkpoint\.json"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "weights-0.safetensors", ""])
def test_a_record_cannot_point_outside_its_folder(tiny_settings, tmp_path, name):
    folder = save(perturbed(tiny_settings), tmp_path / "best")
    entry = read_signed(folder / "checkpoint.json")["files"]["weights"]
    (tmp_path / "other.safetensors").write_bytes((folder / entry["file"]).read_bytes())
    change(folder, files={"weights": entry | {"file": name}})
    with pytest.raises(MAWError, match="not one of its folder's"):
        load_checkpoint(folder)


def test_weights_of_another_shape_are_refused(tiny_settings, tmp_path):
    folder = save(perturbed(tiny_settings), tmp_path / "best")
    change(folder, config=read_signed(folder / "checkpoint.json")["config"] | {"depth_dim": 5})
    with pytest.raises(ModelError, match="do not fit"):
        load_checkpoint(folder)


def test_other_pretrained_weights_are_refused(tiny_settings, tmp_path):
    model_folder = write_model(tmp_path / "model", seed=1)
    folder = save(perturbed(tiny_settings, model=str(model_folder)), tmp_path / "best")
    write_model(model_folder, seed=2)
    with pytest.raises(ModelError, match="other weights"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "wrong",
    [
        {"config": [1]},
        {"config": None},
        {"retriever": ["maw"]},
        {"pretrained_sha256": 1},
        {"files": []},
        {"files": {}},
    ],
)
def test_a_record_of_other_types_is_refused(tiny_settings, tmp_path, wrong):
    folder = save(perturbed(tiny_settings), tmp_path / "best")
    change(folder, **wrong)
    with pytest.raises(MAWError, match=r"checkpoint\.json: not a .*record of this version"):
        load_checkpoint(folder)
    record = {key: value for key, value in read_signed(folder / "checkpoint.json").items() if key not in wrong}
    write_signed(folder / "checkpoint.json", record)
    with pytest.raises(MAWError, match=r"checkpoint\.json: not a .*record of this version"):
        load_checkpoint(folder)


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(tiny_settings, tmp_path, monkeypatch):
    folder = save(perturbed(tiny_settings), tmp_path / "best")

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(MAWError, match=r"best.*No space left"):
            save(perturbed(tiny_settings, seed=5), folder, epoch=9)
    assert load_checkpoint(folder).checkpoint["epoch"] == 2
    assert len(list(folder.iterdir())) == 2


def test_a_whole_checkpoint_in_a_narrow_format_draws_no_random_number(tiny_settings, tmp_path):
    """Else what training draws next would depend on whether it was saved."""
    model = perturbed(tiny_settings, checkpoint_compression=False, precision="bfloat16")
    before = torch.get_rng_state()
    folder = save(model, tmp_path / "best")
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(load_checkpoint(folder).encode(random_texts(5)), model.encode(random_texts(5)))


def test_cleaning_up_keeps_the_best_and_what_is_no_checkpoint(tiny_settings, tmp_path):
    model, folder = perturbed(tiny_settings), tmp_path / "run" / "checkpoints"
    for kind in ("best", "latest", "epoch001", "epoch002"):
        save(model, folder / f"tiny_maw_{kind}")
    (folder / "notes_latest").mkdir()
    (folder / "link_latest").symlink_to(folder / "tiny_maw_latest")
    (tmp_path / "run" / "state").mkdir()
    (tmp_path / "run" / "state" / "run.json").write_text("{}")

    def left():
        return sorted(path.name.removeprefix("tiny_maw_") for path in folder.iterdir())

    removed = cleanup_checkpoints(folder)
    assert [path.name for path in removed] == ["tiny_maw_epoch001", "tiny_maw_epoch002"]
    assert left() == ["best", "latest", "link_latest", "notes_latest"], "an unfinished run goes on from its latest"
    (tmp_path / "run" / "state" / "run.json").unlink()  # what a kill may leave of a run that has finished
    cleanup_checkpoints(str(folder))
    assert left() == ["best", "link_latest", "notes_latest"]
    cleanup_checkpoints(folder, keep_best=False)
    assert left() == ["link_latest", "notes_latest"]
    with pytest.raises(MAWError, match="nowhere"):
        cleanup_checkpoints(tmp_path / "nowhere")
