"""Stores the activations of the frozen layers, computed once for each text.

    with ActivationStore(folder, 20, lasting=True) as store:
        source = store.source(model.source(corpus, "document"), model.encoder, device)

Layers below the first trained layer do not change and run without dropout, so their output for a text is fixed. It is
computed at the first request, stored in a file (`maw.encoding.activation_files`), and read through a memory map by
every later epoch and method; with `lasting` also by later runs. Texts are found by their hash, so that splits, folds
and runs share those that they have in common.

The last bits of a text's activations depend on the shape of its batch. So the text's own length alone decides that
shape: a batch holds texts of one padded length, and always the same number of them (`batch_rows`; the last batch is
filled up with repetitions). Every text has padding, except those at the length limit, which have none, because kernels
with and without a mask differ. The other texts of the batch change no bit, so results are the same to the last bit
whether activations are computed or read.
Exceptions, where the last bits may differ: texts beyond the limit of disk space, which are computed each time in
whatever batch they are in; several processes, each of which computes what it reads; and batches that memory makes
smaller, which are not kept for later runs.

Every read compares a checksum of each text's states. Texts that do not match are computed again, with a warning.

Letters: B texts, T tokens, C hidden size.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from torch import Tensor, nn

from maw.attention.noise import text_keys
from maw.encoding.activation_files import INDEX, ActivationFiles, new_file, text_hashes
from maw.encoding.activation_files import Batch as StatesBatch
from maw.encoding.activation_log import ActivationLog, Fill
from maw.models.batching import CPU_TOKENS, LENGTH_STEP, WINDOW, cut, encoding_tokens, padded_length, windows
from maw.models.cpu_kernels import packed_weights
from maw.models.fingerprint import frozen_parts, tokenizer_sha256
from maw.models.tokenized import Batch, Source, TextSource, ahead
from maw.runtime import distributed
from maw.runtime.out_of_memory import HalveOnOOM
from maw.runtime.profiler import stage
from maw.runtime.progress_bars import Bar, bar
from maw.storage.disk import GIGABYTE

logger = logging.getLogger(__name__)

GPU_TOKENS = 32_768  # most tokens of a batch on a GPU
CPU_TEXTS = 32
"""Most texts of a batch on a CPU: fewer repetitions fill up a last batch, and the rate is nearly that of more."""
FILLING = "texts through the frozen layers"
"""Label of the progress bar."""
RULES_VERSION = 4
"""Must be increased when a change of code changes the bits of activations with the same identity."""
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16}


def batch_rows(length: int, device: torch.device) -> int:
    """Texts of each batch of a padded length, so that a text's last bits depend on nothing but the text."""
    if device.type == "cpu":
        return max(1, min(CPU_TEXTS, CPU_TOKENS // length))
    return max(1, GPU_TOKENS // length)


class ActivationStore:
    """The activations of one model's frozen layers in one run; a context manager, or call `close`.

    Args:
        limit_gb: most disk space of the run's activations, and of all that are kept in the folder, in 10^9 bytes.
        lasting: whether activations stay in the folder for later runs.
    """

    def __init__(self, folder: Path, limit_gb: float, *, lasting: bool = False):
        self.folder, self.lasting = folder, lasting
        self.limit = self.free_bytes = int(limit_gb * GIGABYTE)
        self.full = self.damaged = False
        self.activation_log = ActivationLog()
        self.before_commit: Callable[[], None] = lambda: None
        """Hook: saves the activation log before a result is saved."""
        self._sources: dict[tuple, ActivationSource] = {}
        self._files: dict[tuple, ActivationFiles] = {}
        new_file(folder).close()  # fails now, not during the run, if the folder cannot be written

    def __enter__(self) -> ActivationStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; those without a name vanish."""
        for files in self._files.values():
            files.close()
        self._files.clear()
        self._sources.clear()

    def source(self, source: TextSource, encoder: nn.Module, device: torch.device) -> Source:
        """A source of hidden states; equal texts with equal prefix, length limit and precision share one.

        Args:
            encoder: any encoder of the run; all have the same frozen layers.
        """
        if encoder.prefix_layers == 0 or self.free_bytes <= 0:
            return source
        key = (source.texts.fingerprint, source.prefix, source.max_length, encoder.prefix_layers, encoder.precision)
        new = key not in self._sources
        if new:
            name = json.dumps([*key[:-1], str(encoder.precision)])
            files = self._shared_files(source, encoder, device)
            self._sources[key] = ActivationSource(source, self, files, encoder.precision, name)
        self._sources[key].use(encoder, device)
        if new:
            self._restore(self._sources[key])
        return self._sources[key]

    def resume(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Loads the activation log of an interrupted run; `source` then repeats the requests of each source."""
        self.activation_log.load(facts, tensors)
        self.free_bytes, self.full = self.activation_log.room or (self.free_bytes, self.full)

    def _restore(self, source: ActivationSource) -> None:
        for fill in self.activation_log.to_restore(source.name):
            source.restore(fill.rows, fill.stored)
            self.activation_log.cut = self.activation_log.cut or source.cut

    def _shared_files(self, source: TextSource, encoder: nn.Module, device: torch.device) -> ActivationFiles:
        """The files of all sources with the same frozen layers, precision and length limit."""
        key = (source.max_length, encoder.prefix_layers, encoder.precision)
        if key not in self._files:
            config = encoder.backbone.config
            width = getattr(config, encoder.architecture.sizes["hidden_dim"])
            form = np.dtype(np.int16 if encoder.precision in _BITS else np.float32)
            identity = self._identity(source, encoder, device) if self.lasting else None
            self._files[key] = ActivationFiles(self.folder, form, width, identity, self.limit)
        return self._files[key]

    def _identity(self, source: TextSource, encoder: nn.Module, device: torch.device) -> dict[str, Any] | None:
        """Everything that determines the bits of a text's activations; None if they cannot outlive the run."""
        tokenizer = tokenizer_sha256(source.tokenizer)
        if tokenizer is None or distributed.is_distributed():
            return None
        lengths = range(LENGTH_STEP, padded_length(source.max_length) + 1, LENGTH_STEP)
        rows = [batch_rows(min(each, source.max_length), device) for each in lengths]
        return frozen_parts(encoder) | {
            "rules": RULES_VERSION,
            "versions": {each.__name__: each.__version__ for each in (torch, transformers, tokenizers)},
            "machine": machine_facts(device),
            "batches": [LENGTH_STEP, rows],
            "tokenizer": tokenizer,
            "max_length": source.max_length,
        }

    def reserve(self, sizes: np.ndarray) -> int:
        """Takes space for the first texts of these sizes in bytes; the number that fit. If not all do, it is full."""
        total = sizes.cumsum()
        fitting = int(np.searchsorted(total, self.free_bytes, "right"))
        if fitting:
            self.free_bytes -= int(total[fitting - 1])
        if fitting < len(sizes):
            self.full = True
            logger.warning(
                "stored activations have reached their limit (--prefix-cache-gb); "
                "further texts pass through the frozen layers each time, and results change only by rounding"
            )
        return fitting


class ActivationSource:
    """A source of hidden states: texts after the frozen layers.

    `batch(rows)` returns {"hidden" (B, T, C), "attention_mask" (B, T), "text_keys" (B, 1)}, with hidden states in the
    encoder's precision.
    """

    def __init__(
        self,
        source: TextSource,
        store: ActivationStore,
        files: ActivationFiles,
        precision: torch.dtype,
        name: str = "",
    ):
        self.inner, self.store, self.files, self.name = source, store, files, name
        self.precision = precision
        self.bits = _BITS.get(precision)  # numpy has no bfloat16, so 16-bit formats are stored as integers
        count = len(source)
        self.part = np.zeros(count, dtype=np.int32)  # number of the file, from 1; 0: not stored
        self.offset = np.zeros(count, dtype=np.int64)  # in tokens
        self.tokens = np.zeros(count, dtype=np.int32)
        self.keys = np.zeros(count, dtype=np.int64)
        self.sums = np.zeros(count, dtype=np.uint64)
        self.damaged = 0  # number of texts whose checksum did not match
        self._rounded = False  # whether damage led to other last bits
        self.encoder: nn.Module | None = None
        self.device = torch.device("cpu")
        self._frozen = HalveOnOOM(self._prefix, FILLING)

    def use(self, encoder: nn.Module, device: torch.device) -> None:
        """Sets the encoder that computes activations that are not stored."""
        self.encoder, self.device = encoder, device

    def __len__(self) -> int:
        return len(self.inner)

    @property
    def cut(self) -> bool:
        """Whether some activations were computed in unusual batches, so that their last bits differ."""
        return self._frozen.cut or self._rounded

    @property
    def texts(self):
        """The source's texts."""
        return self.inner.texts

    def lengths(self) -> np.ndarray:
        """Lengths to sort texts by, (N,)."""
        return self._lengths

    @cached_property
    def _lengths(self) -> np.ndarray:
        return self.inner.lengths()

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """As `TextSource.batch`, after the frozen layers."""
        rows = np.asarray(rows, dtype=np.int64)
        return self._whole(rows, self._read(rows)) if self.fill(rows) else self._compute(self.inner.batch(rows))

    def batches(self, order: np.ndarray, size: int, budget: int | None) -> Iterator[Batch]:
        """As `TextSource.batches`, after the frozen layers."""
        for rows in windows(order):
            if self.fill(rows, FILLING):
                parts = [rows[part] for part in cut(self.tokens[rows], size, budget)]
                for part, found in zip(parts, ahead(parts, self._read), strict=True):
                    yield part, self._whole(part, found)
            else:
                yield from ((part, self._compute(inputs)) for part, inputs in self.inner.batches(rows, size, budget))

    def fill(self, rows: np.ndarray, label: str | None = None) -> bool:
        """Stores the missing activations of these rows; False if the free space does not suffice."""
        missing = np.unique(rows[self.part[rows] == 0])
        if not len(missing):
            return True
        if self.store.full:
            return False
        with bar(label or "", len(missing), "text", shown=label is not None) as progress:
            self._store(missing, progress)
        fill = Fill(self.name, missing, int((self.part[missing] > 0).sum()))
        self.store.activation_log.note(fill, (self.store.free_bytes, self.store.full), self.cut)
        return not self.store.full

    def restore(self, rows: np.ndarray, count: int) -> None:
        """Stores the first `count` of these rows again, in the same batches as `fill`."""
        with bar(f"{FILLING}, as before the run was interrupted", count, "text") as progress:
            self._store(rows, progress, count)

    def _store(self, rows: np.ndarray, progress: Bar, count: int | None = None, keep: bool = True) -> None:
        """Stores rows, the longest texts first, while there is space.

        Args:
            count: store so many rows, whose space is subtracted already.
            keep: whether later runs may read them.
        """
        order = rows[np.argsort(-self.lengths()[rows], kind="stable")]
        for window in windows(order):
            if self.store.full if count is None else count <= 0:
                break
            with torch.no_grad(), packed_weights():
                self._store_window(window, progress, count, keep)
            count = None if count is None else count - len(window)

    def _store_window(self, rows: np.ndarray, progress: Bar, count: int | None, keep: bool) -> None:
        hashes = text_hashes(self.inner.prefix, self.inner.texts.take(rows))
        stored, records = self.files.find(hashes)
        lengths, tokens = records["tokens"].astype(np.int64), {}
        new = np.flatnonzero(stored == 0)
        for position, ids in zip(new.tolist(), self.inner.tokens(rows[new]) if len(new) else (), strict=True):
            tokens[position], lengths[position] = ids, len(ids)
        order = np.argsort(-lengths, kind="stable")
        if count is None:
            count = self.store.reserve(lengths[order] * self.files.width * self.files.dtype.itemsize)
        order = order[:count]
        wanted = order[stored[order] == 0]
        _, first = np.unique(hashes[wanted], axis=0, return_index=True)
        wanted = wanted[np.sort(first)]
        progress.update(len(order) - len(wanted))
        if len(wanted):

            def make(chosen: np.ndarray) -> Iterator[StatesBatch]:
                for part, count in self._parts(lengths[wanted[chosen]]):
                    of_texts = wanted[chosen[part]]
                    yield self._states([tokens[each] for each in of_texts.tolist()], hashes[of_texts], count)
                    progress.update(len(of_texts))

            self.files.add(hashes[wanted], make, lengths[wanted], (lambda: not self._frozen.cut) if keep else None)
        numbers, records = self.files.find(hashes[order])
        there = rows[order]
        self.offset[there], self.tokens[there] = records["offset"], records["tokens"]
        self.keys[there], self.sums[there] = records["key"], records["sum"]
        self.part[there] = numbers  # last: a thread that reads ahead looks at it first

    def _parts(self, lengths: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Batches for the frozen layers, longest texts first: positions, and the number of rows to fill up to."""
        if distributed.is_distributed():
            budget = encoding_tokens(self.precision) if self.device.type == "cpu" else GPU_TOKENS
            yield from ((part, len(part)) for part in cut(lengths, WINDOW, budget))
            return
        longest = self.inner.max_length
        kinds = np.where(lengths < longest, np.minimum(padded_length(lengths + 1), longest), longest + 1)
        for kind in np.unique(kinds)[::-1].tolist():
            texts, count = np.flatnonzero(kinds == kind), batch_rows(min(kind, longest), self.device)
            yield from ((part, count) for part in np.split(texts, range(count, len(texts), count)))

    def _states(self, tokens: list[list[int]], hashes: np.ndarray, rows: int) -> StatesBatch:
        """The activations of a batch of texts, and their records; repetitions fill the batch up to `rows` rows."""
        # One more token: a batch whose longest text fills it would have no padding.
        longest = max(map(len, tokens)) + (not distributed.is_distributed())
        inputs = self.inner.padded([tokens[number % len(tokens)] for number in range(rows)], longest)
        fresh = {name: each[: len(tokens)] for name, each in self._compute(inputs).items()}
        real = fresh["attention_mask"].bool()
        packed = fresh["hidden"][real]  # (tokens, C), padding left out
        states = (packed if self.bits is None else packed.view(self.bits)).numpy()
        records = np.zeros(len(tokens), INDEX)
        lengths = records["tokens"] = real.sum(1).numpy()
        ends = np.cumsum(lengths)
        places = np.arange(len(states)) - np.repeat(ends - lengths, lengths)
        so_far = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_token_sums(states, places), dtype=np.uint64)])
        records["sum"] = so_far[ends] - so_far[ends - lengths]
        records["hash"], records["key"] = hashes, fresh["text_keys"][:, 0].numpy()
        return records, states

    def _compute(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        with stage("frozen layers"):
            hidden = self._frozen(inputs)["hidden"]
        keys = text_keys(inputs["input_ids"], inputs["attention_mask"])
        return {"hidden": hidden, "attention_mask": inputs["attention_mask"], "text_keys": keys}

    def _prefix(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = self.encoder({name: each.to(self.device) for name, each in inputs.items()}, "prefix")
        return {"hidden": hidden.cpu()}

    def _whole(self, rows: np.ndarray, found: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """The activations that were read; damaged ones are computed and stored again."""
        if found is not None:
            return found
        *_, whole = self._gather(rows)
        bad = np.unique(rows[~whole])
        if len(bad) and not self.store.damaged:  # warn once: a failing disk fails repeatedly
            self.store.damaged = True
            logger.warning(
                "%s: stored activations are damaged; these texts pass through the frozen layers again. "
                "The disk or the memory of this machine may be failing",
                self.store.folder,
            )
        self.damaged += len(bad)
        if len(bad):
            hashes = text_hashes(self.inner.prefix, self.inner.texts.take(bad))
            for number in set(self.part[bad].tolist()) - {0}:
                self.files.drop(number, hashes[self.part[bad] == number])
            with bar("", len(bad), "text", shown=False) as progress:
                self._store(bad, progress, len(bad), keep=False)
        found = self._read(rows)
        if found is None:
            self._rounded = True
            with torch.no_grad():
                return self._compute(self.inner.batch(rows))
        return found

    def _read(self, rows: np.ndarray) -> dict[str, Tensor] | None:
        """The stored activations of texts; None if the checksum of any does not match."""
        states, mask, whole = self._gather(rows)
        if not whole.all():
            return None
        hidden = torch.from_numpy(states)
        return {
            "hidden": hidden if self.bits is None else hidden.view(self.precision),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "text_keys": torch.from_numpy(self.keys[rows][:, None]),
        }

    def _gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stored states (B, T, C), which tokens are real (B, T), and which texts have the right checksum (B,)."""
        part, lengths = self.part[rows], self.tokens[rows]
        steps = np.arange(min(self.inner.max_length, padded_length(int(lengths.max()))))
        mask = steps < lengths[:, None]
        # Padding reads the text's first token; any finite value works, because attention and pooling ignore it.
        where = self.offset[rows][:, None] + np.where(mask, steps, 0)
        states: np.ndarray | None = None
        for number in np.unique(part[part > 0]).tolist():
            stored, mine = self.files.files[number - 1].states(), part == number
            mine &= where.max(1) < len(stored)
            if mine.all():
                states = stored[where]
            elif mine.any():
                states = np.zeros((*where.shape, self.files.width), self.files.dtype) if states is None else states
                states[mine] = stored[where[mine]]
        if states is None:
            states = np.zeros((*where.shape, self.files.width), self.files.dtype)
        sums = np.where(mask, _token_sums(states, steps), 0).sum(1, dtype=np.uint64)
        return states, mask, (part > 0) & (sums == self.sums[rows])


def machine_facts(device: torch.device) -> list[Any]:
    """Facts about the device that change the last bits: kind, units, threads, format inside float32 products."""
    if device.type == "cuda":
        return ["cuda", torch.cuda.get_device_name(device), torch.backends.cuda.matmul.fp32_precision]
    matmul = torch.backends.mkldnn.matmul.fp32_precision
    return [device.type, dict(torch.cpu.get_capabilities()), torch.get_num_threads(), matmul]


def _token_sums(states: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Checksum of each token's bits modulo 2^64, (..., T); a flipped bit changes the sum over its text.

    Args:
        states: (..., T, C), of any type.
        places: position of each token in its text, (T,) or (..., T); it gives an odd factor, so that order counts.
    """
    size = states.shape[-1] * states.dtype.itemsize
    word = next(word for word in (np.uint64, np.uint32, np.uint16) if size % np.dtype(word).itemsize == 0)
    sums = np.ascontiguousarray(states).view(word).sum(-1, dtype=np.uint64)
    return sums * (2 * places.astype(np.uint64) + 1)
