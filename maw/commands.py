"""What `tier_1.py` does beside running the benchmark: one word, and the function that answers to it.

    python tier_1.py export logs/tier1 --method maw my-model

A command is a function from the words after its name to an exit code. Its module is loaded when it is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

COMMANDS = {
    "doctor": "maw.doctor:main",
    "export": "maw.export:main",
    "search": "maw.search_run:main",
}


def find_command(argv: Sequence[str]) -> Callable[[Sequence[str]], int] | None:
    """The command that a command line begins with, or None."""
    if not argv or argv[0] not in COMMANDS:
        return None
    module, _, function = COMMANDS[argv[0]].partition(":")
    return getattr(importlib.import_module(module), function)
