"""Stores the activations of the frozen layers, computed once for each text of a run.

Layers below the first trained layer do not change and run without dropout, so their output for a text is fixed. It is
computed at the first request, appended to a file, and read through a memory map by every later epoch and method. The
file's size is limited: texts beyond the limit are computed each time. Their last bits may differ, because rounding
depends on the batch.

The files have no name, so they vanish with the process and nothing stale is read or left on the disk. Checksums of the
activations are in memory; if a read does not match, the texts are computed again, with a warning.

Letters: B texts, T tokens, C hidden size.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from maw.attention.noise import text_keys
from maw.encoding.activation_log import ActivationLog, Fill
from maw.errors import MAWError, reason
from maw.models.batching import WINDOW, cut, encoding_tokens, padded_length, windows
from maw.models.cpu_kernels import packed_weights
from maw.models.tokenized import Batch, Source, TextSource, ahead
from maw.runtime.out_of_memory import HalveOnOOM
from maw.runtime.profiler import stage
from maw.runtime.progress_bars import bar
from maw.storage.disk import GIGABYTE

logger = logging.getLogger(__name__)

GPU_TOKENS = 32_768  # most tokens of a batch on a GPU
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16}


class ActivationStore:
    """The activations of one model's frozen layers in one run; a context manager, or call `close`.

    Args:
        limit_gb: most disk space of all files, in 10^9 bytes.
    """

    def __init__(self, folder: Path, limit_gb: float):
        self.folder = folder
        self.free_bytes = int(limit_gb * GIGABYTE)
        self.full = False
        self.activation_log, self._restoring = ActivationLog(), False
        self.before_commit: Callable[[], None] = lambda: None
        """Hook: saves the activation log before a result is saved."""
        self._sources: dict[tuple, ActivationSource] = {}
        self.new_file().close()  # fails now, not during the run, if the folder cannot be written

    def __enter__(self) -> ActivationStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the files."""
        for source in self._sources.values():
            source.close()
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
            self._sources[key] = ActivationSource(source, self, encoder.precision, name)
        self._sources[key].use(encoder, device)
        if new:
            self._restore(self._sources[key])
        return self._sources[key]

    def resume(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Loads the activation log of an interrupted run; `source` then repeats the requests of each source."""
        self.activation_log.load(facts, tensors)
        self.free_bytes, self.full = self.activation_log.room or (self.free_bytes, self.full)

    def _restore(self, source: ActivationSource) -> None:
        self._restoring = True  # `resume` has subtracted the space of these activations
        try:
            for fill in self.activation_log.to_restore(source.name):
                source.restore(fill.rows, fill.stored)
                self.activation_log.cut = self.activation_log.cut or source.cut
        finally:
            self._restoring = False

    def new_file(self) -> IO[bytes]:
        """An open file without a name.

        Raises:
            MAWError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryFile(dir=self.folder)
        except OSError as error:
            raise MAWError(f"cannot write activations to {self.folder}: {reason(error)}; see --cache-dir") from error

    def reserve(self, size: int) -> bool:
        """Subtracts `size` bytes from the free space; False, and the store is full, if there are fewer."""
        if self._restoring:
            return True
        if size > self.free_bytes:
            self.full = True
            logger.warning(
                "stored activations have reached their limit (--prefix-cache-gb); "
                "further texts pass through the frozen layers each time, and results change only by rounding"
            )
            return False
        self.free_bytes -= size
        return True


class ActivationSource:
    """A source of hidden states: texts after the frozen layers.

    `batch(rows)` returns {"hidden" (B, T, C), "attention_mask" (B, T), "text_keys" (B, 1)}, with hidden states in the
    encoder's precision.
    """

    def __init__(self, source: TextSource, store: ActivationStore, precision: torch.dtype, name: str = ""):
        self.inner, self.store, self.name = source, store, name
        self.precision = precision
        self.bits = _BITS.get(precision)  # numpy has no bfloat16, so 16-bit formats are stored as integers
        count = len(source)
        self.offset = np.full(count, -1, dtype=np.int64)  # in tokens; -1: not stored
        self.tokens = np.zeros(count, dtype=np.int32)
        self.keys = np.zeros(count, dtype=np.int64)
        self.sums = np.zeros(count, dtype=np.uint64)
        self.file, self.stored, self.width = store.new_file(), 0, 0
        self._map: np.ndarray | None = None
        self.damaged = 0  # number of texts whose checksum did not match
        self.encoder: nn.Module | None = None
        self.device = torch.device("cpu")
        self._frozen = HalveOnOOM(self._prefix, "texts through the frozen layers")

    def use(self, encoder: nn.Module, device: torch.device) -> None:
        """Sets the encoder that computes activations that are not stored."""
        self.encoder, self.device = encoder, device

    def close(self) -> None:
        """Closes the file; stored activations cannot be read afterwards."""
        self._map = None
        with contextlib.suppress(OSError):  # a full disk refuses the last bytes, which are not needed
            self.file.close()

    def __len__(self) -> int:
        return len(self.inner)

    @property
    def cut(self) -> bool:
        """Whether some activations were computed in unusual batches, so that their last bits differ."""
        return self._frozen.cut or self.damaged > 0

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
            if self.fill(rows):
                parts = [rows[part] for part in cut(self.tokens[rows], size, budget)]
                for part, found in zip(parts, ahead(parts, self._read), strict=True):
                    yield part, self._whole(part, found)
            else:
                yield from ((part, self._compute(inputs)) for part, inputs in self.inner.batches(rows, size, budget))

    def fill(self, rows: np.ndarray, label: str | None = None) -> bool:
        """Computes and stores the missing activations of these rows; False if the free space does not suffice."""
        missing = np.unique(rows[self.offset[rows] < 0])
        if not len(missing):
            return True
        if self.store.full:
            return False
        progress = bar(label or "", len(missing), "text", shown=label is not None)
        with torch.no_grad(), progress, packed_weights():
            for part, inputs in self._longest_first(missing):
                if self.store.full or not self._append(part, self._compute(inputs)):
                    break
                progress.update(len(part))
        fill = Fill(self.name, missing, int((self.offset[missing] >= 0).sum()))
        self.store.activation_log.note(fill, (self.store.free_bytes, self.store.full), self.cut)
        return not self.store.full

    def restore(self, rows: np.ndarray, count: int) -> None:
        """Computes and stores the first `count` of these rows again, in the same batches as `fill`."""
        label = "texts through the frozen layers, as before the run was interrupted"
        left = count
        with torch.no_grad(), bar(label, count, "text") as progress, packed_weights():
            for part, inputs in self._longest_first(rows):
                if left <= 0:
                    break
                self._append(part, self._compute(inputs))
                left -= len(part)
                progress.update(len(part))

    def _longest_first(self, rows: np.ndarray) -> Iterator[Batch]:
        """Batches for the frozen layers, longest texts first."""
        order = rows[np.argsort(-self.lengths()[rows], kind="stable")]
        budget = encoding_tokens(self.encoder.precision) if self.device.type == "cpu" else GPU_TOKENS
        return self.inner.batches(order, WINDOW, budget)

    def _compute(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        with stage("frozen layers"):
            hidden = self._frozen(inputs)["hidden"]
        keys = text_keys(inputs["input_ids"], inputs["attention_mask"])
        return {"hidden": hidden, "attention_mask": inputs["attention_mask"], "text_keys": keys}

    def _prefix(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = self.encoder({name: each.to(self.device) for name, each in inputs.items()}, "prefix")
        return {"hidden": hidden.cpu()}

    def _append(self, rows: np.ndarray, fresh: dict[str, Tensor]) -> bool:
        real = fresh["attention_mask"].bool()
        packed = fresh["hidden"][real]  # (tokens, C), padding left out
        packed = (packed if self.bits is None else packed.view(self.bits)).numpy()
        if not self.store.reserve(packed.nbytes):
            return False
        try:
            self.file.write(packed.data)
            self.file.flush()
        except OSError as error:
            raise MAWError(
                f"cannot write activations to {self.store.folder}: {reason(error)}; see --prefix-cache-gb"
            ) from error
        lengths = real.sum(1).numpy()
        starts = np.cumsum(lengths) - lengths
        places = np.arange(len(packed)) - np.repeat(starts, lengths)
        so_far = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_token_sums(packed, places), dtype=np.uint64)])
        self.sums[rows] = so_far[starts + lengths] - so_far[starts]
        self.offset[rows] = self.stored + starts
        self.tokens[rows], self.keys[rows] = lengths, fresh["text_keys"][:, 0].numpy()
        self.stored, self.width = self.stored + len(packed), packed.shape[1]
        self._map = None
        return True

    def _whole(self, rows: np.ndarray, found: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """The activations that were read; computed again if they were damaged."""
        if found is not None:
            return found
        if not self.damaged:  # warn once: a failing disk fails repeatedly
            logger.warning(
                "%s: stored activations are damaged; these texts pass through the frozen layers again. "
                "The disk or the memory of this machine may be failing",
                self.store.folder,
            )
        self.damaged += len(rows)
        with torch.no_grad():
            return self._compute(self.inner.batch(rows))

    def _read(self, rows: np.ndarray) -> dict[str, Tensor] | None:
        """The stored activations of texts; None if their checksum does not match."""
        dtype = np.dtype(np.float32 if self.bits is None else np.int16)
        if os.fstat(self.file.fileno()).st_size < self.stored * self.width * dtype.itemsize:
            return None  # a read beyond the end of a memory map would kill the process
        if self._map is None:
            self._map = np.memmap(self.file, dtype=dtype, mode="r", shape=(self.stored, self.width))
        lengths = self.tokens[rows]
        steps = np.arange(min(self.inner.max_length, padded_length(int(lengths.max()))))
        mask = steps < lengths[:, None]
        # Padding reads the text's first token; any finite value works, because attention and pooling ignore it.
        where = self.offset[rows][:, None] + np.where(mask, steps, 0)
        states = self._map[where]
        if (np.where(mask, _token_sums(states, steps), 0).sum(1, dtype=np.uint64) != self.sums[rows]).any():
            return None
        hidden = torch.from_numpy(states)
        return {
            "hidden": hidden if self.bits is None else hidden.view(self.precision),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "text_keys": torch.from_numpy(self.keys[rows][:, None]),
        }


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
