"""Embeddings of texts at greedy depths, at every depth, and at the depths of other texts.

`maw.evaluation.routing.diagnostics` uses them. "At depth d" means all MAW layers, heads and tokens of a text at depth
d. These are D of the D^n possible embeddings (n decisions). Only the layers from the first MAW layer up run for each
depth, on stored activations if the source has them; all depths share keys and values of the first MAW layer.

Letters: N texts of a source, B chosen texts, G samples of each text, U chosen depths, D depths, C embedding size,
M MAW layers, H heads, T tokens, F features of a router's state; h is 1 or H and t is 1 or T, as the router decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from maw.attention.routers import PolicyRouter, Router, same_depth
from maw.models.batching import encoding_tokens
from maw.models.cpu_kernels import packed_weights
from maw.models.encode import evaluating
from maw.models.tokenized import Source
from maw.runtime.devices import unwrap

DEPTHS_AT_ONCE = 16  # more depths at once are not faster and need more memory


@dataclass(frozen=True)
class PolicyFacts:
    """Statistics of one MAW layer's router over many texts, in nats.

    Args:
        entropy: entropy of the policy that training samples from, mean over texts and decisions.
        mutual_information: between state and sampled depth: entropy of the mean policy minus mean entropy. It is 0 if
            all texts have the same policy.
        greedy_information: the same for greedy depths: the entropy of their histogram. Heads with depths of their own
            have one histogram each, and this is the mean over heads; heads with different depths that are the same for
            all texts give 0.
        kl_to_start: KL divergence of the policy from that of the router's start, at the same states, mean over texts
            and decisions.
        changed_share: share of decisions whose greedy depth is another than that of the router's start.
    """

    entropy: float | None
    mutual_information: float | None
    greedy_information: float | None
    kl_to_start: float | None = None
    changed_share: float | None = None


@dataclass(frozen=True)
class GreedyTexts:
    """Texts at their greedy depths.

    Args:
        depths: each text's greedy depths, int16 (M, h, t) without padding; None for a soft router.
        start_depths: the same of the routers' start, at the same states; None without it.
        state_BF: state of the first MAW layer's router, mean over tokens, with heads concatenated.
        facts: statistics of each MAW layer.
    """

    depths: list[np.ndarray] | None
    start_depths: list[np.ndarray] | None
    state_BF: np.ndarray
    facts: list[PolicyFacts]

    @property
    def depth_B(self) -> np.ndarray | None:
        """The depth of each text, int64; None if a text has several depths, or none."""
        return one_depth(self.depths)


class DepthReader:
    """Encodes texts with a MAW encoder, in evaluation mode and without gradients.

    Args:
        engine: MAW encoder, or a parallel wrapper of one.
        batch_size: most texts of a batch on a GPU, samples included.
        start: the routers before training, to compare with; None for no comparison.
    """

    def __init__(
        self,
        engine: nn.Module,
        source: Source,
        *,
        batch_size: int,
        device: torch.device,
        start: Sequence[PolicyRouter] | None = None,
    ):
        self.engine, self.source, self.batch_size, self.device = engine, source, batch_size, device
        self.start = start
        self.routers: list[Router] = [layer.router for layer in unwrap(engine).maw_attention]
        self.num_depths = self.routers[0].num_depths

    def greedy(self, rows_B: np.ndarray) -> GreedyTexts:
        """The texts of these rows (ascending, each once) at their greedy depths."""
        counts = [PolicyCounts() for _ in self.routers]
        state, found, first = _Rows(len(rows_B)), [None] * len(rows_B), [None] * len(rows_B)
        with evaluating(self.engine), torch.inference_mode(), packed_weights():
            for place, inputs in self._batches(rows_B, 1):
                group, padding_BT = self.engine(inputs, mode="group"), inputs["attention_mask"]
                state[place] = _token_mean(group["states"][0][:, 0], padding_BT).flatten(1)
                soft = group["depths"][0].is_floating_point()
                starts = self._starts(group["states"])
                policies = self._policies(group["states"])
                for count, policy, start, depth in zip(counts, policies, starts, group["depths"], strict=True):
                    count.add(policy, None if soft else depth[:, 0], padding_BT, self.num_depths, start)
                for kept, depths in ((found, None if soft else group["depths"]), (first, _greedy_depths(starts))):
                    if depths is not None:
                        for i, each in zip(place, _without_padding(depths, padding_BT), strict=True):
                            kept[i] = each
        facts = [each.facts() for each in counts]
        return GreedyTexts(None if soft else found, first if self.start else None, state.values, facts)

    def at_every_depth(self, rows_B: np.ndarray) -> np.ndarray:
        """The embeddings of these rows (ascending, each once) at every depth: float32 (B, D, C)."""
        return self.at_depths(rows_B, np.arange(self.num_depths))

    def at_depths(self, rows_B: np.ndarray, depths_U: np.ndarray) -> np.ndarray:
        """The embeddings of these rows (ascending, each once) at some depths: float32 (B, U, C)."""
        chosen_U = torch.from_numpy(depths_U).to(self.device)
        return self._encoded(
            rows_B, len(depths_U), lambda _, part, shape: same_depth(self.routers, chosen_U[part], *shape)
        )

    def at_depths_of(self, rows_B: np.ndarray, depths: list[np.ndarray], donors_BG: np.ndarray) -> np.ndarray:
        """The embeddings of these rows at other texts' depths, float32 (B, G, C).

        Args:
            rows_B: ascending, each once.
            depths: each text's own depths, as in `GreedyTexts`.
            donors_BG: the text whose depths sample g of a text uses. Depths of tokens are repeated, or cut, to the
                text's length.
        """

        def donated(place: np.ndarray, part: slice, shape: tuple[int, int]) -> list[Tensor]:
            return self._depths_of(depths, donors_BG[place, part], shape[1])

        return self._encoded(rows_B, donors_BG.shape[1], donated)

    def _encoded(self, rows_B: np.ndarray, samples: int, depths_of: Callable[..., list[Tensor]]) -> np.ndarray:
        """Embeddings (B, G, C); `depths_of` maps places of texts, a slice of samples and (texts, T) to depths."""
        found = _Rows(len(rows_B))
        parts = [slice(start, start + DEPTHS_AT_ONCE) for start in range(0, samples, DEPTHS_AT_ONCE)]
        with evaluating(self.engine), torch.inference_mode(), packed_weights():
            for place, inputs in self._batches(rows_B, min(samples, DEPTHS_AT_ONCE)):
                depths = (depths_of(place, part, inputs["attention_mask"].shape) for part in parts)
                groups = [self.engine(inputs, mode="group", depths=each)["embedding"] for each in depths]
                found[place] = torch.cat(groups, dim=1)
        return found.values

    def _batches(self, rows_B: np.ndarray, samples: int) -> Iterator[tuple[np.ndarray, Mapping[str, Tensor]]]:
        """Yields (positions in `rows_B`, inputs) of batches of similar length."""
        order = rows_B[np.argsort(-self.source.lengths()[rows_B], kind="stable")]
        on_cpu = self.device.type == "cpu"
        budget = encoding_tokens(unwrap(self.engine).precision) // samples if on_cpu else None
        for rows, inputs in self.source.batches(order, max(1, self.batch_size // samples), budget):
            on_device = {name: each.to(self.device, non_blocking=True) for name, each in inputs.items()}
            yield np.searchsorted(rows_B, rows), on_device

    def _policies(self, states: list[Tensor]) -> list[Tensor | None]:
        """Each layer's log-probabilities (B, h, t, D) at greedy depths; None for routers without a policy."""
        if not all(isinstance(router, PolicyRouter) for router in self.routers):
            return [None] * len(self.routers)
        return [each[:, 0] for each in self.engine({"states": states}, mode="policy")]

    def _starts(self, states: list[Tensor]) -> list[Tensor | None]:
        """The same of the routers' start, at the same states; None without it."""
        if self.start is None:
            return [None] * len(self.routers)
        return [r.logits(state).log_softmax(-1)[:, 0] for r, state in zip(self.start, states, strict=True)]

    def _depths_of(self, depths: list[np.ndarray], donors_BG: np.ndarray, tokens: int) -> list[Tensor]:
        """The donors' depths in each layer, (B, G, h, t)."""
        if self.routers[0].route_by == "token":
            each = {j: depths[j][..., np.arange(tokens) % depths[j].shape[-1]] for j in np.unique(donors_BG)}
        else:
            each = depths
        donated = np.array([[each[j] for j in row] for row in donors_BG], dtype=np.int64)  # (B, G, M, h, t)
        return list(torch.from_numpy(donated).to(self.device).unbind(2))


class _Rows:
    """An array filled row by row; the first values give its shape."""

    def __init__(self, count: int):
        self.count, self.values = count, np.zeros((count, 0), np.float32)

    def __setitem__(self, place: np.ndarray, values: Tensor) -> None:
        if not self.values.size:
            self.values = np.empty((self.count, *values.shape[1:]), np.float32)
        self.values[place] = values.float().cpu().numpy()


class PolicyCounts:
    """Sums over texts for `PolicyFacts`. Every text has the same weight, whatever its length; padding has none."""

    def __init__(self) -> None:
        self.texts = self.entropy = self.kl_to_start = self.changed = 0.0
        self.has_start = False
        self.policy_hD: np.ndarray | float = 0.0
        self.greedy_hD: np.ndarray | float = 0.0

    def add(
        self,
        log_policy: Tensor | None,
        depth: Tensor | None,
        padding_BT: Tensor,
        num_depths: int,
        log_start: Tensor | None = None,
    ) -> None:
        """Adds the log-policies (B, h, t, D) and greedy depths (B, h, t) of some texts."""
        self.texts += len(padding_BT)
        padding_BT = padding_BT.cpu()
        if log_policy is not None:
            policy = log_policy.cpu().double().exp()
            entropy = torch.special.entr(policy).sum(-1, keepdim=True)
            self.entropy += float(_token_mean(entropy, padding_BT).mean((1, 2)).sum())
            self.policy_hD = self.policy_hD + _token_mean(policy, padding_BT).sum(0).numpy()
        if log_policy is not None and log_start is not None:
            kl = (log_policy.exp() * (log_policy - log_start)).sum(-1, keepdim=True).cpu().double()
            changed = (log_policy.argmax(-1, keepdim=True) != log_start.argmax(-1, keepdim=True)).cpu().double()
            self.kl_to_start += float(_token_mean(kl, padding_BT).mean((1, 2)).sum())
            self.changed += float(_token_mean(changed, padding_BT).mean((1, 2)).sum())
            self.has_start = True
        if depth is not None:
            one_hot = torch.nn.functional.one_hot(depth.cpu(), num_depths).double()
            self.greedy_hD = self.greedy_hD + _token_mean(one_hot, padding_BT).sum(0).numpy()

    def facts(self) -> PolicyFacts:
        """Statistics of the texts added so far."""
        greedy = float(entropy_of(self.greedy_hD / self.texts).mean()) if np.ndim(self.greedy_hD) else None
        if not np.ndim(self.policy_hD):
            return PolicyFacts(None, None, greedy)
        entropy, of_mean = self.entropy / self.texts, float(entropy_of(self.policy_hD / self.texts).mean())
        moved = (self.kl_to_start / self.texts, self.changed / self.texts) if self.has_start else (None, None)
        return PolicyFacts(entropy, max(0.0, of_mean - entropy), greedy, *moved)  # rounding could make it negative


def entropy_of(share: np.ndarray) -> np.ndarray:
    """Entropy, in nats, of the shares along the last axis, which sum to one."""
    return -np.where(share > 0, share * np.log(np.clip(share, 1e-300, None)), 0).sum(-1)


def _token_mean(value: Tensor, padding_BT: Tensor) -> Tensor:
    """Mean of (B, h, t, X) over a text's real tokens, (B, h, X)."""
    if value.shape[2] == 1:
        return value[:, :, 0]
    weight = padding_BT.to(value.dtype)[:, None, :, None]
    return (value * weight).sum(2) / weight.sum(2)


def one_depth(depths: list[np.ndarray] | None) -> np.ndarray | None:
    """The depth of each text, int64 (B,), of depths as in `GreedyTexts`; None if a text has several, or none."""
    if depths is None or any(each.size > 1 for each in depths):
        return None
    return np.array([each.reshape(()) for each in depths], dtype=np.int64)


def _greedy_depths(log_policies: list[Tensor | None]) -> list[Tensor] | None:
    """The most probable depths in each layer, (B, 1, h, t)."""
    return None if log_policies[0] is None else [each.argmax(-1)[:, None] for each in log_policies]


def _without_padding(depths: list[Tensor], padding_BT: Tensor) -> Iterator[np.ndarray]:
    """Yields each text's depths, int16 (M, h, t), from one (B, 1, h, t) tensor for each layer."""
    stacked = torch.stack([each[:, 0] for each in depths], dim=1).to(torch.int16).cpu().numpy()
    for each, tokens in zip(stacked, padding_BT.sum(1).tolist(), strict=True):
        yield each if each.shape[-1] == 1 else each[..., :tokens]
