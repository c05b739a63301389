"""Texts to embeddings, in batches of like length, longest first.

Longest first, so that a batch too large for the device fails at once, and the time left is never underestimated. On
a CPU a batch has a budget of tokens, beyond which its states no longer fit the caches; on a GPU it has
`eval_batch_size` texts. A batch that does not fit memory is cut in halves (`maw.runtime.out_of_memory`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from maw.errors import MAWError, NotFiniteError
from maw.models.batching import encoding_tokens
from maw.models.cpu_kernels import packed_weights
from maw.models.tokenized import Source
from maw.runtime.devices import unwrap
from maw.runtime.out_of_memory import HalveOnOOM
from maw.runtime.profiler import stage, waiting
from maw.runtime.progress_bars import bar

logger = logging.getLogger(__name__)

_ROWS_CHECKED = 65_536  # at a time, so that a memory map is never read into memory as a whole


@dataclass(frozen=True)
class Embeddings:
    """What encoding gives back.

    Args:
        embeddings: (N, C), rows in the source's order; float32, or what they were to be held in.
        depth_share: (N, M, D), each text's share of depths in each MAW layer; None without MAW.
        from_cache: whether they were read (`maw.encoding.embedding_cache`) and not computed.
        cut: whether memory ran out, so that some batches were smaller than asked for and the last bits differ.
    """

    embeddings: np.ndarray
    depth_share: np.ndarray | None = None
    from_cache: bool = False
    cut: bool = False


def in_memory(shape: tuple[int, ...]) -> np.ndarray:
    """An array, not filled yet, for what encoding gives."""
    return np.empty(shape, dtype=np.float32)


def encode(
    encoder: nn.Module,
    source: Source,
    *,
    batch_size: int = 128,
    device: torch.device | None = None,
    label: str | None = None,
    place: Callable[[tuple[int, ...]], np.ndarray] = in_memory,
) -> Embeddings:
    """Encodes every text of a source, in evaluation mode and without gradient.

    Args:
        encoder: an encoder of `maw.models.encoder`, or a parallel wrapper of one.
        source: the texts, N of them.
        batch_size: most texts encoded at once.
        device: where the encoder is; its own, if not given.
        label: of the progress bar; None for no bar.
        place: gives the array of a shape to write to, float32 or narrower, which may be a memory map.

    Raises:
        MAWError: the source is empty, an embedding is not finite, or beyond the numbers of a narrower array, or a
            single text does not fit memory.
    """
    if len(source) == 0:
        raise MAWError("there is no text to encode")
    device = device or next(encoder.parameters()).device
    was_training = encoder.training
    encoder.eval()
    order = np.argsort(-source.lengths(), kind="stable")
    outputs: dict[str, np.ndarray] = {}
    tokens = 0
    progress = bar(label or "", len(order), "text", shown=label is not None)
    budget = encoding_tokens(unwrap(encoder).precision) if device.type == "cpu" else None

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        on_device = {name: each.to(device, non_blocking=True) for name, each in inputs.items()}
        return {name: value.float().cpu() for name, value in encoder(on_device).items()}

    fitting = HalveOnOOM(run, label or "encoding")
    with torch.inference_mode(), packed_weights(), progress:
        for rows, inputs in waiting("waiting for batches", source.batches(order, batch_size, budget)):
            with stage("model"):
                for name, value in fitting(inputs).items():
                    _store(outputs, name, value.numpy(), rows, len(order), place)
            tokens += int(inputs["attention_mask"].sum())
            progress.note(tokens_per_second=tokens / progress.seconds)
            progress.update(len(rows))
    encoder.train(was_training)
    check_finite(outputs["embedding"], label)
    cut = fitting.cut or source.cut
    return Embeddings(outputs["embedding"], outputs.get("depth_share"), cut=cut)


def _store(
    outputs: dict[str, np.ndarray],
    name: str,
    value: np.ndarray,
    rows: np.ndarray,
    total: int,
    place: Callable[[tuple[int, ...]], np.ndarray],
) -> None:
    if name not in outputs:
        outputs[name] = place((total, *value.shape[1:]))
    with np.errstate(over="ignore"):  # what a narrower array cannot hold becomes infinite, and is refused
        outputs[name][rows] = value


def check_finite(embeddings_NC: np.ndarray, label: str | None) -> None:
    """Refuses embeddings that hold NaN or infinity.

    Raises:
        NotFiniteError: the first text whose embedding does.
    """
    wrong = _first_not_finite(embeddings_NC)
    if wrong is not None:
        narrow = embeddings_NC.dtype == np.float16
        limit = ", or beyond float16, which --embedding-precision float32 is not" if narrow else ""
        raise NotFiniteError(f"the embedding of text {wrong} ({label or 'encoding'}) is not finite{limit}")


def _first_not_finite(embeddings_NC: np.ndarray) -> int | None:
    for start in range(0, len(embeddings_NC), _ROWS_CHECKED):
        finite = np.isfinite(embeddings_NC[start : start + _ROWS_CHECKED]).all(1)
        if not finite.all():
            return start + int(np.argmin(finite))
    return None
