"""Rows 9 and 10: full disks, folders without write permission, files that cannot be read.

The disks are real where the tests may mount one (in a container of root): a file system of some megabytes that another
file fills. Elsewhere the calls that flush and rename raise the same errors.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_texts
from report.test_report import make_evaluations, make_result
from report.test_routing_plots import CHEAP, POLICY, record

import tier_1
from faults.tools import Child, beir_folder, filled, make_read_only, mount, obey_permissions, tree, unmount
from maw.data.bm25 import Bm25Index
from maw.data.corpus import Corpus
from maw.data.from_dicts import as_retrieval_data
from maw.encoding.activation_cache import ActivationStore
from maw.encoding.embedding_cache import Embedder
from maw.errors import MAWError, reason
from maw.models.retriever import BaselineRetriever
from maw.models.tokenized import ListTexts
from maw.report import layout
from maw.report.figures import routing_plots
from maw.report.tables.csv_file import write_csv
from maw.storage.files import write_json, write_text
from maw.training.checkpoint import load_checkpoint, save_checkpoint
from maw.training.hard_negatives import mine_negatives

CPU = torch.device("cpu")
PAGE = 4096
TEXTS = random_texts(400, seed=3)
ENOSPC = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def disk(tmp_path) -> Iterator[Path | None]:
    """A small file system of its own, or None where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = mount(folder, 24 << 20)
    yield folder if mounted else None
    if mounted:
        unmount(folder)


@pytest.fixture
def full(disk, tmp_path, monkeypatch):
    """`with full(left) as nothing:` is a disk with so many pages left; `full.folder` is on it."""

    @contextlib.contextmanager
    def real(left: int) -> Iterator[None]:
        with filled(disk, left * PAGE):
            yield

    @contextlib.contextmanager
    def injected(left: int) -> Iterator[None]:
        def fail(*_, **__):
            raise ENOSPC

        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", fail)
            broken.setattr(os, "posix_fallocate", fail)
            yield

    made = real if disk else injected
    made.folder = disk or tmp_path / "folder"
    made.folder.mkdir(exist_ok=True)
    return made


@pytest.fixture
def model(tiny_settings):
    return BaselineRetriever(tiny_settings(use_lora=True, finetune_layers="all", lora_rank=64))


# ------------------------------------------------------------------------------------------------------- full disks

HISTORY = [record(epoch, 0.4, CHEAP | POLICY) for epoch in (1, 2)]


def version(number: int) -> str:
    """Contents that take a few pages."""
    return f"version {number} " * 2000


def write_some_checkpoint(folder: Path, number: int, model) -> None:
    with torch.no_grad():
        next(each for each in model.parameters() if each.requires_grad).add_(1)  # the same weights would need no room
    save_checkpoint(
        folder / "checkpoint", model, dataset="tiny", method="lora", epoch=number, best_val_metric=0.5,
        training_history=[{"epoch": 1}],
    )  # fmt: skip


def write_results(folder: Path, number: int, model) -> None:
    evaluations = make_evaluations(queries=10 * number)
    layout.write_dataset(folder, make_result(evaluations, "tiny"), evaluations, "20250106_143022")


def write_some_summary(folder: Path, number: int, model) -> None:
    layout.write_summary(folder, [make_result(make_evaluations(queries=10 * number), "tiny")])


def write_some_store(folder: Path, number: int, model) -> None:
    Corpus.build(((f"d{i}", "", text) for i, text in enumerate(TEXTS[: 200 * number])), folder / "store")


def write_some_index(folder: Path, number: int, model) -> None:
    corpus = Corpus.from_lists([f"d{i}" for i in range(200)], TEXTS[200 * number - 200 : 200 * number])
    Bm25Index.cached(corpus, folder / "bm25")


def write_some_negatives(folder: Path, number: int, model) -> None:
    texts = list(dict.fromkeys(TEXTS))[60 * number :][:60]
    queries = [" ".join(text.split()[:3]) for text in texts[:20]]
    data = as_retrieval_data({"queries": queries, "docs": texts, "qrels": {i: {i: 1} for i in range(20)}}, "train")
    config = model.config
    config.cache_dir, config.negative_source, config.num_negatives = str(folder / "cache"), "bm25", 3
    mine_negatives(data, config)


def write_some_activations(folder: Path, number: int, model) -> None:
    with ActivationStore(folder / "activations", 1.0) as store:
        frozen = BaselineRetriever(type(model.config)(model=model.config.model, device="cpu", precision="float32"))
        source = store.source(frozen.source(TEXTS, "document"), frozen.encoder, CPU)
        source.fill(np.arange(200 * number))


WRITERS: dict[str, Callable[[Path, int, object], object]] = {
    "JSON": lambda folder, number, model: write_json(folder / "a.json", {"a": version(number)}),
    "CSV": lambda folder, number, model: write_csv(folder / "a.csv", ["a"], [[version(number)]]),
    "text": lambda folder, number, model: write_text(folder / "a.txt", version(number)),
    "picture": lambda folder, number, model: routing_plots.write_routing_plot(folder / "a.png", f"{number}", HISTORY),
    "checkpoint": write_some_checkpoint,
    "results": write_results,
    "summary": write_some_summary,
    "passage store": write_some_store,
    "BM25 index": write_some_index,
    "hard negatives": write_some_negatives,
    "activations": write_some_activations,
}
NEW_EACH_TIME = ("results", "BM25 index", "hard negatives", "activations")
"""What writes beside the earlier files and not over them."""


def full_disk_is_said(full, writer: str, left: int, model) -> None:
    """Writes once with room and once without: one line that says disk full and where, and the old files as before."""
    folder = full.folder
    WRITERS[writer](folder, 1, model)
    before = files(folder)
    with full(left):
        try:
            WRITERS[writer](folder, 2, model)
        except MAWError as error:
            text = str(error)
        else:
            raise AssertionError("nothing was said")
    assert "the disk is full (No space left on device" in text and str(folder) in text, text
    assert "\n" not in text and len(text) < 500, text
    now = files(folder)
    assert {name: now.get(name) for name in before} == before, "an earlier file was changed"
    strays = [name for name in now if name.endswith(".tmp") or ".tmp/" in name]
    assert not strays, strays
    if writer not in NEW_EACH_TIME:
        assert now == before


def files(folder: Path) -> dict[str, str]:
    """Everything in a folder but locks, and what fills the disk."""
    return {name: each for name, each in tree(folder).items() if not name.endswith(".lock") and name != "filler"}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_said_and_changes_nothing(full, disk, model, repeats, trial, writer):
    if writer == "activations" and not disk:
        pytest.skip("needs a file system of its own")
    for seed in range(repeats(1, 5)):
        with trial(9, writer, seed):
            left = random.Random(f"{writer} {seed}").randrange(3)
            full_disk_is_said(full, writer, left, model)
            for path in full.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_control_a_writer_that_writes_in_place_is_noticed(full, model, monkeypatch):
    def careless(folder: Path, number: int, model) -> None:
        try:
            with (folder / "a.txt").open("w") as file:
                file.write(version(number) * number**2)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise MAWError(f"{folder}: {reason(error)}") from error

    monkeypatch.setitem(WRITERS, "text", careless)
    with pytest.raises(AssertionError, match="an earlier file was changed"):
        full_disk_is_said(full, "text", 0, model)


def test_a_full_disk_keeps_the_old_checkpoint_whole(full, model):
    write_some_checkpoint(full.folder, 1, model)
    with torch.no_grad():
        next(each for each in model.parameters() if each.requires_grad).add_(1)  # the same weights would need no room
    with full(0), pytest.raises(MAWError, match="the disk is full"):
        write_some_checkpoint(full.folder, 2, model)
    assert load_checkpoint(full.folder / "checkpoint").checkpoint["epoch"] == 1


def test_embeddings_are_computed_without_room_for_them(full, tiny_settings, repeats, trial, caplog):
    config = tiny_settings(methods=["zero_shot"])
    model = BaselineRetriever(config)
    expected = model.encode(TEXTS, batch_size=config.eval_batch_size)
    config.cache_dir = str(full.folder / "cache")
    for seed in range(repeats(1, 5)):
        with trial(9, "embeddings", seed):
            caplog.clear()
            with full(seed):
                found = Embedder(model, config, CPU).encode(ListTexts(TEXTS), "document", "documents")
            np.testing.assert_array_equal(found.embeddings, expected)
            (warning,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
            assert "the disk is full" in warning and str(full.folder) in warning
            assert not list((full.folder / "cache" / "embeddings").glob("[!.]*/*"))


def test_a_run_whose_log_fills_the_disk_goes_on(full, disk, repeats, trial, monkeypatch, capsys):
    import importlib
    import logging

    def benchmark(config):
        for number in range(200):
            logging.getLogger("maw.training.trainer").debug("message %d %s", number, "x" * 100)

    monkeypatch.setattr(importlib.import_module("maw.experiment.benchmark"), "run_complete_benchmark", benchmark)
    if not disk:
        pytest.skip("needs a file system of its own")
    for seed in range(repeats(1, 5)):
        with trial(9, "log files", seed), full(seed):
            status = tier_1.main(["--preset", "offline", "--log-dir", str(full.folder / f"logs {seed}")])
            assert status == 0 or seed == 0
            said = capsys.readouterr().err
            assert said.count("the disk is full") <= 2 and said, said
            assert "Traceback" not in said


# ------------------------------------------------------------------------------------- what may not be read or written

PLACES = {
    "log folder": "logs",
    "cache folder": "cache",
    "passages": "tiny/corpus.jsonl",
    "queries": "tiny/queries.jsonl",
    "judgements": "tiny/qrels/test.tsv",
    "folder of the data": "tiny",
    "model": "model/config.json",
    "weights": "model/model.safetensors",
    "tokenizer": "model/tokenizer.json",
    "configuration": "run.json",
}
ERRORS = {"EACCES": "Permission denied", "EROFS": "Read-only file system", "EIO": "Input/output error"}


@pytest.fixture
def place(models, monkeypatch):
    """A folder that others may enter, with data, a model and a configuration for the main command."""
    folder = Path(tempfile.mkdtemp(prefix="maw-faults-"))
    folder.chmod(0o777)
    mounted = mount(folder, 24 << 20)
    beir_folder(folder / "tiny")
    shutil.copytree(models(), folder / "model")
    for name in ("logs", "cache"):
        (folder / name).mkdir(mode=0o777)
        (folder / name).chmod(0o777)
    settings = {"methods": ["zero_shot"], "top_k": 20, "permutations": 200, "device": "cpu", "precision": "float32"}
    (folder / "run.json").write_text(json.dumps(settings))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield folder, mounted
    if mounted:
        unmount(folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o777)
    shutil.rmtree(folder)


def main_command(folder: Path, change: Callable[[], None]) -> tuple[int, str]:
    """Runs the main command after a change to its process; its exit code and what it said."""
    change()
    said = io.StringIO()
    words = ["--config", folder / "run.json", "--datasets", f"beir:{folder / 'tiny'}", "--model", folder / "model"]
    words += ["--log-dir", folder / "logs", "--cache-dir", folder / "cache"]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = tier_1.main([str(word) for word in words])
        except OSError as error:  # what Python ends with a traceback and exit code 1
            said.write(f"Traceback {error}")
            status = 1
    return status, said.getvalue()


def failing(folder: Path, what: str, number: int) -> Callable[[], None]:
    """A change after which opening a place, or anything in it, fails with an error."""
    target = str(folder / what)

    def hook(event: str, words: tuple) -> None:
        if event in ("open", "os.mkdir", "os.listdir", "os.scandir") and words and isinstance(words[0], str | bytes):
            name = os.fsdecode(words[0])
            if name == target or name.startswith(f"{target}/"):
                raise OSError(number, os.strerror(number), name)

    return lambda: sys.addaudithook(hook)


def never_silent(folder: Path, mounted: bool, what: str, error: str) -> None:
    """Breaks a place and runs: an exit code other than 0 and one line, or a run that is complete."""
    path = folder / PLACES[what]
    change: Callable[[], None] = obey_permissions
    if error == "EIO":
        change = failing(folder, PLACES[what], errno.EIO)
    elif error == "EROFS" and mounted:
        make_read_only(folder)
    elif error == "EROFS":
        change = failing(folder, PLACES[what], errno.EROFS)
    else:
        path.chmod(0o000)
    status, said = Child(main_command, folder, change).result(120)
    complete = bool(list((folder / "logs").glob("*/dataset.json"))) and (folder / "logs" / "summary").is_dir()
    assert status in (1, 2) or complete, f"silent success: {said}"
    if status:
        assert "Traceback" not in said and ERRORS[error] in said, said
        lines = [line for line in said.strip().splitlines() if not line.startswith("warning: ")]
        assert len(lines) == (1 if lines[0].startswith("error: ") else 2), said


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("what", PLACES)
def test_what_may_not_be_read_or_written_is_never_passed_over(place, request, trial, what, error):
    small = {("log folder", "EACCES"), ("cache folder", "EROFS"), ("weights", "EACCES"), ("passages", "EIO")}
    if not request.config.getoption("--faults-full") and (what, error) not in small:
        pytest.skip("in full only")
    folder, mounted = place
    with trial(10, error, what):
        never_silent(folder, mounted, what, error)


def test_control_errors_that_are_swallowed_are_noticed(place, monkeypatch):
    folder, mounted = place

    def swallowed(*_, **__):
        return {}

    monkeypatch.setattr("maw.experiment.benchmark.run_complete_benchmark", swallowed)
    with pytest.raises(AssertionError, match="silent success"):
        never_silent(folder, mounted, "passages", "EIO")
