"""Texts as a model reads them: rows of a corpus or a list, tokenised batch by batch.

A source answers `batch(rows)` with the tensors an encoder takes. `TextSource` tokenises; `maw.prefix.PrefixSource`
stands in front of one and answers from stored activations. Training and encoding see no difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor


class Texts(Protocol):
    """Rows of text; a `maw.data.corpus.Corpus` is one."""

    fingerprint: str

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int]) -> list[str]:
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

    def take(self, rows: Sequence[int]) -> list[str]:
        return [self.texts[row] for row in rows]

    def lengths(self) -> np.ndarray:
        return np.fromiter((len(text) for text in self.texts), dtype=np.int64, count=len(self.texts))


class TextSource:
    """Texts of one kind, tokenised on demand.

    Args:
        texts: a corpus, or a list of strings.
        tokenizer: Hugging Face tokenizer.
        prefix: what the model expects in front of this kind of text.
        max_length: tokens, the special ones included; what is longer is cut.
    """

    def __init__(self, texts: Texts | Sequence[str], tokenizer: Any, *, prefix: str = "", max_length: int = 512):
        self.texts = ListTexts(texts) if isinstance(texts, (list, tuple)) else texts
        self.tokenizer, self.prefix, self.max_length = tokenizer, prefix, max_length

    def __len__(self) -> int:
        return len(self.texts)

    def lengths(self) -> np.ndarray:
        """What to sort by, so that a batch holds texts of like length, (N,)."""
        return self.texts.lengths()

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """{"input_ids", "attention_mask"}, each int64 (B, T), padded on the right to the longest of these rows."""
        encoded = self.tokenizer(
            [self.prefix + text for text in self.texts.take(rows)],
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

    def truncated(self) -> int:
        """How many of the texts are longer than the limit; meant for queries, since it tokenises everything."""
        texts = [self.prefix + text for text in self.texts.take(range(len(self)))]
        lengths = self.tokenizer(texts, return_length=True, verbose=False)["length"]
        return int((np.asarray(lengths) > self.max_length).sum())
