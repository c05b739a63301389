"""Out of memory: smaller batches where they change no result, advice where they would.

An encoder computes each text independently, so an encoding batch may be halved until it fits; embeddings then differ
in their last bits, as between any two batch sizes. In a training batch passages are each other's negatives: a smaller
one would be another experiment, so the run stops and says what needs less memory.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from maw.errors import MemoryLimitError, is_out_of_memory

logger = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


class HalveOnOOM:
    """Calls a function with a batch, or with halves, quarters, ... of it when memory runs out, and joins the results.

    Later batches of as many tokens as one that did not fit are halved at once.

    Args:
        call: maps tensors to tensors, batch first; the inputs include "attention_mask" (B, T).
        what: name of the work, for messages.
    """

    def __init__(self, call: Callable[[Mapping[str, Tensor]], Tensors], what: str):
        self.call, self.what = call, what
        self.too_many = math.inf

    @property
    def cut(self) -> bool:
        """Whether any batch was split."""
        return self.too_many < math.inf

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """The results for the whole batch.

        Raises:
            MemoryLimitError: a single text does not fit.
        """
        texts, tokens = len(inputs["attention_mask"]), inputs["attention_mask"].numel()
        if tokens < self.too_many or texts == 1:
            try:
                return self.call(inputs)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._too_large(texts, tokens, error)
            torch.cuda.empty_cache()  # outside of the handler, whose traceback holds the tensors of the failed call
        half = -(-texts // 2)
        first, second = (
            self({name: each[part] for name, each in inputs.items()}) for part in (slice(half), slice(half, None))
        )
        return {name: torch.cat((each, second[name])) for name, each in first.items()}

    def _too_large(self, texts: int, tokens: int, error: BaseException) -> None:
        if texts == 1:
            raise MemoryLimitError(
                f"{self.what}: out of memory with a single text of {tokens} tokens; cut texts with "
                "--max-document-length, free memory, or use a smaller model"
            ) from error
        self.too_many = tokens
        text = "%s: out of memory with %d texts of %d tokens; continuing with half as many"
        logger.warning(text, self.what, texts, tokens // texts)


@contextlib.contextmanager
def advising(what: str, advice: str) -> Iterator[None]:
    """Turns out-of-memory errors in the block into a one-line error with advice.

    Raises:
        MemoryLimitError: memory ran out inside the block.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryLimitError(f"{what}: out of memory; {advice}") from error
