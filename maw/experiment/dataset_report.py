"""Tests, shows and writes the results of one dataset."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path
from typing import Any

from maw.config.paths import short_path
from maw.experiment.dataset_result import Outcome
from maw.experiment.dataset_state import DatasetState
from maw.experiment.model_card import write_cards
from maw.experiment.past_run import PastRun
from maw.report import layout
from maw.report.significance_marks import power_sentence
from maw.report.text import summary
from maw.report.text.differences import effects_text
from maw.report.text.profile import profile_text
from maw.runtime import console
from maw.runtime.profiler import current, stage
from maw.runtime.run_log import log_event
from maw.storage.files import write_json

logger = logging.getLogger(__name__)

STAMP = "%Y%m%d_%H%M%S"


def report_dataset(outcome: Outcome, started: datetime, state: DatasetState | None) -> tuple[dict[str, Any], Path]:
    """Tests the methods of a dataset against each other, shows the results and writes the dataset's folder.

    Returns the content of dataset.json, and the folder.

    Args:
        state: resumable state of the dataset, which names its folder; None for a new folder.
    """
    effects, verbose = outcome.smallest_effects(), outcome.config.verbose
    if effects:  # before any result is shown
        console.show(f"\n{effects_text(effects) if verbose else power_sentence(list(effects.values()))}")
    with stage("significance and report"):
        result = outcome.result(started, effects, state.run.record.get("command") if state else None)
    if verbose:
        for record in outcome.records.values():
            console.show(f"\n{summary.method_summary(record)}")
    with stage("writing"):
        folder = layout.write_dataset(
            outcome.config.log_dir,
            result,
            outcome.evaluations,
            started.strftime(STAMP),
            extras=outcome.files(),
            folder=state.results_folder if state else None,
        )
        write_cards(PastRun(folder, result, outcome.config), outcome.spec)
    shown = summary.dataset_summary(result) if verbose else summary.dataset_screen(result)
    console.show(f"\n{shown}\n\nWritten to {short_path(folder)}")
    log_event(logger, "dataset", dataset=outcome.collection.name, folder=str(folder))
    profile = current()
    if profile is not None:
        content = profile.content()
        write_json(folder / "profile.json", content)
        console.show(f"\n{profile_text(content)}")
    return result, folder
