"""What `tier_1.py` does beside running the benchmark: words in front of everything else on the command line.

    python tier_1.py report logs/tier1                        # every report again, from the files alone
    python tier_1.py compare logs/a logs/b                    # the same methods of two runs, on their common queries
    python tier_1.py compare logs/a logs/b --method maw --against lora --out comparison.json

Neither loads a model or a collection. Exit codes are those of `tier_1.py`: 2 for wrong use, 1 for what is refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from maw.config import METHODS
from maw.errors import ConfigError

COMMANDS = ("report", "compare")


def run_command(argv: Sequence[str]) -> int:
    """Runs one of `COMMANDS`.

    Args:
        argv: the words after the program's name, the command first.

    Returns:
        The exit code.

    Raises:
        ConfigError: wrong use.
        MAWError: files that cannot be read or written, or runs that cannot be compared.
        SystemExit: with 0, after --help.
    """
    words = _parser(argv[0]).parse_args(argv[1:])
    return _report(words) if argv[0] == "report" else _compare(words)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError([f"{self.prog.split()[-1]}: {message}; see {self.prog} --help"])


def _parser(command: str) -> argparse.ArgumentParser:
    about = {
        "report": "Makes every report of a run again from its files: summary, tables, tests and pictures.",
        "compare": "Tests two runs against each other on their common queries; refuses where they do not compare.",
    }
    parser = _Parser(prog=f"tier_1.py {command}", description=about[command], allow_abbrev=False)
    if command == "report":
        parser.add_argument("run", metavar="RUN_DIR", help="the folder that --log-dir named")
        return parser
    parser.add_argument("runs", metavar="RUN", nargs=2, help="two folders that --log-dir named")
    names = ", ".join(METHODS)
    parser.add_argument("--method", metavar="NAME", choices=METHODS, help=f"of the first run: {names}; unset: all")
    parser.add_argument("--against", metavar="NAME", choices=METHODS, help="of the second run; unset: the same")
    parser.add_argument("--out", metavar="FILE", help="write every test as JSON, too")
    return parser


def _report(words: argparse.Namespace) -> int:
    from maw.report.rebuild import find_folders, write_reports
    from maw.report.text import show

    folder = write_reports(words.run, find_folders(words.run))
    show(f"Written to {folder}")
    return 0


def _compare(words: argparse.Namespace) -> int:
    from maw.files import write_json
    from maw.report.compare import compare_runs, comparison_text
    from maw.report.text import show

    if words.against and not words.method:
        raise ConfigError(["compare: --against names the second run's method; name the first one's by --method too"])
    found = compare_runs(*words.runs, method=words.method, against=words.against)
    show(comparison_text(found))
    if words.out:
        show(f"\nWritten to {write_json(Path(words.out), found)}")
    return 0
