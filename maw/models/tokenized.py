"""Sources of encoder inputs: texts of a corpus or a list, tokenised batch by batch.

`batch(rows)` of a source returns the encoder's input tensors; `batches(order, ...)` yields batches of texts of similar
length. `TextSource` tokenises; `maw.encoding.activation_cache.ActivationSource` wraps one and returns stored
activations with the same interface.

Another thread makes each batch one step ahead: tokenising, reading and gathering release the interpreter lock, so the
model does not wait.

Letters: N texts of a source, B texts of a batch, T tokens.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from maw.models.batching import cut, padded_length, windows

Item = TypeVar("Item")
Made = TypeVar("Made")
Batch = tuple[np.ndarray, dict[str, Tensor]]
Rows = Sequence[int] | np.ndarray
"""Positions of texts in a source, (N,)."""

tokenizing = threading.Lock()
"""Held while a tokenizer runs: it keeps the length limit of a call, which a call in another thread would change."""


class Texts(Protocol):
    """Rows of text, such as a `maw.data.corpus.Corpus`."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the texts."""

    def __len__(self) -> int: ...

    def take(self, rows: Rows) -> list[str]:
        """The texts of these rows, in this order."""

    def lengths(self) -> np.ndarray:
        """Characters in each text, (N,)."""


class ListTexts:
    """A Python list as `Texts`."""

    def __init__(self, texts: Sequence[str]):
        self.texts = list(texts)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the texts."""
        digest = hashlib.sha256()
        for text in self.texts:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Rows) -> list[str]:
        return [self.texts[row] for row in rows]

    def lengths(self) -> np.ndarray:
        return np.fromiter((len(text) for text in self.texts), dtype=np.int64, count=len(self.texts))


class Source(Protocol):
    """Encoder inputs of texts, such as a `TextSource`."""

    @property
    def cut(self) -> bool:
        """Whether memory ran out, so that some batches were smaller and the last bits differ."""

    def __len__(self) -> int: ...

    def lengths(self) -> np.ndarray:
        """Lengths to sort texts by, (N,)."""

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """The encoder's inputs for these texts, in this order."""

    def batches(self, order: np.ndarray, size: int, budget: int | None) -> Iterator[Batch]:
        """Batches of at most `size` texts and `budget` tokens, in this order."""


class TextSource:
    """Texts of one kind, tokenised on demand.

    Args:
        max_length: most tokens of a text, special tokens included; longer texts are truncated.
    """

    cut = False

    def __init__(self, texts: Texts | Sequence[str], tokenizer: Any, *, prefix: str = "", max_length: int = 512):
        self.texts = ListTexts(texts) if isinstance(texts, (list, tuple)) else cast(Texts, texts)
        self.tokenizer, self.prefix, self.max_length = tokenizer, prefix, max_length

    def __len__(self) -> int:
        return len(self.texts)

    def lengths(self) -> np.ndarray:
        """Characters of each text, to sort texts by, (N,)."""
        return self.texts.lengths()

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """{"input_ids", "attention_mask"}, each int64 (B, T), padded on the right to a multiple of `LENGTH_STEP`."""
        return self.padded(self.tokens(rows))

    def batches(self, order: np.ndarray, size: int, budget: int | None) -> Iterator[Batch]:
        """Yields pairs of rows and their inputs; every row of `order` occurs once.

        Args:
            order: rows, by descending length.
            budget: most tokens of a batch, padding included; None for no limit. A longer text is a batch of its own.
        """
        for rows, tokens in ahead(windows(order), lambda rows: (rows, self.tokens(rows))):
            for part in cut(np.array([len(each) for each in tokens]), size, budget):
                yield rows[part], self.padded([tokens[i] for i in part])

    def tokens(self, rows: Rows) -> list[list[int]]:
        """The token ids of each text, without padding.

        A tokenizer without special tokens returns no token for an empty text; the text becomes one padding token.
        """
        texts = [self.prefix + text for text in self.texts.take(rows)]
        lean = {"return_attention_mask": False, "return_token_type_ids": False}
        with tokenizing:
            tokens = self.tokenizer(texts, truncation=True, max_length=self.max_length, **lean)["input_ids"]
        return [each or [self.tokenizer.pad_token_id] for each in tokens]

    def padded(self, tokens: Sequence[Sequence[int]], longest: int = 0) -> dict[str, Tensor]:
        """The inputs, as `batch`, of texts that `tokens` returned; padded as if one of them had `longest` tokens."""
        lengths = torch.tensor([len(each) for each in tokens])
        tokens_padded = padded_length(max(longest, int(lengths.max())))
        mask_BT = torch.arange(min(self.max_length, tokens_padded)) < lengths[:, None]
        ids_BT = torch.full(mask_BT.shape, self.tokenizer.pad_token_id)
        ids_BT[mask_BT] = torch.from_numpy(np.fromiter(chain.from_iterable(tokens), np.int64))
        return {"input_ids": ids_BT, "attention_mask": mask_BT.long()}

    def truncated(self) -> int:
        """The number of texts longer than the limit; meant for queries, because it tokenises all texts."""
        texts = [self.prefix + text for text in self.texts.take(range(len(self)))]
        with tokenizing:
            lengths = self.tokenizer(texts, return_length=True, verbose=False)["length"]
        return int((np.asarray(lengths) > self.max_length).sum())


def ahead(items: Iterable[Item], make: Callable[[Item], Made]) -> Iterator[Made]:
    """Yields `make(item)` for each item; another thread makes the next one while the caller uses the last."""
    with ThreadPoolExecutor(1) as thread:
        coming = None
        for item in items:
            made, coming = coming, thread.submit(make, item)
            if made is not None:
                yield made.result()
        if coming is not None:
            yield coming.result()
