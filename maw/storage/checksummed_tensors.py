"""A record and its tensors as one folder that is whole, old or new, at every moment, and knows when it was damaged.

    write_bundle(folder, {"epoch": 3}, {"weights": tensors})
    record = read_bundle(folder)                        # every byte compared with its SHA-256
    tensors = read_tensors(folder, record, "weights")

A folder holds

    record.json                    the record in clear; last in it the SHA-256 of each tensor file and of its own bytes
    record.previous.json           the one before it, where the writer wants to keep it, with its tensor files
    weights-1f2e3d4c....safetensors    named by their content

Tensor files are written first, each beside its place, flushed and renamed; the record, which names them, is renamed
into place last. Checkpoints (`maw.training.checkpoint`) and the runs of an arm that are finished
(`maw.experiment.dataset_state`) are kept so.
Nothing here is pickled.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from maw.errors import DamagedError, MAWError
from maw.storage.checksummed import clear_temporaries, read_signed, write_signed
from maw.storage.files import sha256, write_atomically

logger = logging.getLogger(__name__)

RECORD = "record.json"
_TENSORS = re.compile(r"[a-z]+-[0-9a-f]{16}\.safetensors")


def write_bundle(
    folder: Path,
    record: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    *,
    name: str = RECORD,
    keep_previous: bool = False,
) -> None:
    """Writes a record and its tensors in the place of those that stand there.

    Args:
        folder: made if need be; whatever an interrupted writer left in it is removed.
        record: JSON-able.
        tensors: group -> name -> tensor; a group is one file.
        name: of the record's file.
        keep_previous: keep what stood there, for `read_bundle` to fall back on.

    Raises:
        MAWError: the folder cannot be written, or a number of the record is not finite; nothing there was changed.
    """
    files = {group: _write_tensors(folder, group, each) for group, each in tensors.items() if each}
    path, previous = folder / name, _previous(folder, name)
    if keep_previous and path.is_file():
        before = path.read_bytes()
        write_atomically(previous, lambda temporary: temporary.write_bytes(before))
    write_signed(path, {**record, "files": files})
    if not keep_previous:
        previous.unlink(missing_ok=True)
    _remove_others(folder, [path, previous])


def read_bundle(folder: Path, *, name: str = RECORD, repair: bool = False) -> dict[str, Any]:
    """The record, or the previous one with a warning if this one or its files are damaged.

    Args:
        folder: of `write_bundle`.
        name: of the record's file.
        repair: put the previous record in the place of a damaged one, so that the next writer keeps the good one.

    Raises:
        DamagedError: neither can be used; names the file.
        MAWError: there is no record.
    """
    path, previous = folder / name, _previous(folder, name)
    try:
        return _read(path)
    except DamagedError as error:
        if not previous.is_file():
            raise
        record = _read(previous)
        logger.warning("%s; using the one saved before it, %s", error, previous)
    if repair:
        content = previous.read_bytes()
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return record


def read_tensors(folder: Path, record: Mapping[str, Any], group: str) -> dict[str, Tensor]:
    """One group's tensors, on the CPU; none if the record has no such group.

    Raises:
        DamagedError: the file is no safetensors file.
    """
    if group not in record["files"]:
        return {}
    path = folder / record["files"][group]["file"]
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path}: cannot be read ({error})") from error


def _write_tensors(folder: Path, group: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Writes one file, unless one of the same content is there; gives its entry in the record."""
    content = safetensors.torch.save(dict(tensors))
    digest = hashlib.sha256(content).hexdigest()
    path = folder / f"{group}-{digest[:16]}.safetensors"
    if not (path.is_file() and sha256(path) == digest):
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return {"file": path.name, "bytes": len(content), "sha256": digest}


def _read(path: Path) -> dict[str, Any]:
    """A record, after a look at every byte of it and of its files."""
    record = read_signed(path)
    try:
        files = [(path.parent / each["file"], each["sha256"]) for each in record["files"].values()]
        if not all(_TENSORS.fullmatch(file.name) and file.parent == path.parent for file, _ in files):
            raise DamagedError(f"{path}: a tensor file that it names is not one of its folder's")
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path}: not a record of this version") from error
    for file, digest in files:
        try:
            actual = sha256(file)
        except OSError as error:
            raise DamagedError(f"{file}: cannot be read ({error.strerror}), and {path.name} names it") from error
        if actual != digest:
            raise DamagedError(f"{file}: damaged (its SHA-256 is not the one recorded)")
    return record


def _previous(folder: Path, name: str) -> Path:
    stem, _, suffix = name.rpartition(".")
    return folder / f"{stem}.previous.{suffix}"


def _remove_others(folder: Path, records: list[Path]) -> None:
    """Removes the tensor files that no record names, and what interrupted writers left."""
    kept: set[str] = set()
    for path in records:
        if path.is_file():
            try:
                kept |= {each["file"] for each in read_signed(path)["files"].values()}
            except (MAWError, KeyError, TypeError, AttributeError):
                continue  # what a damaged record names cannot be used either
    for path in folder.glob("*.safetensors"):
        if _TENSORS.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)
    clear_temporaries(folder)
