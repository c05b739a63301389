"""Learning rates by trials on validation: every arm gets exactly as many as every other.

    python tier_1.py --preset offline --tune 9

A trial is a whole training with the run's own seed; its score is the best epoch's validation nDCG@10. It writes no
checkpoint and is given no test data. Each arm has a space of its own: the rate of its layers or adapters, that of its
depth kernels where it has some, and that of its routers where they learn, each a factor of ten either way around its
default. How far from there the trials go is the same for all:

1. the arm's defaults;
2. up to two thirds of the trials, quasi-random points of the space, evenly spread in the logarithm (a scrambled Halton
   sequence, Owen 2017, arXiv:1706.02808), the same for all arms with as many rates;
3. the last third, one rate at a time around the best trial so far: where it has the lowest or the highest value tried
   of a rate, a step beyond it, by the mean distance of the values tried, so that the range grows; else half-way
   to the better of its two neighbours.

A training that diverges is a trial without a score; if all have, the rates go down by a factor of ten. A winner that
is still at an edge when the trials are used up is reported.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from scipy.stats import qmc

from maw.data.collection import RetrievalData
from maw.errors import MAWError, NotFiniteError
from maw.experiment.arm import Arm
from maw.runtime import signals
from maw.runtime.console import at
from maw.runtime.profiler import stage
from maw.runtime.run_log import log_event
from maw.training.checkpoint_writer import CheckpointWriter
from maw.training.state import VALIDATION_METRIC

logger = logging.getLogger(__name__)

FACTOR = 10.0
HIGHEST = 1.0  # a learning rate that the configuration takes
DIGITS = 4

Rates = dict[str, float]


@dataclass(frozen=True)
class Trial:
    """One training on trial.

    Attributes:
        number: from 1.
        rates: what it was trained with.
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
        """For dataset.json."""
        score = {f"val_{VALIDATION_METRIC}": self.score}
        return {"trial": self.number, "how": self.how, "rates": self.rates} | score | self.facts


class Search:
    """Which rates to try next.

    Args:
        defaults: the arm's own rates, by setting.
        trials: how many there will be.
        seed: of the quasi-random points.
    """

    def __init__(self, defaults: Mapping[str, float], trials: int, seed: int):
        self.defaults, self.names = dict(defaults), tuple(defaults)
        self.range = {name: _around(value) for name, value in defaults.items()}
        self.drawn = trials - trials // 3
        points = qmc.Halton(len(self.names), rng=np.random.default_rng(seed)).random(max(0, self.drawn - 1))
        self.points = [
            {name: _between(*self.range[name], share) for name, share in zip(self.names, point, strict=True)}
            for point in points.tolist()
        ]

    def next(self, done: Sequence[Trial]) -> tuple[Rates, str]:
        """Rates of the next trial, and how they came about, given all trials so far."""
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
    """What a search found: the rates chosen, all trials, and a JSON-able account of both."""

    rates: Rates
    trials: tuple[Trial, ...]
    record: dict[str, Any]


class TrialLog(Protocol):
    """Where the trials of a search are kept, so that an interrupted one goes on (`maw.experiment.dataset_state`)."""

    def read(self) -> list[Trial]:
        """Those that are over."""

    def write(self, trials: Sequence[Trial]) -> None:
        """Keeps all that are over."""

    def writer(self, number: int, rates: Rates) -> CheckpointWriter:
        """What saves a trial while it goes on."""


def tune(
    arm: Arm,
    train: RetrievalData,
    validation: RetrievalData,
    dataset: str,
    trials: int,
    seed: int,
    show: Callable[[Trial, int, bool], None] = lambda *_: None,
    log: TrialLog | None = None,
) -> Tuned:
    """Finds an arm's rates in exactly so many trials.

    Args:
        arm: what to tune.
        train: to train on.
        validation: to judge by.
        dataset: for messages.
        trials: how many, at least 1.
        seed: of the trainings and of the points drawn.
        show: called after each trial with it, the number of all, and whether it is the best so far.
        log: keeps the trials that are over, and saves the one in progress.

    Raises:
        MAWError: every trial diverged.
    """
    search = Search(arm.default_rates(seed), trials, seed)
    done = log.read() if log else []
    with stage("tuning"):
        while len(done) < trials:
            rates, how = search.next(done)
            writer = log.writer(len(done) + 1, rates) if log else None
            with at(trial=len(done) + 1):
                done.append(_try(arm, train, validation, dataset, seed, len(done) + 1, rates, how, writer))
            if log:
                log.write(done)
            log_event(logger, "trial", training=f"{dataset} {arm.method.name}", **done[-1].record)
            show(done[-1], trials, best_of(done) is done[-1])
            signals.check()
    best = best_of(done)
    if best is None:
        raise MAWError(
            f"{dataset} {arm.method.name}: all {trials} trials diverged ({done[-1].facts['failed']}); allow more, or "
            "set the rates to lower ones"
        )
    return Tuned(best.rates, tuple(done), _account(search, best, done))


def _try(
    arm: Arm,
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
    with arm.metered() as meter:
        try:
            config = replace(arm.configure(seed, rates), diagnostics="none")  # of weights that no one keeps
            history = arm.train(arm.build(config), train, validation, dataset, writer, meter)
        except NotFiniteError as error:
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
    """The trial of highest score, the first of equals; None if none has a score."""
    return max((trial for trial in trials if trial.score is not None), key=lambda trial: trial.score, default=None)


def at_edge(best: Trial, trials: Sequence[Trial]) -> dict[str, str]:
    """The rates of which the best trial has the lowest or highest value tried, by setting: "lowest" or "highest"."""
    found = {}
    for name, value in best.rates.items():
        values = _values(name, trials)
        if len(values) > 1 and value in (values[0], values[-1]):
            found[name] = "lowest" if value == values[0] else "highest"
    return found


def _account(search: Search, best: Trial, trials: Sequence[Trial]) -> dict[str, Any]:
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
    """A step out of the range tried, where the best trial is at its edge; None where it is not, or cannot go on."""
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


def _around(default: float) -> tuple[float, float]:
    return default / FACTOR, min(default * FACTOR, HIGHEST)


def _between(low: float, high: float, share: float) -> float:
    """The point of a range at `share` of the way, in the logarithm."""
    return _rounded(low * (high / low) ** share)


def _rounded(value: float) -> float:
    """To so few digits that it can be typed in."""
    return float(f"{value:.{DIGITS}g}")
