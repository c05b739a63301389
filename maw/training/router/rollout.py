"""Rollouts of router training: sampled depths of each text, and their rewards.

Letters: B texts, R texts of them, G samples, P passages, K passages in the bank, C embedding size, F features of a
router's state; h is 1 or H and t is 1 or T, as the router decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from maw.evaluation.reward import task_reward
from maw.models.cpu_kernels import packed_weights
from maw.models.encode import evaluating
from maw.training.contrastive import Batch


@dataclass
class Rollout:
    """Samples of one side of a batch, queries or positives, or of its first B texts; lists have an entry for each MAW
    layer.

    Args:
        depths: int64 depths, (B, G, h, t).
        states: the routers' states, (B, 1 or G, h, t, F).
        reward_BG: reward of each sample.
        padding_BT: 1 for a token, 0 for padding.
        batch_states: the states of all N texts of the side in the batch, (N, 1, h, t, F), B first.
        batch_padding_NT: their `padding_BT`.
        old_log_prob: the old policy's log-probability of each depth, (B, G, h, t).
        share_BG: weight of each sample if a group holds different depths, as an estimate of the sum over all depths
            by the old policy's probability; None for samples of the policy.
        drawn_B: index of the sample that was drawn by these weights; None where there are none.
    """

    depths: list[Tensor]
    states: list[Tensor]
    reward_BG: Tensor
    padding_BT: Tensor
    batch_states: list[Tensor]
    batch_padding_NT: Tensor
    old_log_prob: list[Tensor] = field(default_factory=list)
    share_BG: Tensor | None = None
    drawn_B: Tensor | None = None

    def weight(self, layer: int) -> Tensor:
        """Weight of each action, (B, G, h, t): 0 for padding if tokens are routed, else 1."""
        return _weight(self.depths[layer], self.padding_BT)

    def batch_weight(self, layer: int) -> Tensor:
        """Weight of each decision in the batch, (N, 1, h, t), as `weight`."""
        return _weight(self.batch_states[layer][..., 0], self.batch_padding_NT)


def _weight(decisions: Tensor, padding_BT: Tensor) -> Tensor:
    if decisions.shape[-1] == 1:
        return torch.ones_like(decisions, dtype=torch.float32)
    return padding_BT[:, None, None].expand_as(decisions).float()


@dataclass
class Embedded:
    """Both sides of a batch at one routing of each text: the candidates that rewards compare with.

    Args:
        query_BC, passage_PC: embeddings, the B positives first among the passages.
        query_states, positive_states: the routers' states of each MAW layer, (B, 1, h, t, F).
        query_padding_BT, positive_padding_BT: 1 for a token, 0 for padding.
    """

    query_BC: Tensor
    passage_PC: Tensor
    query_states: list[Tensor]
    positive_states: list[Tensor]
    query_padding_BT: Tensor
    positive_padding_BT: Tensor


def embed_greedy(engine: nn.Module, queries: Mapping[str, Tensor], passages: Mapping[str, Tensor]) -> Embedded:
    """A batch at greedy depths, in evaluation mode and without gradients."""
    with evaluating(engine), torch.no_grad(), packed_weights():
        query, passage = engine(queries, mode="group"), engine(passages, mode="group")
    embeddings = (each["embedding"][:, 0] for each in (query, passage))
    masks = [each["attention_mask"] for each in (queries, passages)]
    count = len(masks[0])
    positive_states = [each[:count] for each in passage["states"]]
    return Embedded(*embeddings, query["states"], positive_states, masks[0], masks[1][:count])


def try_routings(
    engine: nn.Module,
    queries: Mapping[str, Tensor],
    positives: Mapping[str, Tensor],
    batch: Batch,
    embedded: Embedded,
    *,
    temperature: float,
    reward: str,
    query_options: Mapping[str, object],
    positive_options: Mapping[str, object],
    bank_KC: Tensor | None = None,
) -> tuple[Rollout, Rollout]:
    """Rewards of samples of each query against the batch's passages, and of each positive against its query.

    Args:
        engine: MAW encoder, or a parallel wrapper of one; it runs in evaluation mode.
        queries: encoder inputs of the first R queries of the batch.
        positives: encoder inputs of their positives.
        embedded: the whole batch.
        query_options: `keys` or `depths` of the encoder's "group" mode, for the queries.
        positive_options: the same for the positives.
        bank_KC: embeddings of earlier batches' passages, as further candidates.
    """
    count = len(queries["attention_mask"])
    with evaluating(engine), torch.no_grad(), packed_weights():
        query_group = engine(queries, mode="group", **query_options)
        positive_group = engine(positives, mode="group", **positive_options)
        query_RC, passage_PC = embedded.query_BC[:count], embedded.passage_PC
        others = batch.candidate_mask[:count].clone()
        others[:, :count].fill_diagonal_(False)
        if bank_KC is not None and len(bank_KC):
            others = torch.cat((others, batch.bank_candidate_mask[:count]), dim=1)
            passage_PC = torch.cat((passage_PC, bank_KC))

        score_RGP = query_group["embedding"] @ passage_PC.T / temperature
        positive_RG = score_RGP[..., :count].diagonal(dim1=0, dim2=2).T
        query_reward = task_reward(reward, positive_RG, score_RGP.masked_fill(~others[:, None], -torch.inf))

        score_RP = (query_RC @ passage_PC.T / temperature).masked_fill(~others, -torch.inf)
        positive_RG = torch.einsum("rc,rgc->rg", query_RC, positive_group["embedding"]) / temperature
        positive_reward = task_reward(reward, positive_RG, score_RP[:, None])
    return tuple(
        Rollout(group["depths"], group["states"], value, inputs["attention_mask"], states, mask)
        for group, value, inputs, states, mask in (
            (query_group, query_reward, queries, embedded.query_states, embedded.query_padding_BT),
            (positive_group, positive_reward, positives, embedded.positive_states, embedded.positive_padding_BT),
        )
    )
