"""Files that are either whole or not there: written beside their place, flushed to disk, then renamed into it.

JSON is strict, without NaN and infinity, and reads well. `maw.report.tables.csv_file` adds tables.
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

from maw.errors import MAWError, reason


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` fill a temporary file in `path`'s folder, then puts it in `path`'s place.

    Whatever happens, `path` holds either what it held before or the whole new content.

    Args:
        path: where the file is to be; its folder is created.
        write: given the temporary path, writes and closes it.

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
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise MAWError(f"cannot write {path}: {reason(error)}; nothing there was changed") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 text, with lone surrogates as the escapes that JSON, too, has for them.

    Raises:
        MAWError: a path that cannot be written.
    """
    content = text.encode("utf-8", errors="backslashreplace")
    return write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_json(path: Path, value: Any) -> Path:
    """Writes strict JSON, indented, with lists of plain values on one line each.

    Args:
        path: the file; its folder is made.
        value: nested dictionaries, lists, tuples, dataclasses, numpy arrays and numbers, paths, and JSON's
            own types.

    Returns:
        `path`.

    Raises:
        MAWError: a number that JSON has no way to write (NaN, infinity), named by its keys; a path that
            cannot be written.
        TypeError: an object that is none of the above, or two keys that read the same.
    """
    return write_text(path, json_text(path, value))


def json_text(path: Path, value: Any) -> str:
    """What `write_json` writes; `path` is for its message."""
    try:
        return _render(_plain(value, ()), "") + "\n"
    except _NotFiniteError as error:
        raise MAWError(f"cannot write {path}: {error} is not a finite number; an earlier step went wrong") from None


def json_line(value: Any) -> str:
    """Strict JSON on one line, in ASCII; takes what `write_json` takes.

    Raises:
        ValueError: a number that JSON has no way to write, named by its keys.
        TypeError: as `write_json`.
    """
    return json.dumps(_plain(value, ()), allow_nan=False)


def check_writable(folder: Path | str) -> None:
    """Makes the folder and, for a moment, a file in it, so that a run does not learn at its end that it cannot write.

    Raises:
        MAWError: names the folder.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise MAWError(f"cannot write to {folder}: {reason(error)}; choose another folder") from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _NotFiniteError(ValueError):
    """A NaN or infinity; the message is its keys, joined by dots."""


def _plain(value: Any, keys: tuple[str, ...]) -> Any:
    """The same in JSON's own types."""
    if hasattr(value, "tolist"):  # numpy's arrays and numbers, which are not loaded for this
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
    """JSON of plain values; a list without lists or dictionaries in it takes one line, however long."""
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
    """Lets those read and write a file who may do so with the files that a program makes without a word."""
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _flush(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
