"""A JSON record and its tensors in one folder. A reader finds the old content or the new one, and notices damage.

    write_bundle(folder, {"epoch": 3}, {"weights": tensors})
    record = read_bundle(folder)                        # every byte compared with its SHA-256
    tensors = read_tensors(folder, record, "weights")

The folder holds

    record.json                        the record; its last entries are the SHA-256 of each tensor file and its own
    record.previous.json               the record before it with its tensor files, if the writer keeps that
    weights-1f2e3d4c....safetensors    tensor files, named by their content

The tensor files are written first and the record that names them last, each atomically. Checkpoints
(`maw.training.checkpoint`), finished trainings of an unfinished run (`maw.experiment.dataset_state`) and the models of
`maw.save_maw` have this format. Nothing here is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
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
    """Writes a record and its tensors, and replaces those that the folder holds.

    Args:
        folder: is made if it is missing; the remains of interrupted writers are removed from it.
        tensors: group -> name -> tensor; each group is one file. Other files of these groups are removed.
        keep_previous: keep the replaced record and its tensors, for `read_bundle` to fall back on.

    Raises:
        MAWError: the folder cannot be written, or a number of the record is not finite; nothing was changed.
    """
    files = {}
    for group in (group for group, each in tensors.items() if each):
        content = safetensors.torch.save(dict(tensors[group]))
        digest = hashlib.sha256(content).hexdigest()
        file = folder / f"{group}-{digest[:16]}.safetensors"
        if not (file.is_file() and sha256(file) == digest):
            write_atomically(file, lambda temporary, content=content: temporary.write_bytes(content))
        files[group] = {"file": file.name, "bytes": len(content), "sha256": digest}
        del content  # a large model's bytes, before those of the next group are made
    path, previous = folder / name, _previous(folder, name)
    if keep_previous and path.is_file():
        before = path.read_bytes()
        write_atomically(previous, lambda temporary: temporary.write_bytes(before))
    write_signed(path, {**record, "files": files})
    if not keep_previous:
        previous.unlink(missing_ok=True)
    _remove_unnamed(folder, tensors, [path, previous])
    clear_temporaries(folder)


def read_bundle(folder: Path, *, name: str = RECORD, repair: bool = False) -> dict[str, Any]:
    """Reads the record and checks its files. If something is damaged, warns and returns the previous record.

    Args:
        repair: overwrite a damaged record with the previous one, so that the next writer keeps the good one.

    Raises:
        DamagedError: the record is damaged, and there is no whole previous one; names the file.
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
    """The tensors of one group on the CPU; an empty dictionary if the record has no such group.

    Raises:
        DamagedError: the file is not in safetensors format.
    """
    if group not in record["files"]:
        return {}
    path = folder / record["files"][group]["file"]
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path}: cannot be read ({error})") from error


def check_tensor_files(path: Path, record: Mapping[str, Any]) -> None:
    """Compares each file that a record names with its SHA-256.

    Args:
        path: the record's file; its tensors are in the same folder.
        record: has "files": group -> {"file": name, "sha256": hash}.

    Raises:
        DamagedError: a file is missing or damaged, or its name is not one that `write_bundle` gives.
    """
    try:
        files = [(path.parent / each["file"], each["sha256"]) for each in record["files"].values()]
        if not all(_TENSORS.fullmatch(file.name) and file.parent == path.parent for file, _ in files):
            raise DamagedError(f"{path}: a tensor file that it names is not one of its folder's")
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path}: not a record of this version") from error
    for file, digest in files:
        try:
            actual = sha256(file)
        except MAWError as error:
            raise DamagedError(f"{error}, and {path.name} names it") from error
        if actual != digest:
            raise DamagedError(f"{file}: damaged (its SHA-256 is not the one recorded)")


def _read(path: Path) -> dict[str, Any]:
    record = read_signed(path)
    check_tensor_files(path, record)
    return record


def _previous(folder: Path, name: str) -> Path:
    stem, _, suffix = name.rpartition(".")
    return folder / f"{stem}.previous.{suffix}"


def _remove_unnamed(folder: Path, groups: Iterable[str], records: list[Path]) -> None:
    """Removes the groups' tensor files that no record names."""
    kept: set[str] = set()
    for path in records:
        with contextlib.suppress(MAWError, KeyError, TypeError, AttributeError):  # missing, or damaged: names nothing
            kept |= {each["file"] for each in read_signed(path)["files"].values()}
    for path in (each for group in groups for each in folder.glob(f"{group}-*.safetensors")):
        if _TENSORS.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)
