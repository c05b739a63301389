"""What a run puts on disks, and whether it fits there."""

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

VOCABULARY = 31_000  # tokens, for the size of a model whose weights are not here
LOG_BYTES = 10_000_000
RANKING_BYTES = 12  # a passage's row and score
RUN_LINE_BYTES = 50  # of a TREC run file: two ids, rank, score and name
RUN_LINE_BYTES_GZIP = 20


@dataclass(frozen=True)
class DiskRequirement:
    """Room on a disk: `size` bytes in `folder` for `what`; `remedy` names what makes it less or puts it elsewhere."""

    folder: Path
    size: int
    what: str
    remedy: str


@dataclass(frozen=True)
class Disk:
    """The rooms that share a disk, and how many bytes are free on it."""

    rooms: tuple[DiskRequirement, ...]
    free: int

    @property
    def size(self) -> int:
        """Bytes needed."""
        return sum(room.size for room in self.rooms)


def rooms_of(
    config: Tier1Config, spec: ModelSpec, works: Sequence[Work], files: Sequence[SourceFile]
) -> list[DiskRequirement]:
    """What a run puts on disks, folder by folder, without what takes nothing."""
    cache, limit = cache_folder(config), int(config.prefix_cache_gb * GIGABYTE)
    sizes = [min(work.activation_bytes, limit) for work in works]  # removed after each dataset
    stored = sum(sizes) if config.parallel_datasets else max(sizes, default=0)
    embeddings, results = _embedding_bytes(config, spec, works), _result_bytes(config, spec, works)
    results += state_bytes(config, spec, works)
    rooms = [
        DiskRequirement(cache / "corpora", _store_bytes(works), "passage stores", "--cache-dir"),
        DiskRequirement(cache / "activations", stored, "activations", "--prefix-cache-gb, --corpus-size"),
        DiskRequirement(cache / "embeddings", embeddings, "embeddings", "--embedding-cache-gb"),
        DiskRequirement(Path(config.log_dir), results, "results and checkpoints", "--log-dir"),
    ]
    if files:
        home = Path(os.path.commonpath([file.path.parent.absolute() for file in files]))
        rooms.insert(0, DiskRequirement(home, sum(file.size or 0 for file in files), "downloads", "IR_DATASETS_HOME"))
    return [room for room in rooms if room.size]


def _result_bytes(config: Tier1Config, spec: ModelSpec, works: Sequence[Work]) -> int:
    """Logs and results, run files, and the checkpoints that every trained method keeps of each dataset."""
    layers = parse_layers(config.finetune_layers, spec.num_layers)
    trained = _layer_parameters(spec) * len(layers) * FLOAT_BYTES
    weights = trained if config.checkpoint_compression else model_bytes(spec)
    one = weights + 3 * trained  # with the optimizer's two moments and the best epoch's weights
    latest = 2 * (not config.keep_only_best_checkpoint)  # with the one before it
    kept = 1 + latest + config.save_epoch_checkpoints * config.num_epochs
    trainings = len(trained_methods(config)) * config.seeds * (config.folds or 1)
    return LOG_BYTES + one * kept * trainings * len(works) + _run_file_bytes(config, works)


def _run_file_bytes(config: Tier1Config, works: Sequence[Work]) -> int:
    """One ranking of all test queries for every method that is not trained, and for every seed of one that is."""
    trained = len(trained_methods(config))
    rankings = 0 if config.run_files == "none" else len(config.methods) - trained + trained * config.seeds
    line = RUN_LINE_BYTES if config.run_files == "plain" else RUN_LINE_BYTES_GZIP
    lines = (work.queries["test"] * min(config.top_k, work.searched) for work in works)
    return rankings * line * sum(lines)


def state_bytes(config: Tier1Config, spec: ModelSpec, works: Sequence[Work]) -> int:
    """What a run keeps until it has finished: trainings in progress, and the rankings of what is done."""
    layers = parse_layers(config.finetune_layers, spec.num_layers)
    training = 8 * _layer_parameters(spec) * len(layers) * FLOAT_BYTES if trained_methods(config) else 0
    training *= at_once(config, works)
    trained = len(trained_methods(config))
    runs = len(config.methods) - trained + trained * config.seeds  # folds part the test queries
    lines = sum(work.queries["test"] * min(config.top_k, work.searched) for work in works)
    return training + runs * lines * RANKING_BYTES


def _embedding_bytes(config: Tier1Config, spec: ModelSpec, works: Sequence[Work]) -> int:
    """Those kept for later runs, and those searched at a time that are too many for memory."""
    limit = int(config.embedding_cache_gb * GIGABYTE)
    sizes = [work.searched * spec.hidden_dim * embedding_width(config) for work in works]
    kept = sum(size for size in sizes if size <= limit) if "zero_shot" in config.methods else 0
    large = [size for size in sizes if size > most_in_memory(config) and (size > limit or trained_methods(config))]
    searched = sum(large) if config.parallel_datasets else max(large, default=0)
    return min(kept, limit) + searched


def at_once(config: Tier1Config, works: Sequence[Work]) -> int:
    """How many datasets run at a time, at most."""
    return len(works) if config.parallel_datasets else 1


def embedding_width(config: Tier1Config) -> int:
    """Bytes of one number of a passage's embedding."""
    return 2 if config.embedding_precision == "float16" else FLOAT_BYTES


def most_in_memory(config: Tier1Config) -> int:
    """Bytes of embeddings that are not put in a file."""
    return 0 if config.store_embeddings_on_disk else SPILL_BYTES


def _store_bytes(works: Sequence[Work]) -> int:
    """Room for what is not there yet; a corpus that several datasets share counts once, by its share of passages."""
    seen: set[str] = set()
    total = 0.0
    for needs in (work.needs for work in works):
        fresh = sum(count for name, count in needs.passages.items() if name not in seen)
        count = sum(needs.passages.values())
        total += needs.disk_bytes * (fresh / count if count else 1)
        seen |= needs.passages.keys()
    return round(total)


def model_room(spec: ModelSpec) -> DiskRequirement:
    """Where a model that is not here will be downloaded to."""
    from huggingface_hub import constants

    return DiskRequirement(Path(constants.HF_HUB_CACHE), model_bytes(spec), "the model", "HF_HOME")


def model_bytes(spec: ModelSpec) -> int:
    """Of a model\'s weights, from its sizes."""
    return (_layer_parameters(spec) * spec.num_layers + VOCABULARY * spec.hidden_dim) * FLOAT_BYTES


def _layer_parameters(spec: ModelSpec) -> int:
    return 12 * spec.hidden_dim**2  # four square maps, and two of four times the width


def disks_of(rooms: Sequence[DiskRequirement]) -> tuple[Disk, ...]:
    """Rooms by the disk that they are on; a folder that does not exist yet will be on its first parent's."""
    found: dict[int, tuple[list[DiskRequirement], int]] = {}
    for room in rooms:
        there = _existing(room.folder)
        group = found.setdefault(there.stat().st_dev, ([], shutil.disk_usage(there).free))
        group[0].append(room)
    return tuple(Disk(tuple(group), free) for group, free in found.values())


def _existing(folder: Path) -> Path:
    """The folder, or the nearest folder above it that is there and can be looked at."""
    folder = folder.expanduser().absolute()
    for each in (folder, *folder.parents):
        try:
            if each.is_dir():
                return each
        except OSError:  # one that may not be entered
            continue
    return Path(folder.anchor)


def too_small(disk: Disk) -> str:
    """What to tell of a disk that is too small: what is needed, what is free, where, and what helps."""
    largest = max(disk.rooms, key=lambda room: room.size)
    parts = ", ".join(f"{size_text(room.size)} for {room.what} in {room.folder}" for room in disk.rooms)
    remedies = dict.fromkeys(word for room in disk.rooms for word in room.remedy.split(", "))
    return (
        f"the disk of {largest.folder} is too small: {size_text(disk.size)} needed ({parts}) and "
        f"{size_text(disk.free)} free; free some, or see {', '.join(remedies)}"
    )
