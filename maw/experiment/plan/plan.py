"""What a run will download, store, encode and take, before it does any of it.

    python tier_1.py --dry-run      # shows the plan and stops
    plan = make_plan(config, spec)

`maw.experiment.benchmark` shows the plan (`maw.experiment.plan.plan_text`) at the start of every run, and stops there
if a disk is too small. Sizes that publishers state are theirs. All others are estimates: of tokens by the mean length
of a passage, of memory by the sizes of the model, and of time by encoding some real texts with the real model for two
seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maw.config.methods import trained_methods
from maw.config.tier1_config import Tier1Config
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
    model_room,
    most_in_memory,
    rooms_of,
    too_small,
)
from maw.experiment.plan.encoding_speed import Rate, measure, weights_are_here
from maw.experiment.plan.workload import FLOAT_BYTES, Work, make_work
from maw.models.pretrained import ModelSpec
from maw.storage.disk import GIGABYTE

PROGRAM_BYTES = int(1.0 * GIGABYTE)  # torch and the other libraries
STATES_PER_TOKEN = 24  # vectors of the hidden size that a pass through a layer holds at once


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
        return [too_small(disk) for disk in self.disks if disk.size > disk.free]

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
    works = tuple(make_work(each, config, spec) for each in needs)
    files = tuple({file.path: file for each in needs for file in each.files if not file.present}.values())
    here = weights_are_here(spec)
    return Plan(
        config=config,
        model=(spec.name, not here),
        works=works,
        files=files,
        disks=disks_of([*rooms_of(config, spec, works, files), *([] if here else [model_room(spec)])]),
        memory=_memory(config, spec, works),
        rate=_rate(config, spec, works),
    )


def _known_needs(name: str, config: Tier1Config) -> Needs:
    needs = needs_of(name, config)
    return needs if needs.passages else local_needs(name, config)


def _memory(config: Tier1Config, spec: ModelSpec, works: Sequence[Work]) -> dict[str, int]:
    longest = max((work.tokens["document"] for work in works), default=0)
    most = max((max(work.searched, work.validated) for work in works), default=0)
    step = 2 * config.batch_size * (2 + config.num_negatives) if trained_methods(config) else 0
    texts = max(config.eval_batch_size, step)
    one = {
        "libraries": PROGRAM_BYTES,
        "model": 2 * model_bytes(spec),  # with what training adds, or the next method's while it is loaded
        "embeddings": min(most * spec.hidden_dim * embedding_width(config), most_in_memory(config)),
        "batches": texts * longest * spec.hidden_dim * FLOAT_BYTES * STATES_PER_TOKEN,
    }
    count = at_once(config, works)
    conductor = PROGRAM_BYTES if config.parallel_datasets else 0  # the run's own process, which only looks on
    return {name: count * size for name, size in one.items()} | {"libraries": count * PROGRAM_BYTES + conductor}


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
