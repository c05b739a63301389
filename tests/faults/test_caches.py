"""Rows 6 and 13: caches that were changed on disk, and eight processes that need the same cache at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_texts

import maw.data.bm25 as bm25
import maw.encoding.embedding_cache as embedding_cache
import maw.storage.cache_entry as cache_entry
import maw.training.hard_negatives as negatives
from faults.tools import DAMAGE, Child, beir_folder
from maw.data.corpus import Corpus
from maw.data.registry import load_collection
from maw.encoding.activation_cache import ActivationStore
from maw.encoding.embedding_cache import Embedder
from maw.evaluation.evaluate import evaluate_retriever
from maw.models.retriever import BaselineRetriever
from maw.models.tokenized import ListTexts
from maw.training.hard_negatives import mine_negatives

CPU = torch.device("cpu")
AGAIN = ("; building it again", "; computing the embeddings again", "index again", "choosing the negatives again")


READ_BY = {"corpora": "search", "embeddings": "search", "bm25": "mining", "negatives": "mining"}


class Measured:
    """A tiny dataset, measured through all the caches that lie in one folder."""

    def __init__(self, folder: Path, settings):
        self.folder, self.settings = folder, settings
        self.name = f"beir:{beir_folder(folder / 'tiny')}"
        self.pristine = folder / "pristine"
        self.model = BaselineRetriever(settings(methods=["zero_shot"]))
        self.expected = {what: self.run(self.pristine, what) for what in ("search", "mining")}

    def run(self, cache: Path, what: str):
        """Scores of every query and the metrics; or the hard negatives chosen."""
        methods = ["zero_shot", *(["lora"] if what == "mining" else [])]
        config = self.settings(cache_dir=str(cache), datasets=[self.name], methods=methods, num_negatives=3)
        data = load_collection(self.name, config)
        if what == "search":
            found = evaluate_retriever(self.model, data.test, config, CPU)
            return found.run["scores"].tobytes(), found.run["rows"].tobytes(), dict(found)
        config.negative_source, config.negative_margin = "bm25", 1.0
        return mine_negatives(data.train, config)[0].negatives

    def damaged(self, kind: str, damage: str, seed: int) -> tuple[Path, bool]:
        """A copy of the caches in which one file of that kind is damaged, and whether that changes what it says.

        The case of a letter in a number's exponent is a bit that JSON does not care for.
        """
        cache = self.folder / f"damaged {seed}"
        for other in {"corpora", "embeddings" if READ_BY[kind] == "search" else "corpora", kind}:
            shutil.copytree(self.pristine / other, cache / other)
        source = random.Random(f"{kind} {damage} {seed}")
        files = [path for path in sorted((cache / kind).rglob("[!.]*")) if path.is_file() and path.stat().st_size]
        path = source.choice([path for path in files if path.suffix != ".lock"])
        before = path.read_bytes()
        DAMAGE[damage](path, source)
        return cache, not _says_the_same(before, path)


def _says_the_same(before: bytes, path: Path) -> bool:
    try:
        return path.suffix == ".json" and json.loads(before) == json.loads(path.read_bytes())
    except ValueError:
        return False


@pytest.fixture(scope="module")
def measured(tmp_path_factory, models):
    from maw.config.tier1_config import Tier1Config

    def settings(**changes):
        common = {"model": str(models()), "batch_size": 8, "eval_batch_size": 16, "top_k": 20, "device": "cpu"}
        return Tier1Config(**(common | {"precision": "float32"} | changes))

    return Measured(tmp_path_factory.mktemp("measured"), settings)


def survives(measured: Measured, kind: str, damage: str, seed: int, caplog) -> None:
    """Damages one file and measures again: noticed, and the same to the last bit, the next time too."""
    cache, changed = measured.damaged(kind, damage, seed)
    try:
        for _ in range(2 if seed % 10 == 0 else 1):
            assert measured.run(cache, READ_BY[kind]) == measured.expected[READ_BY[kind]]
    finally:
        shutil.rmtree(cache)
    noticed = [record for record in caplog.records if record.getMessage().endswith(AGAIN)]
    assert len(noticed) == changed, [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["corpora", "embeddings", "bm25", "negatives"])
def test_a_damaged_cache_is_built_again_and_changes_no_number(measured, repeats, trial, caplog, kind, damage):
    for seed in range(repeats(3, 200 if kind in ("corpora", "embeddings") else 50)):
        caplog.clear()
        with trial(6, f"{kind}, {damage}", seed):
            survives(measured, kind, damage, seed, caplog)


@pytest.mark.parametrize("kind", ["corpora", "embeddings", "negatives"])
def test_control_a_cache_that_is_not_compared_is_noticed_here(measured, monkeypatch, caplog, kind):
    monkeypatch.setattr(cache_entry, "check_files", lambda *_, **__: None)
    monkeypatch.setattr(negatives, "read_signed", lambda path: json.loads(path.read_text()))
    failures = 0
    for seed in range(8):
        caplog.clear()
        try:
            survives(measured, kind, "one bit flipped", seed, caplog)
        except Exception:  # noqa: BLE001 - whatever an unnoticed fault leads to
            failures += 1
    assert failures > 0


# ----------------------------------------------------------------------------------------------------- activations


class Stored:
    """A model whose evaluation reads stored activations, and what it measures."""

    def __init__(self, config, data, folder: Path):
        self.config, self.data = config, data
        self.model = BaselineRetriever(config)
        self.store = ActivationStore(folder, 1.0)
        self.expected = self.run()

    def run(self):
        """The scores, and which passages they are of."""
        found = evaluate_retriever(self.model, self.data, self.config, CPU, activations=self.store)
        return found.run["scores"], found.run["rows"], dict(found)

    def damage(self, damage: str, seed: int) -> list:
        """Damages one of the files without a name; gives the sources."""
        source = random.Random(f"{damage} {seed}")
        sources = list(self.store._sources.values())
        handle = source.choice([file for files in self.store._files.values() for file in files.files]).file.fileno()
        size = os.fstat(handle).st_size
        place = source.randrange(size)
        if damage == "truncated":
            os.ftruncate(handle, place)
        else:
            (byte,) = os.pread(handle, 1, place)
            os.pwrite(handle, bytes([byte ^ 1 << source.randrange(8)]), place)
        return sources


def activations_survive(stored: Stored, damage: str, seed: int) -> None:
    sources = stored.damage(damage, seed)
    scores, rows, metrics = stored.run()
    assert sum(each.damaged for each in sources) > 0, "the damage went unnoticed"
    assert scores.tobytes() == stored.expected[0].tobytes()
    assert (rows == stored.expected[1]).all() and metrics == stored.expected[2]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_activations_are_computed_again(tiny_settings, tiny_data, tmp_path, repeats, trial, damage, precision):
    config = tiny_settings(use_lora=True, precision=precision)
    for seed in range(repeats(3, 100)):
        with trial(6, f"activations, {damage}", seed):
            stored = Stored(config, tiny_data, tmp_path / "activations")
            with stored.store:
                activations_survive(stored, damage, seed)


def test_control_activations_that_are_not_compared_change_scores(tiny_settings, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "maw.encoding.activation_cache._token_sums", lambda states, places: np.zeros(states.shape[:-1], np.uint64)
    )
    stored = Stored(tiny_settings(use_lora=True), tiny_data, tmp_path / "activations")
    with stored.store, pytest.raises(AssertionError, match="went unnoticed"):
        activations_survive(stored, "one bit flipped", 0)


def test_damaged_activations_are_said_once(tiny_settings, tiny_data, tmp_path, caplog):
    stored = Stored(tiny_settings(use_lora=True), tiny_data, tmp_path / "activations")
    with stored.store:
        stored.damage("truncated", 0)
        for _ in range(2):
            stored.run()
    (warning,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert "stored activations are damaged" in warning


# ------------------------------------------------------------------------------------------------- eight processes


def _all_caches(config, barrier, counter: Path) -> str:
    """Everything that is kept, wanted by one of several processes; notes what it builds itself."""

    def note(what: str) -> None:
        handle = os.open(counter, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, f"{what}\n".encode())
        os.close(handle)
        time.sleep(0.05)  # so that the others are waiting for it

    def make():
        note("corpus")
        return ((f"p{i}", "", text) for i, text in enumerate(texts)), None, {}

    def counting(place, name, what):
        real = getattr(place, name)
        setattr(place, name, lambda *words, **options: (note(what), real(*words, **options))[1])

    texts = list(dict.fromkeys(random_texts(60, seed=5)))
    model = BaselineRetriever(config)
    counting(embedding_cache, "encode_sharded", "embeddings")
    counting(bm25, "_build", "index")
    barrier.wait(60)
    folder = Path(config.cache_dir)
    corpus = Corpus.cached(folder / "corpora" / "tiny", {"seed": 5}, make)
    embeddings = Embedder(model, config, CPU).encode(ListTexts(texts), "document", "documents").embeddings
    rows, scores = bm25.Bm25Index.cached(corpus, folder / "bm25").search(texts[:5], 5)
    parts = [corpus.fingerprint.encode(), embeddings.tobytes(), rows.tobytes(), scores.tobytes()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def built_once(config, counter: Path, processes: int) -> None:
    """Starts processes on a cold cache: one build of each kind, the same contents for all."""
    import multiprocessing

    barrier = multiprocessing.get_context("fork").Barrier(processes)
    children = [Child(_all_caches, config, barrier, counter) for _ in range(processes)]
    hashes = {child.result(120) for child in children}
    built = sorted(counter.read_text().split())
    assert built == ["corpus", "embeddings", "index"], built
    assert len(hashes) == 1
    assert not list(Path(config.cache_dir).rglob("*.tmp"))


def test_eight_processes_build_each_cache_once(tiny_settings, tmp_path, repeats, trial):
    for round_ in range(repeats(1, 20)):
        config = tiny_settings(methods=["zero_shot"], cache_dir=str(tmp_path / f"cache {round_}"))
        with trial(13, "rounds of 8 processes", round_):
            built_once(config, tmp_path / f"built {round_}", 8)


def test_control_without_locks_a_cache_is_built_more_than_once(tiny_settings, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def free(folder, what=""):
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield

    for place in (cache_entry, embedding_cache):
        monkeypatch.setattr(place, "only_builder", free)
    with pytest.raises(AssertionError):
        built_once(tiny_settings(methods=["zero_shot"]), tmp_path / "built", 4)


def _half_built(folder: Path, ready: Path) -> None:
    def make():
        ready.touch()
        time.sleep(60)

    Corpus.cached(folder, {"a": 1}, make)


def test_a_lock_whose_holder_was_killed_is_taken(tmp_path, repeats, trial):
    for round_ in range(repeats(1, 20)):
        with trial(13, "locks of killed builders", round_):
            folder, ready = tmp_path / f"{round_}" / "store", tmp_path / f"ready {round_}"
            builder = Child(_half_built, folder, ready)
            while not ready.exists():
                time.sleep(0.01)
            (stray,) = [path for path in folder.parent.iterdir() if path.name == "store.lock"]
            (folder.parent / "store.abc.tmp").mkdir()  # and what it was writing
            os.kill(builder.process.pid, signal.SIGKILL)
            builder.process.join(10)
            started = time.perf_counter()
            corpus = Corpus.cached(folder, {"a": 1}, lambda: (iter([("p", "", "text")]), None, {}))
            assert time.perf_counter() - started < 5 and corpus.take([0]) == ["text"]
            assert stray.name == "store.lock" and not list(folder.parent.glob("*.tmp"))


def test_manifests_hold_strict_json(measured):
    paths = list(measured.pristine.rglob("manifest.json"))
    assert paths, "there is something to read"
    for path in paths:
        json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
