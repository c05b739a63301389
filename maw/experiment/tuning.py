"""Learning rate search on validation, with the same number of trials for every method.

    python tier_1.py --preset offline --tune 9

A trial is a whole training with the run's seed. Its score is the best epoch's validation nDCG@10. It leaves no
checkpoint and gets no test data. The search space of a method has the rate of its layers or adapters, of its depth
kernels if it has any, and of its routers if they learn, each within a factor of ten around its default. The trials of
every method are:

1. the method's defaults;
2. up to two thirds of the trials: quasi-random points, uniform in the logarithm (a scrambled Halton sequence, Owen
   2017, arXiv:1706.02808), the same for all methods with the same number of rates;
3. the last third: one rate at a time around the best trial so far. If that trial has the lowest or highest value tried
   of a rate, the next one is a step beyond it, by the mean ratio of the values tried; else it is half-way to the
   better of the two neighbours.

A training that diverges is a trial without a score; if all diverged, the rates go down by a factor of ten. The run
warns if the best trial is at the edge of the values tried.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from maw.data.collection import RetrievalData
from maw.errors import MAWError, NotFiniteError
from maw.experiment.method_trainer import MethodTrainer
from maw.runtime import signals
from maw.runtime.console import at
from maw.runtime.profiler import stage
from maw.runtime.run_log import log_event
from maw.training.checkpoint_writer import CheckpointWriter
from maw.training.state import VALIDATION_METRIC

logger = logging.getLogger(__name__)

FACTOR = 10.0
HIGHEST = 1.0  # the highest learning rate that the configuration allows
DIGITS = 4

Rates = dict[str, float]


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Attributes:
        number: from 1.
        rates: learning rates by setting.
        how: "default", "drawn", "between" two trials, "beyond" the range tried so far, or "lower" after failures.
        score: best validation nDCG@10; None if it diverged.
        facts: JSON-able: seconds, and steps and best epoch, or why it failed.
    """

    number: int
    rates: Rates
    how: str
    score: float | None
    facts: dict[str, Any]

    @property
    def record(self) -> dict[str, Any]:
        """The trial's entry in dataset.json."""
        score = {f"val_{VALIDATION_METRIC}": self.score}
        return {"trial": self.number, "how": self.how, "rates": self.rates} | score | self.facts


class RateSearch:
    """Chooses the rates of each trial; `seed` is that of the quasi-random points."""

    def __init__(self, defaults: Mapping[str, float], trials: int, seed: int):
        from scipy.stats import qmc  # here, because it takes a second to import

        self.defaults, self.names = dict(defaults), tuple(defaults)
        self.range = {name: (value / FACTOR, min(value * FACTOR, HIGHEST)) for name, value in defaults.items()}
        self.drawn = trials - trials // 3
        points = qmc.Halton(len(self.names), rng=np.random.default_rng(seed)).random(max(0, self.drawn - 1))
        self.points = [
            {
                name: _rounded(low * (high / low) ** share)
                for (name, (low, high)), share in zip(self.range.items(), point, strict=True)
            }
            for point in points.tolist()
        ]

    def next(self, done: Sequence[Trial]) -> tuple[Rates, str]:
        """Rates of the next trial, and how they were chosen, given all trials so far."""
        if not done:
            return self.defaults, "default"
        if len(done) < self.drawn:
            return self.points[len(done) - 1], "drawn"
        best = best_of(done)
        if best is None:
            lowest = {name: min(trial.rates[name] for trial in done) for name in self.names}
            return {name: _rounded(value / FACTOR) for name, value in lowest.items()}, "lower"
        for name in self.names:
            value = _beyond(name, best, done)
            if value is not None:
                return best.rates | {name: value}, "beyond"
        name = self.names[(len(done) - self.drawn) % len(self.names)]
        return best.rates | {name: _half_way(name, best, done)}, "between"


@dataclass(frozen=True)
class Tuned:
    """Result of a search: the chosen rates, all trials, and a JSON-able record of both."""

    rates: Rates
    trials: tuple[Trial, ...]
    record: dict[str, Any]


class TrialLog(Protocol):
    """Saves the trials of a search, so that an interrupted one can continue (`dataset_state.Trials`)."""

    def read(self) -> list[Trial]: ...

    def write(self, trials: Sequence[Trial]) -> None: ...

    def writer(self, number: int, rates: Rates) -> CheckpointWriter: ...


def tune(
    trainer: MethodTrainer,
    train: RetrievalData,
    validation: RetrievalData,
    dataset: str,
    trials: int,
    seed: int,
    show: Callable[[Trial, int, bool], None] = lambda *_: None,
    log: TrialLog | None = None,
) -> Tuned:
    """Finds a method's learning rates in exactly `trials` trials.

    Args:
        show: called after each trial with the trial, `trials`, and whether it is the best so far.
        log: saves finished trials and the one in progress; None to save none.

    Raises:
        MAWError: every trial diverged.
    """
    search = RateSearch(trainer.default_rates(seed), trials, seed)
    done = log.read() if log else []
    with stage("tuning"):
        while len(done) < trials:
            rates, how = search.next(done)
            writer = log.writer(len(done) + 1, rates) if log else None
            with at(trial=len(done) + 1):
                done.append(_try(trainer, train, validation, dataset, seed, len(done) + 1, rates, how, writer))
            if log:
                log.write(done)
            log_event(logger, "trial", training=f"{dataset} {trainer.method.name}", **done[-1].record)
            show(done[-1], trials, best_of(done) is done[-1])
            signals.check()
    best = best_of(done)
    if best is None:
        raise MAWError(
            f"{dataset} {trainer.method.name}: all {trials} trials diverged ({done[-1].facts['failed']}); allow more "
            "trials, or set lower rates"
        )
    return Tuned(best.rates, tuple(done), _account(search, best, done))


def _try(
    trainer: MethodTrainer,
    train: RetrievalData,
    validation: RetrievalData,
    dataset: str,
    seed: int,
    number: int,
    rates: Rates,
    how: str,
    writer: CheckpointWriter | None,
) -> Trial:
    started = time.perf_counter()
    with trainer.metered() as meter:
        try:
            config = replace(trainer.configure(seed, rates), diagnostics="none")  # the weights of a trial are not kept
            history = trainer.train(trainer.build(config), train, validation, dataset, writer, meter)
        except NotFiniteError as error:
            meter.before = None  # as the seconds, which before an interruption are not known here
            facts = {"failed": str(error), "seconds": time.perf_counter() - started}
            return Trial(number, rates, how, None, facts | _energy(meter.joules()))
        facts = {
            "best_epoch": history.best["epoch"],
            "steps": sum(record["steps"] for record in history),
            "optimizer_steps": sum(record["optimizer_steps"] for record in history),
            "seconds": history.seconds_before + time.perf_counter() - started,
            **_energy(meter.joules()),
        }
    return Trial(number, rates, how, history.best[f"val_{VALIDATION_METRIC}"], facts)


def _energy(measured: Mapping[str, float]) -> dict[str, Any]:
    joules = sum(measured.values()) if measured else None
    return {"joules": joules, "measured_joules": joules, "measured_devices": list(measured)}


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the highest score, the first of equal ones; None if all diverged."""
    return max((trial for trial in trials if trial.score is not None), key=lambda trial: trial.score, default=None)


def at_edge(best: Trial, trials: Sequence[Trial]) -> dict[str, str]:
    """Setting -> "lowest" or "highest", for each rate whose best value is at the edge of those tried."""
    found = {}
    for name, value in best.rates.items():
        values = _values(name, trials)
        if len(values) > 1 and value in (values[0], values[-1]):
            found[name] = "lowest" if value == values[0] else "highest"
    return found


def _account(search: RateSearch, best: Trial, trials: Sequence[Trial]) -> dict[str, Any]:
    tried = {name: _values(name, trials) for name in search.names}
    return {
        "chosen": best.rates,
        "chosen_trial": best.number,
        "range": search.range,
        "tried": {name: [values[0], values[-1]] for name, values in tried.items()},
        "extended": [
            name
            for name, (low, high) in search.range.items()
            if tried[name][0] < _rounded(low) or tried[name][-1] > _rounded(high)
        ],
        "at_edge": at_edge(best, trials),
        "seconds": sum(trial.facts["seconds"] for trial in trials),
        "trials": [trial.record for trial in trials],
    }


def _values(name: str, trials: Sequence[Trial]) -> list[float]:
    """The different values tried of one rate, ascending."""
    return sorted({trial.rates[name] for trial in trials})


def _beyond(name: str, best: Trial, trials: Sequence[Trial]) -> float | None:
    """A value beyond those tried, if the best trial is at their edge; else None, also at the highest allowed rate."""
    values = _values(name, trials)
    value = best.rates[name]
    if value not in (values[0], values[-1]):
        return None
    step = (values[-1] / values[0]) ** (1 / (len(values) - 1)) if len(values) > 1 else math.sqrt(FACTOR)
    if value == values[0]:
        return _rounded(value / step)
    return _rounded(min(value * step, HIGHEST)) if value < HIGHEST else None


def _half_way(name: str, best: Trial, trials: Sequence[Trial]) -> float:
    """The geometric mean of the best trial's value and that of its better neighbour."""
    values = _values(name, trials)
    place = values.index(best.rates[name])
    neighbours = values[max(0, place - 1) : place] + values[place + 1 : place + 2]

    def score(value: float) -> float:
        scores = (trial.score for trial in trials if trial.rates[name] == value and trial.score is not None)
        return max(scores, default=-math.inf)

    return _rounded(math.sqrt(best.rates[name] * max(neighbours, key=score)))


def _rounded(value: float) -> float:
    """Rounded to four significant digits, so that users can type it."""
    return float(f"{value:.{DIGITS}g}")
