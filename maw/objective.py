"""What one optimizer step of the encoder minimises, by arm.

Without routing it is the contrastive loss. With MAW each text is encoded at a routing: a fresh random one, the
expected kernel, or one that a learner has just sampled and rewarded. `encoder_update` says which of a learner's
samples the encoder is trained on: `sampled`, the first; `all_group`, all of them alike; `mcl`, all of them, weighted
by a softmax of their reward, so that the depths that suit a text are trained on it (multiple choice learning,
Guzman-Rivera et al. 2012, softened). Negatives run at their greedy depth.

Letters: B queries, P passages of a batch, S routings of each text, C embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from maw.config import Tier1Config
from maw.contrastive import Batch, contrastive_loss
from maw.encoder import MAWWithGRPOEncoder
from maw.grpo import GRPOLearner, Rollout
from maw.routing import noise_keys
from maw.supervised import SupervisedLearner

Statistics = dict[str, Tensor]
LEARNERS = {"reward": GRPOLearner, "labels": SupervisedLearner}


class ContrastiveObjective:
    """The contrastive loss of embeddings as the encoder gives them: baselines, and routers that do not sample."""

    def __init__(self, engine: nn.Module, temperature: float):
        self.engine, self.temperature = engine, temperature

    def __call__(
        self, queries: Mapping[str, Tensor], passages: Mapping[str, Tensor], batch: Batch, step: int
    ) -> tuple[Tensor, Statistics]:
        """Loss to minimise, 0-dimensional, and statistics."""
        query_BC, passage_PC = self.engine(queries)["embedding"], self.engine(passages)["embedding"]
        return contrastive_loss(query_BC, passage_PC, batch.comparable, self.temperature).mean(), {}


class RandomRoutingObjective(ContrastiveObjective):
    """The contrastive loss at a fresh random depth for every text."""

    def __init__(self, engine: nn.Module, temperature: float, seed: int):
        super().__init__(engine, temperature)
        self.seed = seed

    def __call__(
        self, queries: Mapping[str, Tensor], passages: Mapping[str, Tensor], batch: Batch, step: int
    ) -> tuple[Tensor, Statistics]:
        embeddings = []
        for stream, (inputs, rows) in enumerate(((queries, batch.queries), (passages, batch.passages))):
            index = torch.from_numpy(rows).to(batch.comparable.device)
            keys = noise_keys(self.seed, step, index, 1, stream)
            embeddings.append(self.engine(inputs, mode="group", keys=keys)["embedding"][:, 0])
        return contrastive_loss(*embeddings, batch.comparable, self.temperature).mean(), {}


class LearnedRoutingObjective(ContrastiveObjective):
    """Lets a learner sample routings and update the routers, then trains the encoder on those routings."""

    def __init__(
        self,
        engine: nn.Module,
        temperature: float,
        learner: GRPOLearner | SupervisedLearner,
        config: Tier1Config,
    ):
        super().__init__(engine, temperature)
        self.learner, self.update, self.mcl_temperature = (
            learner,
            config.encoder_update,
            config.mcl_temperature,
        )

    def __call__(
        self, queries: Mapping[str, Tensor], passages: Mapping[str, Tensor], batch: Batch, step: int
    ) -> tuple[Tensor, Statistics]:
        query_rollout, positive_rollout, statistics = self.learner.step(queries, passages, batch, step)
        size = len(batch.queries)
        positives = {name: each[:size] for name, each in passages.items()}
        query_SBC = self._embed(queries, query_rollout)
        passage_SPC = self._embed(positives, positive_rollout)
        if len(batch.passages) > size:
            negatives = {name: each[size:] for name, each in passages.items()}
            negative_NC = self.engine(negatives)["embedding"]
            passage_SPC = torch.cat((passage_SPC, negative_NC.expand(len(passage_SPC), -1, -1)), dim=1)
        loss_SB = contrastive_loss(query_SBC, passage_SPC, batch.comparable, self.temperature)
        return (loss_SB * self._weights(query_rollout, positive_rollout, len(loss_SB))).sum(0).mean(), statistics

    def _embed(self, inputs: Mapping[str, Tensor], rollout: Rollout) -> Tensor:
        """The embeddings at the routings that the encoder is trained on, (S, B, C)."""
        depths = [each[:, :1] if self.update == "sampled" else each for each in rollout.depths]
        return self.engine(inputs, mode="group", depths=depths)["embedding"].transpose(0, 1)

    def _weights(self, query: Rollout, positive: Rollout, samples: int) -> Tensor:
        """How much each sample of each text counts, (S, B), summing to one over S."""
        if self.update != "mcl":
            return torch.full((samples, 1), 1 / samples, device=query.reward_BG.device)
        reward_SB = (query.reward_BG + positive.reward_BG).T
        return (reward_SB / self.mcl_temperature).softmax(0)


def build_objective(
    encoder: nn.Module, engine: nn.Module, config: Tier1Config, temperature: float
) -> ContrastiveObjective:
    """The objective that suits the encoder and its router.

    Args:
        encoder: the encoder itself.
        engine: the same, possibly inside a parallel wrapper.
    """
    if not isinstance(encoder, MAWWithGRPOEncoder):
        return ContrastiveObjective(engine, temperature)
    router = encoder.maw_attention[0].router
    if router.name == "random":
        return RandomRoutingObjective(engine, temperature, config.seed)
    if router.trained_by not in LEARNERS:
        return ContrastiveObjective(engine, temperature)
    learner = LEARNERS[router.trained_by](encoder, engine, config, temperature)
    return LearnedRoutingObjective(engine, temperature, learner, config)
