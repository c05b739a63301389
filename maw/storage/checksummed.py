"""JSON files whose last entry is a SHA-256 of the file, so that a reader notices damage."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maw.errors import DamagedError, MAWError, reason
from maw.storage.files import json_text, write_atomically

_OWN, _BLANK = "sha256", "0" * 64
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")


def write_signed(path: Path, record: Mapping[str, Any]) -> None:
    """Writes strict JSON. Its last entry "sha256" is the hash of the file with zeros in place of the hash.

    Raises:
        MAWError: as `maw.storage.files.write_json`.
    """
    text = json_text(path, {**record, _OWN: _BLANK})
    content = text.encode("utf-8", errors="backslashreplace")  # lone surrogates as JSON's own escapes
    before, _, after = content.rpartition(_BLANK.encode("ascii"))
    digest = hashlib.sha256(content).hexdigest().encode("ascii")
    write_atomically(path, lambda temporary: temporary.write_bytes(before + digest + after))


def read_signed(path: Path) -> dict[str, Any]:
    """The record that `write_signed` wrote, without the hash.

    Raises:
        DamagedError: the file is not as it was written.
        MAWError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MAWError(f"{path}: cannot be read ({reason(error)})") from error
    try:
        record = json.loads(content)
        digest = record.pop(_OWN)
        before, found, after = content.rpartition(digest.encode("ascii"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path}: damaged (it is not a whole record)") from error
    if not found or hashlib.sha256(before + _BLANK.encode("ascii") + after).hexdigest() != digest:
        raise DamagedError(f"{path}: damaged (its SHA-256 is not the one recorded)")
    return record


def clear_temporaries(folder: Path) -> None:
    """Removes what interrupted writers left in a folder; call it only while nothing else writes there."""
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
