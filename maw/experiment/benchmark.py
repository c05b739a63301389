"""The whole experiment: every method on every dataset, and its result files.

    from tier_1 import Tier1Config, run_complete_benchmark
    results = run_complete_benchmark(Tier1Config(...))

    python tier_1.py --tune 9 --seeds 3 --folds 5      # 9 trials for every method, seeds, cross-validation
    python tier_1.py --resume last                     # continues an interrupted run to the same results

A run makes its plan, opens its folder and runs its datasets (`maw.experiment.run_datasets`). Each finished part is
saved (`maw.experiment.run_state`, `maw.experiment.dataset_state`), so that an interrupted run does not repeat it.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import Any

import torch

from maw.config.tier1_config import Tier1Config, absolute_paths
from maw.data.check import check_data, refuse
from maw.data.registry import check_sources
from maw.evaluation import confirmatory, exploratory
from maw.experiment.config_checks import validate
from maw.experiment.plan.plan import make_plan
from maw.experiment.plan.plan_text import data_text, plan_text
from maw.experiment.run_datasets import run_datasets
from maw.experiment.run_state import differences, find_run, open_run
from maw.report.text import summary
from maw.runtime import console, distributed, trackers
from maw.runtime.devices import pick_device
from maw.runtime.environment import command
from maw.runtime.precision import fixed_precision, name_of, numerics, pick_precision
from maw.runtime.run_log import log_event
from maw.storage.files import check_writable
from maw.storage.locks import run_lock

logger = logging.getLogger(__name__)


def run_complete_benchmark(config: Tier1Config | None = None) -> dict[str, Any]:
    """Runs every method of `config.methods` on every dataset of `config.datasets` and writes the results.

    Before it downloads anything or loads a model it shows its plan, stops if a disk is too small, and then checks the
    data (`maw.data.check`).

    Args:
        config: the run's configuration; the defaults if None.

    Returns:
        The content of `summary/all_results.json`: each dataset's results by its name. Empty if `config.dry_run`.

    Raises:
        ConfigError: every mistake in the configuration, before anything is loaded; or the run to resume has changed,
            or a new run would overwrite an unfinished one.
        Stopped: a signal stopped the run; finished parts are kept.
        DataError: the data of a dataset cannot be used.
        MAWError: any other error that the user can fix.
    """
    config = config or Tier1Config()
    with (
        console.configured(quiet=config.quiet, json_progress=config.json_progress),
        distributed.session(config.device),
        numerics(tf32=config.tf32, deterministic=config.deterministic),
    ):
        return _run(config)


def _run(config: Tier1Config) -> dict[str, Any]:
    if config.resume:
        config = replace(config, log_dir=str(find_run(config.resume)))
    validate(config)  # messages name paths as the user wrote them
    config = absolute_paths(config)
    spec = validate(config)
    device = pick_device(config)
    plan = make_plan(config, spec)
    (console.answer if config.dry_run else console.show)(plan_text(plan))
    if distributed.is_distributed():
        here = distributed.this_process()
        logger.info("%d processes, %d of them on this machine", here.count, here.local_count)
    if not config.dry_run:
        plan.check_disks()
        check_sources(config.datasets, config)
        check_writable(config.log_dir)
        described = replace(config, resume=None, restart=False).to_dict()
        log_event(logger, "run", schema=console.SCHEMA, configuration=described)
    if not config.resume and not plan.too_small():
        _check_data(config)
    if config.dry_run:
        return {}
    with run_lock(config.log_dir) if distributed.is_main() else contextlib.nullcontext():
        cuda = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability()
        machine = {  # the number format may come from a measurement, so it is saved with the run
            "precision": name_of(pick_precision(config.precision, device)),
            "machine": {"device": device.type, "units": name, "threads": torch.get_num_threads()},
        }
        with distributed.main_first():
            state = open_run(config, machine | {"command": command()})
        changed = differences(state.record["machine"], machine["machine"], "")
        if changed:
            listed = "; ".join(line.strip() for line in changed)
            logger.warning(
                "the run continues on another processor than it began on; last digits may differ (%s)", listed
            )
        config = replace(config, resume=None, restart=False)
        tracked = trackers.reporting(config.report_to, config.log_dir, state.id, state.record["started"])
        with fixed_precision(device, state.record["precision"]), tracked:
            results = run_datasets(config, spec, device, state)
        state.finish()
    found = list(results.values())
    families = [confirmatory.over_run(found), exploratory.over_run(found)]
    if config.quiet and distributed.is_main():
        console.answer(summary.answers(found, families, verbose=config.verbose))
    console.answer(summary.conclusion(found, families, config.log_dir))
    return results


def _check_data(config: Tier1Config) -> None:
    """Shows what is in the data; a run logs its warnings when it loads them.

    Raises:
        DataError: what a run would refuse, of all datasets.
    """
    with distributed.main_first():
        checks = list(check_data(config, full=not config.dry_run))
    (console.answer if config.dry_run else console.show)(data_text(checks, warnings=config.dry_run))
    refuse(checks)
