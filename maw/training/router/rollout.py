"""Rollouts of router training: sampled depths of each text, and their rewards.

Letters: B texts, G samples, P passages, K passages in the bank, C embedding size, F features of a router's state; h is
1 or H and t is 1 or T, as the router decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from maw.evaluation.reward import task_reward
from maw.models.cpu_kernels import packed_weights
from maw.models.encode import evaluating
from maw.training.contrastive import Batch


@dataclass
class Rollout:
    """Samples of one side of a batch, queries or positives; lists have one entry for each MAW layer.

    Args:
        depths: int64 depths, (B, G, h, t).
        states: the routers' states, (B, 1 or G, h, t, F).
        reward_BG: reward of each sample.
        padding_BT: 1 for a token, 0 for padding.
        embedding_BC: the side's embeddings at greedy depths.
        old_log_prob: the old policy's log-probability of each depth, (B, G, h, t).
        share_BG: weight of each sample if a group holds different depths, as an estimate of the sum over all depths
            by the old policy's probability; None for samples of the policy.
        drawn_B: index of the sample that was drawn by these weights; None where there are none.
    """

    depths: list[Tensor]
    states: list[Tensor]
    reward_BG: Tensor
    padding_BT: Tensor
    embedding_BC: Tensor
    old_log_prob: list[Tensor] = field(default_factory=list)
    share_BG: Tensor | None = None
    drawn_B: Tensor | None = None

    def weight(self, layer: int) -> Tensor:
        """Weight of each action, (B, G, h, t): 0 for padding if tokens are routed, else 1."""
        depths = self.depths[layer]
        if depths.shape[-1] == 1:
            return torch.ones_like(depths, dtype=torch.float32)
        return self.padding_BT[:, None, None].expand_as(depths).float()


Options = Mapping[str, object] | Callable[[list[Tensor]], Mapping[str, object]]
"""Options of the encoder's "group" mode, or a function that makes them from the routers' states at greedy depths."""


def try_routings(
    engine: nn.Module,
    queries: Mapping[str, Tensor],
    passages: Mapping[str, Tensor],
    batch: Batch,
    *,
    temperature: float,
    reward: str,
    query_options: Options,
    passage_options: Options,
    bank_KC: Tensor | None = None,
) -> tuple[Rollout, Rollout]:
    """Rewards of samples of each query against greedy passages, and of each positive against greedy queries.

    Args:
        engine: MAW encoder, or a parallel wrapper of one; it runs in evaluation mode.
        queries: encoder inputs of the B queries.
        passages: encoder inputs of the P passages, the B positives first.
        query_options: `keys` or `depths` of the encoder's "group" mode, for the queries.
        passage_options: the same for the positives; a function gets the states of all passages.
        bank_KC: embeddings of earlier batches' passages, as further candidates.
    """
    size = len(batch.queries)
    positives = {name: each[:size] for name, each in passages.items()}
    with evaluating(engine), torch.no_grad(), packed_weights():
        query_BC, query_options = _greedy(engine, queries, query_options)
        passage_PC, passage_options = _greedy(engine, passages, passage_options)
        query_group = engine(queries, mode="group", **query_options)
        positive_group = engine(positives, mode="group", **passage_options)
        others = batch.candidate_mask.clone()
        others[:, :size].fill_diagonal_(False)
        if bank_KC is not None and len(bank_KC):
            others = torch.cat((others, batch.bank_candidate_mask), dim=1)
            passage_PC = torch.cat((passage_PC, bank_KC))

        score_BGP = query_group["embedding"] @ passage_PC.T / temperature
        positive_BG = score_BGP[..., :size].diagonal(dim1=0, dim2=2).T
        query_reward = task_reward(reward, positive_BG, score_BGP.masked_fill(~others[:, None], -torch.inf))

        score_BP = (query_BC @ passage_PC.T / temperature).masked_fill(~others, -torch.inf)
        positive_BG = torch.einsum("bc,bgc->bg", query_BC, positive_group["embedding"]) / temperature
        passage_reward = task_reward(reward, positive_BG, score_BP[:, None])
    sides = (
        (query_group, query_reward, queries, query_BC),
        (positive_group, passage_reward, positives, passage_PC[:size]),
    )
    return tuple(
        Rollout(group["depths"], group["states"], value, inputs["attention_mask"], embedding)
        for group, value, inputs, embedding in sides
    )


def _greedy(engine: nn.Module, inputs: Mapping[str, Tensor], options: Options) -> tuple[Tensor, Mapping[str, object]]:
    """The embeddings at greedy depths, and the options made from the states there."""
    if not callable(options):
        return engine(inputs)["embedding"], options
    found = engine(inputs, mode="group")
    return found["embedding"][:, 0], options(found["states"])
