"""Settings from a YAML or JSON file.

    python tier_1.py --config run.yaml

The file is one mapping from the names of `Tier1Config`'s fields to values. Every message names file and line.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from maw.config.fields import from_text
from maw.config.tier1_config import Tier1Config, gather, kinds
from maw.errors import ConfigError, reason, show

LARGEST_FILE = 256 * 1024
_FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


class FileSettings(NamedTuple):
    """The settings of a file, and the place of each as "file:line"."""

    values: dict[str, Any]
    places: dict[str, str]


def load_config(path: str | Path) -> Tier1Config:
    """The configuration that a file holds; what it does not name keeps its default.

    Raises:
        ConfigError: the file cannot be read, or its settings are wrong; all of them, with file and line.
    """
    values, places = read_settings(path)
    config, problems = gather(values)
    if problems:
        raise ConfigError([f"{places.get(problem.name, path)}: {problem}" for problem in problems])
    return config


def read_settings(path: str | Path) -> FileSettings:
    """The settings of a `.yaml`, `.yml` or `.json` file, unchecked but for layers, lists and numbers given as text.

    Raises:
        ConfigError: no such file, not text, not the format its name says, not one mapping, a setting given
            twice.
    """
    path = Path(path)
    readers = {".yaml": _read_yaml, ".yml": _read_yaml, ".json": _read_json}
    if path.suffix.lower() not in readers:
        raise ConfigError([f"{show(str(path))}: a configuration file ends in .yaml, .yml or .json"])
    text = _text(path)
    try:
        values, lines = readers[path.suffix.lower()](path, text)
    except RecursionError as error:
        raise ConfigError([f"{path}: is nested too deeply"]) from error
    values = {name: _typed(name, value) for name, value in values.items()}
    return FileSettings(values, {name: f"{path}:{line}" for name, line in lines.items()})


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        raise ConfigError([f"{show(str(path))}: cannot be read: {reason(error)}"]) from error
    if len(data) > LARGEST_FILE:
        raise ConfigError([f"{path}: is larger than {LARGEST_FILE // 1024} KiB and so no configuration"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError([f"{path}:{line}: is not UTF-8 text"]) from error


def _typed(name: Any, value: Any) -> Any:
    """Layers and lists may be written as text; other values are typed by the file's own syntax."""
    if isinstance(value, str) and isinstance(name, str) and name in kinds() and kinds()[name].base in ("layers", list):
        return from_text(kinds()[name], value)
    return value


def _read_json(path: Path, text: str) -> tuple[dict[str, Any], dict[str, int]]:
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice.extend(sorted({name for name in names if names.count(name) > 1}))
        return dict(pairs)

    try:
        values = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ConfigError([f"{path}:{error.lineno}: is not JSON: {error.msg}"]) from error
    except ValueError as error:  # an integer of more digits than Python reads
        raise ConfigError([f"{path}: is not JSON: {reason(error)}"]) from error
    _refuse(path, not isinstance(values, dict), 1, "must be one mapping of settings to values")
    lines = {name: _json_line(text, name) for name in values}
    for name in twice:
        _refuse(path, True, lines.get(name, 1), f"{show(name)} is given more than once")
    return values, lines


def _json_line(text: str, name: str) -> int:
    match = re.search(re.escape(json.dumps(name)) + r"\s*:", text)
    return text.count("\n", 0, match.start()) + 1 if match else 1


def _read_yaml(path: Path, text: str) -> tuple[dict[str, Any], dict[str, int]]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe loading, with numbers like 1e-5 read as numbers (YAML 1.1 wants 1.0e-5)."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _full(_FLOAT), list("-+.0123456789"))
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        _refuse(path, not isinstance(node, yaml.MappingNode), 1, "must be one mapping of settings to values")
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            _refuse(path, name in values, line, f"{show(name)} is given more than once")
            values[name], lines[name] = loader.construct_document(value), line
    except yaml.YAMLError as error:
        raise ConfigError([_yaml_message(path, text, error)]) from error
    except ValueError as error:  # a date or a number of impossible parts
        raise ConfigError([f"{path}: is not YAML: {reason(error)}"]) from error
    return values, lines


def _full(pattern: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(f"(?:{pattern.pattern})$")


def _yaml_message(path: Path, text: str, error: Any) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    position = getattr(error, "position", None)  # of a character that YAML does not allow
    line = mark.line + 1 if mark else text.count("\n", 0, position) + 1 if position is not None else 1
    wrong = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return f"{path}:{line}: is not YAML: {' '.join(str(wrong).split())}"


def _refuse(path: Path, wrong: bool, line: int, what: str) -> None:
    if wrong:
        raise ConfigError([f"{path}:{line}: {what}"])
