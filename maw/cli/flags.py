"""The command line, derived from the fields of `Tier1Config`.

    python tier_1.py --preset offline --config run.yaml --num-epochs 5 --no-compress-logs

Later sources win: defaults, preset, file, flags. argparse prints the help but does not parse: it stops at the first
mistake, and here all mistakes of a command line are reported together.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

from maw import __version__
from maw.cli import config_file
from maw.cli.commands import COMMANDS
from maw.config.fields import Problem, from_text, split_names
from maw.config.methods import METHOD_NAMES
from maw.config.paths import folders_of, found_again, is_folder
from maw.config.presets import FIRST_FLAGS, PRESETS, TOPICS
from maw.config.tier1_config import ALL, Tier1Config, check_preset, gather, kinds
from maw.data.dataset_table import DATASETS
from maw.errors import ConfigError, closest, show, suggestion
from maw.experiment import run_state
from maw.experiment.config_checks import find_problems
from maw.storage import run_record

_NAMES = {"datasets": DATASETS, "methods": METHOD_NAMES}
"""Tables whose names replace {names} in the line under a field."""


def parse_command_line(argv: Sequence[str]) -> Tier1Config:
    """The checked configuration of a command line.

    Raises:
        ConfigError: all mistakes in the flags, the file and their combination, one line each.
        SystemExit: with 0, after --help or --version.
    """
    config, mistakes = read_command_line(argv)
    if mistakes:
        raise ConfigError(mistakes)
    return config


def read_command_line(argv: Sequence[str]) -> tuple[Tier1Config, list[str]]:
    """As `parse_command_line`, but returns the mistakes, with a configuration of the good values."""
    words = _read_words(argv)
    if words.topic is not None:
        build_parser(words.topic).print_help()
        raise SystemExit(0)
    if words.version:
        sys.stdout.write(f"tier_1.py {__version__}\n")
        raise SystemExit(0)
    sources = _read_sources(words)
    if "resume" in words.values:
        return _resumed(words, sources)
    flags = {name: value for name, value in words.values.items() if name in kinds()}
    config, problems = gather(sources.values | flags)
    broken = set(words.broken)
    if sources.mistakes or words.broken & {"preset", "config"}:  # settings without a flag are then unknown
        broken |= set(kinds()) - set(flags)
    problems = [problem for problem in problems if not broken.intersection((problem.name, *problem.also))]
    found, _ = find_problems(config, problems, broken, mistaken=bool(words.mistakes or sources.mistakes))
    positions = {name: position for name, position in sources.positions.items() if name not in flags}
    return config, [*words.mistakes, *sources.mistakes, *(_describe(problem, positions) for problem in found)]


def _resumed(words: _Words, sources: _Sources) -> tuple[Tier1Config, list[str]]:
    """The configuration of the run that --resume names, and the mistakes.

    Other flags must equal the run's, or be in `RESULT_NEUTRAL`.

    Raises:
        ConfigError: there is no such run, or other words or sources have mistakes.
        SystemExit: with 0, if the run has finished.
    """
    given = sources.values | {name: value for name, value in words.values.items() if name in kinds()}
    if words.mistakes or sources.mistakes:
        raise ConfigError([*words.mistakes, *sources.mistakes])
    folder = run_state.find_run(str(given["resume"]), given.get("log_dir"))
    if run_record.is_finished(folder):
        sys.stdout.write(f"{folder}: this run has finished; there is nothing left to do\n")
        raise SystemExit(0)
    record = run_record.read_run(folder)
    settings = found_again(record["config"], folder)
    config, problems = gather(settings | given | {"log_dir": str(folder), "resume": str(folder)})
    changed = run_state.changes(record, config)
    mistakes = [run_state.refusal(folder), *changed] if changed else []
    unsure = {"methods"} if changed else set()  # whose code may be what has changed: it is then not executed
    mistakes += [_describe(problem, sources.positions) for problem in find_problems(config, problems, unsure)[0]]
    gone = [each for each in folders_of(vars(config) | {"cache_dir": None}) if not is_folder(each)]
    if gone:
        text = f"the run needs {gone[0]}, which is not there. If it moved, say where a folder of this name is now"
        mistakes.append(f"--resume {folder}: {text}: --model FOLDER, --datasets beir:FOLDER or --distractors FOLDER")
    return config, mistakes


def _read_sources(words: _Words) -> _Sources:
    """Reads the preset and the file of a command line; the file wins."""
    sources = _Sources()
    if "preset" in words.values:
        wrong = check_preset(words.values["preset"])
        sources.values |= PRESETS.get(words.values["preset"], {})
        if wrong:
            sources.mistakes.append(f"--preset: {wrong}")
    if "config" in words.values:
        try:
            settings = config_file.read_settings(words.values["config"])
        except ConfigError as error:
            sources.mistakes += error.problems
        else:
            sources.values |= settings.values
            sources.positions |= settings.positions
    return sources


@dataclass
class _Sources:
    """Settings from preset and file, their positions in the file, and mistakes."""

    values: dict[str, Any] = field(default_factory=dict)
    positions: dict[str, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)


def flag_of(name: str) -> str:
    """The flag of a field: --batch-size for "batch_size"."""
    return f"--{name.replace('_', '-')}"


def _describe(problem: Problem, positions: dict[str, str]) -> str:
    """The problem with its file and line, or its flag."""
    if problem.name in positions:
        return f"{positions[problem.name]}: {problem}"
    return f"{flag_of(problem.name)}: {problem.text}" if problem.name in kinds() else str(problem)


@dataclass
class _Words:
    """A parsed command line: settings, topic of --help, --version, mistakes, and settings without a valid value."""

    values: dict[str, Any] = field(default_factory=dict)
    topic: str | None = None
    version: bool = False
    mistakes: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    def add(self, name: str, flag: str, value: Any) -> None:
        """Stores a setting; a repeated one is a mistake, since the second would silently replace the first."""
        if name in self.values:
            self.mistakes.append(f"{flag}: is given more than once")
        self.values[name] = value

    def miss(self, name: str, message: str) -> None:
        """Records a mistake that leaves a setting without a value."""
        self.mistakes.append(message)
        self.broken.add(name)


def _read_words(argv: Sequence[str]) -> _Words:
    words, rest = _Words(), list(argv)
    while rest:
        word = rest.pop(0)
        flag, has_value, value = word.partition("=")
        if flag in ("-h", "--help"):
            _read_topic(words, value if has_value or not rest or _is_flag(rest[0]) else rest.pop(0))
        elif word == "--version":
            words.version = True
        elif flag in _switches():
            name, switched_on = _switches()[flag]
            if has_value:
                words.miss(name, f"{flag}: takes no value; it is {flag_of(name)} or --no-{flag_of(name)[2:]}")
            else:
                words.add(name, flag, switched_on)
        elif flag in _options():
            _read_option(words, flag, [value] if has_value else _take_values(_options()[flag], rest), rest[:1])
        elif _is_flag(word):
            close = closest(flag, [*_options(), *_switches()])
            hint = f" (did you mean {close}?)" if close else "; --help all shows every flag"
            words.mistakes.append(f"{show(flag)[1:-1]}: no such flag{hint}")
            if not has_value and close not in _switches():
                _take_values(_options().get(close, ""), rest)  # skipped, as the values of the flag that is meant
        else:
            hint = _command_hint(word, argv)
            words.mistakes.append(f"{show(word)}: is neither a flag nor the value of one{hint}")
    return words


def _read_topic(words: _Words, topic: str) -> None:
    """Records what --help is asked about; "" is the first flags."""
    topics = help_topics()
    if topic in ("", *topics):
        words.topic = topic
        return
    if topic in COMMANDS:
        hint = f"; the command has its own: python tier_1.py {topic} --help"
    else:
        hint = f"{suggestion(topic, topics)}; there are {', '.join(topics)}"
    words.mistakes.append(f"--help: no topic {show(topic)}{hint}")


def _command_hint(word: str, argv: Sequence[str]) -> str:
    """A hint for a word that may be meant as a command."""
    if word in COMMANDS:
        return f"; the command {word} must come first"
    if word == argv[0]:
        return f"{suggestion(word, COMMANDS)}; the commands are {', '.join(COMMANDS)}"
    return ""


def _take_values(name: str, rest: list[str]) -> list[str]:
    """Removes the values of a flag from the words: all up to the next flag for a list, else one."""
    values: list[str] = []
    several = name in kinds() and kinds()[name].base in (list, "layers")
    while rest and not _is_flag(rest[0]) and (several or not values):
        values.append(rest.pop(0))
    return values


def _is_flag(word: str) -> bool:
    """Whether a word is a flag, not a value such as -1 or -1,-2."""
    return word.startswith("-") and len(word) > 1 and not (word[1].isdigit() or word[1] == ".")


def _read_option(words: _Words, flag: str, values: list[str], following: list[str]) -> None:
    name = _options()[flag]
    if not values:
        dashed = [word for word in following if word.partition("=")[0] not in {*_options(), *_switches()}]
        hint = f"; one that begins with - is written {flag}={show(dashed[0])[1:-1]}" if dashed else ""
        words.miss(name, f"{flag}: needs a value{hint}")
    elif name not in kinds():
        words.add(name, flag, values[0])
    elif kinds()[name].base is list:
        words.add(name, flag, [part for value in values for part in split_names(value)])
    else:
        words.add(name, flag, from_text(kinds()[name], " ".join(values)))


@cache
def _options() -> dict[str, str]:
    """Flags with a value -> name of the setting."""
    fields = {flag_of(name): name for name, kind in kinds().items() if kind.base is not bool}
    return {"--preset": "preset", "--config": "config"} | fields


@cache
def _switches() -> dict[str, tuple[str, bool]]:
    """Flags without a value -> name of the setting, and the value that the flag sets."""
    names = [name for name, kind in kinds().items() if kind.base is bool]
    negated = {f"--no-{flag_of(name)[2:]}": (name, False) for name in names}
    return {flag_of(name): (name, True) for name in names} | negated


def help_topics() -> list[str]:
    """The words that may follow --help."""
    return [ALL, *(name for name, _ in TOPICS.values())]


def build_parser(topic: str = ALL) -> argparse.ArgumentParser:
    """The flags as an argparse parser, for its help text.

    Args:
        topic: the flags of one of `TOPICS`, `ALL` of them, or with "" `FIRST_FLAGS`, each with an example.
    """
    parser = argparse.ArgumentParser(
        prog="tier_1.py",
        usage="python tier_1.py [--preset NAME] [--config FILE] [--FLAG VALUE ...]",
        description="Compares zero-shot, LoRA and MAW dense retrieval on the same data, under one protocol.",
        epilog=_MORE_HELP,
        formatter_class=_Formatter,
        allow_abbrev=False,
        add_help=topic == ALL,
    )
    examples = {} if topic else FIRST_FLAGS
    group: Any = (
        parser.add_argument_group("the flags that are used first, each with an example") if examples else parser
    )
    if topic in (ALL, ""):
        names = f"named settings: {', '.join(PRESETS)}; offline needs no network"
        group.add_argument("--preset", metavar=examples.get("preset", "NAME"), help=names)
    if topic == ALL:
        parser.add_argument("--version", action="version", version=__version__)
        parser.add_argument(
            "--config", metavar="FILE", help="a YAML or JSON file of settings, named as in Tier1Config"
        )
    documentation, defaults = field_documentation(), Tier1Config().to_dict()
    section = ""
    for name, kind in kinds().items():
        if name in TOPICS:
            section, about = TOPICS[name]
            if topic in (section, ALL):
                group = parser.add_argument_group(section, about)
        if topic not in (section, ALL) and name not in examples:
            continue
        default, line = defaults[name], documentation.get(name, "")
        line = line.replace("{names}", ", ".join(_NAMES.get(name, ())))
        shown = ",".join(default) if isinstance(default, list) else str(default)
        text = line.replace("%", "%%") + ("" if default in (None, {}) else f" (default: {shown})")
        if kind.base is bool:
            action: Any = "store_true" if examples else argparse.BooleanOptionalAction
            group.add_argument(flag_of(name), action=action, help=line if examples else text)
            continue
        metavar = {int: "N", float: "X", str: "TEXT", list: "A,B", dict: "NAME=X", "layers": "LAYERS"}[kind.base]
        choices = kind.choices or ((metavar, kind.word) if kind.word else (metavar,))
        group.add_argument(flag_of(name), metavar=examples.get(name, "|".join(choices)), help=text)
    return parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Wraps help at blanks alone, so that names such as packaged:all-MiniLM-L6-v2 stay whole."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


_MORE_HELP = "\n".join(
    [
        "more help:",
        *(
            f"  --help {name:<12}{about}"
            for name, about in ((ALL, "every flag, --version and --config"), *TOPICS.values())
        ),
        f"  COMMAND --help     other commands: {', '.join(COMMANDS)}",
        "",
        "A flag wins over --config, and --config over --preset.",
    ]
)


def field_documentation() -> dict[str, str]:
    """The line under each field of `Tier1Config`; empty if the source is not available."""
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
