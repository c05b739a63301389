"""Rows 2, 5 and 11: a checkpoint is complete wherever its writer is killed, damage is found, all values are finite."""

from __future__ import annotations

import logging
import mmap
import os
import random
import signal
import struct

import pytest
import torch

from faults.runs import flip, truncate, watched
from maw.errors import MAWError, NotFiniteError
from maw.experiment.run_state import RunState
from maw.models.retriever import BaselineRetriever
from maw.storage.checksummed import clear_temporaries, read_signed, write_signed
from maw.storage.checksummed_tensors import write_bundle
from maw.training.checkpoint import load_checkpoint, load_training, read_record, save_checkpoint

PART = {"id": "1", "part": "tiny_lora"}


@pytest.fixture
def save(tiny_settings):
    """`save(folder, 3)` writes a latest checkpoint in which all numbers are 3, step and epoch too."""
    model = BaselineRetriever(tiny_settings(use_lora=True))

    def write(folder, number, **changes):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.fill_(number)
        state = {"trainer": {"step": number, "moments": [torch.full((300,), float(number))]}}
        facts = {"dataset": "tiny", "method": "lora", "epoch": number, "step": number, "best_val_metric": 0.5}
        options = {"training_history": [], "training": state, "run": PART, "keep_previous": True}
        return save_checkpoint(folder, model, **(facts | options | changes))

    return write


def number_in(folder):
    """The number of a checkpoint, once all of it is found to be of one."""
    weights, state = load_training(folder, PART)
    numbers = {float(value) for each in weights.values() for value in each.unique()}
    numbers |= {float(value) for value in state["trainer"]["moments"][0].unique()} | {state["trainer"]["step"]}
    (number,) = numbers | {read_record(folder)["epoch"]}
    return number


# --------------------------------------------------------------------------------------------- row 2: killed anywhere


def in_child(function, boundary=0):
    """Runs a function in a fork of this process; its exit status, and how many boundaries it passed."""
    counters = mmap.mmap(-1, 24)
    child = os.fork()
    if child == 0:
        try:
            with watched(counters, boundary=boundary):
                function()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), struct.unpack("qqq", counters[:])[0]


def files(folder):
    return {path.name for path in folder.iterdir()}


def test_a_writer_killed_at_any_boundary_leaves_a_whole_checkpoint(save, tmp_path, repeats, trial):
    """Every boundary in the full count, every seventh in the suite."""
    folder = tmp_path / "count"
    for number in (1, 2):
        save(folder, number)
    code, boundaries = in_child(lambda: save(folder, 3))
    assert code == 0 and boundaries >= 30 and number_in(folder) == 3
    seen = set()
    for boundary in range(1, boundaries + 1, repeats(7, 1)):
        with trial(2, "SIGKILL at a write, flush, rename or removal of a checkpoint", boundary):
            folder = tmp_path / f"checkpoint{boundary}"
            for number in (1, 2):
                save(folder, number)
            code, _ = in_child(lambda to=folder: save(to, 3), boundary)
            assert code == -signal.SIGKILL
            seen.add(number_in(folder))
            assert number_in(folder) in (2, 3)
            assert len([name for name in files(folder) if name.endswith(".tmp")]) <= 1
            clear_temporaries(folder)
            assert not [name for name in files(folder) if name.endswith(".tmp")]
            save(folder, 4)
            assert number_in(folder) == 4 and len(files(folder)) == 2 + 2 * 2, "nothing of the killed writer is left"
    assert seen == {2, 3}


def test_a_writer_in_place_would_be_noticed(save, tmp_path, monkeypatch):
    """Planted: with a writer that opens the file itself, some kill leaves neither the old nor the new one."""

    def in_place(path, write):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
        return path

    for place in ("maw.storage.checksummed_tensors", "maw.storage.checksummed"):
        monkeypatch.setattr(f"{place}.write_atomically", in_place)
    broken = 0
    for boundary in range(1, 13):
        folder = tmp_path / f"checkpoint{boundary}"
        save(folder, 1, keep_previous=False)
        in_child(lambda to=folder: save(to, 3, keep_previous=False), boundary)
        broken += load_training(folder, PART) is None
    assert broken


@pytest.mark.parametrize("kind", ["record", "bundle"])
def test_other_records_are_whole_too(tmp_path, kind, repeats, trial):
    write = {
        "record": lambda folder, n: write_signed(folder / "record.json", {"n": n}),
        "bundle": lambda folder, n: write_bundle(folder, {"n": n}, {"rows": {"n": torch.full((9,), n)}}),
    }[kind]
    write(tmp_path / "count", 1)
    _, boundaries = in_child(lambda: write(tmp_path / "count", 2))
    for boundary in range(1, boundaries + 1, repeats(5, 1)):
        with trial(2, f"SIGKILL at a write, flush, rename or removal of a {kind}", boundary):
            folder = tmp_path / f"{kind}{boundary}"
            write(folder, 1)
            assert in_child(lambda to=folder: write(to, 2), boundary)[0] == -signal.SIGKILL
            assert read_signed(folder / "record.json")["n"] in (1, 2)


# ------------------------------------------------------------------------------------------------------ row 5: damage


@pytest.mark.parametrize("damage", [truncate, flip], ids=["truncated", "one bit flipped"])
def test_a_damaged_latest_checkpoint_is_passed_over_for_the_one_before(save, tmp_path, damage, repeats, trial, caplog):
    for seed in range(repeats(8, 200)):
        with trial(5, f"checkpoints, {damage.__name__}", seed):
            source, folder = random.Random(seed), tmp_path / f"checkpoint{seed}"
            for number in (1, 2, 3):
                save(folder, number)
            named = [folder / each["file"] for each in read_record(folder)["files"].values()]
            path = source.choice([folder / "checkpoint.json", *named])
            damage(path, source)
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                assert load_checkpoint(folder).checkpoint["epoch"] == 2
            assert str(path) in caplog.text and "checkpoint.previous.json" in caplog.text
            assert number_in(folder) == 2, "what a resumed run goes on from"
            save(folder, 5)
            assert number_in(folder) == 5
            damage(folder / "checkpoint.json", source)
            assert number_in(folder) == 2, "the good one was kept, and not the damaged one"


@pytest.mark.parametrize("damage", [truncate, flip], ids=["truncated", "one bit flipped"])
def test_a_damaged_best_checkpoint_is_refused_by_name(save, tmp_path, damage, repeats, trial):
    folder = save(tmp_path / "best", 1, keep_previous=False)
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    assert len(whole) == 3
    for seed in range(repeats(8, 200)):
        with trial(5, f"checkpoints without one before, {damage.__name__}", seed):
            source = random.Random(seed)
            path = source.choice(sorted(whole))
            damage(path, source)
            with pytest.raises(MAWError, match=path.name):
                load_checkpoint(folder)
            path.write_bytes(whole[path])
    assert load_checkpoint(folder).checkpoint["epoch"] == 1


def test_a_reader_that_does_not_look_at_the_hash_would_be_noticed(save, tmp_path, monkeypatch):
    """Planted: without the comparison most flipped bits are read without a complaint."""
    folder = save(tmp_path / "best", 1, keep_previous=False)
    (path,) = folder.glob("training-*")
    whole = path.read_bytes()
    digest = read_record(folder)["files"]["training"]["sha256"]
    monkeypatch.setattr("maw.storage.checksummed_tensors.sha256", lambda file: digest if file == path else read_record)
    monkeypatch.setattr(
        "maw.training.checkpoint.read_bundle", lambda folder, **_: read_signed(folder / "checkpoint.json")
    )
    unnoticed = 0
    for seed in range(20):
        flip(path, random.Random(seed))
        try:
            unnoticed += load_training(folder, PART) is not None
        except Exception:  # noqa: BLE001 - whatever a damaged file leads to
            unnoticed += 0
        path.write_bytes(whole)
    assert unnoticed > 5


def test_a_damaged_record_of_a_run_is_refused_by_name(tmp_path, repeats, trial):
    path = tmp_path / "state" / "run.json"
    RunState(tmp_path, {}, resumed=False)
    write_signed(path, {"id": "1", "config": {"seed": 42, "learning_rate": 1e-05}, "text": "a\udc80"})
    whole, record = path.read_bytes(), read_signed(path)
    assert record["text"] == "a\udc80"
    for seed in range(repeats(50, 400)):
        with trial(5, "run.json, truncated or one bit flipped", seed):
            (truncate if seed % 2 else flip)(path, random.Random(seed))
            with pytest.raises(MAWError, match=r"run\.json: damaged"):
                read_signed(path)
            path.write_bytes(whole)
    assert read_signed(path) == record


# ------------------------------------------------------------------------------------------------------ row 11: finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["weights", "training"])
def test_nothing_that_is_not_finite_is_saved(save, tmp_path, value, where, trial):
    with trial(11, f"{where} not finite when they are saved", value):
        folder = save(tmp_path / "latest", 1)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        state = {"trainer": {"step": 2, "moments": [torch.tensor([1.0, value if where == "training" else 1.0])]}}
        with pytest.raises(NotFiniteError, match=f"latest: {where} .* step 2"):
            save(folder, value if where == "weights" else 2, epoch=2, step=2, training=state)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
