"""Which texts passed through the frozen layers together: a resumed run gets the same activations to the last bit.

The activations of a text differ in their last bits with the batch it is computed in, and batches follow from which
texts were asked for at once. An uninterrupted run computes each text when it is first read, by whichever method that
is; a resumed one does not repeat the methods that are finished. So the journal of a
`maw.encoding.activation_cache.ActivationStore` notes every such request, is saved with the run
(`maw.experiment.run_state`), and is followed before a source is first read again.
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
    """Texts that were stored at one request.

    Attributes:
        source: name of what they are texts of.
        rows: the texts, int64.
        stored: how many of them, longest first, found room.
    """

    source: str
    rows: np.ndarray
    stored: int


class ActivationLog:
    """The requests to one store, in their order.

    Attributes:
        room: the bytes that the store has left after the last one, and whether it has counted itself full.
        cut: whether memory ran out, so that some batches were smaller than they will be when they are computed again.
    """

    def __init__(self) -> None:
        self.fills: list[Fill] = []
        self.room: tuple[int, bool] | None = None
        self.cut = False
        self._to_follow: dict[str, list[Fill]] = {}

    def note(self, fill: Fill, room: tuple[int, bool], cut: bool) -> None:
        """Notes a request that is over; one that was interrupted is made again as a whole.

        Args:
            fill: the request.
            room: the bytes that the store has left, and whether it has counted itself full.
            cut: whether memory ran out.
        """
        self.fills.append(fill)
        self.room, self.cut = room, self.cut or cut

    def to_restore(self, source: str) -> list[Fill]:
        """What a source held when the run was interrupted, in the order of its requests; given once."""
        return self._to_follow.pop(source, [])

    def content(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What to save: facts, and the rows of all requests one after the other."""
        names = list(dict.fromkeys(fill.source for fill in self.fills))
        fills = [[names.index(fill.source), len(fill.rows), fill.stored] for fill in self.fills]
        rows = [torch.from_numpy(fill.rows) for fill in self.fills]
        facts = {"sources": names, "fills": fills, "room": self.room, "cut": self.cut}
        return facts, ({"rows": torch.cat(rows)} if rows else {})

    def load(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Takes what `content` gave, to be followed."""
        lengths = [length for _, length, _ in facts["fills"]]
        parts = tensors["rows"].split(lengths) if lengths else ()
        self.room, self.cut = tuple(facts["room"]) if facts["room"] else None, facts["cut"]
        if self.cut:
            logger.warning(
                "memory ran out, or stored activations were damaged, before the run was interrupted: it goes on with "
                "activations whose last bits may be others, and so may be the last digits of its results"
            )
        for (number, _, stored), rows in zip(facts["fills"], parts, strict=True):
            fill = Fill(facts["sources"][number], rows.numpy(), stored)
            self.fills.append(fill)
            self._to_follow.setdefault(fill.source, []).append(fill)
