"""What a MAW encoder makes of texts at its greedy picks, at every depth, and at the picks of other texts.

`maw.evaluation.routing.diagnostics` asks for it. "At depth d" means all MAW layers, heads and tokens of the text at
depth d: D embeddings of a text, out of D to the power of the number of its decisions. Only the layers from the first
MAW layer up run for each depth, on stored activations where the source has them, and keys and values of the first are
shared.

Letters: N texts of a source, B texts asked for, G samples at once, D depths, C embedding size, M MAW layers, T tokens;
F features of a router's state; h is 1 or H and t is 1 or T, by how the router routes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from maw.attention.routers import PolicyRouter, Router, same_depth
from maw.models.batching import encoding_tokens
from maw.models.cpu_kernels import packed_weights
from maw.models.tokenized import Source
from maw.runtime.devices import unwrap

DEPTHS_AT_ONCE = 16  # more share keys and values no better, and long texts would need memory for all of them


@dataclass(frozen=True)
class PolicyFacts:
    """How one MAW layer's router chooses, over many texts, in nats.

    Args:
        entropy: of the policy that is sampled in training, mean over texts and decisions.
        mutual_information: between the state and the depth that the policy samples: entropy of the mean policy minus
            mean entropy; 0 where the same policy serves every text, whatever its entropy.
        greedy_information: the same for greedy picks, which have no entropy of their own: that of their histogram.
            Heads that route by themselves have a histogram each, and the mean over heads is given, so that heads at
            different depths for all texts count as nothing.
    """

    entropy: float | None
    mutual_information: float | None
    greedy_information: float | None


@dataclass(frozen=True)
class GreedyTexts:
    """Texts as the router wants them.

    Args:
        taken: of each text its picks, int16 (M, h, t) without padding; None if the router picks no depth (`soft`).
        state_BF: what the first MAW layer's router saw, mean over tokens, heads side by side.
        facts: of each MAW layer.
    """

    taken: list[np.ndarray] | None
    state_BF: np.ndarray
    facts: list[PolicyFacts]

    @property
    def picks_B(self) -> np.ndarray | None:
        """The one depth of each text, int64; None where a text has several decisions, or none."""
        if self.taken is None or any(each.size > 1 for each in self.taken):
            return None
        return np.array([each.reshape(()) for each in self.taken], dtype=np.int64)


class DepthReader:
    """Reads texts through a MAW encoder, in evaluation mode and without gradient.

    Args:
        engine: MAW encoder, or a parallel wrapper of one.
        source: the texts.
        batch_size: most texts of a batch, samples included, on a GPU.
        device: where the encoder is.
    """

    def __init__(self, engine: nn.Module, source: Source, *, batch_size: int, device: torch.device):
        self.engine, self.source, self.batch_size, self.device = engine, source, batch_size, device
        self.routers: list[Router] = [layer.router for layer in unwrap(engine).maw_attention]
        self.depths = self.routers[0].num_depths

    def greedy(self, rows_B: np.ndarray) -> GreedyTexts:
        """The texts of these rows, ascending and each once, at their greedy picks."""
        counts = [PolicyCounts() for _ in self.routers]
        state, taken = _Rows(len(rows_B)), [None] * len(rows_B)
        with self._reading():
            for place, inputs in self._batches(rows_B, 1):
                group, padding_BT = self.engine(inputs, mode="group"), inputs["attention_mask"]
                state[place] = _token_mean(group["states"][0][:, 0], padding_BT).flatten(1)
                soft = group["depths"][0].is_floating_point()
                for count, policy, picks in zip(counts, self._policies(group["states"]), group["depths"], strict=True):
                    count.add(policy, None if soft else picks[:, 0], padding_BT, self.depths)
                if not soft:
                    for i, each in zip(place, _without_padding(group["depths"], padding_BT), strict=True):
                        taken[i] = each
        return GreedyTexts(None if soft else taken, state.values, [each.facts() for each in counts])

    def at_every_depth(self, rows_B: np.ndarray) -> np.ndarray:
        """The embeddings of these rows, ascending and each once, at every depth: float32 (B, D, C)."""
        return self.at_depths(rows_B, np.arange(self.depths))

    def at_depths(self, rows_B: np.ndarray, depths_U: np.ndarray) -> np.ndarray:
        """The same at some depths: float32 (B, U, C)."""
        found = _Rows(len(rows_B))
        parts = torch.from_numpy(depths_U).to(self.device).split(DEPTHS_AT_ONCE)
        with self._reading():
            for place, inputs in self._batches(rows_B, len(parts[0])):
                shape = inputs["attention_mask"].shape
                picks = (same_depth(self.routers, part, *shape) for part in parts)
                groups = [self.engine(inputs, mode="group", depths=each) for each in picks]
                found[place] = torch.cat([group["embedding"] for group in groups], dim=1)
        return found.values

    def at_picks_of(self, rows_B: np.ndarray, taken: list[np.ndarray], donors_BG: np.ndarray) -> np.ndarray:
        """The embeddings of these rows with other texts' picks, float32 (B, G, C).

        Args:
            rows_B: ascending and each once.
            taken: each text's own picks, as in `GreedyTexts`.
            donors_BG: whose picks sample g of a text takes. Where tokens are routed they are repeated, or cut, to the
                text's length.
        """
        found = _Rows(len(rows_B))
        samples = donors_BG.shape[1]
        with self._reading():
            for place, inputs in self._batches(rows_B, min(samples, DEPTHS_AT_ONCE)):
                groups = []
                for start in range(0, samples, DEPTHS_AT_ONCE):
                    donors = donors_BG[place, start : start + DEPTHS_AT_ONCE]
                    depths = self._picks_of(taken, donors, inputs["attention_mask"].shape[1])
                    groups.append(self.engine(inputs, mode="group", depths=depths)["embedding"])
                found[place] = torch.cat(groups, dim=1)
        return found.values

    def _batches(self, rows_B: np.ndarray, samples: int) -> Iterator[tuple[np.ndarray, Mapping[str, Tensor]]]:
        """(places among the rows, inputs) of batches of like length."""
        order = rows_B[np.argsort(-self.source.lengths()[rows_B], kind="stable")]
        on_cpu = self.device.type == "cpu"
        budget = encoding_tokens(unwrap(self.engine).precision) // samples if on_cpu else None
        for rows, inputs in self.source.batches(order, max(1, self.batch_size // samples), budget):
            on_device = {name: each.to(self.device, non_blocking=True) for name, each in inputs.items()}
            yield np.searchsorted(rows_B, rows), on_device

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        was_training = self.engine.training
        self.engine.eval()
        with torch.inference_mode(), packed_weights():
            yield
        self.engine.train(was_training)

    def _policies(self, states: list[Tensor]) -> list[Tensor | None]:
        """Each layer's log-probabilities (B, h, t, D) on the greedy path; None where the router has no policy."""
        if not all(isinstance(router, PolicyRouter) for router in self.routers):
            return [None] * len(self.routers)
        return [each[:, 0] for each in self.engine({"states": states}, mode="policy")]

    def _picks_of(self, taken: list[np.ndarray], donors_BG: np.ndarray, tokens: int) -> list[Tensor]:
        """The donors' picks as depths of each layer, (B, G, h, t)."""
        if self.routers[0].route_by == "token":
            each = {j: taken[j][..., np.arange(tokens) % taken[j].shape[-1]] for j in np.unique(donors_BG)}
        else:
            each = taken
        picks = np.array([[each[j] for j in row] for row in donors_BG], dtype=np.int64)  # (B, G, M, h, t)
        return list(torch.from_numpy(picks).to(self.device).unbind(2))


class _Rows:
    """An array filled by place, made when the first values come."""

    def __init__(self, count: int):
        self.count, self.values = count, np.zeros((count, 0), np.float32)

    def __setitem__(self, place: np.ndarray, values: Tensor) -> None:
        if not self.values.size:
            self.values = np.empty((self.count, *values.shape[1:]), np.float32)
        self.values[place] = values.float().cpu().numpy()


class PolicyCounts:
    """Sums over texts from which `PolicyFacts` follow. Texts count alike, whatever their length; padding does not."""

    def __init__(self) -> None:
        self.texts = self.entropy = 0.0
        self.policy_HD: np.ndarray | float = 0.0
        self.picks_HD: np.ndarray | float = 0.0

    def add(self, log_policy: Tensor | None, picks: Tensor | None, padding_BT: Tensor, depths: int) -> None:
        """Policies (B, h, t, D) and picks (B, h, t) of some texts."""
        self.texts += len(padding_BT)
        padding_BT = padding_BT.cpu()
        if log_policy is not None:
            policy = log_policy.cpu().double().exp()
            entropy = torch.special.entr(policy).sum(-1, keepdim=True)
            self.entropy += float(_token_mean(entropy, padding_BT).mean((1, 2)).sum())
            self.policy_HD = self.policy_HD + _token_mean(policy, padding_BT).sum(0).numpy()
        if picks is not None:
            one_hot = torch.nn.functional.one_hot(picks.cpu(), depths).double()
            self.picks_HD = self.picks_HD + _token_mean(one_hot, padding_BT).sum(0).numpy()

    def facts(self) -> PolicyFacts:
        """What the texts added so far show."""
        greedy = float(entropy_of(self.picks_HD / self.texts).mean()) if np.ndim(self.picks_HD) else None
        if not np.ndim(self.policy_HD):
            return PolicyFacts(None, None, greedy)
        entropy, of_mean = self.entropy / self.texts, float(entropy_of(self.policy_HD / self.texts).mean())
        return PolicyFacts(entropy, max(0.0, of_mean - entropy), greedy)  # not below zero by rounding


def entropy_of(share: np.ndarray) -> np.ndarray:
    """Entropy in nats over the last axis of shares that sum to one."""
    return -np.where(share > 0, share * np.log(np.clip(share, 1e-300, None)), 0).sum(-1)


def _token_mean(value: Tensor, padding_BT: Tensor) -> Tensor:
    """(B, h, t, X) to the mean over a text's tokens, (B, h, X)."""
    if value.shape[2] == 1:
        return value[:, :, 0]
    weight = padding_BT.to(value.dtype)[:, None, :, None]
    return (value * weight).sum(2) / weight.sum(2)


def _without_padding(depths: list[Tensor], padding_BT: Tensor) -> Iterator[np.ndarray]:
    """Picks of each text, int16 (M, h, t), from one (B, 1, h, t) tensor for each layer."""
    picks = torch.stack([each[:, 0] for each in depths], dim=1).to(torch.int16).cpu().numpy()
    for each, tokens in zip(picks, padding_BT.sum(1).tolist(), strict=True):
        yield each if each.shape[-1] == 1 else each[..., :tokens]
