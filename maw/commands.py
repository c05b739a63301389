"""What `tier_1.py` does beside running the benchmark: a word in front of everything else on the command line.

    python tier_1.py doctor                                   # is everything there?
    python tier_1.py search logs/tier1 "parse a date"         # with the models of a run
    python tier_1.py export logs/tier1 --method maw my-model  # for other programs
    python tier_1.py report logs/tier1                        # every report again, from the files of a run
    python tier_1.py compare logs/a logs/b                    # two runs against each other

A command is a function from the words of the command line, its name first, to an exit code. Its module is loaded when
it is called. Exit codes are those of `tier_1.py`: 2 for a command line that names what there is not, 1 for all else
that the user can mend.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from typing import NoReturn

from maw.errors import ConfigError

COMMANDS = {
    "compare": "maw.report.commands:compare",
    "doctor": "maw.doctor:main",
    "export": "maw.export:main",
    "report": "maw.report.commands:report",
    "search": "maw.search_run:main",
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
    module, _, function = COMMANDS[argv[0]].partition(":")
    command: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), function)
    return command(argv)


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
