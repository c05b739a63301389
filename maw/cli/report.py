"""The commands `report` and `compare`: they read files of runs and load neither a model nor a collection.

python tier_1.py report logs/tier1                        # writes every report again
python tier_1.py report logs/tier1 --compare full         # beside them those of another subject, all exploratory
python tier_1.py compare logs/a logs/b                    # the same methods of two runs, on their common queries
python tier_1.py compare logs/a logs/b --method maw --against lora --out comparison.json
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def report(words: argparse.Namespace) -> int:
    """The command `report`, see `maw.cli.commands`."""
    from maw.report.rebuild import find_folders, write_reports
    from maw.runtime.console import answer

    alone = "torch" not in sys.modules  # a forked process lacks torch's threads
    processes = (os.cpu_count() or 1) if alone else 1
    folder = write_reports(words.run, find_folders(words.run), processes=processes, subject=words.compare)
    answer(f"Written to {folder}")
    return 0


def compare(words: argparse.Namespace) -> int:
    """The command `compare`, see `maw.cli.commands`."""
    from maw.report.compare import compare_runs, comparison_text
    from maw.runtime.console import answer
    from maw.storage.files import write_json

    found = compare_runs(*words.runs, method=words.method, against=words.against)
    answer(comparison_text(found))
    if words.out:
        answer(f"\nWritten to {write_json(Path(words.out), found)}")
    return 0
