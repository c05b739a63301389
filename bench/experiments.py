"""The experiments of the research log, as data: the question, runs and conclusion of each.

`bench.research` runs them and writes the research log. A run here is a method of `maw.config.methods` with its own
settings. The other runs of an experiment are compared with its first run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from maw.config.presets import PRESETS

BASE: Mapping[str, Any] = MappingProxyType(
    PRESETS["offline"]
    | {"val_samples": 1000, "max_document_length": 64, "precision": "bfloat16", "seed": 42, "grpo_group": "sampled"}
    | {"depth_kernel": "diagonal", "kernel_rank": 4, "kernel_learning_rate": 0.01, "router_sharpness": 10.0}
    | {"router_learning_rate": 1e-3, "router_balance": 0.1, "grpo_kl": 0.01, "grpo_share": 1.0}
)
"""Settings of every run: the offline preset with all validation queries, and texts cut at 64 tokens to save time.

The number format is fixed, since a choice by measurement could differ between runs. So are the router's settings,
whose defaults were others when these runs were made.
"""


@dataclass(frozen=True)
class Run:
    """One training, or one for each of several seeds.

    Attributes:
        label: its name in the table.
        method: of `maw.config.methods`.
        settings: that differ from `BASE`.
        seeds: one training each, on the same data; their results are averaged.
    """

    label: str
    method: str = "maw"
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (BASE["seed"],)


@dataclass(frozen=True)
class Experiment:
    """Runs that answer one question.

    Attributes:
        name: on the command line.
        question: the question, and its reason.
        runs: the first is the reference.
        lesson: the conclusion, written after the results.
    """

    name: str
    question: str
    runs: tuple[Run, ...]
    lesson: str = ""


UNIFORM = {"router_start": "uniform", "router_balance": 0.0}
SLOW_KERNELS = {"kernel_learning_rate": 1e-3}
CLUSTERS = {"router_start": "clusters", "kernel_init_std": 0.0, "router_balance": 0.1}
LOW_RANK_CLUSTERS = {"router_start": "clusters", "depth_kernel": "low_rank", "router_balance": 0.1}
EIGHT = {"depth_dim": 8, "depth_kernel": "low_rank"}
HARD = {"num_negatives": 4}
LONGER = {"num_epochs": 6}
FAST = {"grpo_group": "all", "router_learning_rate": 1e-2}
EXACT = LOW_RANK_CLUSTERS | EIGHT | FAST
SEEDS = (42, 43, 44)
UNTRAINED_ROUTER = {"router_learning_rate": 1e-9}
"""So low that the picks do not change; the setting must be above zero."""

EXPERIMENTS = (
    Experiment(
        "layers",
        "How much does the choice of adapted layers matter, compared with the method in them?",
        (
            Run("LoRA, last layer", "lora"),
            Run("LoRA, all layers", "lora", {"finetune_layers": "all"}),
            Run("last layer whole", "full"),
            Run("MAW, last layer", "maw", UNIFORM),
            Run("all layers whole", "full", {"finetune_layers": "all", "learning_rate": 1e-4}),
            Run("last whole + static query change in all", "full_lowrank", {"maw_layers": "all"} | SLOW_KERNELS),
            Run("last whole, MAW in all", "maw", UNIFORM | {"maw_layers": "all"} | SLOW_KERNELS),
            Run("last whole, MAW from clusters in all", "maw", {"maw_layers": "all"} | SLOW_KERNELS | CLUSTERS),
            Run("matched LoRA, all layers", "lora_matched", {"maw_layers": "all"}),
            Run("last whole, 8 low-rank depths in all", "maw",
                LOW_RANK_CLUSTERS | EIGHT | SLOW_KERNELS | {"maw_layers": "all"}),
            Run("last whole + static change of their size in all", "full_lowrank",
                EIGHT | SLOW_KERNELS | {"maw_layers": "all"}),
        ),
        "The choice of adapted layers matters more than anything else in this log. LoRA on all layers gains 0.033 "
        "(6.3%) over LoRA on the last layer, matched LoRA 0.035, all layers whole 0.037. No way to train the last "
        "layer alone comes near these gains. MAW gains least from more layers. Diagonal depths in all layers add "
        "0.001 with either start of the router. Eight low-rank depths, with 4.5 to 6 effective depths in every layer, "
        "add 0.015 (3.0%, p 0.02). One low-rank change of their size for all texts (`full_lowrank`) adds 0.030. So "
        "MAW can be 3% above LoRA on the last layer, but the gain does not come from depths: without them it is twice "
        "as large.",
    ),
    Experiment(
        "specialise",
        "Low-rank depths that start from clusters become different, and a text does worse at another text's depth. "
        "How large is this effect, and is the gain larger than that of one static change of the same size?",
        (
            Run("8 low-rank depths from clusters", "maw", LOW_RANK_CLUSTERS | {"depth_dim": 8}),
            Run("static query change of the same size", "full_lowrank", {"depth_dim": 8, "depth_kernel": "low_rank"}),
            Run("last layer whole", "full"),
            Run("kernel rate 3e-3", "maw", LOW_RANK_CLUSTERS | {"depth_dim": 8, "kernel_learning_rate": 3e-3}),
            Run("kernel rate 1e-3", "maw", LOW_RANK_CLUSTERS | {"depth_dim": 8} | SLOW_KERNELS),
            Run("4 depths", "maw", LOW_RANK_CLUSTERS | {"depth_dim": 4}),
            Run("4 depths of rank 16", "maw", LOW_RANK_CLUSTERS | {"depth_dim": 4, "kernel_rank": 16}),
            Run("32 depths", "maw", LOW_RANK_CLUSTERS),
            Run("32 depths of rank 1", "maw", LOW_RANK_CLUSTERS | {"kernel_rank": 1}),
            Run("softly mixed", "maw_soft", LOW_RANK_CLUSTERS | {"depth_dim": 8}),
            Run("softly mixed, wide clusters", "maw_soft",
                LOW_RANK_CLUSTERS | {"depth_dim": 8, "router_sharpness": 1.0}),
            Run("all training queries", "maw", LOW_RANK_CLUSTERS | {"depth_dim": 8, "train_samples": 10_000}),
            Run("all training queries, static change", "full_lowrank",
                {"depth_dim": 8, "depth_kernel": "low_rank", "train_samples": 10_000}),
        ),
        "Only the run with 32 low-rank depths differs from the first at p < 0.05. It is worse: each depth sees only a "
        "part of the 2,000 training queries. The static change (`full_lowrank`) is as good as any routed "
        "change, also with all training queries. Depths of rank 4 at a learning rate of 1e-2 do differ (distance "
        "0.02, against 0.001 for diagonal depths). With eight or more of them, the learnable headroom for queries is "
        "above zero by three to five standard errors. But this headroom is that of a choice which sees half of the "
        "corpus. A ridge regression from the router's own state finds no headroom for queries (router_headroom "
        "-0.004, error 0.003).",
    ),
    Experiment(
        "signal",
        "Where depths differ, a router can learn something, for documents more than for queries. But rewards hardly "
        "differ between depths. Do harder negatives, exact rewards and a faster router give a gain?",
        (
            Run("static query change, 4 hard negatives", "full_lowrank", EIGHT | HARD),
            Run("LoRA, 4 hard negatives", "lora", HARD),
            Run("MAW, 4 hard negatives", "maw", LOW_RANK_CLUSTERS | EIGHT | HARD),
            Run("the same, exact rewards, router rate 1e-2", "maw",
                LOW_RANK_CLUSTERS | EIGHT | HARD | {"grpo_group": "all", "router_learning_rate": 1e-2}),
            Run("the same without hard negatives", "maw",
                LOW_RANK_CLUSTERS | EIGHT | {"grpo_group": "all", "router_learning_rate": 1e-2}),
            Run("the same with a bank of 16 batches", "maw",
                LOW_RANK_CLUSTERS | EIGHT | {"grpo_group": "all", "router_learning_rate": 1e-2, "bank_batches": 16}),
        ),
        "GRPO with sampled groups had nothing to learn from. A policy that starts from clusters is sure of its depth, "
        "so 95% of the groups of 8 samples held one depth 8 times (zero_variance_share 0.95, reward_std 0.003). When "
        "each group has every depth once, rewards differ in all groups (0.00, 0.075) and the router changes. Its "
        "depths are then better than the same depths shuffled between texts (0.5334 against 0.5280) and than the best "
        "single depth of the same weights (0.5311), on the queries that chose the epoch. So groups are exact by "
        "default where that needs no more passes. There is still no gain over the static change (0.5341), with or "
        "without hard negatives.",
    ),
    Experiment(
        "longer",
        "With exact rewards and hard negatives MAW still improved in its last epoch, and the static change did not. "
        "What is the effect of twice as many epochs, and of another seed?",
        (
            Run("static query change, 6 epochs", "full_lowrank", EIGHT | HARD | LONGER),
            Run("MAW, 6 epochs", "maw", EXACT | HARD | LONGER),
            Run("LoRA, 6 epochs", "lora", HARD | LONGER),
            Run("last layer whole, 6 epochs", "full", HARD | LONGER),
            Run("static, 3 epochs, seed 43", "full_lowrank", EIGHT | HARD, seeds=(43,)),
            Run("MAW, 3 epochs, seed 43", "maw", EXACT | HARD, seeds=(43,)),
            Run("MAW, 6 epochs, router rate 3e-2", "maw", EXACT | HARD | LONGER | {"router_learning_rate": 3e-2}),
        ),
        "Twice the epochs do not help: every run is best in epoch 2 to 4 and then overfits the training queries. MAW "
        "is above the static change in each pair, by 0.004 with 6 epochs, 0.008 with a faster router and 0.012 with "
        "the other seed; none of these differences is significant. With seed 42 and 3 epochs it was 0.001 below "
        "(signal). One result repeats: the router's depths for queries matter here. Shuffled between texts they lose "
        "0.005 to 0.009 in all three runs, and a ridge regression finds 0.006 to 0.010 for queries. For documents the "
        "result does not repeat. Compared with the best single depth of the same weights, routing queries gains "
        "-0.002 to 0.006.",
    ),
    Experiment(
        "collapse",
        "What prevents the router from sending every text to one depth, and does that help?",
        (
            Run("GRPO from a uniform start", "maw", UNIFORM),
            Run("KL weight 1", "maw", UNIFORM | {"grpo_kl": 1.0}),
            Run("slow reference, KL weight 0.1", "maw", UNIFORM | {"grpo_reference": "slow", "grpo_kl": 0.1}),
            Run("entropy floor 1 nat", "maw", UNIFORM | {"router_entropy_floor": 1.0}),
            Run("balance over the batch 1", "maw", UNIFORM | {"router_balance": 1.0}),
            Run("router rate 1e-4", "maw", UNIFORM | {"router_learning_rate": 1e-4}),
            Run("groups of 32", "maw", UNIFORM | {"grpo_group_size": 32}),
            Run("exact expected reward", "maw", UNIFORM | {"grpo_group": "all"}),
            Run("bank of 8 batches", "maw", UNIFORM | {"bank_batches": 8}),
        ),
        "Two settings keep several depths in use: a KL weight of 1 (8 effective depths for queries, 1.8 for "
        "documents), which leaves the policy nearly uniform, and balance over the batch (15 and 8). A slow reference "
        "keeps 2 for queries. An entropy floor, a slower router, larger groups and exact rewards end with one depth "
        "or little more. None of them changes nDCG@10 significantly, and depths shuffled between texts do as well "
        "(queries: within 0.001). The reason: diagonal depths that start from noise become nearly equal (distance "
        "0.0002 to 0.0017), so their choice has no effect. The bank (the passages of older batches as negatives) "
        "harms, as it does with 16 batches (signal): "
        "the loss in its best epoch is 1.41 instead of 0.10, and nDCG@10 falls by 0.045. Its embeddings are up to "
        "eight steps old, and at this learning rate the encoder has changed too much since.",
    ),
    Experiment(
        "headroom",
        "Can routing gain anything? Which kernels, depths and ways to train them leave learnable headroom?",
        (
            Run("32 diagonal depths, one sample trains the encoder", "maw", UNIFORM),
            Run("8 low-rank depths", "maw", UNIFORM | EIGHT),
            Run("8 low-rank depths, the whole group trains", "maw",
                UNIFORM | EIGHT | {"encoder_update": "all_group"}),
            Run("8 low-rank depths, mcl from uniform to sharp", "maw",
                UNIFORM | EIGHT | {"encoder_update": "mcl",
                 "mcl_start_temperature": 10.0, "mcl_temperature": 0.1}),
            Run("8 low-rank depths, soft", "maw_soft", UNIFORM | EIGHT),
            Run("8 low-rank depths by head", "maw", UNIFORM | EIGHT | {"route_by": "head"}),
            Run("8 low-rank depths by token, soft", "maw_soft",
                UNIFORM | EIGHT | {"route_by": "token"}),
            Run("8 depths on query and value, not MAW", "maw_qv", UNIFORM | EIGHT),
        ),
        "Diagonal depths leave no headroom (0.0006, error 0.0005). Low-rank depths leave a little with every way of "
        "training: 0.004 to 0.010 for queries, two to four and a half standard errors. No router finds it. GRPO by "
        "text ends with one depth in all of these runs. A ridge regression from the router's own state gains nothing "
        "for queries (-0.006 to 0.000), except in the soft mixture (0.007, error 0.003), and that mixture is no "
        "better than its best single depth. Depths that also change the values, which is no longer MAW, leave no more "
        "headroom. No run differs from the first in nDCG@10 (p 0.43 or more).",
    ),
    Experiment(
        "clusters",
        "Do depths specialise if each is trained on its own texts from the first step?",
        (
            Run("uniform start", "maw", UNIFORM),
            Run("4 diagonal depths", "maw", CLUSTERS | {"depth_dim": 4}),
            Run("8 diagonal depths", "maw", CLUSTERS | {"depth_dim": 8}),
            Run("32 diagonal depths", "maw", CLUSTERS),
            Run("32 diagonal depths, no balance", "maw", CLUSTERS | {"router_balance": 0.0}),
            Run("32 diagonal depths, wide clusters", "maw", CLUSTERS | {"router_sharpness": 1.0}),
            Run("32 diagonal depths, wider clusters", "maw", CLUSTERS | {"router_sharpness": 0.3}),
            Run("32 diagonal depths, picks stay as they start", "maw", CLUSTERS | UNTRAINED_ROUTER),
            Run("8 low-rank depths", "maw", LOW_RANK_CLUSTERS | {"depth_dim": 8}),
            Run("8 low-rank depths, picks stay as they start", "maw",
                LOW_RANK_CLUSTERS | UNTRAINED_ROUTER | {"depth_dim": 8}),
            Run("8 low-rank depths, supervised", "maw",
                {"router_start": "clusters", "depth_kernel": "low_rank", "depth_dim": 8, "router": "supervised"}),
        ),
        "Only the supervised run differs from the uniform start in nDCG@10. All starts from clusters keep several "
        "depths in use: 2.5 to 22 effective depths for queries, 2.3 to 12 for documents, where the uniform start ends "
        "with one. So the start from clusters is the default, with a little balance. It keeps depths in use, but "
        "gains no more: diagonal depths become nearly equal (distance 0.001), and their picks can be shuffled between "
        "texts without loss (32 depths: 0.5195 against 0.5183). Low-rank depths become different, and there shuffling "
        "has a cost (0.5174 against 0.5233). Supervised labels do harm: the encoder trains every text at the best of "
        "all depths, and no router finds that depth for a new text. Ties between depths are not the cause. They went "
        "to the lowest depth then; now they go to the depth that the router prefers, and the run gives 0.3903.",
    ),
    Experiment(
        "default",
        "Which configuration should be the default? The rule was fixed before any of these runs: the default stays at "
        "32 diagonal depths unless another configuration is better with p below 0.05 over three seeds.",
        (
            Run("32 diagonal depths, as without flags", "maw", CLUSTERS, SEEDS),
            Run("32 diagonal depths, each once in a group", "maw", CLUSTERS | FAST, SEEDS),
            Run("8 diagonal depths", "maw", CLUSTERS | FAST | {"depth_dim": 8}, SEEDS),
            Run("8 low-rank depths", "maw", EXACT, SEEDS),
            Run("8 low-rank depths, router rate 1e-3", "maw", EXACT | {"router_learning_rate": 1e-3}, SEEDS),
            Run("4 low-rank depths", "maw", EXACT | {"depth_dim": 4}, SEEDS),
        ),
        "None is better: the largest difference, that of 4 low-rank depths, is 0.005 (p 0.17). So the default "
        "stayed at 32 diagonal depths, until the runs of `router`.",
    ),
    Experiment(
        "default_hard",
        "As `default`, with four hard negatives for every query.",
        (
            Run("32 diagonal depths", "maw", CLUSTERS | HARD, SEEDS),
            Run("8 diagonal depths", "maw", CLUSTERS | FAST | HARD | {"depth_dim": 8}, SEEDS),
            Run("8 low-rank depths", "maw", EXACT | HARD, SEEDS),
        ),
        "Here 8 diagonal depths are above 32, by 0.004 (p 0.038). By the rule they would be the default of runs with "
        "hard negatives. They are not, since this is one of seven comparisons (p 0.26 after Holm's correction), and "
        "the difference is gone without hard negatives (0.0006, p 0.74). Eight low-rank depths repeat the result of "
        "`longer`: shuffled between texts, the depths of queries lose 0.006. But one depth for all queries, with the "
        "same weights, does as well as the router (0.5274 and 0.5276).",
    ),
)  # fmt: skip


SEEDS_ALONE = Run("static changes that differ by their seed alone", "full_lowrank", EIGHT, tuple(range(1, 9)))
"""The depths of `ORACLES` are compared with these models: without routing, of the same size, trained alike."""
ORACLES = (
    Run("32 diagonal depths", "maw", CLUSTERS),
    Run("8 diagonal depths", "maw", CLUSTERS | FAST | {"depth_dim": 8}),
    Run("8 low-rank depths", "maw", EXACT),
    Run("32 low-rank depths", "maw", LOW_RANK_CLUSTERS),
)
ORACLE_LESSON = (
    "It is not. The best of eight seeds is 0.114 above their mean, the best of eight low-rank depths 0.053 to 0.065, "
    "that of diagonal depths 0.015 to 0.018. So the oracle over depths looks like a large possible gain, but it is "
    "less than that between seeds, where nobody would route. The two sides differ in one thing: a model of "
    "another seed also encodes the passages differently, and a depth changes the query alone."
)


@dataclass(frozen=True)
class Tuned:
    """One dataset on which all methods were tuned alike and trained with three seeds, by the command line.

    Attributes:
        name: of its results.
        title: of its section.
        command: reproduces its numbers.
        lesson: the conclusion, written after the results.
    """

    name: str
    title: str
    command: str
    lesson: str = ""


ARMS = "zero_shot,lora,lora_matched,full,full_lowrank,maw_fixed,maw_random,maw"
PROTOCOL = "--tune 3 --seeds 3 --precision bfloat16"
MAW = "--router-start clusters --depth-kernel low_rank --depth-dim 8 --router-balance 0.1 --router-learning-rate 1e-2"
DATA = "--num-negatives 4 --max-document-length 64"
SMALLER = "--train-samples 1000 --num-epochs 2 --corpus-size 5000 --val-corpus-size 3000"
NEXT = " \\\n        "  # a long command goes on in the next line, in Markdown and in the shell
START = f"OMP_NUM_THREADS=1 python tier_1.py --preset offline --methods {ARMS}{NEXT}{PROTOCOL} {DATA}{NEXT}{MAW}"

TUNED = (
    Tuned(
        "pystdlib",
        "pystdlib: docstrings to functions",
        START,
        "MAW is 1.9% above LoRA on the last layer (p 0.016, 0.064 after Holm's correction). It is equal to the "
        "controls of its size: whole layers, the static change and matched LoRA are within 0.2% of it; the detectable "
        "effect is 0.011 to 0.013 (2.0 to 2.4%). So its gain over LoRA comes from training 150 times as many numbers, "
        "and not from depths. One fixed depth is the best of all methods, and better than routed depths (p 0.02, "
        "exploratory). The router keeps 5.5 effective depths for queries and 2.7 to 3.2 for documents. In no seed are "
        "its depths significantly better than one depth for all texts (p 0.07 and above, in both directions), or than "
        "the same depths shuffled between texts (p 0.11 and above, though better in five of six cases).",
    ),
    Tuned(
        "pystdlib_default",
        "pystdlib, with the default of its day: 32 diagonal depths",
        f"OMP_NUM_THREADS=1 python tier_1.py --preset offline --methods zero_shot,lora,maw {PROTOCOL}{NEXT}{DATA}",
        "MAW is 2.5% above LoRA on the last layer (p 0.007, the only comparison of this run). The gain does not come "
        "from routing: in each seed one depth for all texts does as well as the router for queries and better for "
        "documents, and depths shuffled between texts lose nothing significant. LoRA's numbers are those of "
        "pystdlib, the page before this one, to the last digit. There, whole layers (0.5432), the static change "
        "(0.5450) and one fixed depth (0.5510) reach as much.",
    ),
    Tuned(
        "msmarco",
        "MS MARCO",
        f"{START}{NEXT}{SMALLER}{NEXT}--datasets beir:path/to/msmarco",
        "No method is better than the pretrained encoder, which was trained on this data and is near the ceiling. The "
        "methods differ little on validation too: 0.928 to 0.932. MAW is 0.4 to 0.5% below LoRA, matched LoRA and "
        "whole layers. None of these differences is significant after Holm's correction; the detectable effect is 0.5 "
        "to 0.7%. A gain of 3%, or of 1%, is ruled out. The router's depths are worse than one depth for all texts in "
        "every seed, but never by much.",
    ),
    Tuned(
        "nq",
        "NQ, with MS MARCO's passages as distractors",
        f"{START}{NEXT}{SMALLER}{NEXT}--datasets beir:path/to/nq --distractors path/to/msmarco",
        "LoRA on the last layer is the best method, 1.2% above the pretrained encoder. MAW is 0.7% below it (p 0.07, "
        "0.29 after Holm's correction) and within 0.4% of matched LoRA, whole layers and the static change; the "
        "detectable effect is 0.6 to 0.9%. A gain of 3%, or of 1%, is ruled out. One fixed depth and random depths do "
        "as well as routed depths.",
    ),
)


def find_experiment(name: str) -> Experiment:
    """The experiment of that name; KeyError if there is none."""
    return {each.name: each for each in EXPERIMENTS}[name]
