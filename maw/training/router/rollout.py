"""What came of the routings that a batch tried: each text at several depths, and how well its pair then did.

Letters: B texts, G samples, P passages, K passages in the bank, C embedding size; h is 1 or H and t is 1 or T by
routing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from maw.evaluation.reward import task_reward
from maw.models.cpu_kernels import packed_weights
from maw.training.contrastive import Batch


@dataclass
class Rollout:
    """The routings that one side of a batch, queries or positives, tried; one entry of each list per MAW layer.

    Args:
        depths: picks, (B, G, h, t).
        states: what the routers saw, (B, 1 or G, h, t, F).
        reward_BG: what came of it.
        padding_BT: 1 for a token, 0 for padding.
        embedding_BC: the side's embeddings at greedy depths.
        old_log_prob: of each pick when it was made, (B, G, h, t).
        share_BG: the old policy's probability of each sample where a group is every depth; None for samples, which
            all count alike.
        drawn_B: the sample of each text that the policy drew; None where it drew every one, the first included.
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
        """Of each decision: padding counts nothing where tokens are routed."""
        depths = self.depths[layer]
        if depths.shape[-1] == 1:
            return torch.ones_like(depths, dtype=torch.float32)
        return self.padding_BT[:, None, None].expand_as(depths).float()


def try_routings(
    engine: nn.Module,
    queries: Mapping[str, Tensor],
    passages: Mapping[str, Tensor],
    batch: Batch,
    *,
    temperature: float,
    reward: str,
    query_picks: Mapping[str, object],
    passage_picks: Mapping[str, object],
    bank_KC: Tensor | None = None,
) -> tuple[Rollout, Rollout]:
    """Rewards of many routings: of each query against greedy passages, and of each positive against greedy queries.

    Args:
        engine: MAW encoder, or a parallel wrapper of one; put in evaluation mode for the while.
        queries: encoder inputs of the B queries.
        passages: encoder inputs of the P passages, the B positives first.
        query_picks: `keys` or `depths` of the encoder's "group" mode, for the queries.
        passage_picks: the same for the positives.
        bank_KC: embeddings of passages of earlier batches, further candidates.
    """
    was_training = engine.training
    engine.eval()
    size = len(batch.queries)
    positives = {name: each[:size] for name, each in passages.items()}
    with torch.no_grad(), packed_weights():
        query_BC, passage_PC = engine(queries)["embedding"], engine(passages)["embedding"]
        query_group = engine(queries, mode="group", **query_picks)
        positive_group = engine(positives, mode="group", **passage_picks)
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
    engine.train(was_training)
    sides = (
        (query_group, query_reward, queries, query_BC),
        (positive_group, passage_reward, positives, passage_PC[:size]),
    )
    return tuple(
        Rollout(group["depths"], group["states"], value, inputs["attention_mask"], embedding)
        for group, value, inputs, embedding in sides
    )
