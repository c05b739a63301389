"""Plan of a run, made before it starts: downloads, disk space, memory, encoded texts and time.

    python tier_1.py --dry-run      # shows the plan and stops
    plan = make_plan(config, spec)

`maw.experiment.benchmark` shows the plan (`maw.experiment.plan.plan_text`) at the start of every run, and stops if a
disk is too small. Download sizes are those that publishers state. All other numbers are estimates: tokens from the
mean length of a passage, memory from the sizes of the model, time from encoding 200 texts with the run's model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maw.config.methods import trained_methods
from maw.config.tier1_config import Tier1Config, cache_folder
from maw.data.datasets.local_needs import local_needs
from maw.data.download.needs import Needs, SourceFile
from maw.data.registry import needs_of
from maw.errors import MAWError
from maw.experiment.plan.disk_space import (
    Disk,
    at_once,
    disks_of,
    embedding_width,
    model_bytes,
    model_requirement,
    most_in_memory,
    requirements_of,
    too_small,
)
from maw.experiment.plan.encoding_speed import Rate, measure, weights_are_here
from maw.experiment.plan.workload import FLOAT_BYTES, Work, make_work
from maw.models.pretrained import ModelSpec
from maw.models.retriever import load_tokenizer
from maw.storage import cache_entry
from maw.storage.disk import GIGABYTE

PROGRAM_BYTES = int(1.0 * GIGABYTE)  # torch and the other libraries
STATES_PER_TOKEN = 24  # vectors of the hidden size that one layer holds in memory


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Attributes:
        spec: the model, and how it is used.
        fetched: whether the model's weights must be downloaded.
        works: the work on each dataset.
        files: files to download, each once.
        disks: disk space needed, by file system.
        memory: use -> estimated bytes.
        rate: encoding speed, or the reason why it was not measured.
        kept: whether earlier runs have stored output of frozen layers, perhaps of other texts.
    """

    config: Tier1Config
    spec: ModelSpec
    fetched: bool
    works: tuple[Work, ...]
    files: tuple[SourceFile, ...]
    disks: tuple[Disk, ...]
    memory: dict[str, int]
    rate: Rate | str
    kept: bool

    def seconds(self, work: Work, *, kept: bool = False) -> float | None:
        """Estimated time of a dataset; None if it is not known.

        Args:
            kept: whether an earlier run has stored the output of the frozen layers for its texts.
        """
        if isinstance(self.rate, str) or not work.searched:
            return None
        passes = work.token_passes - (work.kept_passes if kept else 0)
        return passes * self.rate.seconds / self.rate.tokens

    def too_small(self) -> list[str]:
        """One line for each disk that is too small."""
        return [too_small(disk) for disk in self.disks if disk.size > disk.free]

    def check_disks(self) -> None:
        """Raises a `MAWError` if a disk is too small."""
        problems = self.too_small()
        if problems:
            raise MAWError("; ".join(problems))


def make_plan(config: Tier1Config, spec: ModelSpec, needs: Sequence[Needs] | None = None) -> Plan:
    """Makes the plan of a run; without `needs` the datasets' loaders state them. Nothing is downloaded or written."""
    if needs is None:
        stated = ((name, needs_of(name, config)) for name in config.datasets)
        needs = [each if each.passages else local_needs(name, config) for name, each in stated]
    works = tuple(make_work(each, config, spec) for each in needs)
    files = tuple({file.path: file for each in needs for file in each.files if not file.present}.values())
    here = weights_are_here(spec)
    if here:
        load_tokenizer(spec)  # a tokenizer that the model cannot use stops the plan, not only the run
    kept = cache_entry.entries_bytes(cache_folder(config) / "activations")
    disks = requirements_of(config, spec, works, files, kept) + ([] if here else [model_requirement(spec)])
    return Plan(
        config=config,
        spec=spec,
        fetched=not here,
        works=works,
        files=files,
        disks=disks_of(disks),
        memory=_memory(config, spec, works),
        rate=_rate(config, spec, works),
        kept=kept > 0,
    )


def _memory(config: Tier1Config, spec: ModelSpec, works: Sequence[Work]) -> dict[str, int]:
    longest = max((work.tokens["document"] for work in works), default=0)
    most = max((max(work.searched, work.validated) for work in works), default=0)
    step = 2 * config.batch_size * (2 + config.num_negatives) if trained_methods(config) else 0
    texts = max(config.eval_batch_size, step)
    one = {
        "libraries": PROGRAM_BYTES,
        "model": 2 * model_bytes(spec),  # twice: for training, or for loading the next method
        "embeddings": min(most * spec.embedding_dim * embedding_width(config), most_in_memory(config)),
        "batches": texts * longest * spec.hidden_dim * FLOAT_BYTES * STATES_PER_TOKEN,
    }
    count = at_once(config, works)
    parent = PROGRAM_BYTES if config.parallel_datasets else 0  # that process computes nothing
    return {name: count * size for name, size in one.items()} | {"libraries": count * PROGRAM_BYTES + parent}


def _rate(config: Tier1Config, spec: ModelSpec, works: Sequence[Work]) -> Rate | str:
    """Encoding speed on texts of the run's mean passage length, or the reason why it was not measured."""
    known = [work for work in works if work.searched and work.needs.mean_characters]
    if not known:
        return "the size of the data is not known before it is loaded"
    total = sum(work.searched for work in known)
    try:
        return measure(config, spec, sum(work.needs.mean_characters * work.searched for work in known) // total)
    except MAWError as error:
        return str(error)
