"""Settings from a YAML or JSON file.

    python tier_1.py --config run.yaml

The file is one mapping from names of `Tier1Config`'s fields to values. Every message names file and line.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from maw.config.fields import from_text
from maw.config.paths import expand_home
from maw.config.tier1_config import kinds
from maw.errors import ConfigError, reason, show

LARGEST_FILE = 256 * 1024
_FLOAT = re.compile(r"(?:[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?)$")


class FileSettings(NamedTuple):
    """Settings of a file, and the position of each as "file:line"."""

    values: dict[str, Any]
    positions: dict[str, str]


def read_settings(path: str | Path) -> FileSettings:
    """Settings of a `.yaml`, `.yml` or `.json` file, unchecked; layers and lists given as text are converted.

    Raises:
        ConfigError: the file is missing, no text, no valid YAML or JSON, no single mapping, or has a setting twice.
    """
    path = Path(expand_home(path))
    readers = {".yaml": _read_yaml, ".yml": _read_yaml, ".json": _read_json}
    if path.suffix.lower() not in readers:
        raise ConfigError([f"{show(str(path))}: a configuration file ends in .yaml, .yml or .json"])
    text = _read_text(path)
    try:
        values, lines = readers[path.suffix.lower()](path, text)
    except RecursionError as error:
        raise ConfigError([f"{path}: is nested too deeply"]) from error
    for name, value in values.items():
        if isinstance(value, str) and name in kinds() and kinds()[name].base in ("layers", list, dict):
            values[name] = from_text(kinds()[name], value)
    return FileSettings(values, {name: f"{path}:{line}" for name, line in lines.items()})


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        raise ConfigError([f"{show(str(path))}: cannot be read: {reason(error)}"]) from error
    if len(data) > LARGEST_FILE:
        raise ConfigError([f"{path}: is larger than {LARGEST_FILE // 1024} KiB, the limit of a configuration file"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError([f"{path}:{line}: is not UTF-8 text"]) from error


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
    lines = {}
    for name in values:
        match = re.search(re.escape(json.dumps(name)) + r"\s*:", text)
        lines[name] = text.count("\n", 0, match.start()) + 1 if match else 1
    for name in twice:
        _refuse(path, True, lines.get(name, 1), f"{show(name)} is given more than once")
    return values, lines


def _read_yaml(path: Path, text: str) -> tuple[dict[str, Any], dict[str, int]]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe loading that reads numbers like 1e-5 as numbers (YAML 1.1 wants 1.0e-5)."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
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
    except ValueError as error:  # an impossible date or number
        raise ConfigError([f"{path}: is not YAML: {reason(error)}"]) from error
    return values, lines


def _yaml_message(path: Path, text: str, error: Any) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    position = getattr(error, "position", None)  # set for a character that YAML does not allow
    line = mark.line + 1 if mark else text.count("\n", 0, position) + 1 if position is not None else 1
    words = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return f"{path}:{line}: is not YAML: {' '.join(str(words).split())}"


def _refuse(path: Path, wrong: bool, line: int, what: str) -> None:
    if wrong:
        raise ConfigError([f"{path}:{line}: {what}"])
