"""Atomic writes, reading and writing JSON, SHA-256 of files.

A file is written under a temporary name in its folder, flushed to disk, then renamed, so that a reader finds the old
content or the new one. JSON is strict: NaN and infinity are refused. `maw.report.tables.csv_file` writes tables.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maw.errors import DataError, MAWError, reason, show


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Calls `write`, which writes and closes the file, with a temporary path, then renames that file to `path`.

    The folder is created. If anything fails, `path` keeps its old content.

    Raises:
        MAWError: the disk is full, or the folder cannot be written; names the path.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        give_usual_mode(temporary)
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    except OSError as error:
        raise MAWError(f"cannot write {path}: {reason(error)}; nothing there was changed") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    r"""Writes UTF-8 text. A lone surrogate is written as an escape such as \ud800, as in JSON.

    Raises:
        MAWError: the path cannot be written.
    """
    content = text.encode("utf-8", errors="backslashreplace")
    return write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_json(path: Path, value: Any) -> Path:
    """Writes strict, indented JSON, and returns `path`; a list of plain values takes one line.

    `value`: nested dictionaries, lists, tuples, dataclasses, numpy arrays and numbers, paths, and the types of JSON.

    Raises:
        MAWError: a number is NaN or infinite, named by its keys; or the path cannot be written.
        TypeError: an object of another type, or two keys with the same text.
    """
    return write_text(path, json_text(path, value))


def json_text(path: Path, value: Any) -> str:
    """The text that `write_json` writes; `path` is named in error messages."""
    try:
        return _render(_plain(value, ()), "") + "\n"
    except _NotFiniteError as error:
        raise MAWError(f"cannot write {path}: {error} is not a finite number; an earlier step went wrong") from None


def json_line(value: Any) -> str:
    """Strict JSON on one line, in ASCII, of the values that `write_json` takes.

    Raises:
        ValueError: a number is NaN or infinite, named by its keys.
        TypeError: as `write_json`.
    """
    return json.dumps(_plain(value, ()), allow_nan=False)


def read_json(path: Path, error: type[MAWError] = DataError) -> Any:
    """The value in a JSON file.

    Raises:
        DataError: the file cannot be read, or is not JSON; an error of the class `error`, if one is given.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as wrong:
        raise error(f"{path}: cannot be read ({reason(wrong)})") from wrong
    except (ValueError, RecursionError) as wrong:
        raise error(f"{path}: is not JSON ({show(reason(wrong))[1:-1]})") from wrong


def check_writable(folder: Path | str) -> None:
    """Creates the folder and a temporary file in it, so that a run finds at its start that it cannot write.

    Raises:
        MAWError: the folder cannot be written; names it.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise MAWError(f"cannot write to {folder}: {reason(error)}; choose another folder") from error


def sha256(path: Path, error: type[MAWError] = DataError) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        DataError: the file cannot be read; an error of the class `error`, if one is given.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as wrong:
        raise error(f"{path}: cannot be read ({reason(wrong)})") from wrong


def json_sha(value: Any) -> str:
    """The SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()


class _NotFiniteError(ValueError):
    """A NaN or infinity; the message is its keys, joined by dots."""


def _plain(value: Any, keys: tuple[str, ...]) -> Any:
    """The value in the types of JSON."""
    if hasattr(value, "tolist"):  # numpy's arrays and numbers, recognised without importing numpy
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        raise _NotFiniteError(".".join(keys) or "the value")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return _plain_mapping(value, keys)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain_mapping({each.name: getattr(value, each.name) for each in dataclasses.fields(value)}, keys)
    if isinstance(value, list | tuple):
        return [_plain(each, (*keys, str(index))) for index, each in enumerate(value)]
    raise TypeError(f"{'.'.join(keys) or 'the value'} is a {type(value).__name__}, which JSON cannot hold")


def _plain_mapping(value: Mapping[Any, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    plain = {str(key): _plain(each, (*keys, str(key))) for key, each in value.items()}
    if len(plain) < len(value):
        raise TypeError(f"{'.'.join(keys) or 'the value'} has two keys that read the same in JSON")
    return plain


def _render(value: Any, indent: str) -> str:
    """JSON text of plain values; a list without lists or dictionaries in it takes one line."""
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        lines = [f"{deeper}{_scalar(key)}: {_render(each, deeper)}" for key, each in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        return "[\n" + ",\n".join(deeper + _render(each, deeper) for each in value) + f"\n{indent}]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def give_usual_mode(path: Path) -> None:
    """Gives a file the permissions of a newly created one; temporary files are private to their owner."""
    current = os.umask(0)  # there is no way to read it but to set it
    os.umask(current)
    path.chmod(0o666 & ~current)


def flush(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
