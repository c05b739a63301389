"""Caches embeddings of untrained encoders between runs, and puts large embeddings on disk.

    embedder = Embedder(model, config, device, activations)
    documents = embedder.encode(corpus, "document", "test documents")     # .from_cache: whether they were read

    python tier_1.py --embedding-cache-gb 10       # most disk space of the cache; 0 switches it off
    python tier_1.py --embedding-precision float16 --store-embeddings-on-disk      # half the size, and not in memory

Evaluation and the mining of dense negatives encode through it. Only encoders without trained parameters are cached
(zero-shot and the miner), because trained weights change with every epoch and their entries would never be read again.
The key of an entry holds everything that determines its bits, so that no model can read another's embeddings: the
SHA-256 of all weights (adapters included), configuration and modules, tokenizer, prefix, length limit, pooling,
normalisation, number format, device, batch sizes and use of stored activations (both change the last bits), library
versions, and the fingerprint of the texts.

An entry is a folder in `embeddings` of the cache folder, named by the hash of its key:

    embeddings.npy   (N, C), float32 or, for documents, `embedding_precision`; read as a memory map
    manifest.json    the key in plain text, the model's name, shape, date, seconds, size and SHA-256 of the array

An entry is written to a temporary folder under a lock, flushed, and renamed when complete, so two runs compute it
once. Every read compares its SHA-256; a damaged entry is computed again, with a warning. If space is short, the
entries read longest ago are removed (`maw.storage.cache_entry`). A disk error does not stop a run; it continues
without the cache.

Letters: N texts, C embedding size, M MAW layers, D depths.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

from maw.config.methods import trained_methods
from maw.config.tier1_config import Tier1Config, cache_folder
from maw.encoding.activation_cache import ActivationSource, ActivationStore
from maw.encoding.encode_sharded import encode_sharded
from maw.errors import DataError, reason
from maw.models.batching import LENGTH_STEP, encoding_tokens, windows
from maw.models.encode import Embeddings
from maw.models.encoder import MAWWithGRPOEncoder
from maw.models.fingerprint import encoder_parts, tokenizer_sha256
from maw.models.retriever import BaselineRetriever
from maw.models.tokenized import Source, Texts, TextSource
from maw.runtime import distributed
from maw.runtime.devices import count_replicas, replicate
from maw.runtime.profiler import stage
from maw.storage import cache_entry
from maw.storage.cache_entry import new_folder, only_builder
from maw.storage.disk import GIGABYTE, SPILL_BYTES, claim
from maw.storage.files import flush, json_sha

logger = logging.getLogger(__name__)

RULES_VERSION = 3
"""Must be increased when a change of code changes the bits of embeddings with the same key."""
WHAT = "the embeddings"
_ARRAY, _MANIFEST = "embeddings.npy", "manifest.json"


class Embedder:
    """Encodes texts with one model, through the cache.

    Args:
        model: any retriever; only those without trained parameters are cached.
        config: batch size, cache folder and its limit.
        device: device that computes.
        activations: stored activations of the frozen layers, shared with other calls of a run.
    """

    def __init__(
        self,
        model: BaselineRetriever,
        config: Tier1Config,
        device: torch.device,
        activations: ActivationStore | None = None,
    ):
        self.model, self.config, self.device, self.activations = model, config, device, activations
        self.folder = cache_folder(config) / "embeddings"

    def encode(self, texts: Texts, kind: str, label: str, fill: bool = False) -> Embeddings:
        """The embeddings of all texts, from the cache if possible.

        Args:
            texts: a corpus, or a list as `maw.models.tokenized.ListTexts`.
            label: label of the progress bar and in messages.
            fill: whether embeddings from the cache also store their texts' activations, if the run trains a method;
                later requests would compute them in other batches, with other last bits.
        """
        with stage("encoding queries" if kind == "query" else "encoding documents"):
            return self._encode(texts, kind, label, fill)

    def _encode(self, texts: Texts, kind: str, label: str, fill: bool) -> Embeddings:
        plain = self.model.source(texts, kind)
        stored = self.activations
        source = plain if stored is None else stored.source(plain, self.model.encoder, self.device)
        form = np.dtype(self.config.embedding_precision if kind == "document" else np.float32)
        key = self._key(plain, source, label, form)
        if key is None:
            return self._compute(source, label, self._spill, form)
        folder = self.folder / json_sha(key)[:32]
        found = _read(folder, key)
        (missing,) = distributed.any_process(found is None)  # processes may be on machines with different disks
        if missing:
            build = self._build_together if distributed.is_distributed() else self._read_or_build
            found = build(folder, key, source, label)
        if found.from_cache:
            logger.info("%s: %d embeddings read from the cache", label, len(plain))
            if fill and trained_methods(self.config) and not distributed.is_distributed():
                _fill(source)
        if kind == "document":
            return found
        return replace(found, embeddings=np.array(found.embeddings))  # few queries, compared with every passage

    def _key(self, plain: TextSource, source: Source, label: str, form: np.dtype) -> dict[str, Any] | None:
        """Everything that determines the bits of the embeddings; None if they are not to be cached."""
        limit = self.config.embedding_cache_gb * GIGABYTE
        if not limit or not len(plain) or not self._fixed or self._tokenizer is None:
            return None
        size = len(plain) * self.model.spec.embedding_dim * form.itemsize
        if size > limit:
            text = "%s: %.1f GB of embeddings exceed --embedding-cache-gb %g and are not cached"
            logger.info(text, label, size / GIGABYTE, self.config.embedding_cache_gb)
            return None
        return self._encoder_parts | {
            "tokenizer": self._tokenizer,
            "prefix": plain.prefix,
            "max_length": plain.max_length,
            "frozen_layers_stored": self.model.encoder.prefix_layers if isinstance(source, ActivationSource) else 0,
            "batch": [
                self.config.eval_batch_size,
                encoding_tokens(self.model.precision) if self.device.type == "cpu" else None,
                LENGTH_STEP,
            ],
            **({} if form == np.float32 else {"stored_in": form.name}),
            **({"processes": distributed.this_process().count} if distributed.is_distributed() else {}),
            "texts": {"fingerprint": plain.texts.fingerprint, "count": len(plain)},
        }

    @property
    def _fixed(self) -> bool:
        """Whether the encoder has no trained parameters."""
        encoder = self.model.encoder
        trained = any(parameter.requires_grad for parameter in encoder.parameters())
        outside = self.model.method is not None and self.model.method.origin is not None  # its code is not in the key
        return not trained and not outside and not isinstance(encoder, MAWWithGRPOEncoder)

    @cached_property
    def _encoder_parts(self) -> dict[str, Any]:
        versions = {each.__name__: each.__version__ for each in (torch, transformers, tokenizers)}
        rules = {"rules": RULES_VERSION, "versions": versions, "device": _device(self.device, self.config)}
        return rules | encoder_parts(self.model.encoder)

    @cached_property
    def _tokenizer(self) -> str | None:
        return tokenizer_sha256(self.model.tokenizer)

    def _read_or_build(self, folder: Path, key: dict[str, Any], source: Source, label: str) -> Embeddings:
        """Reads or writes an entry under its lock, since another run may be writing it."""
        made = None
        try:
            with only_builder(folder, WHAT):
                found = _read(folder, key, warn=True)
                if found is not None:
                    return found
                with new_folder(folder, WHAT) as temporary:
                    started = time.perf_counter()
                    made = self._compute(source, label, partial(self._place, temporary), _form(key))
                    if made.cut:
                        raise DataError("memory ran out, and smaller batches change the last bits")
                    self._finish(temporary, made, key, time.perf_counter() - started)
                made.embeddings.flags.writeable = False  # other runs read this file
        except DataError as error:
            logger.warning("%s: not cached for later runs: %s", label, error)
        return self._compute(source, label, self._spill, _form(key)) if made is None else made

    def _build_together(self, folder: Path, key: dict[str, Any], source: Source, label: str) -> Embeddings:
        """Computes in all processes; the main process writes the entry."""
        started = time.perf_counter()
        made = self._compute(source, label, self._spill, _form(key))
        seconds = time.perf_counter() - started
        if distributed.is_main() and not made.cut:
            try:
                self._write(folder, key, made, seconds)
            except DataError as error:
                logger.warning("%s: not cached for later runs: %s", label, error)
        distributed.barrier()  # no process looks for an entry that is being written
        return made

    def _write(self, folder: Path, key: dict[str, Any], made: Embeddings, seconds: float) -> None:
        with only_builder(folder, WHAT):
            if _read(folder, key) is None:
                with new_folder(folder, WHAT) as temporary:
                    array = self._place(temporary, made.embeddings.shape, made.embeddings.dtype)
                    array[:] = made.embeddings
                    self._finish(temporary, replace(made, embeddings=array), key, seconds)

    def _compute(self, source: Source, label: str, place: Any, form: np.dtype) -> Embeddings:
        """Encodes into arrays that `place` makes: embeddings (N, C) in `form`, depth shares (N, M, D) in float32."""
        return encode_sharded(
            replicate(self.model.encoder, self.config, self.device),
            source,
            batch_size=self.config.eval_batch_size,
            device=self.device,
            label=label,
            place=lambda shape: place(shape, form if len(shape) == 2 else np.dtype(np.float32)),
        )

    def _place(self, temporary: Path, shape: tuple[int, ...], form: np.dtype) -> np.ndarray:
        """The array of an entry, in a file of its full size."""
        path = temporary / _ARRAY
        with cache_entry.only_one(self.folder), path.open("wb") as file:
            header = {"descr": form.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            size = file.tell() + _bytes(shape, form)
            cache_entry.make_room(self.folder, size, int(self.config.embedding_cache_gb * GIGABYTE))
            claim(file, size)
        return np.lib.format.open_memmap(path, mode="r+")

    def _finish(self, temporary: Path, made: Embeddings, key: dict[str, Any], seconds: float) -> None:
        made.embeddings.flush()
        flush(temporary / _ARRAY)
        about = {
            "model": self.model.spec.name,
            "shape": list(made.embeddings.shape),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
        }
        cache_entry.write_manifest(temporary, source=key, **about)

    def _spill(self, shape: tuple[int, ...], form: np.dtype) -> np.ndarray:
        """An array in memory; a large one, or every one if configured, is in a file that vanishes with the process."""
        if _bytes(shape, form) <= SPILL_BYTES and not self.config.store_embeddings_on_disk:
            return np.empty(shape, form)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                claim(file, _bytes(shape, form))
                return np.memmap(file, dtype=form, mode="r+", shape=shape)
        except OSError as error:
            size, why = _bytes(shape, form) / GIGABYTE, reason(error)
            logger.warning("%s: no space for %.1f GB of embeddings (%s); kept in memory", self.folder, size, why)
            return np.empty(shape, form)


def _form(key: dict[str, Any]) -> np.dtype:
    """The number format of an entry."""
    return np.dtype(key.get("stored_in", np.float32))


def _read(folder: Path, key: dict[str, Any], warn: bool = False) -> Embeddings | None:
    """The entry, or None if it is missing or damaged."""
    try:
        if not folder.exists():
            return None
        manifest = cache_entry.read_manifest(folder)
        if manifest.get("source") != key:
            raise DataError(f"{folder}: the embeddings belong to another model or other texts; delete the folder")
        cache_entry.check_files(folder, manifest)
        embeddings = np.load(folder / _ARRAY, mmap_mode="r", allow_pickle=False)
        if embeddings.dtype != _form(key) or list(embeddings.shape) != manifest["shape"]:
            raise DataError(f"{folder}: the array has a shape or type that was not written; delete the folder")
    except (DataError, OSError, ValueError, KeyError, TypeError) as error:
        if warn:
            logger.warning("%s; computing the embeddings again", error)
        return None
    with contextlib.suppress(OSError):  # a read-only folder works too
        os.utime(folder / _MANIFEST)
    return Embeddings(embeddings, from_cache=True)


def _fill(source: Source) -> None:
    """Stores the activations of all texts, in the order of `encode`."""
    if isinstance(source, ActivationSource):
        for rows in windows(np.argsort(-source.lengths(), kind="stable")):
            if not source.fill(rows):
                break


def _device(device: torch.device, config: Tier1Config) -> list[Any]:
    """Facts about the device that change bits: kind, number of replicas, number format inside float32 products."""
    if device.type != "cuda":
        return [device.type, torch.backends.cpu.get_cpu_capability(), torch.backends.mkldnn.matmul.fp32_precision]
    split = count_replicas(config, device)
    return ["cuda", torch.cuda.get_device_name(device), split, torch.backends.cuda.matmul.fp32_precision]


def _bytes(shape: tuple[int, ...], form: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * form.itemsize
