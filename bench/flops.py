"""Counts the floating-point operations of an encoder's matrix products, by the lengths of its texts.

Letters: T tokens of a text, C hidden size, F size of the feed-forward part, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def encoder_flops(lengths: Sequence[int] | np.ndarray, shape: Any, *, attention: bool = True) -> int:
    """Operations of one pass over texts, a multiplication and an addition counting as two.

    A token takes 2 * (4 C^2 + 2 C F) in the linear maps of a layer (query, key, value, output, and the two of the
    feed-forward part) and 4 T C in the attention of its text (scores, and their product with the values).
    Embeddings, norms, softmax and activation functions are not counted.

    Args:
        lengths: tokens of each text; those of padding too, where padding is to be counted.
        shape: a Hugging Face configuration with hidden_size, intermediate_size and num_hidden_layers.
        attention: count the products of attention too, and not the linear maps alone.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    C, F, L = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    linear = 2 * (4 * C * C + 2 * C * F) * int(lengths.sum())
    return L * (linear + (4 * C * int((lengths**2).sum()) if attention else 0))


def matmul_flops(rows: int, inner: int, columns: int) -> int:
    """Operations of a product of (rows, inner) and (inner, columns)."""
    return 2 * rows * inner * columns
