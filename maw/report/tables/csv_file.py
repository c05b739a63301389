"""CSV files without spreadsheet formulas, written atomically."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from maw.errors import MAWError
from maw.storage.files import write_text

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # wide forms too


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Writes a table; None becomes an empty cell, and numbers keep all their digits.

    Text that a spreadsheet would run as a formula gets a quote in front, unless it is a number.

    Raises:
        MAWError: a cell is NaN or infinite, named by row and column; or the path cannot be written.
    """
    lines: list[str] = []
    writer = csv.writer(SimpleNamespace(write=lines.append))  # with its own line end, or it would not quote a bare CR
    writer.writerow(header)
    for number, row in enumerate(rows, start=1):
        for name, cell in zip(header, row, strict=True):
            if isinstance(cell, float | np.floating) and not math.isfinite(cell):
                raise MAWError(f"cannot write {path}: {name} in row {number} is {cell}, not a finite number")
        writer.writerow([_cell(cell) for cell in row])
    return write_text(path, "".join(line.removesuffix("\r\n") + "\n" for line in lines))


def _cell(cell: Any) -> Any:
    if isinstance(cell, float | np.floating):
        return repr(float(cell))
    if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) and not _NUMBER.fullmatch(cell):
        return "'" + cell
    return cell
