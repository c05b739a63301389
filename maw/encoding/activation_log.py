"""Log of the texts that were stored together, so that a resumed run stores the same ones and repeats their last bits.

Texts beyond the limit of disk space are computed each time, in whatever batch they are in, and which ones these are
depends on what was requested before. A run stores each text when a method first reads it, but a resumed run skips
finished methods. So an `maw.encoding.activation_cache.ActivationStore` logs every request, the run saves the log
(`maw.experiment.run_state`), and a resumed run repeats the requests of a source before it reads the source.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fill:
    """Texts that one request stored.

    Attributes:
        stored: number of texts, longest first, that fitted into the store.
    """

    source: str
    rows: np.ndarray
    stored: int


class ActivationLog:
    """The requests to one store, in order.

    Attributes:
        room: free bytes of the store after the last request, and whether the store was full.
        cut: whether memory ran out, so that some batches were smaller than those of a resumed run.
    """

    def __init__(self) -> None:
        self.fills: list[Fill] = []
        self.room: tuple[int, bool] | None = None
        self.cut = False
        self._to_follow: dict[str, list[Fill]] = {}

    def note(self, fill: Fill, room: tuple[int, bool], cut: bool) -> None:
        """Logs a finished request with the store's `room` and `cut`; an interrupted one is repeated as a whole."""
        self.fills.append(fill)
        self.room, self.cut = room, self.cut or cut

    def to_restore(self, source: str) -> list[Fill]:
        """The requests of a source before the interruption, in order; a second call returns none."""
        return self._to_follow.pop(source, [])

    def content(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The log to save: facts, and the concatenated rows of all requests."""
        names = list(dict.fromkeys(fill.source for fill in self.fills))
        fills = [[names.index(fill.source), len(fill.rows), fill.stored] for fill in self.fills]
        rows = [torch.from_numpy(fill.rows) for fill in self.fills]
        facts = {"sources": names, "fills": fills, "room": self.room, "cut": self.cut}
        return facts, ({"rows": torch.cat(rows)} if rows else {})

    def load(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Loads what `content` returned."""
        lengths = [length for _, length, _ in facts["fills"]]
        parts = tensors["rows"].split(lengths) if lengths else ()
        self.room, self.cut = tuple(facts["room"]) if facts["room"] else None, facts["cut"]
        if self.cut:
            logger.warning(
                "memory ran out, or stored activations were damaged, before the run was interrupted: the last bits of "
                "its activations may change now, and with them the last digits of its results"
            )
        for (number, _, stored), rows in zip(facts["fills"], parts, strict=True):
            fill = Fill(facts["sources"][number], rows.numpy(), stored)
            self.fills.append(fill)
            self._to_follow.setdefault(fill.source, []).append(fill)
