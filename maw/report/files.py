"""Report files: strict JSON that reads well, CSV that a spreadsheet cannot be tricked by, and text.

All are written by `maw.files.write_atomically`: the old file or the whole new one, never a part.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from maw.errors import MAWError
from maw.files import write_atomically

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


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
    try:
        text = _render(_plain(value, ()), "")
    except _NotFiniteError as error:
        raise MAWError(f"cannot write {path}: {error} is not a finite number; an earlier step went wrong") from None
    return write_text(path, text + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Writes a table; None becomes an empty cell, and numbers keep all their digits.

    Text that a spreadsheet would run as a formula gets a quote in front; text that is a number stays as it
    is.

    Raises:
        MAWError: a cell that is NaN or infinite, named by row and column; a path that cannot be written.
    """
    lines: list[str] = []
    writer = csv.writer(SimpleNamespace(write=lines.append))  # its own line end, or it would not quote a bare CR
    writer.writerow(header)
    for number, row in enumerate(rows, start=1):
        for name, cell in zip(header, row, strict=True):
            if isinstance(cell, float | np.floating) and not math.isfinite(cell):
                raise MAWError(f"cannot write {path}: {name} in row {number} is {cell}, not a finite number")
        writer.writerow([_cell(cell) for cell in row])
    return write_text(path, "".join(line.removesuffix("\r\n") + "\n" for line in lines))


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 text, with lone surrogates as the escapes that JSON, too, has for them.

    Raises:
        MAWError: a path that cannot be written.
    """
    content = text.encode("utf-8", errors="backslashreplace")
    return write_atomically(path, lambda temporary: temporary.write_bytes(content))


class _NotFiniteError(ValueError):
    """A NaN or infinity; the message is its keys, joined by dots."""


def _plain(value: Any, keys: tuple[str, ...]) -> Any:
    """The same in JSON's own types."""
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            raise _NotFiniteError(".".join(keys) or "the value")
        return float(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, np.bool_ | np.integer):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return _plain_mapping(value, keys)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain_mapping({each.name: getattr(value, each.name) for each in dataclasses.fields(value)}, keys)
    if isinstance(value, np.ndarray):
        value = value.tolist()
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


def _cell(cell: Any) -> Any:
    if isinstance(cell, float | np.floating):
        return repr(float(cell))
    if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) and not _NUMBER.fullmatch(cell):
        return "'" + cell
    return cell
