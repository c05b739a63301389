"""The loss that one optimizer step of the encoder minimises, for each method.

Without routing it is the contrastive loss. With MAW each text is encoded at a routing: a random one, the expected
kernel, or one of a router that a learner trains. `encoder_update` says which of them train the encoder:

- `sampled`: one sample of the policy (of a supervised router its label), which needs no reward: only a share of the
  texts (`grpo_share`) get a group whose rewards train the router;
- `all_group`: all samples, with equal weights;
- `mcl`: all samples, weighted by reward, so that a text trains the depths that suit it (softened multiple choice
  learning, Guzman-Rivera et al. 2012);
- `mcl_sampled`: one sample, drawn by reward; costs one forward pass.

With all samples, sample s of a query meets sample s of its positive, and its weight is a softmax over s of the sum of
both rewards; if a group has every depth once, both are at the same depth. With one sample, query and positive draw by
their own rewards. The temperature of the softmax may fall during training, from equal weights to the best sample
alone. Negatives are encoded at their greedy depth.

Letters: B queries, P passages of a batch, K passages in the bank, S routings of each text, C embedding size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maw.attention.noise import gumbel_argmax, noise_keys, uniform_noise
from maw.attention.routers import PolicyRouter
from maw.config.tier1_config import Tier1Config
from maw.models.encoder import MAWWithGRPOEncoder
from maw.runtime.devices import to_device
from maw.training.contrastive import Batch, PassageBank, contrastive_loss
from maw.training.router.grpo import GRPOLearner
from maw.training.router.rollout import Embedded, Rollout
from maw.training.router.supervised import SupervisedLearner
from maw.training.state import State

Statistics = dict[str, Tensor]
LEARNERS = {"reward": GRPOLearner, "labels": SupervisedLearner}


class ContrastiveObjective:
    """The contrastive loss of the encoder's embeddings: for baselines, and for routers that do not sample."""

    def __init__(self, engine: nn.Module, temperature: float):
        self.engine, self.temperature = engine, temperature
        self.bank = PassageBank()

    def watched(self) -> Tensor:
        """Values that must be finite, beside the loss and its gradient: 1-dimensional, on the device."""
        return torch.empty(0, device=next(self.engine.parameters()).device)

    def check(self, watched: Sequence[float]) -> None:
        """Checks the `watched` values, on the host.

        Raises:
            NotFiniteError: one of them is not finite.
        """

    def state_dict(self) -> State:
        """What the objective keeps from one step to the next."""
        return {"bank": self.bank.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Loads what `state_dict` gave."""
        self.bank.load_state_dict(state["bank"], next(self.engine.parameters()).device)

    def __call__(
        self, queries: Mapping[str, Tensor], passages: Mapping[str, Tensor], batch: Batch, step: int
    ) -> tuple[Tensor, Statistics]:
        """The loss, 0-dimensional, and statistics."""
        query_BC, passage_PC = self.engine(queries)["embedding"], self.engine(passages)["embedding"]
        return self._losses(query_BC, passage_PC, batch, self.bank.embeddings(batch), passage_PC).mean(), {}

    def _losses(self, query: Tensor, passage: Tensor, batch: Batch, bank_KC: Tensor, kept_PC: Tensor) -> Tensor:
        """The contrastive loss of each query, (..., B), among the batch's passages and the bank's.

        Args:
            query: (..., B, C).
            passage: (..., P, C).
            bank_KC: embeddings of the bank.
            kept_PC: embeddings of the passages that the bank will keep.
        """
        candidate_mask = batch.candidate_mask
        self.bank.add(kept_PC)
        if len(bank_KC):
            passage = torch.cat((passage, bank_KC.expand(*passage.shape[:-2], -1, -1)), dim=-2)
            candidate_mask = torch.cat((candidate_mask, batch.bank_candidate_mask), dim=1)
        return contrastive_loss(query, passage, candidate_mask, self.temperature)


class RandomRoutingObjective(ContrastiveObjective):
    """The contrastive loss with a new random depth for every text."""

    def __init__(self, engine: nn.Module, temperature: float, seed: int):
        super().__init__(engine, temperature)
        self.seed = seed

    def __call__(
        self, queries: Mapping[str, Tensor], passages: Mapping[str, Tensor], batch: Batch, step: int
    ) -> tuple[Tensor, Statistics]:
        embeddings = []
        for stream, (inputs, rows) in enumerate(((queries, batch.queries), (passages, batch.passages))):
            index = to_device(torch.from_numpy(rows), batch.candidate_mask.device)
            keys = noise_keys(self.seed, step, index, 1, stream)
            embeddings.append(self.engine(inputs, mode="group", keys=keys)["embedding"][:, 0])
        return self._losses(*embeddings, batch, self.bank.embeddings(batch), embeddings[1]).mean(), {}


class LearnedRoutingObjective(ContrastiveObjective):
    """The encoder trains at samples of the policy; the learner then rewards other depths, and updates the routers.

    The embeddings of the encoder's update are also what rewards compare with.
    """

    def __init__(
        self, engine: nn.Module, temperature: float, learner: GRPOLearner | SupervisedLearner, config: Tier1Config
    ):
        super().__init__(engine, temperature)
        self.learner, self.config = learner, config

    def watched(self) -> Tensor:
        return self.learner.watched

    def check(self, watched: Sequence[float]) -> None:
        self.learner.check(watched)

    def state_dict(self) -> State:
        return super().state_dict() | {"learner": self.learner.state_dict()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.learner.load_state_dict(state["learner"])

    def __call__(
        self, queries: Mapping[str, Tensor], passages: Mapping[str, Tensor], batch: Batch, step: int
    ) -> tuple[Tensor, Statistics]:
        index = to_device(torch.from_numpy(batch.queries), batch.candidate_mask.device)
        positives, negatives = _divided(passages, len(index))
        keys = (noise_keys(self.config.seed, step, index, 1, stream) for stream in (0, 1))
        query, positive = (
            self.engine(inputs, mode="group", keys=key) for inputs, key in zip((queries, positives), keys, strict=True)
        )
        query_BC, passage_PC = query["embedding"][:, 0], positive["embedding"][:, 0]
        if len(batch.passages) > len(index):
            passage_PC = torch.cat((passage_PC, self.engine(negatives)["embedding"]))
        masks = queries["attention_mask"], positives["attention_mask"]
        embedded = Embedded(query_BC.detach(), passage_PC.detach(), query["states"], positive["states"], *masks)
        bank_KC = self.bank.embeddings(batch)
        *_, statistics = self.learner.step(queries, passages, batch, step, bank_KC, embedded)
        return self._losses(query_BC, passage_PC, batch, bank_KC, passage_PC).mean(), statistics


class GroupObjective(LearnedRoutingObjective):
    """The encoder trains at routings that a learner has just rewarded."""

    def __init__(self, *arguments: Any, steps: int):
        super().__init__(*arguments)
        self.update, self.steps = self.config.encoder_update, steps

    def __call__(
        self, queries: Mapping[str, Tensor], passages: Mapping[str, Tensor], batch: Batch, step: int
    ) -> tuple[Tensor, Statistics]:
        bank_KC = self.bank.embeddings(batch)
        query_rollout, positive_rollout, statistics = self.learner.step(queries, passages, batch, step, bank_KC)
        size = len(batch.queries)
        positives, negatives = _divided(passages, size)
        temperature = self._mcl_temperature(step)
        query_SBC = self._embed(queries, query_rollout, self._picked(query_rollout, batch, step, 2, temperature))
        picked = self._picked(positive_rollout, batch, step, 3, temperature)
        passage_SPC = self._embed(positives, positive_rollout, picked)
        if len(batch.passages) > size:
            negative_NC = self.engine(negatives)["embedding"]
            passage_SPC = torch.cat((passage_SPC, negative_NC.expand(len(passage_SPC), -1, -1)), dim=1)
        kept = passage_SPC[0]
        if picked is None and positive_rollout.drawn_B is not None:  # of every depth, the policy's
            drawn = positive_rollout.drawn_B
            kept = torch.cat((passage_SPC[drawn, torch.arange(size, device=drawn.device)], kept[size:]))
        loss_SB = self._losses(query_SBC, passage_SPC, batch, bank_KC, kept)
        weight_SB = self._weights(query_rollout, positive_rollout, len(loss_SB), temperature)
        return (loss_SB * weight_SB).sum(0).mean(), statistics

    def _picked(self, rollout: Rollout, batch: Batch, step: int, stream: int, temperature: float) -> Tensor | None:
        """The sample of each text that trains the encoder, (B,); None if all samples do."""
        if self.update == "sampled":  # the label of a supervised router, its only sample
            return torch.zeros(len(rollout.reward_BG), dtype=torch.long, device=rollout.reward_BG.device)
        if self.update != "mcl_sampled":
            return None
        index = to_device(torch.from_numpy(batch.queries), rollout.reward_BG.device)
        keys = noise_keys(self.config.seed, step, index, 1, stream)
        noise = uniform_noise(keys, 0, 1, 1, rollout.reward_BG.shape[1])[:, 0, 0, 0]
        return gumbel_argmax(rollout.reward_BG / temperature, noise)

    def _embed(self, inputs: Mapping[str, Tensor], rollout: Rollout, picked_B: Tensor | None) -> Tensor:
        """The embeddings at the routings that train the encoder, (S, B, C)."""
        depths = rollout.depths
        if picked_B is not None:
            rows = torch.arange(len(picked_B), device=picked_B.device)
            depths = [each[rows, picked_B][:, None] for each in depths]
        return self.engine(inputs, mode="group", depths=depths)["embedding"].transpose(0, 1)

    def _weights(self, query: Rollout, positive: Rollout, samples: int, temperature: float) -> Tensor:
        """The weight of each sample of each text, (S, B); the sum over S is one."""
        if self.update != "mcl":
            return torch.full((samples, 1), 1 / samples, device=query.reward_BG.device)
        return ((query.reward_BG + positive.reward_BG).T / temperature).softmax(0)

    def _mcl_temperature(self, step: int) -> float:
        """The temperature of a step; it falls geometrically from its start to its end over the training."""
        last, first = self.config.mcl_temperature, self.config.mcl_start_temperature
        share = min(1.0, step / max(1, self.steps - 1))
        return last if first is None else first ** (1 - share) * last**share


def build_objective(
    encoder: nn.Module, engine: nn.Module, config: Tier1Config, temperature: float, steps: int = 1
) -> ContrastiveObjective:
    """The objective for an encoder and its router.

    Args:
        engine: computes; the encoder, or a parallel wrapper of it.
        steps: number of batches in the whole training, for the temperature schedule.
    """
    if not isinstance(encoder, MAWWithGRPOEncoder):
        return ContrastiveObjective(engine, temperature)
    router = encoder.maw_attention[0].router
    if router.needs_text_keys:
        return RandomRoutingObjective(engine, temperature, config.seed)
    if router.trained_by not in LEARNERS:
        return ContrastiveObjective(engine, temperature)
    learner = LEARNERS[router.trained_by](encoder, engine, config, temperature)
    if config.encoder_update == "sampled" and isinstance(learner, GRPOLearner):
        return LearnedRoutingObjective(engine, temperature, learner, config)
    return GroupObjective(engine, temperature, learner, config, steps=steps)


def untrained_routers(encoder: nn.Module) -> list[PolicyRouter] | None:
    """Copies of the routers before training; None if no learner trains them."""
    routers = [layer.router for layer in encoder.maw_attention] if isinstance(encoder, MAWWithGRPOEncoder) else []
    return [copy.deepcopy(each).requires_grad_(False) for each in routers if each.trained_by in LEARNERS] or None


def _divided(passages: Mapping[str, Tensor], positives: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs of the positives and of the negatives behind them."""
    return tuple(
        {name: each[part] for name, each in passages.items()} for part in (slice(positives), slice(positives, None))
    )
