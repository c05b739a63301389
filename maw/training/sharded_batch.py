"""A training batch that the processes of a run share (`maw.runtime.distributed`). With one process it stays whole.

All processes take the same step of the same whole batch, but each reads and encodes only its own texts: `read_batch`
gives each text an owner, so that all have a similar number of tokens, and `over_processes` wraps the encoder, so that
it computes its own texts and gathers the embeddings of the others. Every process then computes loss, rewards and
router updates over all in-batch negatives. The backward pass reaches a process's own texts only, so the sum of the
gradients over the processes (`sum_gradients`) is the gradient of the whole batch: the step is that of one process but
for rounding. DistributedDataParallel would average the losses of parts, without the negatives of the other parts.

Letters: B texts of a batch, R texts of one process, padded to the same number everywhere, T tokens, C embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maw.models.batching import padded_length
from maw.models.tokenized import Source
from maw.runtime import distributed
from maw.runtime.devices import to_device

OWNER = "owner"
"""Key of a batch's inputs: the process that computes each text, int64 (B,) on the CPU."""


def read_batch(source: Source, rows: np.ndarray, device: torch.device, parts: Sequence[int] = ()) -> dict[str, Tensor]:
    """The inputs of the encoder for a batch, on the device.

    With several processes only a process's own texts are read. The others have a row and an attention mask, but no
    tokens, and `OWNER` says which process has them.

    Args:
        source: of the texts.
        rows: of the source, (B,).
        parts: sizes of parts of the batch that are also computed alone, and so are divided evenly, too.
    """
    if not distributed.is_distributed():
        return {name: to_device(each, device) for name, each in source.batch(rows).items()}
    place = distributed.this_process()
    owner = owners(source.lengths()[rows], parts or [len(rows)], place.count)
    own = np.flatnonzero(owner == place.rank)
    read = own if len(own) else np.zeros(1, dtype=np.int64)  # without texts it needs the inputs' names and types
    found = source.batch(rows[read])
    mask_BT = _whole_mask(found["attention_mask"].sum(1).numpy()[: len(own)], owner, found["attention_mask"].shape[1])
    inputs = {"attention_mask": to_device(mask_BT, device), OWNER: torch.from_numpy(owner)}
    for name in found.keys() - {"attention_mask"}:
        part = found[name]
        of_tokens = part.shape[1] == found["attention_mask"].shape[1] and name != "text_keys"
        width = mask_BT.shape[1] if of_tokens else part.shape[1]
        whole = torch.zeros(len(rows), width, *part.shape[2:], dtype=part.dtype)
        whole[torch.from_numpy(read), : part.shape[1]] = part
        inputs[name] = to_device(whole, device)
    return inputs


def owners(lengths: np.ndarray, parts: Sequence[int], count: int) -> np.ndarray:
    """The process that computes each text, int64 (B,); in each part all get the same number ±1, of similar lengths."""
    owner = np.empty(len(lengths), dtype=np.int64)
    start = 0
    for size in parts:
        order = np.argsort(-lengths[start : start + size], kind="stable")
        owner[start + order] = np.arange(size) % count
        start += size
    return owner


def _whole_mask(lengths: np.ndarray, owner: np.ndarray, width: int) -> Tensor:
    """The attention mask of the whole batch, (B, T), from the lengths that each process knows of its own texts."""
    count = distributed.this_process().count
    most = int(np.bincount(owner, minlength=count).max())
    sent = torch.zeros(most + 1, dtype=torch.int64)
    sent[0] = width if len(lengths) else 0
    sent[1 : 1 + len(lengths)] = torch.from_numpy(lengths.astype(np.int64))
    length_B = torch.zeros(len(owner), dtype=torch.int64)
    width = 0
    for rank, got in enumerate(distributed.gathered(sent)):
        rows = torch.from_numpy(np.flatnonzero(owner == rank))
        length_B[rows] = got[1 : 1 + len(rows)]
        width = max(width, int(got[0]))
    assert 0 < int(length_B.max()) <= width <= padded_length(width), "token counts of another batch"
    return (torch.arange(width) < length_B[:, None]).long()


def over_processes(engine: nn.Module) -> nn.Module:
    """The engine; with several processes, one that computes its own texts and gathers the others."""
    return SharedEngine(engine) if distributed.is_distributed() else engine


class SharedEngine(nn.Module):
    """Is called like an encoder, with inputs of `read_batch`, and returns what that returns for the whole batch."""

    def __init__(self, engine: nn.Module):
        super().__init__()
        self.engine = engine
        self.train(engine.training)

    def forward(self, inputs: Mapping[str, Any], mode: str = "embed", **options: Tensor | Sequence[Tensor]) -> Any:
        """As the encoder's forward. All processes compute "policy", which reads only gathered states."""
        if mode not in ("embed", "group"):
            return self.engine(inputs, mode)
        device = inputs["attention_mask"].device
        mine, where = _division(inputs[OWNER])
        own_R, place_B = to_device(mine, device), to_device(where, device)
        own = {name: each[own_R] for name, each in inputs.items() if name != OWNER}
        chosen = {
            name: each[own_R] if isinstance(each, Tensor) else [layer[own_R] for layer in each]
            for name, each in options.items()
        }
        found = self.engine(own, mode, **chosen)
        return {
            name: [gather_rows(part, place_B) for part in each]
            if isinstance(each, list)
            else gather_rows(each, place_B)
            for name, each in found.items()
        }


def _division(owner_B: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that this process computes, (R,), and the position of each row of the batch among the gathered rows.

    All processes compute the same number of rows: one that owns fewer repeats a row, and the repeats are dropped.
    """
    place = distributed.this_process()
    rows = [(owner_B == rank).nonzero()[:, 0] for rank in range(place.count)]
    most = max(len(each) for each in rows)
    where_B = torch.empty(len(owner_B), dtype=torch.int64)
    for rank, each in enumerate(rows):
        where_B[each] = rank * most + torch.arange(len(each))
    mine = rows[place.rank]
    filler = mine[:1] if len(mine) else torch.zeros(1, dtype=torch.int64)
    return torch.cat((mine, filler.expand(most - len(mine)))), where_B


def gather_rows(values: Tensor, place_B: Tensor) -> Tensor:
    """The rows of all processes in the order of the batch; gradients flow to this process's own `values`, (R, ...)."""
    return _Gathered.apply(values)[place_B]


class _Gathered(torch.autograd.Function):
    """Concatenates the tensors of all processes. All compute the same loss from them, so each process has the gradient
    of its own part, and nothing is sent back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.rows = len(values)
        whole = torch.cat(distributed.gathered(values.detach()))
        if not values.is_floating_point():
            ctx.mark_non_differentiable(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        start = distributed.this_process().rank * ctx.rows
        return gradient[start : start + ctx.rows]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sums the gradients over the processes; a parameter without a gradient in all of them stays without."""
    if distributed.is_distributed():
        _reduce(list(parameters), 1.0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages gradients that are equal in all processes but for rounding."""
    if distributed.is_distributed():
        _reduce(list(parameters), 1 / distributed.this_process().count)


def _reduce(parameters: list[nn.Parameter], scale: float) -> None:
    """Sums all gradients of one type in one call; appended counts say how many processes have each gradient."""
    kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for each in parameters:
        kinds.setdefault((each.dtype, each.device), []).append(each)
    for (dtype, device), group in kinds.items():
        parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in group]
        has = torch.tensor([each.grad is not None for each in group], dtype=dtype)
        flat = torch.cat([*(part.reshape(-1) for part in parts), to_device(has, device)])
        distributed.all_reduce_sum_(flat)
        *sums, counts = flat.split([*(each.numel() for each in group), len(group)])
        # Which parameters a step reaches is the same everywhere; looking at the counts would wait for a GPU.
        known = has.tolist() if device.type != "cpu" else counts.tolist()
        for each, total, count in zip(group, sums, known, strict=True):
            each.grad = (total * scale).view_as(each) if count else None


def same_start(parameters: Iterable[nn.Parameter]) -> None:
    """Copies the values of trainable parameters from the main process to all others."""
    if distributed.is_distributed():
        with torch.no_grad():
            for each in parameters:
                values = each.detach().contiguous()
                each.copy_(distributed.from_main_(values))
