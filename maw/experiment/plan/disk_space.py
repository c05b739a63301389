"""Disk space that a run needs, and whether the disks have it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maw.config.layers import parse_layers
from maw.config.methods import trained_methods
from maw.config.tier1_config import Tier1Config, cache_folder
from maw.data.download.needs import SourceFile
from maw.experiment.plan.workload import FLOAT_BYTES, Work
from maw.models.pretrained import ModelSpec
from maw.storage.disk import GIGABYTE, SPILL_BYTES, size_text

VOCABULARY = 31_000  # tokens, for the size of a model that is not downloaded yet
LOG_BYTES = 10_000_000
RANKING_BYTES = 12  # row and score of a passage
RUN_LINE_BYTES = 50  # of a TREC run file: two ids, rank, score and name
RUN_LINE_BYTES_GZIP = 20


@dataclass(frozen=True)
class DiskRequirement:
    """`size` bytes in `folder` for `what`; `remedy` names settings that reduce or move them."""

    folder: Path
    size: int
    what: str
    remedy: str


@dataclass(frozen=True)
class Disk:
    """All requirements on one disk, and the bytes free on it."""

    requirements: tuple[DiskRequirement, ...]
    free: int

    @property
    def size(self) -> int:
        """Bytes needed."""
        return sum(each.size for each in self.requirements)


def requirements_of(
    config: Tier1Config, spec: ModelSpec, works: Sequence[Work], files: Sequence[SourceFile], kept: int
) -> list[DiskRequirement]:
    """What a run writes, by folder, without empty requirements.

    Args:
        kept: bytes of the activations that earlier runs have stored.
    """
    cache, limit = cache_folder(config), int(config.prefix_cache_gb * GIGABYTE)
    sizes = [min(work.activation_bytes, limit) for work in works]  # older ones make room where the disk is short
    stored = sum(sizes) if config.parallel_datasets else max(sizes, default=0)
    stored = max(0, stored - kept)
    embeddings, results = _embedding_bytes(config, spec, works), _result_bytes(config, spec, works)
    results += state_bytes(config, spec, works)
    found = [
        DiskRequirement(cache / "corpora", _store_bytes(works), "passage stores", "--cache-dir"),
        DiskRequirement(cache / "activations", stored, "activations", "--prefix-cache-gb, --corpus-size"),
        DiskRequirement(cache / "embeddings", embeddings, "embeddings", "--embedding-cache-gb"),
        DiskRequirement(Path(config.log_dir), results, "results and checkpoints", "--log-dir"),
    ]
    if files:
        home = Path(os.path.commonpath([file.path.parent.absolute() for file in files]))
        found.insert(0, DiskRequirement(home, sum(file.size or 0 for file in files), "downloads", "IR_DATASETS_HOME"))
    return [each for each in found if each.size]


def _result_bytes(config: Tier1Config, spec: ModelSpec, works: Sequence[Work]) -> int:
    """Logs, results, TREC runs, and the checkpoints of every trained method on each dataset."""
    layers = parse_layers(config.finetune_layers, spec.num_layers)
    trained = _layer_parameters(spec) * len(layers) * FLOAT_BYTES
    weights = trained if config.checkpoint_compression else model_bytes(spec)
    one = weights + 3 * trained  # with the optimizer's two moments and the best epoch's weights
    latest = 2 * (not config.keep_only_best_checkpoint)  # with the one before it
    kept = 1 + latest + config.save_epoch_checkpoints * config.num_epochs
    trainings = len(trained_methods(config)) * config.seeds * (config.folds or 1)
    rankings = _rankings(config) if config.run_files != "none" else 0
    line = RUN_LINE_BYTES if config.run_files == "plain" else RUN_LINE_BYTES_GZIP
    return LOG_BYTES + one * kept * trainings * len(works) + rankings * line * _ranked(config, works)


def _rankings(config: Tier1Config) -> int:
    """Rankings of each test query: one for a method that is not trained, else one for each seed; folds add none."""
    trained = len(trained_methods(config))
    return len(config.methods) - trained + trained * config.seeds


def _ranked(config: Tier1Config, works: Sequence[Work]) -> int:
    """Passages in one ranking of all test queries."""
    return sum(work.queries["test"] * min(config.top_k, work.searched) for work in works)


def state_bytes(config: Tier1Config, spec: ModelSpec, works: Sequence[Work]) -> int:
    """Size of a run's state: trainings in progress, and rankings of finished trainings."""
    layers = parse_layers(config.finetune_layers, spec.num_layers)
    training = 8 * _layer_parameters(spec) * len(layers) * FLOAT_BYTES if trained_methods(config) else 0
    return training * at_once(config, works) + _rankings(config) * _ranked(config, works) * RANKING_BYTES


def _embedding_bytes(config: Tier1Config, spec: ModelSpec, works: Sequence[Work]) -> int:
    """Embeddings cached for later runs, and those that are too large for memory while they are searched."""
    limit = int(config.embedding_cache_gb * GIGABYTE)
    sizes = [work.searched * spec.embedding_dim * embedding_width(config) for work in works]
    kept = sum(size for size in sizes if size <= limit) if "zero_shot" in config.methods else 0
    large = [size for size in sizes if size > most_in_memory(config) and (size > limit or trained_methods(config))]
    searched = sum(large) if config.parallel_datasets else max(large, default=0)
    return min(kept, limit) + searched


def at_once(config: Tier1Config, works: Sequence[Work]) -> int:
    """The most datasets that run at the same time."""
    return len(works) if config.parallel_datasets else 1


def embedding_width(config: Tier1Config) -> int:
    """Bytes of one number of a passage's embedding."""
    return 2 if config.embedding_precision == "float16" else FLOAT_BYTES


def most_in_memory(config: Tier1Config) -> int:
    """The most bytes of embeddings that are kept in memory and not in a file."""
    return 0 if config.store_embeddings_on_disk else SPILL_BYTES


def _store_bytes(works: Sequence[Work]) -> int:
    """Size of the missing passage stores; a corpus that several datasets share counts once, by its passages."""
    seen: set[str] = set()
    total = 0.0
    for needs in (work.needs for work in works):
        fresh = sum(count for name, count in needs.passages.items() if name not in seen)
        count = sum(needs.passages.values())
        total += needs.disk_bytes * (fresh / count if count else 1)
        seen |= needs.passages.keys()
    return round(total)


def model_requirement(spec: ModelSpec) -> DiskRequirement:
    """The download of a model that is not on this machine."""
    from huggingface_hub import constants

    return DiskRequirement(Path(constants.HF_HUB_CACHE), model_bytes(spec), "the model", "HF_HOME")


def model_bytes(spec: ModelSpec) -> int:
    """Bytes of a model's weights, estimated from its sizes."""
    return (_layer_parameters(spec) * spec.num_layers + VOCABULARY * spec.hidden_dim) * FLOAT_BYTES


def _layer_parameters(spec: ModelSpec) -> int:
    return 12 * spec.hidden_dim**2  # four square matrices, and two of four times the width


def disks_of(requirements: Sequence[DiskRequirement]) -> tuple[Disk, ...]:
    """Requirements by disk; a folder that does not exist yet is on the disk of its first existing parent."""
    found: dict[int, tuple[list[DiskRequirement], int]] = {}
    for each in requirements:
        there = _existing(each.folder)
        group = found.setdefault(there.stat().st_dev, ([], shutil.disk_usage(there).free))
        group[0].append(each)
    return tuple(Disk(tuple(group), free) for group, free in found.values())


def _existing(folder: Path) -> Path:
    """The folder, or the nearest folder above it that exists and is accessible."""
    folder = folder.expanduser().absolute()
    for each in (folder, *folder.parents):
        try:
            if each.is_dir():
                return each
        except OSError:  # no permission to enter it
            continue
    return Path(folder.anchor)


def too_small(disk: Disk) -> str:
    """The error about a disk that is too small: bytes needed and free, folders, and remedies."""
    largest = max(disk.requirements, key=lambda each: each.size)
    parts = ", ".join(f"{size_text(each.size)} for {each.what} in {each.folder}" for each in disk.requirements)
    remedies = dict.fromkeys(word for each in disk.requirements for word in each.remedy.split(", "))
    return (
        f"the disk of {largest.folder} is too small: {size_text(disk.size)} needed ({parts}) and "
        f"{size_text(disk.free)} free; free some, or see {', '.join(remedies)}"
    )
