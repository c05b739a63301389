"""Activations that outlive the run: equal bits cold, warm and without them; damage, limits, kills, two processes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import random_texts
from faults.tools import DAMAGE, Child, tree

import maw.encoding.activation_cache as activation_cache
import maw.encoding.activation_files as activation_files
from maw.encoding.activation_cache import ActivationSource, ActivationStore
from maw.evaluation.evaluate import evaluate_retriever
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.models.tokenized import ListTexts
from maw.storage.locks import held
from maw.training.train import train_retriever

CPU = torch.device("cpu")
TEXTS = list(dict.fromkeys(random_texts(260, seed=7, longest=40)))


@pytest.fixture(autouse=True)
def small_entries(monkeypatch):
    monkeypatch.setattr(activation_files, "LEAST_KEPT", 4)
    monkeypatch.setattr(activation_files, "KEEP_FREE", 0)


@pytest.fixture
def model(tiny_settings):
    return BaselineRetriever(tiny_settings())


@pytest.fixture
def passes(monkeypatch):
    """The number of texts of each batch that went through the frozen layers."""
    counted: list[int] = []
    real = ActivationSource._compute

    def compute(self, inputs):
        counted.append(len(inputs["input_ids"]))
        return real(self, inputs)

    monkeypatch.setattr(ActivationSource, "_compute", compute)
    return counted


def hidden(folder: Path, model, texts, *, lasting=True, limit=1.0, order=None, kind="document") -> list[bytes]:
    """The activations of each text, as bytes, after one request for all."""
    with ActivationStore(folder, limit, lasting=lasting) as store:
        source = store.source(model.source(ListTexts(texts), kind), model.encoder, CPU)
        rows = np.arange(len(texts)) if order is None else order
        source.fill(rows)
        found = source.batch(range(len(texts)))
        masks = found["attention_mask"].bool()
        return [each[mask].float().numpy().tobytes() for each, mask in zip(found["hidden"], masks, strict=True)]


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def test_the_next_run_computes_only_new_texts_and_gets_the_same_bits(model, tmp_path, passes):
    old, new = TEXTS[:150], TEXTS[100:220]
    first = hidden(tmp_path / "a", model, old)
    computed = len(passes)
    assert hidden(tmp_path / "a", model, old) == first
    assert len(passes) == computed, "everything was read"
    second = hidden(tmp_path / "a", model, new)
    passes.clear()
    assert second == hidden(tmp_path / "b", model, new) == hidden(tmp_path / "c", model, new, lasting=False)
    assert second[:50] == first[100:]
    assert len(entries(tmp_path / "a")) == 2 and not (tmp_path / "c" / "room.lock").exists()


def test_splits_of_one_run_share_their_texts(model, tmp_path, passes):
    with ActivationStore(tmp_path, 1.0) as store:
        for texts in (TEXTS[:100], TEXTS[20:90], [*TEXTS[50:60]] * 2):
            store.source(model.source(ListTexts(texts), "document"), model.encoder, CPU).fill(np.arange(len(texts)))
        assert len({each.part.max() for each in store._sources.values()}) == 1
        once = sum(passes)
    passes.clear()
    hidden(tmp_path, model, TEXTS[:100], lasting=False)
    assert once == sum(passes)


def test_a_text_has_the_same_bits_whatever_it_is_computed_with(model, tmp_path):
    whole = hidden(tmp_path, model, TEXTS, lasting=False)
    source = random.Random(3)
    for _ in range(4):
        chosen = source.sample(range(len(TEXTS)), 30)
        assert hidden(tmp_path, model, [TEXTS[i] for i in chosen], lasting=False) == [whole[i] for i in chosen]


def test_control_in_batches_of_mixed_lengths_a_bit_of_the_batch_would_show(model, tmp_path, monkeypatch):
    """Planted: the shape of the batch enters the states, as it does through a device's kernels."""
    real = ActivationSource._prefix

    def shaped(self, inputs):
        return {"hidden": real(self, inputs)["hidden"] + 1e-3 * inputs["input_ids"].numel()}

    monkeypatch.setattr(ActivationSource, "_prefix", shaped)
    test_a_text_has_the_same_bits_whatever_it_is_computed_with(model, tmp_path)

    def mixed(self, lengths):
        return ((part, len(part)) for part in activation_cache.cut(lengths, 4096, 2048))

    monkeypatch.setattr(ActivationSource, "_parts", mixed)
    with pytest.raises(AssertionError):
        test_a_text_has_the_same_bits_whatever_it_is_computed_with(model, tmp_path)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["states.bin", "index.npy", "manifest.json"])
def test_a_damaged_entry_is_noticed_and_computed_again(model, tmp_path, caplog, damage, name):
    expected = hidden(tmp_path / "cache", model, TEXTS)
    for seed in range(3):
        (entry,) = entries(tmp_path / "cache")
        DAMAGE[damage](entry / name, random.Random(seed))
        caplog.clear()
        assert hidden(tmp_path / "cache", model, TEXTS) == expected
        assert any("again" in record.getMessage() for record in caplog.records), (damage, name, seed)
        hidden(tmp_path / "cache", model, TEXTS)  # an entry with damaged states was removed, and is whole again
        caplog.clear()
        assert hidden(tmp_path / "cache", model, TEXTS) == expected and not caplog.records


def test_control_states_that_are_not_compared_are_wrong(model, tmp_path, monkeypatch):
    expected = hidden(tmp_path, model, TEXTS)
    (entry,) = entries(tmp_path)
    DAMAGE["one bit flipped"](entry / "states.bin", random.Random(0))
    monkeypatch.setattr(activation_cache, "_token_sums", lambda states, places: np.zeros(states.shape[:-1], np.uint64))
    monkeypatch.setattr(ActivationSource, "_gather", _trusting(ActivationSource._gather))
    assert hidden(tmp_path, model, TEXTS) != expected


def _trusting(real):
    def gather(self, rows):
        states, mask, whole = real(self, rows)
        return states, mask, np.ones_like(whole)

    return gather


@pytest.mark.parametrize("change", ["weights", "length", "precision", "tokenizer", "frozen layers"])
def test_another_model_reads_nothing(model, tiny_settings, tmp_path, passes, change):
    hidden(tmp_path, model, TEXTS)
    settings = {"length": {"max_document_length": 9}, "precision": {"precision": "bfloat16"}}.get(change, {})
    if change == "frozen layers":
        settings = {"maw_layers": [2, 3]}
    other = BaselineRetriever(tiny_settings(**settings))
    if change == "weights":
        next(other.encoder.backbone.parameters()).data[0, 0] += 1
    if change == "tokenizer":
        other.tokenizer.pad_token = other.tokenizer.unk_token
    passes.clear()
    hidden(tmp_path, other, TEXTS)
    assert passes and len(entries(tmp_path)) == 2


def test_methods_of_a_run_read_the_same_entries(tiny_settings, tmp_path, passes):
    """The layers that are trained, and how, are no part of what is frozen."""
    for build, change in ((BaselineRetriever, {}), (BaselineRetriever, {"use_lora": True}), (MAWRetriever, {})):
        hidden(tmp_path, build(tiny_settings(**change)), TEXTS)
        assert passes or build is not BaselineRetriever or change
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize("arm", ["lora", "maw"])
def test_a_whole_training_is_the_same_cold_warm_and_without(tiny_settings, tiny_data, tmp_path, arm):
    outcomes = []
    for folder, lasting in (("a", True), ("a", True), ("b", False)):
        config = tiny_settings(use_lora=arm == "lora", cache_dir=str(tmp_path / folder / "x"), embedding_cache_gb=0)
        model = (MAWRetriever if arm == "maw" else BaselineRetriever)(config)
        with ActivationStore(tmp_path / folder, 1.0, lasting=lasting) as store:
            history = train_retriever(model, tiny_data, tiny_data, config, "cpu", activations=store)
            found = evaluate_retriever(model, tiny_data, config, CPU, activations=store)
        losses = [record["train_loss"] for record in history]
        outcomes.append((losses, found.run["scores"].tobytes(), dict(found)))
        if arm == "lora":
            assert bool(entries(tmp_path / folder)) is lasting
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_the_entries_read_longest_ago_make_room(model, tmp_path):
    parts = [TEXTS[start : start + 60] for start in (0, 60, 120)]
    for number, part in enumerate(parts[:2]):
        hidden(tmp_path, model, part)
        for path in entries(tmp_path):
            os.utime(path / "manifest.json", (number, number))
    first, second = entries(tmp_path)
    hidden(tmp_path, model, parts[0])  # read again: the second is now the oldest
    size = sum(path.stat().st_size for entry in (first, second) for path in entry.iterdir())
    kept = {path for path in (first, second) if (path / "manifest.json").stat().st_mtime > 10}
    hidden(tmp_path, model, parts[2], limit=(size + 20_000) / 1e9)
    assert kept < set(entries(tmp_path)) and len(entries(tmp_path)) == 2


@pytest.mark.parametrize("short", ["limit", "disk", "read-only"])
def test_without_space_nothing_is_kept_and_the_run_goes_on(model, tmp_path, monkeypatch, caplog, short):
    expected = hidden(tmp_path / "b", model, TEXTS)
    limit, stack = 1.0, contextlib.ExitStack()
    if short == "disk":
        usage = SimpleNamespace(total=10**9, used=10**9, free=1000)
        monkeypatch.setattr(activation_files, "KEEP_FREE", 2_000_000_000)
        monkeypatch.setattr("maw.storage.cache_entry.shutil.disk_usage", lambda path: usage)
    elif short == "limit":
        limit = sum(map(len, expected)) / 1e9  # another run is writing what leaves too little space for these
        other = tmp_path / "a" / "other.x.tmp"
        other.mkdir(parents=True)
        (other / "states.bin").write_bytes(bytes(9))
        stack.enter_context(held(tmp_path / "a" / "other.lock"))
    else:
        (tmp_path / "a").mkdir()
        monkeypatch.setattr("maw.storage.cache_entry.tempfile.mkdtemp", _refuse)
    with stack:
        assert hidden(tmp_path / "a", model, TEXTS, limit=limit) == expected
    assert sum("not kept for later runs" in record.getMessage() for record in caplog.records) == 1
    assert len(entries(tmp_path / "a")) == (short == "limit")


def _refuse(*_, **__):
    raise PermissionError(13, "Permission denied")


def test_activations_of_smaller_batches_are_not_kept(model, tmp_path, caplog):
    def check(module, words):
        if words[0]["attention_mask"].numel() > 600:
            raise MemoryError

    model.encoder.register_forward_pre_hook(check)
    hidden(tmp_path, model, TEXTS)
    assert not entries(tmp_path)
    assert any("smaller batches change the last bits" in record.getMessage() for record in caplog.records)


def _slow_fill(folder: Path, config, counter: Path) -> list[bytes]:
    real = ActivationSource._compute

    def compute(self, inputs):
        with counter.open("a") as file:
            file.write(f"{len(inputs['input_ids'])}\n")
        time.sleep(0.05)
        return real(self, inputs)

    ActivationSource._compute = compute
    return hidden(folder, BaselineRetriever(config), TEXTS)


def test_two_processes_compute_a_text_once(tiny_settings, tmp_path):
    config = tiny_settings()
    children = [Child(_slow_fill, tmp_path / "a", config, tmp_path / "both") for _ in range(2)]
    found = [child.result(120) for child in children]
    alone = _result_of(tiny_settings(), tmp_path)
    assert found[0] == found[1] == alone
    assert len((tmp_path / "both").read_text().split()) == len((tmp_path / "alone").read_text().split())


def _result_of(config, tmp_path: Path) -> list[bytes]:
    return Child(_slow_fill, tmp_path / "b", config, tmp_path / "alone").result(120)


def test_a_killed_run_leaves_nothing_that_is_read(tiny_settings, model, tmp_path):
    folder, counter = tmp_path / "a", tmp_path / "counted"
    child = Child(_slow_fill, folder, tiny_settings(), counter)
    while not counter.exists() or len(counter.read_text().split()) < 2:
        time.sleep(0.01)
    os.kill(child.process.pid, signal.SIGKILL)
    child.process.join(10)
    assert any(path.name.endswith(".tmp") for path in entries(folder))
    assert hidden(folder, model, TEXTS) == hidden(tmp_path / "b", model, TEXTS)
    assert not any(path.name.endswith(".tmp") for path in entries(folder))
    assert set(tree(folder)) >= {f"{entry.name}/states.bin" for entry in entries(folder)}
