"""What `tier_1.py` does beside running the benchmark: a word in front of everything else on the command line.

    python tier_1.py doctor                                   # is everything there?
    python tier_1.py search logs/tier1 "parse a date"         # with the models of a run
    python tier_1.py export logs/tier1 --method maw my-model  # for other programs
    python tier_1.py report logs/tier1                        # every report again, from the files of a run
    python tier_1.py compare logs/a logs/b                    # two runs against each other
    python tier_1.py completion bash                          # what makes a shell complete all of this

A command is a function from the arguments described here to an exit code. Its module is loaded when it is called, so
that --help and wrong use are answered at once. Exit codes are those of `tier_1.py`: 2 for a command line that names
what there is not, 1 for all else that the user can mend.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from maw.config.methods import METHOD_NAMES
from maw.errors import ConfigError

SHELLS = ("bash", "zsh")


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        target: its "module:function", from what was parsed to an exit code.
        about: what it does, in a sentence.
        add_arguments: to its parser; None for a command that gets the words as they are, flags of a run.
    """

    target: str
    about: str
    add_arguments: Callable[[argparse.ArgumentParser], object] | None


def _add_part_of_run(parser: argparse.ArgumentParser, dataset: str) -> None:
    parser.add_argument("--dataset", help=dataset)
    parser.add_argument("--seed", type=int, help="of the training, where the run had several; default: the first")
    parser.add_argument("--fold", type=int, help="of the cross-validation, where the run had it; default: the first")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs=2, help="two folders that --log-dir named")
    method = f"of the first run: {', '.join(METHOD_NAMES)}; unset: all"
    parser.add_argument("--method", metavar="NAME", choices=METHOD_NAMES, help=method)
    parser.add_argument("--against", metavar="NAME", choices=METHOD_NAMES, help="of the second run; unset: the same")
    parser.add_argument("--out", metavar="FILE", help="write every test as JSON, too")


def _add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=" or ".join(SHELLS))


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", help="--log-dir of a finished run, or a dataset's folder in it")
    parser.add_argument("out", metavar="OUT", help="the folder to write; it must not exist, or be empty")
    parser.add_argument("--method", default="maw", help="which of the run's methods (default: %(default)s)")
    _add_part_of_run(parser, "whose results, where the run had several")
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="upload it to this repository too, made private")
    parser.add_argument("--public", action="store_true", help="let everyone read what --push-to-hub uploads")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN_DIR", help="the folder that --log-dir named")


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", help="--log-dir of a finished run, or a dataset's folder in it")
    parser.add_argument("query", metavar="QUERY", help="the words to search for")
    parser.add_argument("--method", help="methods of the run, with commas between; default: all that it has")
    parser.add_argument("--k", type=_count, default=10, help="passages to show (default: %(default)s)")
    _add_part_of_run(parser, "whose passages, where the run had several")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


COMMANDS = {
    "compare": Command(
        "maw.cli.report:compare",
        "Tests two runs against each other on their common queries; refuses where they do not compare.",
        _add_compare,
    ),
    "completion": Command(
        "maw.cli.completion:main", "Prints what makes a shell complete commands, flags and values.", _add_completion
    ),
    "doctor": Command("maw.cli.doctor:main", "Checks whether this machine can do a run.", None),
    "export": Command(
        "maw.cli.export:main",
        "Writes a trained retriever as a folder that sentence-transformers loads.",
        _add_export,
    ),
    "report": Command(
        "maw.cli.report:report",
        "Makes every report of a run again from its files: summary, tables, tests and pictures.",
        _add_report,
    ),
    "search": Command(
        "maw.cli.search:main", "Searches a run's passages with the models that it trained.", _add_search
    ),
}


def run_command(argv: Sequence[str]) -> int:
    """Runs one of `COMMANDS`.

    Args:
        argv: the words after the program's name, the command first.

    Returns:
        The exit code.

    Raises:
        ConfigError: wrong use, which includes folders, datasets, methods and seeds that are not there.
        MAWError: what else the command refuses.
        SystemExit: with 0, after --help.
    """
    command = COMMANDS[argv[0]]
    given = argv[1:] if command.add_arguments is None else parser_of(argv[0]).parse_args(argv[1:])
    module, _, function = command.target.partition(":")
    run: Callable[[object], int] = getattr(importlib.import_module(module), function)
    return run(given)


def parser_of(name: str) -> Parser:
    """The parser of a command, with the arguments of its own that it has."""
    command = COMMANDS[name]
    parser = Parser(name, command.about)
    if command.add_arguments is not None:
        command.add_arguments(parser)
    return parser


class Parser(argparse.ArgumentParser):
    """A command's words; what is wrong with them is an error as all others of `tier_1.py`.

    Args:
        command: its name.
        description: a sentence.
    """

    def __init__(self, command: str, description: str):
        super().__init__(prog=f"tier_1.py {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError([f"{self.prog.split()[-1]}: {message}; see {self.prog} --help"])
