"""A task with a known answer for the router: real texts of several kinds, and for each kind one depth that is best.

The router, its states and its whole training are real: MiniLM's states of docstrings and functions of Python's
library. Kinds are topics (clusters of states), with equally many texts each. Planted are the embeddings: text i of
pair n lies on axis n, and its length depends on its kind and depth. So the score of a pair falls where either side is
at a depth that is not its kind's best, and the rewards are those of true scores among a batch's candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from maw.attention.routers import GRPORouter, Routing
from maw.config.tier1_config import Tier1Config
from maw.training.contrastive import Batch
from maw.training.router.cluster_start import start_from_clusters
from maw.training.router.grpo import GRPOLearner

KINDS, DEPTHS, FEATURES = 8, 32, 384
EACH, HELD_OUT = 64, 12
"""Texts of each kind on each side, and how many of them are held out."""
OTHERS = (0.8, 0.9)
"""Length of an embedding at the depths that are not its kind's best."""
TEMPERATURE = 0.25
STARTS = 10
"""Of the clusters: the texts are those of the Python that runs the test, and a start may find too few of a kind."""
STEPS, SIZE = 189, 32
"""The offline preset's: 3 epochs of 63 batches of 32."""


@dataclass
class Side:
    """The texts of one side: their states and kinds, training texts first; the length of each kind at each depth."""

    state_NF: Tensor
    kind_N: Tensor
    length_KD: Tensor


def texts_by_kind(state_NF: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of EACH texts of each kind, the clearest of each cluster, in random order; and their kinds."""
    points = nn.functional.rms_norm(state_NF, (FEATURES,)).double().numpy()
    for start in range(seed, seed + STARTS):
        centres, label = kmeans2(points, KINDS, iter=100, minit="++", seed=start)
        if np.bincount(label, minlength=KINDS).min() >= EACH:
            break
    else:
        raise AssertionError("too few texts of a kind")
    distance = np.sort(((points[:, None] - centres) ** 2).sum(-1), axis=1)
    clear = np.argsort(distance[:, 0] - distance[:, 1])
    rows = np.stack([clear[label[clear] == kind][:EACH] for kind in range(KINDS)])
    rows = np.random.default_rng(seed).permuted(rows, axis=1).T.reshape(-1)  # each run of KINDS rows has every kind
    return torch.from_numpy(rows), torch.arange(KINDS).repeat(EACH)


def planted_sides(states: list[Tensor], kinds: list[Tensor], seed: int) -> list[Side]:
    """Sides with another best depth for each of the 2 * KINDS kinds: length 1 there, and of OTHERS elsewhere."""
    random = np.random.default_rng(seed)
    best = random.permutation(DEPTHS)[: 2 * KINDS].reshape(2, KINDS)
    found = []
    for state, kind, depths in zip(states, kinds, best, strict=True):
        length = random.uniform(*OTHERS, (KINDS, DEPTHS))
        length[np.arange(KINDS), depths] = 1.0
        order = random.permutation(len(kind))  # so that a text's row says nothing of its kind
        found.append(Side(state[order], kind[order], torch.from_numpy(length).float()))
    return found


class PlantedEncoder(nn.Module):
    """Stands in for a MAW encoder whose weights are frozen: real router, stored states, planted embeddings."""

    def __init__(self, sides: list[Side]):
        super().__init__()
        self.sides, self.precision = sides, torch.float32
        self.router = GRPORouter(12, FEATURES // 12, DEPTHS)
        self.maw_attention = [SimpleNamespace(router=self.router)]
        self.training_rows = np.arange(KINDS * (EACH - HELD_OUT))

    def forward(self, inputs, mode="embed", depths=None, keys=None):
        if mode == "policy":
            return [self.router.logits(state).log_softmax(-1) for state in inputs["states"]]
        side, row = self.sides[int(inputs["side"][0])], inputs["row"]
        state = side.state_NF[row][:, None, None, None]
        samples = 1 if keys is None else keys.shape[1]
        depth = self.router.pick(state, Routing(inputs["attention_mask"], keys, samples=samples))
        depth = depth if depths is None else depths[0]
        length_BG = side.length_KD[side.kind_N[row]].gather(1, depth[:, :, 0, 0])
        axis_BC = nn.functional.one_hot(row, len(side.kind_N)).float()
        embedding = length_BG[..., None] * axis_BC[:, None]
        if mode == "embed":
            return {"embedding": embedding[:, 0]}
        return {"embedding": embedding, "depths": [depth], "states": [state]}

    def batch_of(self, side: int, row) -> dict[str, Tensor]:
        row = torch.as_tensor(row)
        return {
            "side": torch.full_like(row, side),
            "row": row,
            "attention_mask": torch.ones(len(row), 1, dtype=torch.long),
        }

    def accuracy(self) -> list[float]:
        """Share of each side's held-out texts whose greedy depth is their kind's best."""
        found = []
        for side in self.sides:
            held = slice(-HELD_OUT * KINDS, None)
            picked = self.router.logits(side.state_NF[held]).argmax(-1)
            found.append(float((picked == side.length_KD.argmax(1)[side.kind_N[held]]).float().mean()))
        return found


@dataclass(frozen=True)
class PlantedSource:
    """One side's texts as a source."""

    encoder: PlantedEncoder
    side: int

    def lengths(self) -> np.ndarray:
        return np.ones(len(self.encoder.sides[self.side].kind_N), dtype=np.int64)

    def batches(self, order: np.ndarray, size: int, budget: int | None):
        for rows in np.split(order, range(size, len(order), size)):
            yield rows, self.encoder.batch_of(self.side, rows)


def batch_for(encoder: PlantedEncoder, rows: np.ndarray) -> tuple[list[dict[str, Tensor]], Batch]:
    """Inputs of both sides, and their batch: each text with the other side's text of its row."""
    everyone, no_bank = torch.ones(len(rows), len(rows), dtype=torch.bool), torch.ones(len(rows), 0, dtype=torch.bool)
    return [encoder.batch_of(side, rows) for side in (0, 1)], Batch(rows, rows, everyone, no_bank)


def start(encoder: PlantedEncoder, kind: str, config: Tier1Config) -> None:
    """Puts the router at its start: "uniform", "clusters", or "sharp", sure of a depth that no kind needs."""
    if kind == "clusters":
        sources = [PlantedSource(encoder, side) for side in (0, 1)]
        start_from_clusters(encoder, sources, [encoder.training_rows] * 2, config.seed, config.router_sharpness)
    if kind == "sharp":
        needed = {int(depth) for side in encoder.sides for depth in side.length_KD.argmax(1)}
        wrong = next(depth for depth in range(DEPTHS) if depth not in needed)
        with torch.no_grad():
            encoder.router.bias.zero_()
            encoder.router.bias[..., wrong] = 8.5


def train(encoder: PlantedEncoder, config: Tier1Config, learner_kind: type[GRPOLearner] = GRPOLearner) -> None:
    """Trains the router alone, on batches of pairs."""
    learner = learner_kind(encoder, encoder, config, TEMPERATURE)
    random = np.random.default_rng(config.seed)
    for step in range(STEPS):
        inputs, batch = batch_for(encoder, random.choice(encoder.training_rows, SIZE, replace=False))
        learner.step(*inputs, batch, step)
    learner.check(learner.watched.tolist())
