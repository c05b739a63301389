"""Experiment trackers, through Accelerate: TensorBoard, Weights & Biases or MLflow.

    python tier_1.py --report-to tensorboard       # then: tensorboard --logdir logs/tier1/tracking/tensorboard

    with reporting("tensorboard", log_dir, run_id, started):     # a whole benchmark
        with training("pystdlib_maw", settings):                 # one training of it
            log(step, {"train/loss": 0.5})
            flush()                                              # after the training is saved
        results("pystdlib_maw", metrics, step)                   # after its dataset is finished

Each training is a run of the tracker, so that the curves of methods and seeds can be overlaid. Values wait until the
training is saved: a resumed run repeats the unsaved steps and would report them twice. Trackers do not influence
results; one that fails is turned off with a warning.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from maw.runtime import distributed

logger = logging.getLogger(__name__)

PACKAGES = {"tensorboard": "tensorboard==2.21.0", "wandb": "wandb==0.31.0", "mlflow": "mlflow==3.17.2"}
"""The package of each tracker, at the version that was tested."""
NONE = "none"
PROJECT = "maw-transformers"
STEPS_OF_EPOCH = 100
"""A longer epoch reports at least this many steps and fewer than twice as many, since each report takes time."""
_current: Reporter | None = None


@contextlib.contextmanager
def reporting(kind: str, log_dir: Path | str, run_id: str, started: str) -> Iterator[None]:
    """Reports the trainings of a block; only the main process does.

    Args:
        log_dir: log folder of the run; local files of the tracker are in its folder `tracking`.
    """
    global _current
    before = _current
    wanted = kind != NONE and distributed.is_main()
    _current = Reporter(kind, Path(log_dir), run_id, started) if wanted else None
    try:
        yield
    finally:
        _current = before


@contextlib.contextmanager
def training(name: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """Reports one training, with a name unique in the run, from its beginning or from its last save."""
    reporter = _current
    if reporter is None:
        yield
        return
    reporter.open(name, settings)
    try:
        yield
    finally:
        reporter.close()


def every(steps: float) -> int:
    """Number of steps between two reports, in an epoch of `steps` steps."""
    return max(1, int(steps) // STEPS_OF_EPOCH)


def log(step: int, values: Mapping[str, Any]) -> None:
    """Notes the finite numbers of one step; `flush` reports them."""
    if _current is not None:
        _current.log(step, values)


def log_epoch(step: int, record: Mapping[str, Any]) -> None:
    """Notes all numbers of an epoch's record, per layer too, without histograms."""
    if _current is not None:
        log(step, {"epoch": record["epoch"]} | dict(_flat("epoch", {**record, "epoch": None})))


def flush() -> None:
    """Reports the noted values; call it after the training is saved."""
    if _current is not None:
        _current.flush()


def results(name: str, metrics: Mapping[str, float], step: int) -> None:
    """Reports the test metrics of a finished training."""
    if _current is not None:
        with training(name, {}):
            log(step, {f"test/{key}": value for key, value in metrics.items()})
            flush()


class Reporter:
    """One tracker, for one training after another.

    Args: as `reporting`.
    """

    def __init__(self, kind: str, log_dir: Path, run_id: str, started: str):
        self.kind, self.folder, self.run_id = kind, log_dir / "tracking", run_id
        self.group = f"{log_dir.name}_{''.join(each for each in started if each.isdigit())}"
        self.failed = False
        self._tracker: Any = None
        self._waiting: list[tuple[int, dict[str, float]]] = []

    def open(self, name: str, settings: Mapping[str, Any]) -> None:
        """Starts a training, or continues its record in the tracker."""
        self._try(self._open, name, settings)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Notes the finite numbers of a step."""
        numbers = {
            name: each
            for name, each in values.items()
            if isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each)
        }
        if self._tracker is not None and numbers:
            self._waiting.append((step, numbers))

    def flush(self) -> None:
        """Reports the noted values."""
        waiting, self._waiting = self._waiting, []
        for step, values in waiting:
            self._try(lambda step=step, values=values: self._tracker.log(values, step=step))

    def close(self) -> None:
        """Ends a training and drops values that were not reported."""
        self._waiting = []
        if self._tracker is not None:
            self._try(self._tracker.finish)
        self._tracker = None

    def _try(self, call: Callable[..., object], *given: Any) -> None:
        """Calls the tracker, unless it has failed before; a failure turns it off."""
        if self.failed:
            return
        try:
            call(*given)
        except Exception as error:  # noqa: BLE001 - no error of a tracker may stop the run
            self.failed, self._tracker = True, None
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            logger.warning("--report-to %s: %s; the run continues without it", self.kind, text)

    def _open(self, name: str, settings: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _init_accelerate()
        tracker, is_new = getattr(self, f"_{self.kind}")(name)
        tracker.start()
        self._tracker = tracker
        if not settings or not is_new:
            return
        if self.kind == "tensorboard":  # its store_init_configuration would add a run
            rows = [f"| {key} | {each} |" for key, each in settings.items()]
            tracker.log({"settings": "\n".join(["| setting | value |", "| --- | --- |", *rows])}, step=0)
        else:
            plain = {
                key: ",".join(map(str, each)) if isinstance(each, list) else each for key, each in settings.items()
            }
            tracker.store_init_configuration({key: each for key, each in plain.items() if each is not None})

    # Each returns the tracker of a training, and whether the tracker has no record of it yet.

    def _tensorboard(self, name: str) -> tuple[Any, bool]:
        from accelerate.tracking import TensorBoardTracker

        folder = self.folder / "tensorboard" / self.group
        return TensorBoardTracker(name, folder), not (folder / name).exists()

    def _wandb(self, name: str) -> tuple[Any, bool]:
        from accelerate.tracking import WandBTracker

        os.environ.setdefault("WANDB_SILENT", "true")  # it would print twenty lines a training
        names = {"dir": str(self.folder), "group": self.group, "name": name}
        resume = {"id": f"{self.run_id}-{name}", "resume": "allow"}
        return WandBTracker(os.environ.get("WANDB_PROJECT", PROJECT), **names, **resume), True

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


def _init_accelerate() -> None:
    """Creates the state that Accelerate's trackers need, for a single process.

    By default Accelerate would read the launcher's variables and join its processes a second time.
    """
    from accelerate import PartialState
    from accelerate.utils import clear_environment

    if PartialState._shared_state:
        return
    with clear_environment():
        os.environ |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}  # without them it refuses some GPUs
        PartialState()


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(f"{name}/{key}", each)
    elif isinstance(value, list):
        yield from ((f"{name}/{number}", each) for number, each in enumerate(value))
    else:
        yield name, value
