"""What to do when memory runs out: smaller batches where that changes nothing, and advice where it would.

Texts do not see each other inside an encoder, so an encoding batch may be halved until it fits; embeddings then differ
in their last bits, as they do between any two batch sizes. A training batch may not: its passages are each other's
negatives, and with fewer of them it is another experiment. There the run stops and says what takes less.
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
    """Calls something with a batch, or with its halves, quarters, ... where memory runs out, and joins the results.

    What did not fit once is not tried again: later batches of as many tokens are cut at once.

    Args:
        call: takes and gives tensors with the batch first; "attention_mask" (B, T) is among those it takes.
        what: for messages.
    """

    def __init__(self, call: Callable[[Mapping[str, Tensor]], Tensors], what: str):
        self.call, self.what = call, what
        self.too_many = math.inf

    @property
    def cut(self) -> bool:
        """Whether any batch had to be cut."""
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
            release()  # outside of the handler, whose traceback holds on to what the call had allocated
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
        text = "%s: out of memory with %d texts of %d tokens at once; going on with half of them"
        logger.warning(text, self.what, texts, tokens // texts)


def release() -> None:
    """Gives unused GPU memory back, so that a smaller request can be met from it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def advising(what: str, advice: str) -> Iterator[None]:
    """Turns running out of memory into one line: what was done, and what would take less.

    Raises:
        MemoryLimitError: memory ran out inside the block.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryLimitError(f"{what}: out of memory; {advice}") from error
