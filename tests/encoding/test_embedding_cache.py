"""Cached embeddings: read only if every bit would be the same, complete or absent, limited in size."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_texts, write_model

import maw.encoding.embedding_cache as cache
import maw.storage.disk as disk
from maw.data.corpus import Corpus
from maw.encoding.activation_cache import ActivationStore
from maw.encoding.embedding_cache import Embedder
from maw.errors import MAWError
from maw.evaluation.evaluate import evaluate_retriever
from maw.models.encode import encode
from maw.models.fingerprint import encoder_parts, tokenizer_sha256, weights_sha256
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.models.tokenized import ListTexts
from maw.training.hard_negatives import mine_negatives
from maw.training.train import train_retriever

CPU = torch.device("cpu")
TEXTS = random_texts(30, seed=3)
ENTRY = 30 * 16 * 4 + 128  # bytes of the array's file: numbers and header


@pytest.fixture
def encoded(monkeypatch):
    """The labels of what was encoded and not read, in order."""
    labels = []

    def counting(encoder, source, **options):
        labels.append(options["label"])
        return encode(encoder, source, **options)

    monkeypatch.setattr(cache, "encode_sharded", counting)
    return labels


@pytest.fixture
def settings(tiny_settings):
    return tiny_settings(methods=["zero_shot"])


@pytest.fixture
def products():
    """`products(backend, format)` allows a format inside its float32 products, until the test is over."""
    before = []

    def allow(backend, kind):
        before.append((backend, backend.fp32_precision))
        backend.fp32_precision = kind

    yield allow
    for backend, kind in before:
        backend.fp32_precision = kind


def embed(config, model=None, texts=TEXTS, kind="document", activations=None):
    model = BaselineRetriever(config) if model is None else model
    texts = ListTexts(texts) if isinstance(texts, list) else texts
    return Embedder(model, config, CPU, activations).encode(texts, kind, f"{kind}s")


def entries(config) -> list[Path]:
    folder = Path(config.cache_dir) / "embeddings"
    return sorted(path for path in folder.glob("*") if path.is_dir())


def entry(config) -> Path:
    (one,) = entries(config)
    return one


# ------------------------------------------------------------------------------------------------------ reading


def test_what_was_computed_is_read_bit_for_bit(settings, encoded):
    model = BaselineRetriever(settings)
    first, again = embed(settings, model), embed(settings)
    assert encoded == ["documents"], "another model object of the same weights computes nothing"
    assert (first.from_cache, again.from_cache) == (False, True)
    plain = encode(model.encoder, model.source(TEXTS, "document"), batch_size=settings.eval_batch_size)
    for found in (first, again):
        assert found.embeddings.tobytes() == plain.embeddings.tobytes()
        assert found.embeddings.dtype == np.float32 and isinstance(found.embeddings, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            found.embeddings[0] = 0


def test_queries_are_in_memory(settings, encoded):
    for found in (embed(settings, kind="query"), embed(settings, kind="query")):
        assert not isinstance(found.embeddings, np.memmap) and found.embeddings.flags.writeable
    assert encoded == ["querys"]


def test_an_entry_says_what_it_is(settings):
    embed(settings)
    assert {path.name for path in entry(settings).iterdir()} == {"embeddings.npy", "manifest.json"}
    manifest = json.loads((entry(settings) / "manifest.json").read_text())
    assert (manifest["shape"], manifest["model"]) == ([30, 16], settings.model)
    assert manifest["created"][:2] == "20" and manifest["seconds"] > 0
    size, sha = manifest["files"]["embeddings.npy"]
    assert size == ENTRY and len(sha) == 64
    key = manifest["source"]
    assert key["config"]["model_type"] == "bert" and key["config"]["layer_norm_eps"] == 1e-12
    assert key["versions"]["torch"] == torch.__version__ and key["max_length"] == 64


def test_a_text_of_both_kinds_is_computed_once_where_the_model_reads_both_alike(settings, encoded):
    embed(settings, kind="document")
    assert embed(settings, kind="query").from_cache


# -------------------------------------------------------------------------------------------------------- keys


def one_bit(model):
    weight = model.encoder.backbone.encoder.layer[1].output.dense.weight
    weight.data.view(torch.int32)[3, 5] ^= 1


def of_buffer(model):
    model.encoder.backbone.embeddings.register_buffer("shift", torch.zeros(2), persistent=False)


def other_epsilon(model):
    model.encoder.backbone.encoder.layer[0].output.LayerNorm.eps = 1e-6


def other_tokens(model):
    from tokenizers import normalizers

    model.tokenizer.backend_tokenizer.normalizer = normalizers.NFC()


def other_cut(model):
    model.tokenizer.truncation_side = "left"


CHANGED_SETTINGS = {
    "pooling": {"pooling": "cls"},
    "normalised": {"similarity": "dot"},
    "prefix": {"document_prefix": "the "},
    "length": {"max_document_length": 6},
    "precision": {"precision": "bfloat16"},
    "batches": {"eval_batch_size": 8},
}
CHANGED_MODEL = {
    "a bit of a weight": one_bit,
    "a buffer that is not saved": of_buffer,
    "a norm's epsilon": other_epsilon,
    "tokenizer": other_tokens,
    "side that is cut": other_cut,
}


@pytest.mark.parametrize("what", CHANGED_SETTINGS)
def test_another_setting_is_another_entry(tiny_settings, settings, encoded, what):
    embed(settings)
    changed = tiny_settings(methods=["zero_shot"], **CHANGED_SETTINGS[what])
    assert not embed(changed).from_cache
    assert embed(changed).from_cache and embed(settings).from_cache
    assert len(encoded) == len(entries(settings)) == 2


@pytest.mark.parametrize("what", CHANGED_MODEL)
def test_another_model_is_another_entry(settings, encoded, what):
    embed(settings)
    model = BaselineRetriever(settings)
    CHANGED_MODEL[what](model)
    assert not embed(settings, model).from_cache
    assert embed(settings, model).from_cache and embed(settings).from_cache
    assert len(encoded) == len(entries(settings)) == 2


@pytest.mark.parametrize(
    "texts",
    [TEXTS[:-1], [*TEXTS[:-1], TEXTS[-1] + " of"], TEXTS[::-1]],
    ids=["one less", "one changed", "another order"],
)
def test_other_texts_are_another_entry(settings, encoded, texts):
    embed(settings)
    assert not embed(settings, texts=texts).from_cache
    assert len(encoded) == 2


def test_a_corpus_counts_with_its_titles(settings):
    ids = [str(row) for row in range(30)]
    plain, titled = Corpus.from_lists(ids, TEXTS), Corpus.from_lists(ids, TEXTS, ["file"] + [""] * 29)
    embed(settings, texts=plain)
    assert embed(settings, texts=Corpus.from_lists(ids, TEXTS)).from_cache
    assert not embed(settings, texts=titled).from_cache


@pytest.mark.parametrize("what", ["torch", "rules", "processor", "products"])
def test_what_computes_counts(settings, monkeypatch, products, what):
    embed(settings)
    if what == "torch":
        monkeypatch.setattr(torch, "__version__", "0.0.1")
    elif what == "rules":
        monkeypatch.setattr(cache, "RULES_VERSION", 99)
    elif what == "products":
        products(torch.backends.mkldnn.matmul, "bf16")
    else:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NONE")
    assert not embed(settings).from_cache


def test_gpus_count_by_name_number_and_format(settings, monkeypatch, products):
    """Without a GPU: what the key holds of them. One that is named computes alone, wherever there are more."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    every, one = torch.device("cuda"), torch.device("cuda:0")
    assert cache._device(every, settings) == ["cuda", "a card", 4, "none"]
    assert cache._device(one, settings) == cache._device(every, replace(settings, use_multi_gpu=False))
    assert cache._device(one, settings)[2] == 1
    products(torch.backends.cuda.matmul, "tf32")
    assert cache._device(one, settings)[3] == "tf32"


def test_where_the_model_lies_and_what_is_trained_do_not_count(tiny_settings, settings, tmp_path):
    embed(settings)
    elsewhere = tiny_settings(model=str(write_model(tmp_path / "copy")), methods=["zero_shot"], finetune_layers=[1])
    assert embed(elsewhere).from_cache


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert", "modernbert"])
def test_encoding_changes_no_hash(tiny_settings, family):
    model, fresh = (BaselineRetriever(tiny_settings(family)) for _ in range(2))
    model.encode(TEXTS)
    model.tokenizer(TEXTS, padding=True, truncation=True, max_length=9)
    assert json.dumps(encoder_parts(model.encoder)) == json.dumps(encoder_parts(fresh.encoder))
    assert tokenizer_sha256(model.tokenizer) == tokenizer_sha256(fresh.tokenizer)


def test_weights_by_name_type_and_shape():
    def module(**tensors):
        made = torch.nn.Module()
        for name, value in tensors.items():
            made.register_buffer(name, value)
        return weights_sha256(made)

    zeros = torch.zeros(4)
    different = [
        module(a=zeros),
        module(b=zeros),
        module(a=zeros.view(2, 2)),
        module(a=zeros.int()),
        module(a=torch.zeros(2), b=torch.zeros(2)),
        module(a=-zeros),
        module(a=torch.tensor(0.0)),
        module(a=torch.zeros(0)),
        module(a=zeros.bfloat16()),
    ]
    assert len(set(different)) == len(different)
    strided = torch.arange(6.0).view(2, 3)
    assert module(a=strided.T) == module(a=strided.T.contiguous()), "values count, not how they lie"


# ------------------------------------------------------------------------------------------------ trained models


def test_trained_models_are_neither_read_nor_kept(tiny_settings, encoded):
    lora = tiny_settings(use_lora=True)
    untrained = replace(lora, use_lora=False)
    embed(untrained)
    assert not embed(lora).from_cache and not embed(lora).from_cache, "at its start it computes the same"
    routed = embed(lora, MAWRetriever(lora))
    assert not routed.from_cache and routed.depth_share.shape == (30, 1, 4)
    assert len(entries(lora)) == 1 and len(encoded) == 4


@pytest.mark.parametrize("what", ["weights", "scale", "switched off"])
def test_a_frozen_adapter_is_told_apart_by_all_that_it_does(tiny_settings, what):
    config = tiny_settings(use_lora=True, methods=["zero_shot"])

    def adapted():
        model = BaselineRetriever(config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.fill_(0.5)
        model.requires_grad_(False)
        return model

    embed(replace(config, use_lora=False))
    first = embed(config, adapted())
    assert not first.from_cache and embed(config, adapted()).from_cache
    model = adapted()
    (layer,) = [
        each for name, each in model.named_modules() if name.endswith("self.query") and hasattr(each, "lora_A")
    ]
    if what == "weights":
        layer.lora_A["default"].weight.data[0, 0] += 1e-3
    elif what == "scale":
        layer.scaling["default"] *= 2
    else:
        layer.enable_adapters(False)
    changed = embed(config, model)
    assert not changed.from_cache and (changed.embeddings != first.embeddings).any()


def test_a_frozen_maw_is_not_kept_since_its_depths_are_not(tiny_settings):
    config = tiny_settings()
    model = MAWRetriever(config).requires_grad_(False)
    for _ in range(2):
        found = embed(config, model)
        assert not found.from_cache and found.depth_share is not None
    assert not Path(config.cache_dir).exists()


# -------------------------------------------------------------------------------------------------------- damage


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a bit of an embedding": lambda folder: flip(folder / "embeddings.npy", -7),
    "a bit of the header": lambda folder: flip(folder / "embeddings.npy", 30),
    "a short array": lambda folder: os.truncate(folder / "embeddings.npy", ENTRY - 64),
    "an empty array": lambda folder: os.truncate(folder / "embeddings.npy", 0),
    "no array": lambda folder: (folder / "embeddings.npy").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "not JSON": lambda folder: (folder / "manifest.json").write_text("{"),
    "not an object": lambda folder: (folder / "manifest.json").write_text("[]"),
    "a changed manifest": lambda folder: flip(folder / "manifest.json", 60),
    "another's manifest": lambda folder: rewrite(folder, source={"rules": 1}),
    "a manifest of another shape": lambda folder: rewrite(folder, shape=[16, 30]),
    "a manifest without a shape": lambda folder: rewrite(folder, shape=None),
}


def rewrite(folder: Path, **changes) -> None:
    """A manifest that is whole by itself and does not fit."""
    from maw.storage.cache_entry import json_sha

    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": json_sha(manifest)}))


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_entry_is_computed_again(settings, encoded, caplog, what):
    expected = np.array(embed(settings).embeddings)
    DAMAGE[what](entry(settings))
    again = embed(settings)
    assert not again.from_cache and len(encoded) == 2
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(str(entry(settings))) and warning.endswith("; computing the embeddings again")
    mended = embed(settings)
    assert mended.from_cache
    for found in (again, mended):
        np.testing.assert_array_equal(found.embeddings, expected)


def test_no_pickle_is_read(settings, tmp_path):
    """An array file that would run code when unpickled, with a manifest that fits it."""
    import hashlib

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    embed(settings)
    path = entry(settings) / "embeddings.npy"
    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)
    content = path.read_bytes()
    rewrite(path.parent, files={"embeddings.npy": [len(content), hashlib.sha256(content).hexdigest()]})
    assert not embed(settings).from_cache
    assert not (tmp_path / "sprung").exists()


# --------------------------------------------------------------------------------------------------------- bound


def folder_bytes(config) -> int:
    return sum(path.stat().st_size for each in entries(config) for path in each.iterdir())


def test_the_entry_read_longest_ago_makes_room(tiny_settings, encoded, caplog):
    caplog.set_level(logging.INFO)
    parts = [random_texts(30, seed=seed) for seed in range(4)]
    generous = tiny_settings(methods=["zero_shot"])
    for part, written in zip(parts[:3], (100, 300, 200), strict=True):
        before = entries(generous)
        embed(generous, texts=part)
        (new,) = set(entries(generous)) - set(before)
        os.utime(new / "manifest.json", (written, written))
    per_entry = folder_bytes(generous) // 3
    for part in (parts[0], parts[2]):  # so that the second, written last, was read longest ago
        assert embed(generous, texts=part).from_cache
        time.sleep(0.01)
    tight = replace(generous, embedding_cache_gb=(3 * per_entry + 64) / 1e9)
    embed(tight, texts=parts[3])
    assert folder_bytes(tight) <= 3 * per_entry + 64 and len(entries(tight)) == 3
    locks = {path.stem for path in (Path(tight.cache_dir) / "embeddings").glob("*.lock")}
    assert locks == {each.name for each in entries(tight)} | {"room"}, "no lock file outlives its entry"
    assert sum("to make room" in record.getMessage() for record in caplog.records) == 1
    model = BaselineRetriever(tight)
    for place, kept in ((0, True), (2, True), (3, True), (1, False)):
        assert embed(tight, model, texts=parts[place]).from_cache is kept


def test_what_is_larger_than_the_bound_is_not_kept(tiny_settings, caplog):
    caplog.set_level(logging.INFO)
    config = tiny_settings(embedding_cache_gb=1e-6, methods=["zero_shot"])
    assert not embed(config).from_cache and not embed(config).from_cache
    assert "exceed --embedding-cache-gb 1e-06 and are not cached" in caplog.text
    assert not Path(config.cache_dir).exists()


def test_zero_turns_it_off(tiny_settings, encoded):
    config = tiny_settings(embedding_cache_gb=0, methods=["zero_shot"])
    np.testing.assert_array_equal(embed(config).embeddings, embed(config).embeddings)
    assert len(encoded) == 2 and not Path(config.cache_dir).exists()


# ---------------------------------------------------------------------------------------------------------- disk


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["claim", "flush", "manifest", "rename", "lock"])
def test_a_full_disk_stops_nothing(settings, encoded, monkeypatch, caplog, step):
    expected = BaselineRetriever(settings).encode(TEXTS, batch_size=settings.eval_batch_size)
    places = {
        "claim": (os, "posix_fallocate"),
        "flush": (os, "fsync"),
        "manifest": (cache.cache_entry, "write_manifest"),
        "rename": (Path, "rename"),
        "lock": (Path, "mkdir"),
    }
    with monkeypatch.context() as broken:
        broken.setattr(*places[step], full_disk)
        found = embed(settings)
    np.testing.assert_array_equal(found.embeddings, expected)
    assert not found.from_cache
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("documents: not cached for later runs: ") and "No space left on device" in warning
    assert len(encoded) == (2 if step == "claim" else 1), "what was computed before the disk was full is used"
    assert not entries(settings), "nothing is left behind"
    assert not embed(settings).from_cache and embed(settings).from_cache


def test_a_cache_folder_that_cannot_be_made(tiny_settings, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    config = tiny_settings(cache_dir=str(tmp_path / "file" / "cache"), methods=["zero_shot"])
    assert embed(config).embeddings.shape == (30, 16)
    assert "not cached for later runs" in caplog.text


def test_an_entry_in_a_folder_that_may_only_be_read(settings, monkeypatch):
    embed(settings)

    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    for place in ((os, "utime"), (Path, "mkdir"), (cache, "only_builder")):
        monkeypatch.setattr(*place, refused)
    assert embed(settings).from_cache


def test_a_system_that_cannot_claim_space_writes_zeros(settings, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(disk, "_ZEROS", 100)
    first = embed(settings)
    assert embed(settings).from_cache and (entry(settings) / "embeddings.npy").stat().st_size == ENTRY
    assert np.isfinite(first.embeddings).all() and first.embeddings.any()


def test_what_is_wrong_with_the_model_is_said_and_leaves_nothing(settings, caplog):
    from maw.errors import MAWError

    model = BaselineRetriever(settings)
    next(model.parameters()).data.fill_(torch.nan)
    with pytest.raises(MAWError, match="not finite"):
        embed(settings, model)
    assert not entries(settings) and not caplog.records


# --------------------------------------------------------------------------------------------------- large corpora


@pytest.mark.parametrize("arm", ["lora", "maw"])
def test_large_arrays_are_files_without_a_name(tiny_settings, monkeypatch, arm):
    config = tiny_settings(use_lora=arm == "lora")
    model = (BaselineRetriever if arm == "lora" else MAWRetriever)(config)
    small = embed(config, model)
    assert not isinstance(small.embeddings, np.memmap)
    monkeypatch.setattr(cache, "SPILL_BYTES", 100)
    large = embed(config, model)
    arrays = [large.embeddings] if arm == "lora" else [large.embeddings, large.depth_share]
    assert all(isinstance(each, np.memmap) for each in arrays)
    np.testing.assert_array_equal(large.embeddings, small.embeddings)
    if arm == "maw":
        np.testing.assert_array_equal(large.depth_share, small.depth_share)
    assert not list((Path(config.cache_dir) / "embeddings").iterdir())


def test_large_arrays_stay_in_memory_where_the_disk_is_full(tiny_settings, monkeypatch, caplog):
    config = tiny_settings(use_lora=True)
    expected = embed(config).embeddings
    monkeypatch.setattr(cache, "SPILL_BYTES", 100)
    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    found = embed(config).embeddings
    assert not isinstance(found, np.memmap) and "kept in memory" in caplog.text
    np.testing.assert_array_equal(found, expected)


def test_metrics_do_not_depend_on_where_arrays_are(tiny_settings, tiny_data, monkeypatch):
    config = tiny_settings(maw_layers=[2, 3], embedding_cache_gb=0)
    models = [MAWRetriever(config), BaselineRetriever(config)]
    inside = [evaluate_retriever(model, tiny_data, config) for model in models]
    monkeypatch.setattr(cache, "SPILL_BYTES", 100)
    for model, expected in zip(models, inside, strict=True):
        found = evaluate_retriever(model, tiny_data, config)
        assert dict(found) == dict(expected)
        assert found.facts.get("routing") == expected.facts.get("routing")


# --------------------------------------------------------------------------------------------------- side by side


def _one_process(config, barrier, queue) -> None:
    computed = []

    def counting(*arguments, **options):
        computed.append(1)
        time.sleep(0.3)
        return encode(*arguments, **options)

    cache.encode_sharded = counting
    embedder = Embedder(BaselineRetriever(config), config, CPU)
    barrier.wait(60)
    found = embedder.encode(ListTexts(TEXTS), "document", "documents")
    queue.put((len(computed), found.from_cache, found.embeddings.tobytes()))


def test_two_processes_compute_it_once(settings):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_one_process, args=(settings, barrier, queue)) for _ in range(2)]
    for each in processes:
        each.start()
    found = sorted(queue.get(timeout=60) for _ in processes)
    for each in processes:
        each.join(60)
    assert [(computed, read) for computed, read, _ in found] == [(0, True), (1, False)]
    assert found[0][2] == found[1][2]
    assert len(entries(settings)) == 1 and not list(Path(settings.cache_dir).rglob("*.tmp"))


# ----------------------------------------------------------------------------------------------------------- runs


def beir_folder(folder: Path, queries: int = 12) -> Path:
    texts = list(dict.fromkeys(random_texts(80, seed=11)))[:50]
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"d{i}", "title": "", "text": text}) for i, text in enumerate(texts))
    )
    asked = [{"_id": f"q{i}", "text": " ".join(texts[i].split()[:4]) + f" {i}"} for i in range(3 * queries)]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)))
    for number, split in enumerate(("train", "dev", "test")):
        part = range(number * queries, (number + 1) * queries)
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in part)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def losses(record) -> list[float]:
    return [epoch["train_loss"] for epoch in record.get("training_history", [])]


@pytest.mark.parametrize("layers", ["last", "all"])
def test_a_second_run_reads_and_gives_the_same_numbers(tiny_settings, tmp_path, encoded, capsys, layers):
    from maw.experiment.benchmark import run_complete_benchmark

    folder = beir_folder(tmp_path / "tiny")
    config = tiny_settings(
        datasets=[f"beir:{folder}"],
        methods=["zero_shot", "maw"],
        finetune_layers=layers,
        num_epochs=1,
        negative_source="dense",
        log_dir=str(tmp_path),
    )
    runs = []
    for _ in range(2):
        encoded.clear()
        runs.append((run_complete_benchmark(config)["beir_tiny"], list(encoded), capsys.readouterr().out))
    (first, first_encoded, first_shown), (second, second_encoded, second_shown) = runs
    zero = "1_normal_retriever"
    # The mined corpus is the one that the test queries search, so even the first run computes it once.
    assert first_encoded[:3] == ["hard negatives: query texts", "hard negatives: document texts", "test queries"]
    assert second_encoded == first_encoded[3:], "the trained methods encode as before"
    assert second["results"][zero]["evaluation"]["embeddings"] == "from cache"
    for key in list(first["results"])[1:]:
        assert second["results"][key]["evaluation"]["embeddings"] == "computed"
    for key, record in first["results"].items():
        assert second["results"][key]["metrics"] == record["metrics"]
        assert losses(second["results"][key]) == losses(record)
    shown = second_shown.count("(embeddings from cache)")
    assert shown == 2, "behind the runtime when the method is done, and in the summary"
    assert first["significance"] == second["significance"] and first_shown.count("Runtime") == 1


def test_zero_shot_alone_is_computed_in_the_first_run_only(tiny_settings, tmp_path, encoded):
    from maw.experiment.benchmark import run_complete_benchmark

    config = tiny_settings(datasets=[f"beir:{beir_folder(tmp_path / 'tiny')}"], methods=["zero_shot"])
    records = [run_complete_benchmark(config)["beir_tiny"]["results"]["1_normal_retriever"] for _ in range(2)]
    assert encoded == ["test documents", "test queries"]
    assert [record["evaluation"]["embeddings"] for record in records] == ["computed", "from cache"]
    assert records[0]["metrics"] == records[1]["metrics"]


def test_stored_activations_are_the_same_whether_embeddings_were_read(tiny_settings, tmp_path):
    """A trained method reads them later; filled in other batches they would differ in their last bits."""
    config = tiny_settings()
    model = BaselineRetriever(config)
    stored = []
    for _ in range(2):
        with ActivationStore(tmp_path / "activations", 1.0) as activations:
            embedder = Embedder(model, config, CPU, activations)
            embedder.encode(ListTexts(TEXTS), "document", "documents", fill=True)
            (source,) = activations._sources.values()
            assert (source.part > 0).all(), "all of them are stored"
            batch = source.batch(range(30))
            stored.append((source.offset.tobytes(), batch["hidden"].numpy().tobytes()))
    assert stored[0] == stored[1]


def test_mining_again_encodes_nothing(tiny_settings, tiny_data, encoded):
    from maw.data.from_dicts import as_retrieval_data

    data = as_retrieval_data(tiny_data, "train")
    mine = partial(mine_negatives, data)
    first, _ = mine(tiny_settings(negative_source="dense", negative_margin=0.9))
    assert len(encoded) == 2
    again, _ = mine(tiny_settings(negative_source="dense", negative_margin=0.95))
    assert len(encoded) == 2 and again.query_ids == first.query_ids


# ---------------------------------------------------------------------------------------------- half as many bytes


def test_passages_in_float16_are_rounded_once_and_queries_are_not(settings, encoded):
    exact, halved = settings, replace(settings, embedding_precision="float16")
    plain = {kind: embed(exact, kind=kind).embeddings for kind in ("document", "query")}
    for turn in range(2):
        documents, queries = embed(halved), embed(halved, kind="query")
        assert documents.from_cache is (turn == 1) and queries.from_cache, "another format is another entry"
        assert documents.embeddings.dtype == np.float16 and queries.embeddings.dtype == np.float32
        np.testing.assert_array_equal(documents.embeddings, plain["document"].astype(np.float16))
        np.testing.assert_array_equal(queries.embeddings, plain["query"])
    sizes = sorted((each / "embeddings.npy").stat().st_size for each in entries(halved))
    assert len(sizes) == 2 and sizes[0] < 0.6 * sizes[1]  # of the same texts, without a prefix for either kind


@pytest.mark.parametrize("arm", ["baseline", "maw"])
def test_a_file_is_asked_for_whatever_the_size(tiny_settings, arm):
    config = tiny_settings(store_embeddings_on_disk=True, embedding_precision="float16", use_lora=arm == "baseline")
    found = embed(config, (MAWRetriever if arm == "maw" else BaselineRetriever)(config))
    assert isinstance(found.embeddings, np.memmap) and found.embeddings.dtype == np.float16
    if arm == "maw":
        assert found.depth_share.dtype == np.float32


def test_what_float16_cannot_hold_is_refused(tiny_settings):
    config = tiny_settings(embedding_precision="float16", embedding_cache_gb=0, similarity="dot")
    model = BaselineRetriever(config)
    real = model.encoder._pool
    model.encoder._pool = lambda hidden, padding: real(hidden, padding) * 1e6
    with pytest.raises(MAWError, match=r"embedding of text \d+ \(documents\) is not finite, or too large for float16"):
        embed(config, model)


def test_training_and_diagnostics_take_passages_in_float16(tiny_settings, tiny_data):
    config = tiny_settings(
        embedding_precision="float16", num_epochs=1, diagnostics="all", store_embeddings_on_disk=True
    )
    plain = tiny_settings(num_epochs=1, diagnostics="all")
    records = [train_retriever(MAWRetriever(each), tiny_data, tiny_data, each)[0] for each in (config, plain)]
    assert records[0]["train_loss"] == records[1]["train_loss"]
    assert records[0]["val_ndcg_cut_10"] == pytest.approx(records[1]["val_ndcg_cut_10"], abs=0.05)
