"""The command line, derived from the fields of `Tier1Config`.

    python tier_1.py --preset offline --config run.yaml --num-epochs 5 --no-compress-logs

Later sources win: the defaults, a preset, a file, the flags. argparse describes the flags and prints the help; it is
not asked to parse, for it stops at the first mistake, and here all mistakes of a command line are reported at once.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

from maw import __version__
from maw.cli import config_file
from maw.cli.commands import COMMANDS
from maw.config.fields import Kind, Problem, from_text, split_names
from maw.config.methods import METHOD_NAMES
from maw.config.presets import PRESETS, SECTIONS
from maw.config.tier1_config import Tier1Config, check_preset, gather, kinds
from maw.data.dataset_table import DATASETS
from maw.errors import ConfigError, closest, show, suggestion
from maw.experiment import run_state
from maw.experiment.validation import find_problems
from maw.storage import run_record

_NAMES = {"datasets": DATASETS, "methods": METHOD_NAMES}
"""What the line under a field leaves to its table to name."""
USAGE = "python tier_1.py [--preset NAME] [--config FILE] [--SETTING VALUE ...]"


def parse_command_line(argv: Sequence[str]) -> Tier1Config:
    """The configuration that a command line asks for, checked as a whole.

    Args:
        argv: the words after the program's name.

    Raises:
        ConfigError: every mistake in the flags, the file and their combination, one line each.
        SystemExit: with 0, after --help or --version.
    """
    config, mistakes = read_command_line(argv)
    if mistakes:
        raise ConfigError(mistakes)
    return config


def read_command_line(argv: Sequence[str]) -> tuple[Tier1Config, list[str]]:
    """As `parse_command_line`, with the mistakes beside a configuration of whatever is good."""
    words = _read_words(argv)
    if "help" in words.asked:
        build_parser().print_help()
        raise SystemExit(0)
    if "version" in words.asked:
        sys.stdout.write(f"tier_1.py {__version__}\n")
        raise SystemExit(0)
    sources = _read_sources(words)
    if "resume" in words.values:
        return _resumed(words, sources)
    flags = {name: value for name, value in words.values.items() if name in kinds()}
    config, problems = gather(sources.values | flags)
    unsure = words.broken if sources.complete else words.broken | (set(kinds()) - set(flags))
    problems = [problem for problem in problems if not unsure.intersection((problem.name, *problem.also))]
    found, _ = find_problems(config, problems, unsure, mistaken=bool(words.mistakes or sources.mistakes))
    places = {name: place for name, place in sources.places.items() if name not in flags}
    return config, [*words.mistakes, *sources.mistakes, *(_describe(problem, places) for problem in found)]


def _resumed(words: _Words, sources: _Sources) -> tuple[Tier1Config, list[str]]:
    """The configuration of the run that --resume names, and why it cannot go on.

    What else is given must be as it was when the run began, or change no result.

    Raises:
        ConfigError: no such run, or mistakes in what names it.
        SystemExit: with 0, the run has finished already.
    """
    given = sources.values | {name: value for name, value in words.values.items() if name in kinds()}
    if words.mistakes or sources.mistakes:
        raise ConfigError([*words.mistakes, *sources.mistakes])
    folder = run_state.find_run(str(given["resume"]), given.get("log_dir"))
    if run_record.is_finished(folder):
        sys.stdout.write(f"{folder}: this run has finished; there is nothing left to do\n")
        raise SystemExit(0)
    record = run_record.read_run(folder)
    config, problems = gather(record["config"] | given | {"log_dir": str(folder), "resume": str(folder)})
    changed = run_state.changes(record, config)
    mistakes = [run_state.refusal(folder), *changed] if changed else []
    mistakes += [_describe(problem, sources.places) for problem in find_problems(config, problems)[0]]
    return config, mistakes


def _read_sources(words: _Words) -> _Sources:
    """The preset and the file that a command line names, the file over the preset."""
    sources = _Sources(complete=not words.broken & {"preset", "config"})
    if "preset" in words.values:
        wrong = check_preset(words.values["preset"])
        sources.values |= PRESETS.get(words.values["preset"], {})
        if wrong:
            sources.fail([f"--preset: {wrong}"])
    if "config" in words.values:
        try:
            settings = config_file.read_settings(words.values["config"])
        except ConfigError as error:
            sources.fail(error.problems)
        else:
            sources.values |= settings.values
            sources.places |= settings.places
    return sources


@dataclass
class _Sources:
    """What stands behind the flags: settings, the place of each one that a file gives, and mistakes.

    `complete` is false once a source could not be read: settings that no flag gives are then not known.
    """

    complete: bool
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)

    def fail(self, mistakes: Sequence[str]) -> None:
        """Notes that a source could not be read."""
        self.mistakes.extend(mistakes)
        self.complete = False


def flag_of(name: str) -> str:
    """The flag of a field: "batch_size" is --batch-size."""
    return f"--{name.replace('_', '-')}"


def _describe(problem: Problem, places: dict[str, str]) -> str:
    """The problem with the place it comes from: file and line, or the flag."""
    if problem.name in places:
        return f"{places[problem.name]}: {problem}"
    return f"{flag_of(problem.name)}: {problem.text}" if problem.name in kinds() else str(problem)


@dataclass
class _Words:
    """A command line taken apart: settings by name, --help and --version, the mistakes, the settings they broke."""

    values: dict[str, Any] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    mistakes: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    def add(self, name: str, flag: str, value: Any) -> None:
        """Keeps a setting; one given twice is a mistake, since the second would silently undo the first."""
        if name in self.values:
            self.mistakes.append(f"{flag}: is given more than once")
        self.values[name] = value

    def miss(self, name: str, message: str) -> None:
        """Notes a mistake that leaves a setting without a value."""
        self.mistakes.append(message)
        self.broken.add(name)


def _read_words(argv: Sequence[str]) -> _Words:
    words, rest = _Words(), list(argv)
    while rest:
        word = rest.pop(0)
        flag, has_value, value = word.partition("=")
        if word in ("-h", "--help", "--version"):
            words.asked.add("help" if word != "--version" else "version")
        elif flag in _switches():
            _read_switch(words, flag, value if has_value else None)
        elif flag in _options():
            _read_option(words, flag, [value] if has_value else _take_values(_options()[flag], rest))
        elif _is_flag(word):
            _refuse_flag(words, flag, rest if not has_value else [])
        else:
            words.mistakes.append(f"{show(word)}: is not a flag, and no flag before it takes it{_command(word, argv)}")
    return words


def _command(word: str, argv: Sequence[str]) -> str:
    """What a word is that may be meant for a command."""
    if word in COMMANDS:
        return f"; the command {word} stands first"
    if word == argv[0]:
        return f"{suggestion(word, COMMANDS)}; the commands are {', '.join(COMMANDS)}"
    return ""


def _refuse_flag(words: _Words, flag: str, rest: list[str]) -> None:
    """Notes an unknown flag, and passes over the values that the flag it looks like would take."""
    close = closest(flag, [*_options(), *_switches()])
    words.mistakes.append(f"{show(flag)[1:-1]}: no such flag{f' (did you mean {close}?)' if close else ''}")
    if close not in _switches():
        _take_values(_options().get(close, ""), rest)


def _take_values(name: str, rest: list[str]) -> list[str]:
    """Takes the values that follow a flag off the words: as many as there are for a list, else one."""
    values: list[str] = []
    several = name in kinds() and kinds()[name].base in (list, "layers")
    while rest and not _is_flag(rest[0]) and (several or not values):
        values.append(rest.pop(0))
    return values


def _is_flag(word: str) -> bool:
    """Whether a word is a flag and not a value such as -1 or -1,-2."""
    return word.startswith("-") and len(word) > 1 and not (word[1].isdigit() or word[1] == ".")


def _read_option(words: _Words, flag: str, values: list[str]) -> None:
    name = _options()[flag]
    if not values:
        words.miss(name, f"{flag}: needs a value")
    elif name not in kinds():
        words.add(name, flag, values[0])
    elif kinds()[name].base is list:
        words.add(name, flag, [part for value in values for part in split_names(value)])
    else:
        text = " ".join(values)
        words.add(name, flag, from_text(kinds()[name], text))


def _read_switch(words: _Words, flag: str, text: str | None) -> None:
    name, value = _switches()[flag]
    if text is not None:
        words.miss(name, f"{flag}: takes no value; it is {flag_of(name)} or --no-{flag_of(name)[2:]}")
    else:
        words.add(name, flag, value)


@cache
def _options() -> dict[str, str]:
    """The flags that take a value, with the setting each one sets."""
    fields = {flag_of(name): name for name, kind in kinds().items() if kind.base is not bool}
    return {"--preset": "preset", "--config": "config"} | fields


@cache
def _switches() -> dict[str, tuple[str, bool]]:
    """The flags that take none, with the setting and the value that each one gives it."""
    names = [name for name, kind in kinds().items() if kind.base is bool]
    return {flag_of(name): (name, True) for name in names} | {
        f"--no-{flag_of(name)[2:]}": (name, False) for name in names
    }


def build_parser() -> argparse.ArgumentParser:
    """The flags as an argparse parser, for its help text."""
    parser = argparse.ArgumentParser(
        prog="tier_1.py",
        usage=USAGE,
        description="Zero-shot, LoRA and MAW dense retrieval on the same data, under one protocol.",
        epilog="Later sources win: the defaults, --preset, --config, the other flags. "
        f"There are other commands, each with its own --help: {', '.join(COMMANDS)}.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--preset", metavar="NAME", help=f"a named set of defaults: {', '.join(PRESETS)}")
    parser.add_argument("--config", metavar="FILE", help="a YAML or JSON file of settings, named as in Tier1Config")
    documentation = field_documentation()
    group: Any = parser
    for name, kind in kinds().items():
        if name in SECTIONS:
            group = parser.add_argument_group(SECTIONS[name])
        _add_argument(group, name, kind, documentation.get(name, ""))
    return parser


def _add_argument(group: Any, name: str, kind: Kind, documentation: str) -> None:
    if name in _NAMES:
        documentation = documentation.replace("{names}", ", ".join(_NAMES[name]))
    default = getattr(Tier1Config(), name)
    shown = ",".join(default) if isinstance(default, list) else str(default)
    text = documentation.replace("%", "%%") + ("" if default is None else f" (default: {shown})")
    if kind.base is bool:
        group.add_argument(flag_of(name), action=argparse.BooleanOptionalAction, help=text)
        return
    metavar = {int: "N", float: "X", str: "TEXT", list: "A,B", "layers": "LAYERS"}[kind.base]
    words = kind.choices or ((metavar, kind.word) if kind.word else (metavar,))
    group.add_argument(flag_of(name), metavar="|".join(words), help=text)


def field_documentation() -> dict[str, str]:
    """The line under each field of `Tier1Config`; nothing where the source is not at hand."""
    try:
        source = inspect.getsource(Tier1Config)
    except OSError:
        return {}
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    lines = {}
    for statement, following in pairwise(definition.body):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            lines[ast.unparse(statement.target)] = ast.literal_eval(following.value)
    return lines
