"""The commands of `tier_1.py` other than the benchmark; the command is the first word.

    python tier_1.py doctor                                   # checks this machine
    python tier_1.py search logs/tier1 "parse a date"         # searches with the models of a run
    python tier_1.py export logs/tier1 --method maw my-model  # writes a model for other programs
    python tier_1.py report logs/tier1                        # writes all reports of a run again
    python tier_1.py compare logs/a logs/b                    # compares two runs
    python tier_1.py completion bash                          # prints a shell's completion script

A command is a function from parsed arguments to an exit code. Its module is imported when it is called, so that --help
and errors come at once. Exit codes are those of `tier_1.py`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from maw.config.paths import expand_home
from maw.errors import ConfigError

SHELLS = ("bash", "zsh")


@dataclass(frozen=True)
class Command:
    """One command: its "module:function", its help, and what adds its arguments.

    With None it takes the flags of a run, and `switches` beside them.
    """

    target: str
    about: str
    add_arguments: Callable[[argparse.ArgumentParser], object] | None
    switches: tuple[str, ...] = ()


def _add_run_dir(parser: argparse.ArgumentParser) -> None:
    about = "--log-dir of a finished run, or a dataset's folder in it"
    parser.add_argument("run_dir", metavar="RUN_DIR", type=expand_home, help=about)


def _add_part_of_run(parser: argparse.ArgumentParser, dataset: str) -> None:
    parser.add_argument("--dataset", help=dataset)
    parser.add_argument("--seed", type=int, help="training seed; default: the first of the run")
    parser.add_argument("--fold", type=int, help="fold of the cross-validation; default: the first")
    moved = "where a folder of the run (model, dataset, distractors) of this name is now; may be repeated"
    code = "the code of a user's method: FILE.py:CLASS; a run's folder never says what code is loaded"
    parser.add_argument("--method-file", metavar="FILE.py:CLASS", help=code)
    parser.add_argument("--moved", metavar="FOLDER", action="append", default=[], help=moved)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs=2, type=expand_home, help="log folders (--log-dir) of two runs")
    parser.add_argument("--method", metavar="NAME", help="method of the first run; unset: all")
    parser.add_argument("--against", metavar="NAME", help="method of the second run; unset: the same")
    parser.add_argument("--out", metavar="FILE", type=expand_home, help="also write every test as JSON to this file")


def _add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=" or ".join(SHELLS))


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_run_dir(parser)
    parser.add_argument("out", metavar="OUT", type=expand_home, help="the folder to write; it must be new or empty")
    parser.add_argument("--method", default="maw", help="method of the run (default: %(default)s)")
    _add_part_of_run(parser, "dataset of the run, if it has several")
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="also upload it to this repository, as private")
    parser.add_argument("--public", action="store_true", help="make the uploaded repository public")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN_DIR", type=expand_home, help="log folder (--log-dir) of a run")
    about = "report this method against all others, in summary_SUBJECT/; what was not planned is exploratory"
    parser.add_argument("--compare", metavar="SUBJECT", help=about)


def _add_search(parser: argparse.ArgumentParser) -> None:
    _add_run_dir(parser)
    parser.add_argument("query", metavar="QUERY", help="the words to search for")
    parser.add_argument("--method", help="methods of the run, separated by commas; default: all")
    parser.add_argument("--k", type=_count, default=10, help="passages to show (default: %(default)s)")
    _add_part_of_run(parser, "dataset of the run, if it has several")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


COMMANDS = {
    "compare": Command(
        "maw.cli.report:compare",
        "Tests two runs against each other on their common queries; refuses runs that cannot be compared.",
        _add_compare,
    ),
    "completion": Command("maw.cli.completion:main", "Prints the completion script of a shell.", _add_completion),
    "doctor": Command("maw.cli.doctor:main", "Checks whether this machine can do a run.", None, ("--full",)),
    "export": Command(
        "maw.cli.export:main", "Writes a trained retriever as a folder that sentence-transformers loads.", _add_export
    ),
    "report": Command(
        "maw.cli.report:report",
        "Writes all reports of a run again from its files: summary, tables, tests and pictures.",
        _add_report,
    ),
    "search": Command("maw.cli.search:main", "Searches a run's passages with its trained models.", _add_search),
}


def run_command(argv: Sequence[str]) -> int:
    """Runs one of `COMMANDS`, the first word of `argv`; returns the exit code.

    Raises:
        ConfigError: wrong arguments, or folders, datasets, methods and seeds that do not exist.
        MAWError: any other refusal of the command.
        SystemExit: with 0, after --help.
    """
    command = COMMANDS[argv[0]]
    given = argv[1:] if command.add_arguments is None else parser_of(argv[0]).parse_args(argv[1:])
    module, _, function = command.target.partition(":")
    run: Callable[[object], int] = getattr(importlib.import_module(module), function)
    return run(given)


def parser_of(name: str) -> Parser:
    """The parser of a command, with its arguments."""
    command = COMMANDS[name]
    parser = Parser(name, command.about)
    if command.add_arguments is not None:
        command.add_arguments(parser)
    return parser


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises ConfigError for mistakes."""

    def __init__(self, command: str, description: str):
        super().__init__(prog=f"tier_1.py {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError([f"{self.prog.split()[-1]}: {message}; see {self.prog} --help"])
