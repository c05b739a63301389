"""The configuration of a run: every setting with default, rule and one line of help.

    Tier1Config(batch_size=64, maw_layers=[10, 11, 12])        # from Python
    python tier_1.py --batch-size 64 --maw-layers 10,11,12     # the same; the flags are derived from the fields

Annotations are the rules (`maw.config.fields`), and the line under a field is its help. A new configuration is
checked, and all mistakes are reported together. Checks that need the model, the data or the methods are in
`maw.experiment.config_checks`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from maw.config.fields import Kind, Layers, Pattern, Problem, Range, check, check_all, kinds_of
from maw.config.method_files import as_reference, is_reference
from maw.config.methods import LARGEST_RANK, METHOD_NAMES, METHODS
from maw.config.paths import absolute, found_again, with_folders
from maw.config.peft_methods import OFFERED, PREFIX
from maw.config.presets import PRESETS
from maw.errors import ConfigError, show

ALL = "all"

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
"""Allowed names of datasets and of their test qrels."""
LETTERS = "letters, digits, dot, underscore and hyphen, 64 at most"
"""What `SAFE_NAME` allows, in words."""

LARGEST_GRADE = 1000
"""Limit of qrels grades, also below zero: pytrec_eval's time and memory grow with it, and past 2**31 it crashes."""
KERNEL_NOISE, GATE_NOISE = 0.02, 1.0
"""Default standard deviation of the noise that makes diagonal depths, and gated ones, differ."""
REMOVED = (("kernel_shared_rank", 0),)
"""Settings that are no more, at the value with which they did nothing: earlier runs and checkpoints have them."""
ONE_DECISION = ("distinct", "all")
"""GRPO groups for one depth a text: one MAW layer, routed by sequence."""

Count = Annotated[int, Range(1, 1_000_000)]
CountOrZero = Annotated[int, Range(0, 1_000_000)]
Size = Annotated[int, Range(1, 65_536)]
Rate = Annotated[float, Range(0, 1, open_low=True)]
Share = Annotated[float, Range(0, 1)]
Temperature = Annotated[float, Range(0, 1000, open_low=True)]
Amount = Annotated[int, Range(1, 1_000_000_000)] | Literal["full"]
Line = Annotated[str, Pattern(r"[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*", "one line of text that is not empty")]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Device = Annotated[str, Pattern(r"cpu|mps|cuda(:[0-9]{1,2})?", "cpu, cuda, cuda:N or mps")]


@dataclass
class Tier1Config:
    """Every setting of a run. `None` means: from the model, or the method's default.

    Raises:
        ConfigError: values of a wrong type, out of range, or in conflict; all of them, one line each.
    """

    model: Line = "facebook/contriever"
    """Pretrained encoder: a Hugging Face id, a folder, or packaged:all-MiniLM-L6-v2."""
    hidden_dim: Size | None = None
    """Hidden size; read from the model, and checked against it if set."""
    num_heads: Size | None = None
    """Attention heads; read from the model, and checked against it if set."""
    num_layers: Size | None = None
    """Layers; read from the model, and checked against it if set."""
    pooling: Literal["mean", "cls", "last"] | None = None
    """How token states become one embedding; unset: as the model defines."""
    similarity: Literal["cosine", "dot"] | None = None
    """Similarity of a query and a passage; unset: as the model defines."""
    temperature: Temperature | None = None
    """Divisor of similarities in the loss and the rewards; unset: as the model defines."""
    query_prefix: str | None = None
    """Text put before every query; unset: as the model defines."""
    document_prefix: str | None = None
    """Text put before every passage; unset: as the model defines."""
    max_query_length: Annotated[int, Range(3, 65_536)] | None = None
    """Longest query in tokens, with special tokens; unset: the model's limit. Longer ones are cut."""
    max_document_length: Annotated[int, Range(3, 65_536)] | None = None
    """Longest passage in tokens, with special tokens; unset: the model's limit. Longer ones are cut."""

    datasets: list[str] = field(default_factory=lambda: ["msmarco", "nq", "hotpotqa", "triviaqa"])
    """Datasets to run: {names}, or beir:DIR[@NAME]."""
    methods: list[str] = field(default_factory=lambda: [method.name for method in METHODS if method.by_default])
    """Methods to run: {names}; all of these; peft:NAME; FILE.py:CLASS, or a method of an installed package."""
    compare: Line | None = None
    """Confirmatory comparisons, SUBJECT or SUBJECT:CONTROL,...; unset: maw; without controls every trained method."""
    train_samples: Count = 2000
    """Training queries sampled per dataset."""
    val_samples: Count = 500
    """Validation queries sampled per dataset."""
    test_samples: Count = 1000
    """Test queries sampled per dataset."""
    corpus_size: Amount = 100_000
    """Passages that test queries search: the judged ones, BM25's best, others by hash; full: all passages."""
    val_corpus_size: Amount = 20_000
    """Passages that validation queries search; every epoch encodes them."""
    distractors: list[str] | None = None
    """Folders in BEIR layout whose passages are added to the corpus of every dataset."""
    relevance_level: Annotated[int, Range(1, LARGEST_GRADE)] = 1
    """Lowest grade that counts as relevant in the binary metrics; TREC DL uses 2."""
    self_passages: Literal["auto", "drop", "keep"] = "auto"
    """Passage that a query does not rank: auto: one with its id and its text; drop: one with its id; keep: none."""
    verify_sources: bool = True
    """Compare source files that you placed by hand, and their numbers of rows, with the published ones."""

    batch_size: Annotated[int, Range(1, 65_536)] = 32
    """Queries per training batch; passages of the other queries are negatives."""
    num_negatives: Annotated[int, Range(0, 1000)] = 1
    """Negatives per training query, in addition to the passages of the other queries in its batch."""
    negative_source: Literal["auto", "given", "bm25", "dense", "none"] = "auto"
    """Source of hard negatives: the data, BM25 or the pretrained retriever; auto: the data, else BM25."""
    hard_negative_ratio: Share = 1.0
    """Share of the negatives that are hard; the rest are random passages of the corpus."""
    negative_margin: Annotated[float, Range(0, 1, open_low=True)] = 0.95
    """Mined passages that score above this share of the positive's score may be relevant and are skipped."""
    bank_batches: Annotated[int, Range(0, 10_000)] = 0
    """Earlier batches whose passages are negatives too, in every loss and reward; they are not encoded again."""
    num_epochs: Annotated[int, Range(1, 10_000)] = 10
    """Passes over the training queries."""
    learning_rate: Rate | None = None
    """Peak learning rate of every trained method; unset: each method's own default."""
    method_rates: dict[str, float] = field(default_factory=dict)
    """Learning rates that a method names itself, like gate_learning_rate=0.01; unset: its own defaults."""
    weight_decay: Share = 0.01
    """AdamW weight decay of encoder weights; depth kernels and router have none."""
    warmup_ratio: Annotated[float, Range(0, 1, open_high=True)] = 0.1
    """Share of the steps in which the learning rate rises; then it decays linearly."""
    gradient_accumulation_steps: Annotated[int, Range(1, 10_000)] = 1
    """Batches per optimizer step; their gradients are averaged."""
    max_grad_norm: Annotated[float, Range(0, 1e6, open_low=True)] = 1.0
    """Largest norm of the gradient; larger ones are scaled down to it."""
    patience: Annotated[int, Range(0, 10_000)] = 3
    """Epochs without a better validation nDCG@10 before training stops; 0: never stop early."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 42
    """Seed of sampling, data order, dropout and routing."""

    seeds: Annotated[int, Range(1, 1000)] = 1
    """Number of training seeds, from seed on; results are averaged over them, and all train on the same data."""
    tune: Annotated[int, Range(0, 1000)] = 0
    """Learning-rate trials on validation data for each trained method; 0: no tuning."""
    folds: Annotated[int, Range(0, 100)] = 0
    """Folds of a cross-validation over all sampled queries, at least 3; 0: the dataset's own splits."""

    eval_batch_size: Annotated[int, Range(1, 65_536)] = 128
    """Texts per batch when encoding for evaluation."""
    top_k: Annotated[int, Range(1, 1_000_000)] = 1000
    """Passages ranked per query; metrics at 1000 need 1000."""
    search: Literal["exact", "flat", "ivf", "hnsw"] = "exact"
    """Search: exact, FAISS's exact flat index, or its approximate ivf or hnsw, whose recall is measured."""
    nprobe: Annotated[int, Range(1, 65_536)] = 64
    """Lists of the ivf index that a query searches, of 4 * sqrt(passages); more lists: higher recall, slower."""
    embedding_precision: Literal["float32", "float16"] = "float32"
    """Number format of stored passage embeddings, on disk, in memory and in a FAISS index."""
    store_embeddings_on_disk: bool = False
    """Store embeddings of any size in a file of the cache folder, not only above 1 GB; search reads it in parts."""
    permutations: Annotated[int, Range(20, 10_000_000)] = 10_000
    """Sign flips of the paired randomisation test."""

    use_lora: bool = False
    """Give a BaselineRetriever LoRA adapters (for Python; the lora method of a run sets it)."""
    lora_rank: Annotated[int, Range(1, LARGEST_RANK)] = 8
    """Rank of the LoRA adapters."""
    lora_alpha: Annotated[int, Range(1, 65_536)] = 16
    """LoRA scale: the adapters' output is multiplied by alpha / rank."""
    lora_targets: Literal["query_value", "all"] = "query_value"
    """Maps that LoRA adapts (for Python): query and value; or all of a layer, at the rank that matches MAW in size."""
    train_layers: bool = False
    """Let a BaselineRetriever train whole layers (for Python; the full method of a run sets it)."""
    adapt_maw_layers: bool = False
    """Let a BaselineRetriever adapt the MAW layers too (for Python; lora_matched and full of a run set it)."""

    train_dense: bool = False
    """Let every trained method train the model's Dense and LayerNorm modules behind the pooling, too."""

    maw_layers: Layers = None
    """Layers with depth attention, from 1: last, all, none, numbers like 5,6, or -1 for the last; unset: last."""
    finetune_layers: Layers = None
    """Layers that LoRA adapts and other methods train whole, written like maw_layers; unset: last."""
    depth_dim: Annotated[int, Range(1, 1024)] = 32
    """Number of depths of a MAW layer."""
    depth_kernel: Literal["gated", "low_rank", "diagonal"] = "gated"
    """Depth kernels: gated, one change of the query that each depth weighs; low_rank, one for each; diagonal."""
    kernel_rank: Annotated[int, Range(1, LARGEST_RANK)] = 8
    """Rank of the change of the query, with gated and low_rank kernels."""
    kernel_init_std: Share | None = None
    """Standard deviation of the first gates, unset: 1; or of diagonal kernels, unset: 0.02, or 0 from clusters."""
    depth_values: bool = False
    """Let a MAWRetriever's depths change the values too (for Python; the method maw_qv sets it)."""
    kernel_learning_rate: Rate | None = None
    """Peak learning rate of the depth kernels; unset: 0.015 for gated ones, 0.01 for others."""

    router: Literal["grpo", "supervised", "soft", "random", "fixed"] = "grpo"
    """Router that picks the depth of a text."""
    route_by: Literal["sequence", "head", "token"] = "sequence"
    """Unit that gets one depth: the whole text, each head, or each head and query token."""
    fixed_depth: Annotated[int, Range(0, 1023)] = 0
    """Depth of the fixed router; depth 0 starts as the pretrained attention."""
    router_start: Literal["uniform", "clusters"] = "clusters"
    """A new router's policy: near uniform, or by clusters of training texts, which needs depths that start equal."""
    router_sharpness: Annotated[float, Range(0, 1e6, open_low=True)] = 0.05
    """Sharpness of the policy that starts from clusters; the higher, the fewer random picks."""
    router_learning_rate: Rate = 3e-3
    """Learning rate of the router."""
    grpo_group_size: Annotated[int, Range(2, 1024)] = 8
    """Routings per text in a GRPO group; the group's mean reward is the baseline."""
    grpo_group: Literal["auto", "sampled", "distinct", "all"] = "auto"
    """Group: sampled routings, different depths, or all; auto: different depths where a text has one decision."""
    grpo_share: Annotated[float, Range(0, 1, open_low=True)] = 0.25
    """Share of a batch's texts that get a group; with another encoder_update than sampled all do."""
    grpo_exploration: Share = 0.1
    """Share of uniform depths in the distribution that distinct groups are drawn from."""
    grpo_inner_epochs: Annotated[int, Range(2, 100)] = 2
    """Router updates per batch of routings; with one the clipped ratio would have no effect."""
    grpo_clip: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.2
    """Clip range: the ratio of new to old probability is clipped to 1 - x and 1 + x."""
    grpo_kl: Annotated[float, Range(0, 1000)] = 0.4
    """Weight of the KL divergence from the reference policy."""
    grpo_reference: Literal["uniform", "slow"] = "uniform"
    """Reference policy: uniform over depths, or a slow moving average of the router."""
    grpo_reference_decay: Share = 0.99
    """Decay of the slow reference's moving average per step."""
    router_balance: Annotated[float, Range(0, 1000)] = 0.15
    """Weight of the KL divergence of the batch's mean policy from uniform; keeps all depths in use."""
    router_entropy_floor: Annotated[float, Range(0, 100)] = 0.0
    """Least entropy of a policy in nats; a penalty acts below it."""
    reward: Literal["log_prob", "reciprocal_rank", "ndcg"] = "log_prob"
    """Reward of a routing, from the batch's ranking: the positive's log-probability, reciprocal rank, or nDCG."""
    encoder_update: Literal["sampled", "all_group", "mcl", "mcl_sampled"] = "sampled"
    """Routings that train the encoder: one, all, all weighted by reward (mcl), one drawn by reward (mcl_sampled)."""
    mcl_temperature: Temperature = 1.0
    """Temperature of the reward weights of mcl at the end of training."""
    mcl_start_temperature: Temperature | None = None
    """Temperature of mcl at the start, from which it falls geometrically; unset: constant."""
    diagnostics: Literal["none", "best", "all"] = "best"
    """Epochs whose weights are tested with validation texts at every depth: the best one, all, or none."""

    precision: Precision = "auto"
    """Number format of matrix products; auto: bfloat16 where it is measured to be faster, else float32."""
    tf32: bool = False
    """Let an NVIDIA GPU round the factors of float32 products to 10 bits; search never does."""
    deterministic: bool = False
    """Use only GPU algorithms that give the same bits in every run, and refuse others; slower."""
    device: Device | None = None
    """Device: cpu, cuda, cuda:N or mps; unset: all visible GPUs, or the CPU."""
    use_multi_gpu: bool = True
    """Split batches over all visible GPUs with DataParallel."""
    parallel_datasets: bool = False
    """Run datasets at the same time, each in its own process on its own GPUs (or CPU threads)."""
    clear_cuda_cache: bool = True
    """Release cached GPU memory after each dataset."""
    dry_run: bool = False
    """Print what the run would download, store and encode, check the data, and stop."""
    profile: bool = False
    """Measure the time of each stage, show it, and write it to profile.json of each dataset."""

    quiet: bool = False
    """Print only warnings, errors and the results."""
    verbose: bool = False
    """Print all tables of a dataset's results; without it they are in the summary file and the report."""
    json_progress: bool = False
    """Write progress and messages to standard error as JSON, one object a line."""
    report_to: Literal["none", "tensorboard", "wandb", "mlflow"] = "none"
    """Experiment tracker for settings, curves and results of every training; it must be installed."""

    log_dir: Line = "logs/tier1"
    """Folder of results, summaries, logs and checkpoints."""
    cache_dir: Line | None = None
    """Folder of built corpora, activations and embeddings; unset: $MAW_CACHE, or ~/.cache/maw."""
    prefix_cache_gb: Annotated[float, Range(0, 1e6)] = 20.0
    """Most disk space for activations of layers that no method trains, kept for later runs; 0: compute them again."""
    embedding_cache_gb: Annotated[float, Range(0, 1e6)] = 10.0
    """Most disk space for embeddings of untrained encoders, kept for later runs; 0: encode again."""
    keep_only_best_checkpoint: bool = True
    """Keep only the best checkpoint of each method, not the latest."""
    save_epoch_checkpoints: bool = False
    """Keep a checkpoint of every epoch too."""
    checkpoint_compression: bool = True
    """Store only the trained parameters; pretrained weights are loaded by the model's name."""
    save_every: Annotated[float, Range(0, 1e6)] = 0.0
    """Minutes of training between saves inside an epoch; 0: save only after each epoch."""
    resume: Line | None = None
    """Continue the unfinished run in this folder from its last save; last: the newest run under logs/."""
    restart: bool = False
    """Delete the state of the unfinished run in log_dir and start again."""
    run_files: Literal["auto", "plain", "gzip", "none"] = "auto"
    """TREC run files, one for each method and seed: plain, gzip or none; auto: gzip for long ones."""
    compress_logs: bool = True
    """Compress the log files with gzip at the end of a run."""
    max_log_files: CountOrZero = 100
    """Number of newest runs whose log files are kept; 0: all. Results and checkpoints are never removed."""

    def __post_init__(self) -> None:
        problems = self.recheck()
        if problems:
            raise ConfigError([str(problem) for problem in problems])

    def recheck(self) -> list[Problem]:
        """Converts every value to its final form and lists all problems; for settings changed after creation."""
        good, problems = _check_values(vars(self))
        for name, value in good.items():
            setattr(self, name, value)
        return problems + conflicts(_with_defaults(good), {problem.name for problem in problems})

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values, for `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tier1Config:
        """A configuration from `values`, settings by name; other settings keep their defaults.

        Raises:
            ConfigError: as for the class, and for unknown names.
        """
        config, problems = gather({name: each for name, each in values.items() if (name, each) not in REMOVED})
        if problems:
            raise ConfigError([str(problem) for problem in problems])
        return config

    @classmethod
    def from_run(cls, folder: str | Path) -> Tier1Config:
        """Configuration that resumes the unfinished run in `folder`: `Tier1Config.from_run("logs/tier1")`.

        Raises:
            ConfigError: the folder has no unfinished run.
        """
        from maw.storage.run_record import read_run  # imported late: only notebooks need it

        folder = Path(absolute(folder))
        settings = found_again(read_run(folder)["config"], folder)
        return cls.from_dict(settings | {"log_dir": str(folder), "resume": str(folder)})

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> Tier1Config:
        """The preset `name` of `PRESETS`, with `changes`: `Tier1Config.from_preset("offline", seed=1)`.

        Raises:
            ConfigError: an unknown preset, or as for `from_dict`.
        """
        wrong = check_preset(name)
        if wrong:
            raise ConfigError([f"preset: {wrong}"])
        return cls.from_dict(PRESETS[name] | changes)


@cache
def kinds() -> dict[str, Kind]:
    """The kind of every field."""
    return kinds_of(Tier1Config)


def check_preset(name: Any) -> str | None:
    """The mistake in a preset's name, or None."""
    return check(Kind(str, optional=False, choices=tuple(PRESETS)), name)[1]


def gather(values: Mapping[str, Any]) -> tuple[Tier1Config, list[Problem]]:
    """Builds a configuration from the good values and returns all problems instead of raising.

    A setting with a problem keeps its default, and its conflicts are not checked.
    """
    good, problems = _check_values(values)
    config = _with_defaults(good)
    return config, problems + conflicts(config, {problem.name for problem in problems})


def _check_values(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """As `maw.config.fields.check_all`; methods are in their final form, `all` as every one not listed already."""
    named, wrong = values.get("methods"), []
    if isinstance(named, list | tuple):
        try:
            values = {**values, "methods": [as_reference(each) for each in named]}
        except ConfigError as error:
            values = {name: each for name, each in values.items() if name != "methods"}
            wrong = [Problem("methods", text) for text in error.problems]
    good, problems = check_all(kinds(), values)
    problems = wrong + problems
    methods = good.get("methods", [])
    if ALL in methods:
        named = [name for name in methods if name != ALL]
        good["methods"] = named + [name for name in METHOD_NAMES if name not in named]
    return good, problems


def _with_defaults(good: Mapping[str, Any]) -> Tier1Config:
    """A configuration from values that are already checked."""
    config = object.__new__(Tier1Config)
    for one in fields(Tier1Config):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        setattr(config, one.name, good.get(one.name, default))
    return config


def conflicts(config: Tier1Config, bad: set[str]) -> list[Problem]:
    """Contradictions between settings; those that depend on a setting in `bad` are left out."""
    found = []
    if config.fixed_depth >= config.depth_dim:
        text = f"no depth {config.fixed_depth}: depth_dim {config.depth_dim} allows 0 to {config.depth_dim - 1}"
        found.append(Problem("fixed_depth", text, ("depth_dim",)))
    if config.router_start == "clusters" and config.depth_kernel == "diagonal" and config.kernel_init_std:
        text = "clusters needs depths that start equal: set kernel_init_std 0 or another depth_kernel; or use uniform"
        found.append(Problem("router_start", text, ("depth_kernel", "kernel_init_std")))
    if config.router_start == "uniform" and config.depth_kernel == "diagonal" and config.kernel_init_std == 0:
        text = "0 keeps all depths equal; set it above 0, or set router_start clusters"
        found.append(Problem("kernel_init_std", text, ("router_start", "depth_kernel")))
    if config.depth_kernel == "gated" and config.kernel_init_std == 0 and config.depth_dim > 1:
        text = "0 makes all depths the same change; set it above 0"
        found.append(Problem("kernel_init_std", text, ("depth_kernel",)))
    if config.grpo_group in ONE_DECISION and config.route_by != "sequence":
        text = f"{config.grpo_group} needs route_by sequence, not {config.route_by}; or use sampled"
        found.append(Problem("grpo_group", text, ("route_by",)))
    if config.use_lora and config.train_layers:
        text = "LoRA does not train whole layers; choose use_lora or train_layers"
        found.append(Problem("train_layers", text, ("use_lora",)))
    if config.route_by == "token" and (config.depth_values or "maw_qv" in config.methods):
        text = "all query tokens share the values, so maw_qv and depth_values need sequence or head"
        found.append(Problem("route_by", text, ("depth_values", "methods")))
    if config.tune and config.learning_rate is not None:
        text = "learning_rate is set, so there is nothing to tune; leave one of the two out"
        found.append(Problem("tune", text, ("learning_rate",)))
    if config.resume and config.restart:
        text = "a run cannot resume and restart at once; leave one of the two out"
        found.append(Problem("restart", text, ("resume",)))
    if config.folds in (1, 2):
        text = f"must be 0, or at least 3: training, validation and test need one fold each, got {config.folds}"
        found.append(Problem("folds", text))
    if config.seed + config.seeds > 2**32:
        text = f"seed {config.seed} and the {config.seeds - 1} after it must be below 2**32"
        found.append(Problem("seeds", text, ("seed",)))
    unknown = [name for name in config.methods if name not in METHOD_NAMES and not is_reference(name)]
    if unknown:
        kind = Kind(str, optional=False, choices=(*METHOD_NAMES, ALL))
        short = {name: name.lower().replace(":", "_").removeprefix("peft_") for name in unknown}
        theirs = {name: each for name, each in short.items() if each in OFFERED and each not in METHOD_NAMES}
        problems = [wrong for name in unknown if name not in theirs and (wrong := check(kind, name)[1])]
        problems += [f"{show(name)} is a method of PEFT: write {PREFIX}{each}" for name, each in theirs.items()]
        found.append(Problem("methods", "; ".join(problems)))
    return [problem for problem in found if not bad.intersection((problem.name, *problem.also))]


def group_kind(config: Tier1Config, maw_layers: int) -> str:
    """What a GRPO group holds, with this number of MAW layers: "sampled", "distinct" or "all".

    Sampled groups can hold one depth only and give no gradient. Groups of different depths avoid this. `auto` uses
    them where each text has one depth (one MAW layer, routed by sequence): all depths if they fit into a group.
    """
    fits = config.depth_dim <= config.grpo_group_size
    if config.grpo_group == "auto":
        return ("all" if fits else "distinct") if config.route_by == "sequence" and maw_layers == 1 else "sampled"
    return "all" if fits and config.grpo_group == "distinct" else config.grpo_group


def group_share(config: Tier1Config) -> float:
    """Share of a batch's texts that get a GRPO group; where groups train the encoder, too, all do."""
    return config.grpo_share if config.encoder_update == "sampled" else 1.0


def kernel_noise(config: Tier1Config) -> float:
    """Standard deviation of the initial noise of diagonal kernels, or of gates."""
    if config.kernel_init_std is not None:
        return config.kernel_init_std
    if config.depth_kernel == "gated":
        return GATE_NOISE
    return 0.0 if config.router_start == "clusters" else KERNEL_NOISE


def cache_folder(config: Tier1Config) -> Path:
    """Folder of built corpora, activations and embeddings."""
    return Path(config.cache_dir or os.environ.get("MAW_CACHE") or "~/.cache/maw").expanduser()


def absolute_paths(config: Tier1Config) -> Tier1Config:
    """The configuration with absolute paths, so that what is stored of it can be used from any folder."""
    changed = with_folders(vars(config), absolute) | {"log_dir": absolute(config.log_dir)}
    return config if changed == vars(config) else replace(config, **changed)


RESULT_NEUTRAL = (
    "cache_dir",
    "checkpoint_compression",
    "clear_cuda_cache",
    "compress_logs",
    "dry_run",
    "embedding_cache_gb",
    "json_progress",
    "keep_only_best_checkpoint",
    "log_dir",
    "max_log_files",
    "parallel_datasets",
    "profile",
    "quiet",
    "report_to",
    "restart",
    "resume",
    "save_epoch_checkpoints",
    "save_every",
    "store_embeddings_on_disk",
    "verbose",
    "verify_sources",
)
"""Settings that change no result; a resumed run may change them."""
