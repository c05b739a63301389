"""Files that are either whole or not there: written beside their place, flushed to disk, then renamed into it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maw.errors import MAWError


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
        temporary.chmod(0o666 & ~_umask())
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise MAWError(f"cannot write {path}: {error.strerror or error}; nothing there was changed") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 text; see `write_atomically`."""
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> Path:
    """Writes strict JSON, in which NaN and infinity do not exist.

    Raises:
        MAWError: a number that is not finite, named by its keys; or as `write_atomically`.
    """
    bad = not_finite(value)
    if bad is not None:
        raise MAWError(f"cannot write {path}: the number at {bad} is not finite")
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def not_finite(value: Any, where: str = "$") -> str | None:
    """The place of the first number in nested dictionaries and lists that is NaN or infinite, or None."""
    if isinstance(value, float):
        return None if math.isfinite(value) else where
    if isinstance(value, Mapping):
        parts = ((f"{where}.{key}", each) for key, each in value.items())
    elif isinstance(value, (list, tuple)):
        parts = ((f"{where}[{index}]", each) for index, each in enumerate(value))
    else:
        return None
    return next((found for place, each in parts if (found := not_finite(each, place))), None)


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
