"""Encodes texts into embeddings, in batches of similar length, longest first.

Longest first: a batch that is too large for the device fails at once, and the progress bar never underestimates the
time left. On a CPU a budget of tokens keeps a batch's states in the caches; on a GPU a batch has `eval_batch_size`
texts. A batch that does not fit into memory is halved (`maw.runtime.out_of_memory`).

Letters: N texts, C embedding size, M MAW layers, D depths.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
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

_ROWS_CHECKED = 65_536  # at a time, so that a memory map is not read into memory as a whole


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of all texts of a source.

    Args:
        embeddings: (N, C), in the source's order, float32 or narrower.
        depth_share: (N, M, D), how often each text used each depth in each MAW layer; None without MAW.
        from_cache: whether they were read from `maw.encoding.embedding_cache`.
        cut: whether memory ran out, so that some batches were smaller and the last bits differ.
    """

    embeddings: np.ndarray
    depth_share: np.ndarray | None = None
    from_cache: bool = False
    cut: bool = False


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode, and restores its mode at the end of the block."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def in_memory(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised float32 array."""
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
        source: the N texts.
        batch_size: most texts encoded at once.
        device: the encoder's device; read from its parameters by default.
        label: label of the progress bar; None for no bar.
        place: makes the output array of a given shape, float32 or narrower; it may be a memory map.

    Raises:
        MAWError: the source is empty; an embedding is not finite or exceeds a narrower array's range; one text alone
            does not fit into memory.
    """
    if len(source) == 0:
        raise MAWError("there is no text to encode")
    device = device or next(encoder.parameters()).device
    order = np.argsort(-source.lengths(), kind="stable")
    outputs: dict[str, np.ndarray] = {}
    tokens = 0
    progress = bar(label or "", len(order), "text", shown=label is not None)
    budget = encoding_tokens(unwrap(encoder).precision) if device.type == "cpu" else None

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        on_device = {name: each.to(device, non_blocking=True) for name, each in inputs.items()}
        return {name: value.float().cpu() for name, value in encoder(on_device).items()}

    fitting = HalveOnOOM(run, label or "encoding")
    with evaluating(encoder), torch.inference_mode(), packed_weights(), progress:
        for rows, inputs in waiting("waiting for batches", source.batches(order, batch_size, budget)):
            with stage("model"), np.errstate(over="ignore"):  # overflow of a narrower array gives inf: check_finite
                for name, value in fitting(inputs).items():
                    if name not in outputs:
                        outputs[name] = place((len(order), *value.shape[1:]))
                    outputs[name][rows] = value.numpy()
            tokens += int(inputs["attention_mask"].sum())
            progress.note(tokens_per_second=tokens / progress.seconds)
            progress.update(len(rows))
    check_finite(outputs["embedding"], label)
    cut = fitting.cut or source.cut
    return Embeddings(outputs["embedding"], outputs.get("depth_share"), cut=cut)


def check_finite(embeddings_NC: np.ndarray, label: str | None) -> None:
    """Refuses embeddings that hold NaN or infinity.

    Raises:
        NotFiniteError: names the first text whose embedding is not finite.
    """
    for start in range(0, len(embeddings_NC), _ROWS_CHECKED):
        finite = np.isfinite(embeddings_NC[start : start + _ROWS_CHECKED]).all(1)
        if not finite.all():
            wrong, narrow = start + int(np.argmin(finite)), embeddings_NC.dtype == np.float16
            advice = ", or too large for float16; try --embedding-precision float32" if narrow else ""
            raise NotFiniteError(f"the embedding of text {wrong} ({label or 'encoding'}) is not finite{advice}")
