"""The configuration of a run: every setting with its default, one line on what it does, and what it may hold.

    Tier1Config(batch_size=64, maw_layers=[10, 11, 12])        # from Python
    python tier_1.py --batch-size 64 --maw-layers 10,11,12     # the same; the flags are derived from the fields

The annotations are the rules (`maw.config.fields`), and the line under a field is its help. A configuration is
checked when it is made, all mistakes at once; what depends on the model, the data or the methods is
`maw.experiment.validation`'s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from maw.config.fields import Kind, Layers, Pattern, Problem, Range, check, check_all, kinds_of
from maw.config.methods import LARGEST_RANK, METHOD_NAMES, METHODS
from maw.config.presets import PRESETS
from maw.errors import ConfigError

ALL = "all"

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
"""What may name a dataset's results and judgements."""

LARGEST_GRADE = 1000
"""Of a judgement, and below zero likewise: pytrec_eval's time and memory grow with it; past 2**31 it crashes."""
KERNEL_NOISE = 0.02
"""What sets diagonal depths apart where nothing else does."""

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
    """Every setting of a run. `None` means: taken from the model, or chosen by the method.

    Raises:
        ConfigError: values of a wrong type, out of range, or in conflict; all of them, one line each.
    """

    model: Line = "facebook/contriever"
    """Pretrained encoder: a Hugging Face id, a folder, or packaged:all-MiniLM-L6-v2."""
    hidden_dim: Size | None = None
    """Hidden size; taken from the model, and where given it must agree."""
    num_heads: Size | None = None
    """Attention heads; taken from the model, and where given it must agree."""
    num_layers: Size | None = None
    """Layers; taken from the model, and where given it must agree."""
    pooling: Literal["mean", "cls", "last"] | None = None
    """How token states become one embedding, in place of the model's own way."""
    similarity: Literal["cosine", "dot"] | None = None
    """How a query and a passage are compared, in place of the model's own way."""
    temperature: Temperature | None = None
    """What similarities are divided by in the loss and the rewards, in place of the model's own."""
    query_prefix: str | None = None
    """Text put before every query, in place of the model's own."""
    document_prefix: str | None = None
    """Text put before every passage, in place of the model's own."""
    max_query_length: Annotated[int, Range(3, 65_536)] | None = None
    """Tokens kept of a query, special tokens included, in place of the model's own limit."""
    max_document_length: Annotated[int, Range(3, 65_536)] | None = None
    """Tokens kept of a passage, special tokens included, in place of the model's own limit."""

    datasets: list[str] = field(default_factory=lambda: ["msmarco", "nq", "hotpotqa", "triviaqa"])
    """Datasets to run: {names}, or beir:DIR[@NAME]."""
    methods: list[str] = field(default_factory=lambda: [method.name for method in METHODS if method.by_default])
    """Methods to run: {names}; or all."""
    train_samples: Count = 2000
    """Training queries drawn per dataset."""
    val_samples: Count = 500
    """Validation queries drawn per dataset."""
    test_samples: Count = 1000
    """Test queries drawn per dataset."""
    corpus_size: Amount = 100_000
    """Passages searched for the test queries: judged ones, BM25's best for the queries, others by hash; or full."""
    val_corpus_size: Amount = 20_000
    """The same for the validation queries, which every epoch encodes."""
    distractors: list[str] | None = None
    """Folders in BEIR layout whose passages join the corpus of every dataset."""
    relevance_level: Annotated[int, Range(1, LARGEST_GRADE)] = 1
    """Grade from which a passage counts as relevant in the binary metrics; TREC DL has its own, 2."""
    verify_sources: bool = True
    """Compare source files placed by hand, and their counts, with those published."""

    batch_size: Annotated[int, Range(1, 65_536)] = 32
    """Queries per training batch; the other passages of a batch are each query's negatives."""
    num_negatives: Annotated[int, Range(0, 1000)] = 1
    """Negatives used per training query, beside the passages of the other queries in its batch."""
    negative_source: Literal["auto", "given", "bm25", "dense", "none"] = "auto"
    """Where hard negatives come from: the data, BM25, the pretrained retriever; auto: the data, else BM25."""
    hard_negative_ratio: Share = 1.0
    """Share of the negatives that are hard; the others are drawn from the whole corpus."""
    negative_margin: Annotated[float, Range(0, 1, open_low=True)] = 0.95
    """A mined passage that scores above this share of the positive's score may be relevant, and is not used."""
    bank_batches: Annotated[int, Range(0, 10_000)] = 0
    """Earlier batches whose passages stay further negatives, as they were encoded then, in every loss and reward."""
    num_epochs: Annotated[int, Range(1, 10_000)] = 10
    """Passes over the training queries."""
    learning_rate: Rate | None = None
    """Peak learning rate of every trained method; unset: each method's own default."""
    weight_decay: Share = 0.01
    """AdamW weight decay of encoder weights; depth kernels and router have none."""
    warmup_ratio: Annotated[float, Range(0, 1, open_high=True)] = 0.1
    """Share of the steps over which the learning rate rises, before it decays linearly."""
    gradient_accumulation_steps: Annotated[int, Range(1, 10_000)] = 1
    """Batches whose gradients are averaged into one optimizer step."""
    max_grad_norm: Annotated[float, Range(0, 1e6, open_low=True)] = 1.0
    """Largest norm of the gradient; a longer one is scaled down to it."""
    patience: Annotated[int, Range(0, 10_000)] = 3
    """Epochs without a better validation nDCG@10 before training stops; 0: never stop early."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 42
    """Seed of sampling, data order, dropout and routing."""

    seeds: Annotated[int, Range(1, 1000)] = 1
    """Training seeds: seed, seed + 1, ...; values are averaged by query, and the data depend on seed alone."""
    tune: Annotated[int, Range(0, 1000)] = 0
    """Trials of learning rates on validation, the same number for every trained method; 0: the rates as set."""
    folds: Annotated[int, Range(0, 100)] = 0
    """Cross-validation over so many folds of all drawn queries, at least 3; 0: the dataset's own splits."""

    eval_batch_size: Annotated[int, Range(1, 65_536)] = 128
    """Texts encoded at once in evaluation."""
    top_k: Annotated[int, Range(1, 1_000_000)] = 1000
    """Passages ranked per query; the metrics at 1000 need 1000."""
    search: Literal["exact", "flat", "ivf", "hnsw"] = "exact"
    """How passages are found: exact, FAISS's exact flat index, or its approximate ivf or hnsw; recall is measured."""
    nprobe: Annotated[int, Range(1, 65_536)] = 64
    """Lists of the ivf index that a query searches, of 4 * sqrt(passages); more find more and take longer."""
    embedding_precision: Literal["float32", "float16"] = "float32"
    """Number format in which embeddings of passages are held, on disk, in memory and in a FAISS index."""
    store_embeddings_on_disk: bool = False
    """Hold them in a file of the cache folder at any size, not only above 1 GB; search reads it part by part."""
    permutations: Annotated[int, Range(20, 10_000_000)] = 10_000
    """Sign flips of the paired randomisation test."""

    use_lora: bool = False
    """Give a BaselineRetriever LoRA adapters (from Python; the lora method of a run has them anyway)."""
    lora_rank: Annotated[int, Range(1, LARGEST_RANK)] = 8
    """Rank of the LoRA adapters."""
    lora_alpha: Annotated[int, Range(1, 65_536)] = 16
    """Scale of the LoRA adapters: their output is multiplied by alpha / rank."""
    lora_targets: Literal["query_value", "all"] = "query_value"
    """Maps that LoRA adapts (from Python): query and value; or all of a layer, at the rank that equals MAW in size."""
    train_layers: bool = False
    """Let a BaselineRetriever train its layers whole (from Python; the full method of a run does so anyway)."""
    adapt_maw_layers: bool = False
    """Let a BaselineRetriever adapt the MAW layers too (from Python; lora_matched and full of a run do so anyway)."""

    maw_layers: Layers = None
    """Layers with depth attention, from 1: last, all, none, numbers like 5,6, or -1 for the last; unset: last."""
    finetune_layers: Layers = None
    """Layers that LoRA adapts and the other methods train whole, given as for the MAW layers; unset: last."""
    depth_dim: Annotated[int, Range(1, 1024)] = 32
    """Depths of a MAW layer."""
    depth_kernel: Literal["diagonal", "low_rank"] = "diagonal"
    """Family of the depth kernels: a weight per head and feature, or a low-rank change of the query."""
    kernel_rank: Annotated[int, Range(1, LARGEST_RANK)] = 4
    """Rank of each low_rank depth kernel."""
    kernel_init_std: Share | None = None
    """Standard deviation of the noise that sets diagonal depths apart; unset: 0.02, or 0 for a start from clusters."""
    depth_values: bool = False
    """Let a MAWRetriever's depths change the values too (from Python; the method maw_qv does so anyway)."""
    kernel_learning_rate: Rate | None = None
    """Peak learning rate of the depth kernels; unset: 0.01."""

    router: Literal["grpo", "supervised", "soft", "random", "fixed"] = "grpo"
    """What picks the depth of a text."""
    route_by: Literal["sequence", "head", "token"] = "sequence"
    """What shares one pick: the whole text, each head, or each head and query token."""
    fixed_depth: Annotated[int, Range(0, 1023)] = 0
    """The depth of the fixed router; depth 0 starts as the pretrained attention."""
    router_start: Literal["uniform", "clusters"] = "clusters"
    """A new router's policy: near uniform, or clusters of the training texts' states; depths must then start alike."""
    router_sharpness: Annotated[float, Range(0, 1e6, open_low=True)] = 10.0
    """How much narrower than a cluster the start makes the region of a depth; high: hardly any random picks."""
    router_learning_rate: Rate = 1e-3
    """Learning rate of the router."""
    grpo_group_size: Annotated[int, Range(2, 1024)] = 8
    """Routings of one text that form a group, whose mean reward is each one's baseline."""
    grpo_group: Literal["auto", "sampled", "all"] = "auto"
    """A group: sampled routings; every depth once, for the exact expected reward; auto: all where it takes no more."""
    grpo_inner_epochs: Annotated[int, Range(2, 100)] = 2
    """Updates of the router from one batch of routings; with one the clipped ratio would do nothing."""
    grpo_clip: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.2
    """How far from 1 the ratio of new to old probability still earns, either way."""
    grpo_kl: Annotated[float, Range(0, 1000)] = 0.01
    """Weight of the KL divergence from the reference policy."""
    grpo_reference: Literal["uniform", "slow"] = "uniform"
    """Reference policy: uniform over depths, or a slowly following copy of the router."""
    grpo_reference_decay: Share = 0.99
    """How much of itself the slow reference keeps at each step."""
    router_balance: Annotated[float, Range(0, 1000)] = 0.1
    """Weight of the KL divergence of the batch's mean policy from uniform: keeps all depths in use."""
    router_entropy_floor: Annotated[float, Range(0, 100)] = 0.0
    """Entropy in nats that a policy is pushed back to when it has less."""
    reward: Literal["log_prob", "reciprocal_rank", "ndcg"] = "log_prob"
    """What a routing earns, from the batch's ranking: the positive's log-probability, reciprocal rank, or nDCG."""
    encoder_update: Literal["sampled", "all_group", "mcl", "mcl_sampled"] = "sampled"
    """Routings that train the encoder: a sample, the group, the group weighted by reward (mcl), or one drawn so."""
    mcl_temperature: Temperature = 1.0
    """Temperature of the reward weights of mcl at the end of training."""
    mcl_start_temperature: Temperature | None = None
    """The same at its start, from where it falls geometrically; unset: no schedule."""
    diagnostics: Literal["none", "best", "all"] = "best"
    """Epochs after which validation texts are put at every depth: the best one's weights, all, or no diagnostics."""

    precision: Precision = "auto"
    """Number format of matrix products; auto: bfloat16 where it is measured to be faster, else float32."""
    tf32: bool = False
    """Let an NVIDIA GPU round the factors of float32 products to 10 bits; search never does."""
    deterministic: bool = False
    """Use only algorithms that give the same bits in every run on a GPU, and refuse the others; slower."""
    device: Device | None = None
    """Where to compute: cpu, cuda, cuda:N or mps; unset: the GPUs there are, or the CPU."""
    use_multi_gpu: bool = True
    """Split batches over all visible GPUs with DataParallel."""
    parallel_datasets: bool = False
    """Run datasets side by side, each in a process of its own, on GPUs (or CPU threads) that no other one has."""
    clear_cuda_cache: bool = True
    """Release cached GPU memory after each dataset."""
    dry_run: bool = False
    """Print what the run would download, store and encode, and stop."""
    profile: bool = False
    """Show where the time of each dataset goes, stage by stage, and write it to its profile.json."""

    quiet: bool = False
    """Say nothing but warnings, errors and the answer."""
    json_progress: bool = False
    """Put progress and messages on standard error as JSON, one object a line."""
    report_to: Literal["none", "tensorboard", "wandb", "mlflow"] = "none"
    """Experiment tracker that gets settings, curves and results of every training; it must be installed."""

    log_dir: Line = "logs/tier1"
    """Folder of results, summaries, logs and checkpoints."""
    cache_dir: Line | None = None
    """Folder of built corpora, activations and embeddings; unset: $MAW_CACHE, or ~/.cache/maw."""
    prefix_cache_gb: Annotated[float, Range(0, 1e6)] = 20.0
    """Most disk space for activations of the layers that no method trains; 0: compute them anew."""
    embedding_cache_gb: Annotated[float, Range(0, 1e6)] = 10.0
    """Most disk space for embeddings of untrained encoders, kept for later runs; 0: encode anew."""
    keep_only_best_checkpoint: bool = True
    """Keep the best checkpoint of each method and not the latest."""
    save_epoch_checkpoints: bool = False
    """Keep a checkpoint of every epoch too."""
    checkpoint_compression: bool = True
    """Store the trained parameters only; the pretrained weights are found again by name."""
    save_every: Annotated[float, Range(0, 1e6)] = 0.0
    """Minutes of training between saves inside an epoch; 0: after each epoch alone."""
    resume: Line | None = None
    """Go on with the unfinished run in this folder, or the last one under logs/, after its last save."""
    restart: bool = False
    """Start anew where log_dir holds an unfinished run, whose state is then removed."""
    run_files: Literal["auto", "plain", "gzip", "none"] = "auto"
    """TREC run file of every method and seed: auto, with gzip where it is long; always plain; always gzip; or none."""
    compress_logs: bool = True
    """Compress the log files with gzip at the end of a run."""
    max_log_files: CountOrZero = 100
    """Runs whose log files stay in the log folder, the newest; 0: all. Results and checkpoints are never removed."""

    def __post_init__(self) -> None:
        problems = self.recheck()
        if problems:
            raise ConfigError([str(problem) for problem in problems])

    def recheck(self) -> list[Problem]:
        """Brings every value into its final form and lists what is wrong; for settings changed after the start."""
        good, problems = _check_values(vars(self))
        for name, value in good.items():
            setattr(self, name, value)
        return problems + conflicts(_with_defaults(good), {problem.name for problem in problems})

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values; `from_dict` takes them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tier1Config:
        """A configuration from settings by name; those not named keep their defaults.

        Args:
            values: name of a field -> its value.

        Raises:
            ConfigError: as the class, and for unknown names.
        """
        config, problems = gather(values)
        if problems:
            raise ConfigError([str(problem) for problem in problems])
        return config

    @classmethod
    def from_run(cls, folder: str | Path) -> Tier1Config:
        """That of an unfinished run, to go on with it: `run_complete_benchmark(Tier1Config.from_run("logs/tier1"))`.

        Raises:
            ConfigError: there is no unfinished run in the folder.
        """
        from maw.storage.run_record import read_run  # stands after configurations; this is a convenience for notebooks

        return cls.from_dict(read_run(Path(folder))["config"] | {"log_dir": str(folder), "resume": str(folder)})

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> Tier1Config:
        """A preset, with changes: `Tier1Config.from_preset("offline", seed=1)`.

        Args:
            name: of `PRESETS`.
            changes: settings in the place of the preset's.

        Raises:
            ConfigError: no such preset, or as `from_dict`.
        """
        wrong = check_preset(name)
        if wrong:
            raise ConfigError([f"preset: {wrong}"])
        return cls.from_dict(PRESETS[name] | changes)


@cache
def kinds() -> dict[str, Kind]:
    """The kind of value that each field holds."""
    return kinds_of(Tier1Config)


def check_preset(name: Any) -> str | None:
    """What is wrong with a preset's name, or None."""
    return check(Kind(str, optional=False, choices=tuple(PRESETS)), name)[1]


def gather(values: Mapping[str, Any]) -> tuple[Tier1Config, list[Problem]]:
    """Builds a configuration from whatever is good in `values` and lists all problems instead of raising.

    A setting with a problem keeps its default, and what follows from it is not judged.
    """
    good, problems = _check_values(values)
    config = _with_defaults(good)
    return config, problems + conflicts(config, {problem.name for problem in problems})


def _check_values(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """As `maw.config.fields.check_all`; `all` among the methods stands for every one that is not named beside it."""
    good, problems = check_all(kinds(), values)
    methods = good.get("methods", [])
    if ALL in methods:
        named = [name for name in methods if name != ALL]
        good["methods"] = named + [name for name in METHOD_NAMES if name not in named]
    return good, problems


def _with_defaults(good: Mapping[str, Any]) -> Tier1Config:
    """A configuration of values that have been checked already, made without checking them again."""
    config = object.__new__(Tier1Config)
    for one in fields(Tier1Config):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        setattr(config, one.name, good.get(one.name, default))
    return config


def conflicts(config: Tier1Config, bad: set[str]) -> list[Problem]:
    """Settings that contradict each other, or that this version cannot do; those in `bad` are not judged."""
    found = []
    if config.fixed_depth >= config.depth_dim:
        text = f"no depth {config.fixed_depth}: depth_dim {config.depth_dim} gives 0 to {config.depth_dim - 1}"
        found.append(Problem("fixed_depth", text, ("depth_dim",)))
    if config.router_start == "clusters" and config.depth_kernel == "diagonal" and config.kernel_init_std:
        text = "clusters needs depths that start alike: kernel_init_std 0, or depth_kernel low_rank; else set uniform"
        found.append(Problem("router_start", text, ("depth_kernel", "kernel_init_std")))
    if config.router_start == "uniform" and config.depth_kernel == "diagonal" and config.kernel_init_std == 0:
        text = "0 leaves all depths alike for ever; give them noise, or set router_start clusters"
        found.append(Problem("kernel_init_std", text, ("router_start", "depth_kernel")))
    if config.grpo_group == "all" and config.route_by != "sequence":
        text = f"all is for one decision a text: route_by sequence, not {config.route_by}; or use sampled"
        found.append(Problem("grpo_group", text, ("route_by",)))
    if config.use_lora and config.train_layers:
        text = "LoRA leaves the layers as they are; choose use_lora or train_layers"
        found.append(Problem("train_layers", text, ("use_lora",)))
    if config.route_by == "token" and (config.depth_values or "maw_qv" in config.methods):
        text = "every token reads the same values, so maw_qv and depth_values need sequence or head"
        found.append(Problem("route_by", text, ("depth_values", "methods")))
    if config.tune and config.learning_rate is not None:
        text = "a learning_rate that is set leaves nothing to tune; leave one of the two out"
        found.append(Problem("tune", text, ("learning_rate",)))
    if config.resume and config.restart:
        text = "a run either goes on or starts anew; leave one of the two out"
        found.append(Problem("restart", text, ("resume",)))
    if config.folds in (1, 2):
        text = f"must be at least 3, to train, choose and test on different queries, or 0, got {config.folds}"
        found.append(Problem("folds", text))
    if config.seed + config.seeds > 2**32:
        text = f"seed {config.seed} and the {config.seeds - 1} after it must be below 2**32"
        found.append(Problem("seeds", text, ("seed",)))
    unknown = [name for name in config.methods if name not in METHOD_NAMES]
    if unknown:
        kind = Kind(str, optional=False, choices=(*METHOD_NAMES, ALL))
        problems = [wrong for name in unknown if (wrong := check(kind, name)[1])]
        found.append(Problem("methods", "; ".join(problems)))
    return [problem for problem in found if not bad.intersection((problem.name, *problem.also))]


def group_is_exact(config: Tier1Config, maw_layers: int) -> bool:
    """Whether a group of GRPO holds every depth once, with so many MAW layers.

    A policy that is sure of its depth draws the same one again and again, and such a group says nothing; every depth
    once always does.
    """
    if config.grpo_group != "auto":
        return config.grpo_group == "all"
    return config.route_by == "sequence" and maw_layers == 1 and config.depth_dim <= config.grpo_group_size


def kernel_noise(config: Tier1Config) -> float:
    """The standard deviation of the noise that diagonal depths start with."""
    if config.kernel_init_std is not None:
        return config.kernel_init_std
    return 0.0 if config.router_start == "clusters" else KERNEL_NOISE


def cache_folder(config: Tier1Config) -> Path:
    """Where built corpora, activations and embeddings are kept."""
    return Path(config.cache_dir or os.environ.get("MAW_CACHE") or "~/.cache/maw").expanduser()


def beir_parts(text: str) -> tuple[str, str | None]:
    """The folder and the name of the test judgements in DIR or DIR@NAME; the name is None where none is given.

    A folder that exists by the whole text, @ included, is meant before any judgements.
    """
    folder, _, name = text.rpartition("@")
    if not folder or "/" in name or is_folder(text):
        return text, None
    return folder, name


def is_folder(text: str) -> bool:
    """Whether there is a folder of this name, in which ~ is the home folder."""
    try:
        return bool(text) and "\0" not in text and Path(text).expanduser().is_dir()
    except (OSError, RuntimeError):  # a name longer than the system allows; no home folder
        return False


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
    "verify_sources",
)
"""Settings that change no result, and so may be other ones when a run goes on."""
