"""What a run reports to an experiment tracker, through Accelerate's: TensorBoard, Weights & Biases or MLflow.

    python tier_1.py --report-to tensorboard       # then: tensorboard --logdir logs/tier1/tracking/tensorboard

    with reporting("tensorboard", log_dir, run_id, started):     # a whole benchmark
        with training("pystdlib_maw", settings):                 # one training of it
            log(step, {"train/loss": 0.5})
            flush()                                              # it was saved
        results("pystdlib_maw", metrics, step)                   # its dataset is done

Each training is a run of the tracker's own, so that the curves of methods and seeds lie over each other. Values wait
until the training is saved: what was not saved is trained again by a run that goes on, and would be reported twice.
Nothing that is computed depends on a tracker; one that fails is given up with a warning.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from maw.errors import reason
from maw.runtime import distributed

logger = logging.getLogger(__name__)

PACKAGES = {"tensorboard": "tensorboard==2.21.0", "wandb": "wandb==0.31.0", "mlflow": "mlflow==3.17.2"}
"""What each tracker needs, at the version that was tried."""
NONE = "none"
PROJECT = "maw-transformers"
STEPS_OF_EPOCH = 100
"""Of a longer epoch so many steps at least, and fewer than twice as many, are reported: each takes a tracker time."""


class _State:
    """The reporter there is."""

    current: Reporter | None = None


_state = _State()


@contextlib.contextmanager
def reporting(kind: str, log_dir: Path | str, run_id: str, started: str) -> Iterator[None]:
    """A block whose trainings are reported; of several processes the main one does.

    Args:
        kind: as `Tier1Config.report_to`.
        log_dir: of the run; what a tracker keeps on disk lies in its folder `tracking`.
        run_id: tells the run from all others, and stays the same when it goes on.
        started: when it was begun, for people.
    """
    before = _state.current
    wanted = kind != NONE and distributed.is_main()
    _state.current = Reporter(kind, Path(log_dir), run_id, started) if wanted else None
    try:
        yield
    finally:
        _state.current = before


@contextlib.contextmanager
def training(name: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """A block in which one training goes on, from its beginning or from where it was saved.

    Args:
        name: of the training, unique in the run.
        settings: JSON-able; all that it depends on.
    """
    reporter = _state.current
    if reporter is None:
        yield
        return
    reporter.open(name, settings)
    try:
        yield
    finally:
        reporter.close()


def every(steps: float) -> int:
    """How many steps lie between two that are reported, where an epoch has so many."""
    return max(1, int(steps) // STEPS_OF_EPOCH)


def log(step: int, values: Mapping[str, Any]) -> None:
    """Notes the values of one step that are finite numbers, to be reported when the training is saved."""
    if _state.current is not None:
        _state.current.log(step, values)


def log_epoch(step: int, record: Mapping[str, Any]) -> None:
    """As `log`, an epoch's record with all numbers in it, those of each layer too; histograms are left out."""
    if _state.current is not None:
        log(step, {"epoch": record["epoch"]} | dict(_flat("epoch", {**record, "epoch": None})))


def flush() -> None:
    """Reports what was noted: the training is saved."""
    if _state.current is not None:
        _state.current.flush()


def results(name: str, metrics: Mapping[str, float], step: int) -> None:
    """Reports the test metrics of a training that is over."""
    if _state.current is not None:
        with training(name, {}):
            log(step, {f"test/{key}": value for key, value in metrics.items()})
            flush()


class Reporter:
    """One tracker, for one training after the other.

    Args: as `reporting`.
    """

    def __init__(self, kind: str, log_dir: Path, run_id: str, started: str):
        self.kind, self.folder, self.run_id = kind, log_dir / "tracking", run_id
        self.group = f"{log_dir.name}_{''.join(each for each in started if each.isdigit())}"
        self.failed = False
        self._tracker: Any = None
        self._waiting: list[tuple[int, dict[str, float]]] = []

    def open(self, name: str, settings: Mapping[str, Any]) -> None:
        """Begins a training, or takes up the tracker's own record of one."""
        self._try(self._open, name, settings)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Notes the values of a step."""
        numbers = {name: each for name, each in values.items() if _is_number(each)}
        if self._tracker is not None and numbers:
            self._waiting.append((step, numbers))

    def flush(self) -> None:
        """Reports what was noted."""
        waiting, self._waiting = self._waiting, []
        for step, values in waiting:
            self._try(lambda step=step, values=values: self._tracker.log(values, step=step))

    def close(self) -> None:
        """Ends a training; what was noted since it was last saved is dropped."""
        self._waiting = []
        if self._tracker is not None:
            self._try(self._tracker.finish)
        self._tracker = None

    def _try(self, call: Callable[..., object], *given: Any) -> None:
        """Calls a tracker, unless it has failed before; a failure stops nothing but it."""
        if self.failed:
            return
        try:
            call(*given)
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the run is worth more
            self.failed, self._tracker = True, None
            why = f"{type(error).__name__}: {reason(error)}"
            logger.warning("--report-to %s: %s; the run goes on without", self.kind, why)

    def _open(self, name: str, settings: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _let_accelerate_log()
        tracker, is_new = getattr(self, f"_{self.kind}")(name)
        tracker.start()
        self._tracker = tracker
        if not settings or not is_new:
            return
        if self.kind == "tensorboard":  # whose store_init_configuration makes one more run beside this one
            tracker.log({"settings": _as_table(settings)}, step=0)
        else:
            tracker.store_init_configuration(_plain(settings))

    # Each makes the tracker of a training, and says whether it has no record of it yet.

    def _tensorboard(self, name: str) -> tuple[Any, bool]:
        from accelerate.tracking import TensorBoardTracker

        folder = self.folder / "tensorboard" / self.group
        return TensorBoardTracker(name, folder), not (folder / name).exists()

    def _wandb(self, name: str) -> tuple[Any, bool]:
        from accelerate.tracking import WandBTracker

        os.environ.setdefault("WANDB_SILENT", "true")  # else twenty lines a training
        place = {"dir": str(self.folder), "group": self.group, "name": name}
        own = {"id": f"{self.run_id}-{name}", "resume": "allow"}
        return WandBTracker(os.environ.get("WANDB_PROJECT", PROJECT), **place, **own), True

    def _mlflow(self, name: str) -> tuple[Any, bool]:
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        import mlflow
        from accelerate.tracking import MLflowTracker

        local = not mlflow.is_tracking_uri_set()
        if local:
            mlflow.set_tracking_uri(f"sqlite:///{(self.folder / 'mlflow.db').absolute()}")
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        there = mlflow.get_experiment_by_name(experiment)
        tags = {"maw.run": self.run_id, "maw.group": self.group, "maw.training": name}
        same = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = {"filter_string": same, "output_format": "list"}
        known = mlflow.search_runs([there.experiment_id], **found) if there else []
        tracker = MLflowTracker(
            experiment,
            logging_dir=str((self.folder / "mlflow").absolute()) if local else None,
            run_id=known[0].info.run_id if known else None,
            tags=tags,
            run_name=f"{self.group}/{name}",
        )
        return tracker, not known


def _let_accelerate_log() -> None:
    """Makes the state that Accelerate's trackers ask for, as that of a single process.

    It would otherwise be that of the launcher, and join its processes a second time.
    """
    from accelerate import PartialState
    from accelerate.utils import clear_environment

    if PartialState._shared_state:
        return
    with clear_environment():
        os.environ |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}  # it refuses some GPUs without
        PartialState()


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as trackers take them, lists as text."""
    plain = {name: ",".join(map(str, each)) if isinstance(each, list) else each for name, each in settings.items()}
    return {name: each for name, each in plain.items() if each is not None}


def _as_table(settings: Mapping[str, Any]) -> str:
    """Settings in Markdown, which TensorBoard shows."""
    return "\n".join(
        ["| setting | value |", "| --- | --- |", *(f"| {key} | {each} |" for key, each in settings.items())]
    )


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(f"{name}/{key}", each)
    elif isinstance(value, list):
        yield from ((f"{name}/{number}", each) for number, each in enumerate(value))
    else:
        yield name, value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
