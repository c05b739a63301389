"""Queries and relevant documents of a split at routed and at other depths, for `maw.evaluation.routing.diagnostics`.

Each of the two computes its embeddings and values at greedy depths, at every depth and at other texts' depths, at
their first use. A sample is put at every depth; all texts are compared at two depths, the router's and its start's.

Letters: B texts, Q rows of a matrix (queries, or pairs of a query and a positive), D depths, U chosen depths,
C embedding size, N documents, G permutations or other sets of embeddings.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from maw.attention.routers import PolicyRouter
from maw.config.tier1_config import Tier1Config
from maw.data.collection import RetrievalData
from maw.encoding.activation_cache import ActivationStore
from maw.evaluation.routing.depth_encoder import DepthReader, GreedyTexts
from maw.evaluation.routing.depth_scores import DepthMatrix, DepthScorer
from maw.evaluation.routing.headroom import (
    best_fixed_depth,
    learnable_headroom,
    oracle,
    permutation_p_value,
    router_headroom,
    shuffled_means,
    split_gain,
)
from maw.evaluation.significance import paired_test
from maw.models.retriever import MAWRetriever
from maw.models.tokenized import ListTexts, Texts

MOST_COMPARED = 2000  # texts of each kind whose depths are compared with those of the router's start
MOST_QUERIES, MOST_DOCUMENTS = 256, 64  # texts that are put at every depth; a document costs four queries
MOST_NUMBERS = 2**27  # numbers in the embeddings at every depth; with many depths fewer texts are used
SAME_OUTPUT = 1e-4  # cosine distance below which two depths have the same output
ENCODED_PERMUTATIONS = 39  # if each permutation must be encoded; the smallest p is 1 / 40
_ZERO_VARIANCE = 1e-6

Facts = dict[str, Any]


class RoutedSplit:
    """The routed texts of an evaluated split: `sides`, a sample of its queries and one of its documents.

    Args:
        engine: its encoder, possibly inside a parallel wrapper.
        queries_QC, documents_NC: embeddings at greedy depths.
        start: the routers before training; None for no comparison with them.
    """

    def __init__(
        self,
        model: MAWRetriever,
        engine: nn.Module,
        config: Tier1Config,
        device: torch.device,
        activations: ActivationStore | None,
        data: RetrievalData,
        queries_QC: np.ndarray,
        documents_NC: np.ndarray,
        start: Sequence[PolicyRouter] | None = None,
    ):
        self.start = start
        self.model, self.engine, self.config, self.device = model, engine, config, device
        self.activations, self.data = activations, data
        self.scorer = DepthScorer(
            data,
            queries_QC,
            documents_NC,
            temperature=model.spec.temperature,
            normalize=model.spec.similarity == "cosine",
            reward=config.reward,
            device=device,
            seed=config.seed,
        )
        random, relevance = np.random.default_rng([config.seed, 5]), self.scorer.relevance
        most = max(16, MOST_NUMBERS // (config.depth_dim * queries_QC.shape[1]))
        order = random.permutation(len(data))
        order = order[np.isin(order, relevance.query)]  # a query whose relevant passages are missing is no evidence
        order_of_pairs = random.permutation(len(relevance.row))

        def queries(count: int) -> RoutedTexts:
            return Queries(self, np.sort(order[:count]))

        def documents(count: int) -> RoutedTexts:
            pairs = relevance.unrelated(order_of_pairs, count)
            return Documents(self, relevance.query[pairs], relevance.row[pairs])

        self.sides = tuple(
            make(min(most, few)).among(make(MOST_COMPARED))
            for make, few in ((queries, MOST_QUERIES), (documents, MOST_DOCUMENTS))
        )


class RoutedTexts(ABC):
    """Texts of one kind.

    Args:
        texts: all texts of the kind.
        rows_B: rows of the chosen texts, ascending, each once.
    """

    kind = ""

    def __init__(self, split: RoutedSplit, texts: Texts, rows_B: np.ndarray):
        self.rows_B, self.scorer, self.config = rows_B, split.scorer, split.config
        plain, stored = split.model.source(texts, self.kind), split.activations
        self.reader = DepthReader(
            split.engine,
            plain if stored is None else stored.source(plain, split.model.encoder, split.device),
            batch_size=split.config.eval_batch_size,
            device=split.device,
            start=split.start,
        )
        self.compared = self

    def among(self, compared: RoutedTexts) -> RoutedTexts:
        """These texts, as a sample of more, whose depths are compared with those of the routers' start."""
        if len(compared.rows_B) == len(self.rows_B):
            return compared
        self.compared = compared
        return self

    @cached_property
    def greedy(self) -> GreedyTexts:
        """The texts at their greedy depths."""
        return self.reader.greedy(self.rows_B)

    @cached_property
    def every_BDC(self) -> np.ndarray:
        """Embeddings of the texts at every depth."""
        return self.reader.at_every_depth(self.rows_B)

    @cached_property
    def matrix(self) -> DepthMatrix:
        """Retrieval quality of the texts at every depth."""
        return self.scored(self.every_BDC)

    @cached_property
    def own_and_start(self) -> DepthMatrix:
        """Retrieval quality of the texts at the routers' depths and, in column 1, at those of their start."""
        depths, start = self.greedy.depths, self.greedy.start_depths
        assert depths, "a soft router"
        assert start, "no start"
        own_B2 = np.arange(2 * len(depths)).reshape(2, -1).T
        every_B2C = self.reader.at_depths_of(self.rows_B, [*depths, *start], own_B2)
        same_B = [np.array_equal(*each) for each in zip(depths, start, strict=True)]
        every_B2C[same_B, 1] = every_B2C[same_B, 0]  # else they might differ by rounding
        return self.scored(every_B2C)

    @abstractmethod
    def scored(self, every_BGC: np.ndarray) -> DepthMatrix:
        """Retrieval quality with any embeddings of the texts."""

    @abstractmethod
    def ndcg(self, every_BGC: np.ndarray) -> np.ndarray:
        """nDCG@10 of the matrix's rows, (Q, G), with any embeddings of the texts."""

    def spread(self, values_B: np.ndarray) -> np.ndarray:
        """Values of texts as values of the matrix's rows."""
        return values_B

    def policy(self) -> Facts:
        """Statistics of the routers, in nats, for each MAW layer; see `PolicyFacts` of `depth_encoder`.

        "kl_to_uniform" is the divergence of the policy from the uniform one, "kl_to_start" that from the policy before
        training, and "changed_share" the share of greedy depths that are others than before training. A router without
        a policy has none of these; a soft router has no "greedy_mutual_information".
        """
        facts, uniform = self.greedy.facts, float(np.log(self.reader.num_depths))
        found: Facts = {"texts": len(self.rows_B)}
        if facts[0].entropy is not None:
            found["policy_entropy"] = [each.entropy for each in facts]
            found["kl_to_uniform"] = [max(0.0, uniform - each.entropy) for each in facts]
            found["text_depth_mutual_information"] = [each.mutual_information for each in facts]
        if facts[0].kl_to_start is not None:
            found["kl_to_start"] = [each.kl_to_start for each in facts]
            found["changed_share"] = [each.changed_share for each in facts]
        if facts[0].greedy_information is not None:
            found["greedy_mutual_information"] = [each.greedy_information for each in facts]
        return found

    def distance(self, most: int | None = None) -> Facts:
        """`depth_distance` of all texts, or of at most `most` texts."""
        if most is None or "every_BDC" in vars(self):
            return depth_distance(self.every_BDC)
        chosen = np.linspace(0, len(self.rows_B) - 1, min(most, len(self.rows_B))).astype(np.int64)
        return depth_distance(self.reader.at_every_depth(self.rows_B[chosen]))

    def headroom(self) -> Facts:
        """What routing gains and could gain in nDCG@10, from the texts at every depth.

        "per_depth"; "best_depth" and its value "best_fixed"; "greedy", at the router's depths; "shuffled", at these
        depths permuted between texts, None if a text has several; "oracle"; "split_gain" and "split_gain_of_noise",
        whose difference is "learnable_headroom"; "router_headroom" of a cross-validated router that learns the metric,
        and "router_headroom_by_reward" of one that learns the reward (see `maw.evaluation.routing.headroom`). "_error"
        is a standard error. "reward_mean" is at greedy depths; "zero_variance_share" is the share of texts with the
        same reward at every depth.
        """
        matrix, seed, depth_B = self.matrix, self.config.seed, self.greedy.depth_B
        shuffled = None if depth_B is None else shuffled_means(matrix.ndcg_QD, self.spread(depth_B), seed=seed)
        learnable = learnable_headroom(matrix.halves_2QD, matrix.noise_2QD)
        state_QF, depth = self.spread(self.greedy.state_BF), best_fixed_depth(matrix.ndcg_QD)
        by_metric = router_headroom(state_QF, matrix.ndcg_QD, matrix.ndcg_QD, seed=seed)
        by_reward = router_headroom(state_QF, matrix.reward_QD, matrix.ndcg_QD, seed=seed)
        return {
            "ranked": len(matrix.ndcg_QD),
            "per_depth": matrix.ndcg_QD.mean(0).round(6).tolist(),
            "best_depth": depth,
            "best_fixed": float(matrix.ndcg_QD[:, depth].mean()),
            "greedy": float(matrix.greedy_Q.mean()),
            "shuffled": None if shuffled is None else float(shuffled.mean()),
            "oracle": oracle(matrix.ndcg_QD),
            "split_gain": float(split_gain(matrix.halves_2QD).mean()),
            "split_gain_of_noise": float(split_gain(matrix.noise_2QD).mean()),
            "learnable_headroom": learnable.mean,
            "learnable_headroom_error": learnable.standard_error,
            "router_headroom": by_metric and by_metric.mean,
            "router_headroom_error": by_metric and by_metric.standard_error,
            "router_headroom_by_reward": by_reward and by_reward.mean,
            "router_headroom_by_reward_error": by_reward and by_reward.standard_error,
            "reward_mean": float(matrix.greedy_reward_Q.mean()),
            "zero_variance_share": float((matrix.reward_QD.std(1) < _ZERO_VARIANCE).mean()),
        }

    def learnt(self) -> Facts:
        """What training has changed: the routers' depths against those of their start, with the same weights.

        "against_start", "against_fixed" and "reward_against_start" are a `maw.evaluation.significance.PairedTest` over
        the rows, of nDCG@10 and of the training reward in nats. The comparison with the start needs two embeddings of
        a text, so it has all texts and not a sample. The fixed depth of each half of the rows is the best of the other
        half, so it is not chosen on what it is scored on. "against_shuffled_p_value" is one-sided, from "shuffles"
        permutations of the routers' depths between texts.
        """
        against, matrix = self.compared.own_and_start, self.matrix
        trained_Q, shuffled = self._trained_and_shuffled()
        half_Q = np.random.default_rng([self.config.seed, 6]).permutation(len(trained_Q)) % 2 == 0
        best = [best_fixed_depth(matrix.ndcg_QD[chosen]) for chosen in (~half_Q, half_Q)]
        fixed_Q = np.where(half_Q, matrix.ndcg_QD[:, best[0]], matrix.ndcg_QD[:, best[1]])
        return {
            "start": float(against.ndcg_QD[:, 1].mean()),
            "fixed": float(fixed_Q.mean()),
            "against_start": self._tested(*against.ndcg_QD.T),
            "against_fixed": self._tested(trained_Q, fixed_Q),
            "shuffles": len(shuffled),
            "against_shuffled_p_value": permutation_p_value(float(trained_Q.mean()), shuffled),
            "reward_against_start": self._tested(*against.reward_QD.T),
        }

    def _tested(self, first_Q: np.ndarray, second_Q: np.ndarray) -> Facts:
        test = paired_test(first_Q, second_Q, permutations=self.config.permutations, seed=self.config.seed)
        return dataclasses.asdict(test)

    def _trained_and_shuffled(self) -> tuple[np.ndarray, np.ndarray]:
        """nDCG@10 at the routers' depths, (Q,), and its mean for permutations of these depths, (G,).

        Both are computed in the same way, so that rounding favours neither: by look-up if each text has one depth, by
        encoding if it has several.
        """
        depths, depth_B, seed = self.greedy.depths, self.greedy.depth_B, self.config.seed
        if depth_B is not None:
            ndcg_QD, depth_Q = self.matrix.ndcg_QD, self.spread(depth_B)
            shuffled = shuffled_means(ndcg_QD, depth_Q, permutations=self.config.permutations, seed=seed)
            return ndcg_QD[np.arange(len(depth_Q)), depth_Q], shuffled
        random, own = np.random.default_rng([seed, 2]), np.arange(len(depths))
        donors_BG = np.stack([own, *(random.permutation(own) for _ in range(ENCODED_PERMUTATIONS))], axis=1)
        ndcg_QG = self.ndcg(self.reader.at_depths_of(self.rows_B, depths, donors_BG))
        return ndcg_QG[:, 0], ndcg_QG[:, 1:].mean(0)


class Queries(RoutedTexts):
    """Queries; each is a row of the matrix."""

    kind = "query"

    def __init__(self, split: RoutedSplit, rows_Q: np.ndarray):
        super().__init__(split, ListTexts(split.data.queries), rows_Q)

    def scored(self, every_BGC: np.ndarray) -> DepthMatrix:
        return self.scorer.of_queries(self.rows_B, every_BGC)

    def ndcg(self, every_BGC: np.ndarray) -> np.ndarray:
        return self.scorer.ndcg_of_queries(self.rows_B, every_BGC)


class Documents(RoutedTexts):
    """Relevant documents, each paired with one of its queries; each pair is a row of the matrix.

    `query_Q` and `row_Q` are the pairs' queries and corpus rows, each once.
    """

    kind = "document"

    def __init__(self, split: RoutedSplit, query_Q: np.ndarray, row_Q: np.ndarray):
        super().__init__(split, split.data.corpus, np.sort(row_Q))
        self.place_Q = np.searchsorted(self.rows_B, row_Q)
        self.query_Q, self.row_Q = query_Q, row_Q

    def scored(self, every_BGC: np.ndarray) -> DepthMatrix:
        return self.scorer.of_documents(self.query_Q, self.row_Q, self.spread(every_BGC))

    def ndcg(self, every_BGC: np.ndarray) -> np.ndarray:
        return self.scorer.ndcg_of_documents(self.query_Q, self.row_Q, self.spread(every_BGC))

    def spread(self, values_B: np.ndarray) -> np.ndarray:
        return values_B[self.place_Q]


def depth_distance(every_BDC: np.ndarray) -> Facts:
    """Distances between the outputs of different depths.

    Returns:
        "depth_distance", the cosine distance between two depths of a text, mean over texts and pairs of depths;
        "same_output_share", the share of pairs of depths whose mean distance over texts is below `SAME_OUTPUT`. Both
        are None for a single depth.
    """
    first, second = np.triu_indices(every_BDC.shape[1], 1)
    if not len(first):
        return {"depth_distance": None, "same_output_share": None}
    total = np.zeros(len(first))
    for every_DC in every_BDC.astype(np.float64):
        unit = every_DC / np.linalg.norm(every_DC, axis=1, keepdims=True).clip(min=1e-12)
        total += 1 - (unit @ unit.T)[first, second]
    mean = (total / len(every_BDC)).clip(min=0)
    return {"depth_distance": float(mean.mean()), "same_output_share": float((mean < SAME_OUTPUT).mean())}
