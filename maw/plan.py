"""What a run will download, store, encode and take, before it does any of it.

    python tier_1.py --dry-run      # shows the plan and stops
    plan = make_plan(config, spec)

`maw.benchmark` shows the plan (`maw.report.plan`) at the start of every run, and stops there if a disk is too small.
Sizes that publishers state are theirs. All others are estimates: of tokens by the mean length of a passage, of memory
by the sizes of the model, and of time by encoding some real texts with the real model for two seconds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maw.config import TRAINED_METHODS, Tier1Config, cache_folder, group_is_exact
from maw.data import needs_of
from maw.data.local import local_needs
from maw.data.needs import Needs, SourceFile
from maw.data.splits import SAMPLE_FIELDS, trains
from maw.disk import GIGABYTE, SPILL_BYTES
from maw.errors import MAWError
from maw.methods import find_method
from maw.pretrained import ModelSpec
from maw.rate import Rate, measure, weights_are_here
from maw.rules import parse_layers

FLOAT_BYTES = 4
CHARACTERS_PER_TOKEN = 4.2
QUERY_CHARACTERS = 50
VOCABULARY = 31_000  # tokens, for the size of a model whose weights are not here
PROGRAM_BYTES = int(1.0 * GIGABYTE)  # torch and the other libraries
STATES_PER_TOKEN = 24  # vectors of the hidden size that a pass through a layer holds at once
BACKWARD = 3  # passes that a training step with its gradient takes, in forward ones
LOG_BYTES = 10_000_000
DIAGNOSED_DOCUMENTS = 200  # of a split, which `maw.diagnostics` puts at every depth, beside its queries
RANKING_BYTES = 12  # a passage's row and score
RUN_LINE_BYTES = 50  # of a TREC run file: two ids, rank, score and name
RUN_LINE_BYTES_GZIP = 20


@dataclass(frozen=True)
class Work:
    """What a run does with one dataset, over all its methods, seeds, trials and folds.

    Attributes:
        needs: as its loader says, or estimated from local files.
        searched: passages of the test corpus; 0 where nothing is known beforehand.
        validated: passages of the validation corpus; 0 where no method trains.
        shared: whether test and validation queries search one and the same corpus.
        queries: split -> how many are drawn; with folds, how many one round has, and in the test all rounds together.
        tokens: "document" and "query" -> of a mean text, as the model reads it.
        encoded: "test", "validation" and "training" -> texts encoded, over all methods, trainings and epochs.
        activation_bytes: of the frozen layers' output for every text of the run; 0 if nothing is stored.
        token_passes: what encoding costs, as tokens that pass through the whole model.
    """

    needs: Needs
    searched: int
    validated: int
    shared: bool
    queries: dict[str, int]
    tokens: dict[str, int]
    encoded: dict[str, int]
    activation_bytes: int
    token_passes: float


@dataclass(frozen=True)
class Room:
    """Room on a disk: `size` bytes in `folder` for `what`; `remedy` names what makes it less or puts it elsewhere."""

    folder: Path
    size: int
    what: str
    remedy: str


@dataclass(frozen=True)
class Disk:
    """The rooms that share a disk, and how many bytes are free on it."""

    rooms: tuple[Room, ...]
    free: int

    @property
    def size(self) -> int:
        """Bytes needed."""
        return sum(room.size for room in self.rooms)


@dataclass(frozen=True)
class Plan:
    """All of it.

    Attributes:
        config: the run.
        model: name, and whether its weights would have to be downloaded.
        works: one for each dataset.
        files: what has to be downloaded, each file once.
        disks: by file system.
        memory: what takes it -> bytes, an estimate.
        rate: of encoding, or why it was not measured.
    """

    config: Tier1Config
    model: tuple[str, bool]
    works: tuple[Work, ...]
    files: tuple[SourceFile, ...]
    disks: tuple[Disk, ...]
    memory: dict[str, int]
    rate: Rate | str

    def seconds(self, work: Work) -> float | None:
        """How long the dataset takes, None if that is not known."""
        if isinstance(self.rate, str) or not work.searched:
            return None
        return work.token_passes * self.rate.seconds / self.rate.tokens

    def too_small(self) -> list[str]:
        """One line for each disk that is too small: what is needed, what is free, where, and what helps."""
        return [_too_small(disk) for disk in self.disks if disk.size > disk.free]

    def check_disks(self) -> None:
        """Makes sure that everything fits.

        Raises:
            MAWError: a disk is too small.
        """
        problems = self.too_small()
        if problems:
            raise MAWError("; ".join(problems))


def make_plan(config: Tier1Config, spec: ModelSpec, needs: Sequence[Needs] | None = None) -> Plan:
    """Adds up what a run needs. Nothing is downloaded or written.

    Args:
        config: the run.
        spec: its model.
        needs: of its datasets; asked of their loaders, if not given.
    """
    needs = [_known_needs(name, config) for name in config.datasets] if needs is None else needs
    works = tuple(_work(each, config, spec) for each in needs)
    files = tuple({file.path: file for each in needs for file in each.files if not file.present}.values())
    here = weights_are_here(spec)
    return Plan(
        config=config,
        model=(spec.name, not here),
        works=works,
        files=files,
        disks=_disks([*_rooms(config, spec, works, files), *([] if here else [_model_room(spec)])]),
        memory=_memory(config, spec, works),
        rate=_rate(config, spec, works),
    )


def _known_needs(name: str, config: Tier1Config) -> Needs:
    needs = needs_of(name, config)
    return needs if needs.passages else local_needs(name, config)


def _distractors(config: Tier1Config) -> int:
    """Passages of the folders that join every corpus that is searched."""
    folders = [name.removeprefix("beir:") for name in config.distractors or ()]
    return sum(sum(local_needs(f"beir:{folder}", config).passages.values()) for folder in folders)


def _work(needs: Needs, config: Tier1Config, spec: ModelSpec) -> Work:
    """The first corpus of the needs is searched for the test queries, the last one for the others.

    Distractors join both, and training then reads another corpus than is searched.
    """
    joined = _distractors(config) if needs.passages else 0
    test, other = ((list(needs.passages.values()) or [0])[which] + joined for which in (0, -1))
    searched = _at_most(config.corpus_size, test)
    validated = _at_most(config.val_corpus_size, searched if config.folds else other) if trains(config) else 0
    shared = len(needs.passages) == 1 and searched == test and validated in (0, test)
    queries = _of_rounds(_drawn(needs, config), config)
    rounds = config.folds or 1
    tokens = {
        "document": _tokens(needs.mean_characters, spec.max_document_length),
        "query": _tokens(QUERY_CHARACTERS, spec.max_query_length),
    }
    used = {  # documents and queries of one pass: through all rounds, where there are folds
        "test": (searched * rounds, queries["test"]),
        "once": (searched, queries["test"]),
        "validation": (validated * rounds, queries["validation"] * rounds),
        "training": (queries["train"] * rounds * (1 + config.num_negatives), queries["train"] * rounds),
    }
    epochs = config.num_epochs * len(_trained_methods(config)) * (config.seeds + config.tune)
    trained = len(_trained_methods(config))
    times = {"test": trained * config.seeds, "once": len(config.methods) - trained}
    times |= dict.fromkeys(("validation", "training"), epochs)
    encoded = {part: sum(used[part]) * times[part] if searched else 0 for part in used}
    encoded["test"] += encoded.pop("once")
    once = searched + (0 if shared else validated * rounds) + (0 if shared and not joined else used["training"][0])
    in_splits = queries["test"] + rounds * (queries["train"] + queries["validation"])
    once_tokens = once * tokens["document"] + in_splits * tokens["query"]
    pass_tokens = {part: d * tokens["document"] + q * tokens["query"] for part, (d, q) in used.items()}
    keeps = _frozen_layers(config, spec) and config.prefix_cache_gb and searched
    stored = once_tokens * spec.hidden_dim * FLOAT_BYTES if keeps else 0
    return Work(
        needs=needs,
        searched=searched,
        validated=validated,
        shared=shared,
        queries=queries,
        tokens=tokens,
        encoded=encoded,
        activation_bytes=stored,
        token_passes=_token_passes(once_tokens, pass_tokens, times, stored, config, spec)
        + _diagnosed_tokens(queries, tokens, config) * (1 - _frozen_layers(config, spec) / spec.num_layers),
    )


def _token_passes(
    once: int, by_pass: dict[str, int], times: dict[str, int], stored: int, config: Tier1Config, spec: ModelSpec
) -> float:
    """Tokens that pass through the whole model, or as much work.

    Args:
        once: tokens of all different texts, which pass the frozen layers once as far as their output is stored.
        by_pass: "test", "once" (the test of a method that is not trained), "validation" and "training" -> tokens of
            one pass over its texts.
        times: how often each is done, over all methods, trainings and epochs.
        stored: bytes that storing the output of all would take.
    """
    share = min(1.0, config.prefix_cache_gb * GIGABYTE / stored) if stored else 0.0
    every = sum(by_pass[part] * times[part] for part in by_pass)
    trained = sum(_training_passes(method, config) for method in _trained_methods(config))
    upper = sum(by_pass[part] * times[part] for part in ("test", "once", "validation"))
    upper += by_pass["training"] * config.num_epochs * (config.seeds + config.tune) * trained
    frozen = _frozen_layers(config, spec) / spec.num_layers
    return frozen * (share * once + (1 - share) * every) + (1 - frozen) * upper


def _diagnosed_tokens(queries: Mapping[str, int], tokens: Mapping[str, int], config: Tier1Config) -> int:
    """Tokens that diagnostics put at every depth: of test texts after a training, of validation texts in it."""
    if config.diagnostics == "none":
        return 0
    rounds, looks = config.folds or 1, config.num_epochs if config.diagnostics == "all" else 1
    total = 0
    for split, times in {"test": 1, "validation": rounds * looks}.items():
        documents = min(queries[split], rounds * DIAGNOSED_DOCUMENTS)
        of_split = queries[split] * tokens["query"] + documents * tokens["document"]
        total += times * of_split
    return total * config.seeds * sum(find_method(name).configure(config).depth_dim for name in _maw_methods(config))


def _maw_methods(config: Tier1Config) -> list[str]:
    return [method for method in _trained_methods(config) if find_method(method).retriever == "maw"]


def _drawn(needs: Needs, config: Tier1Config) -> dict[str, int]:
    """Queries by split: those asked for, fewer where the source has fewer."""
    drawn = {}
    for split, field in SAMPLE_FIELDS.items():
        asked = getattr(config, field) if split == "test" or trains(config) else 0
        drawn[split] = min(asked, needs.queries.get(split) or asked)
    return drawn


def _trained_methods(config: Tier1Config) -> list[str]:
    return [method for method in config.methods if method in TRAINED_METHODS]


def _of_rounds(drawn: dict[str, int], config: Tier1Config) -> dict[str, int]:
    """With folds: what one round trains on and validates with, and what all test, of all queries drawn."""
    if not config.folds:
        return drawn
    pooled = sum(drawn.values())
    fold = round(pooled / config.folds) if trains(config) else 0
    return {"train": pooled - 2 * fold if fold else 0, "validation": fold, "test": pooled}


def _training_passes(method: str, config: Tier1Config) -> int:
    """What a training step costs in the layers that are not frozen, in forward passes of its texts."""
    config = find_method(method).configure(config)
    if find_method(method).retriever != "maw":
        return BACKWARD
    size = config.depth_dim if group_is_exact(config, 1) else config.grpo_group_size
    group = {"grpo": size, "supervised": config.depth_dim}.get(config.router, 0)
    samples = size if config.router == "grpo" and config.encoder_update in ("all_group", "mcl") else 1
    return group + BACKWARD * samples


def _frozen_layers(config: Tier1Config, spec: ModelSpec) -> int:
    """Layers from the bottom that no method changes."""
    settings = (config.maw_layers, config.finetune_layers)
    changed = [layer for each in settings for layer in parse_layers(each, spec.num_layers)]
    return min(changed, default=spec.num_layers + 1) - 1


def _at_most(size: int | str, total: int) -> int:
    return total if size == "full" else min(int(size), total)


def _tokens(characters: int, limit: int) -> int:
    return min(limit, round(characters / CHARACTERS_PER_TOKEN) + 2)


def _model_bytes(spec: ModelSpec) -> int:
    return (_layer_parameters(spec) * spec.num_layers + VOCABULARY * spec.hidden_dim) * FLOAT_BYTES


def _layer_parameters(spec: ModelSpec) -> int:
    return 12 * spec.hidden_dim**2  # four square maps, and two of four times the width


def _memory(config: Tier1Config, spec: ModelSpec, works: Sequence[Work]) -> dict[str, int]:
    longest = max((work.tokens["document"] for work in works), default=0)
    most = max((max(work.searched, work.validated) for work in works), default=0)
    texts = max(config.eval_batch_size, 2 * config.batch_size * (2 + config.num_negatives) if trains(config) else 0)
    return {
        "libraries": PROGRAM_BYTES,
        "model": 2 * _model_bytes(spec),  # with what training adds, or the next method's while it is loaded
        "embeddings": min(most * spec.hidden_dim * _embedding_width(config), _most_in_memory(config)),
        "batches": texts * longest * spec.hidden_dim * FLOAT_BYTES * STATES_PER_TOKEN,
    }


def _rooms(config: Tier1Config, spec: ModelSpec, works: Sequence[Work], files: Sequence[SourceFile]) -> list[Room]:
    cache, limit = cache_folder(config), int(config.prefix_cache_gb * GIGABYTE)
    sizes = [min(work.activation_bytes, limit) for work in works]  # removed after each dataset
    stored = sum(sizes) if config.parallel_datasets else max(sizes, default=0)
    embeddings, results = _embedding_bytes(config, spec, works), _result_bytes(config, spec, works)
    results += state_bytes(config, spec, works)
    rooms = [
        Room(cache / "corpora", _store_bytes(works), "passage stores", "--cache-dir"),
        Room(cache / "activations", stored, "activations", "--prefix-cache-gb, --corpus-size"),
        Room(cache / "embeddings", embeddings, "embeddings", "--embedding-cache-gb"),
        Room(Path(config.log_dir), results, "results and checkpoints", "--log-dir"),
    ]
    if files:
        home = Path(os.path.commonpath([file.path.parent.absolute() for file in files]))
        rooms.insert(0, Room(home, sum(file.size or 0 for file in files), "downloads", "IR_DATASETS_HOME"))
    return [room for room in rooms if room.size]


def _result_bytes(config: Tier1Config, spec: ModelSpec, works: Sequence[Work]) -> int:
    """Logs and results, run files, and the checkpoints that every trained method keeps of each dataset."""
    layers = parse_layers(config.finetune_layers, spec.num_layers)
    trained = _layer_parameters(spec) * len(layers) * FLOAT_BYTES
    weights = trained if config.checkpoint_compression else _model_bytes(spec)
    one = weights + 3 * trained  # with the optimizer's two moments and the best epoch's weights
    latest = 2 * (not config.keep_only_best_checkpoint)  # with the one before it
    kept = 1 + latest + config.save_epoch_checkpoints * config.num_epochs
    trainings = len(_trained_methods(config)) * config.seeds * (config.folds or 1)
    return LOG_BYTES + one * kept * trainings * len(works) + _run_file_bytes(config, works)


def _run_file_bytes(config: Tier1Config, works: Sequence[Work]) -> int:
    """One ranking of all test queries for every method that is not trained, and for every seed of one that is."""
    trained = len(_trained_methods(config))
    rankings = 0 if config.run_files == "none" else len(config.methods) - trained + trained * config.seeds
    line = RUN_LINE_BYTES if config.run_files == "plain" else RUN_LINE_BYTES_GZIP
    lines = (work.queries["test"] * min(config.top_k, work.searched) for work in works)
    return rankings * line * sum(lines)


def state_bytes(config: Tier1Config, spec: ModelSpec, works: Sequence[Work]) -> int:
    """What a run keeps until it has finished: one training in progress, and the rankings of what is done."""
    layers = parse_layers(config.finetune_layers, spec.num_layers)
    training = 8 * _layer_parameters(spec) * len(layers) * FLOAT_BYTES if _trained_methods(config) else 0
    trained = len(_trained_methods(config))
    runs = len(config.methods) - trained + trained * config.seeds  # folds part the test queries
    lines = sum(work.queries["test"] * min(config.top_k, work.searched) for work in works)
    return training + runs * lines * RANKING_BYTES


def _embedding_bytes(config: Tier1Config, spec: ModelSpec, works: Sequence[Work]) -> int:
    """Those kept for later runs, and the largest of those that are too many for memory while they are searched."""
    limit = int(config.embedding_cache_gb * GIGABYTE)
    sizes = [work.searched * spec.hidden_dim * _embedding_width(config) for work in works]
    kept = sum(size for size in sizes if size <= limit) if "zero_shot" in config.methods else 0
    large = (size for size in sizes if size > _most_in_memory(config) and (size > limit or trains(config)))
    return min(kept, limit) + max(large, default=0)


def _embedding_width(config: Tier1Config) -> int:
    """Bytes of one number of a passage's embedding."""
    return 2 if config.embedding_precision == "float16" else FLOAT_BYTES


def _most_in_memory(config: Tier1Config) -> int:
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


def _model_room(spec: ModelSpec) -> Room:
    from huggingface_hub import constants

    return Room(Path(constants.HF_HUB_CACHE), _model_bytes(spec), "the model", "HF_HOME")


def _disks(rooms: Sequence[Room]) -> tuple[Disk, ...]:
    """Rooms by the disk that they are on; a folder that does not exist yet will be on its first parent's."""
    found: dict[int, tuple[list[Room], int]] = {}
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


def _too_small(disk: Disk) -> str:
    largest = max(disk.rooms, key=lambda room: room.size)
    parts = ", ".join(f"{size_text(room.size)} for {room.what} in {room.folder}" for room in disk.rooms)
    remedies = dict.fromkeys(word for room in disk.rooms for word in room.remedy.split(", "))
    return (
        f"the disk of {largest.folder} is too small: {size_text(disk.size)} needed ({parts}) and "
        f"{size_text(disk.free)} free; free some, or see {', '.join(remedies)}"
    )


def _rate(config: Tier1Config, spec: ModelSpec, works: Sequence[Work]) -> Rate | str:
    """Measured on texts of the length that most passages of the run have, or why it was not."""
    known = [work for work in works if work.searched and work.needs.mean_characters]
    if not known:
        return "nothing is known of the data beforehand"
    total = sum(work.searched for work in known)
    try:
        return measure(config, spec, sum(work.needs.mean_characters * work.searched for work in known) // total)
    except MAWError as error:
        return str(error)


def size_text(size: int) -> str:
    """Bytes for people, in powers of ten: 21 MB, 1.2 GB."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.0f} {name}" if size >= 20 * unit else f"{size / unit:.1f} {name}"
    return f"{size} B"
