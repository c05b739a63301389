"""The commands `report` and `compare` of `tier_1.py`: what can be done with the files of runs alone.

    python tier_1.py report logs/tier1                        # every report again
    python tier_1.py compare logs/a logs/b                    # the same methods of two runs, on their common queries
    python tier_1.py compare logs/a logs/b --method maw --against lora --out comparison.json

Neither loads a model or a collection.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maw.commands import Parser
from maw.config import METHODS


def report(argv: Sequence[str]) -> int:
    """The command `report`, see `maw.commands`."""
    from maw.console import answer
    from maw.report.rebuild import find_folders, write_reports

    parser = Parser("report", "Makes every report of a run again from its files: summary, tables, tests and pictures.")
    parser.add_argument("run", metavar="RUN_DIR", help="the folder that --log-dir named")
    words = parser.parse_args(argv[1:])
    folder = write_reports(words.run, find_folders(words.run))
    answer(f"Written to {folder}")
    return 0


def compare(argv: Sequence[str]) -> int:
    """The command `compare`, see `maw.commands`."""
    from maw.console import answer
    from maw.files import write_json
    from maw.report.compare import compare_runs, comparison_text

    about = "Tests two runs against each other on their common queries; refuses where they do not compare."
    parser = Parser("compare", about)
    parser.add_argument("runs", metavar="RUN", nargs=2, help="two folders that --log-dir named")
    names = ", ".join(METHODS)
    parser.add_argument("--method", metavar="NAME", choices=METHODS, help=f"of the first run: {names}; unset: all")
    parser.add_argument("--against", metavar="NAME", choices=METHODS, help="of the second run; unset: the same")
    parser.add_argument("--out", metavar="FILE", help="write every test as JSON, too")
    words = parser.parse_args(argv[1:])
    found = compare_runs(*words.runs, method=words.method, against=words.against)
    answer(comparison_text(found))
    if words.out:
        answer(f"\nWritten to {write_json(Path(words.out), found)}")
    return 0
