"""Sizes of local data, for the plan.

For a folder in BEIR layout, passages are counted if the file is small or its store is built, and otherwise estimated
from the file's size and a thousand lines. Queries are counted in the first part of each qrels file. For pystdlib the
sizes are approximate constants (`PYSTDLIB`), except that passages are counted if its store is built. Nothing is
written.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import platform
from dataclasses import replace
from functools import partial
from pathlib import Path

from maw.config.paths import BEIR, beir_parts
from maw.config.tier1_config import Tier1Config, cache_folder
from maw.data.datasets.beir import store_key
from maw.data.download.needs import Needs
from maw.errors import DataError
from maw.storage.files import read_json

PARTS, PART_LINES = 50, 20  # where a corpus is looked at, and how much of it each time
SMALL = 1 << 20  # bytes that are read whole
MOST_BYTES = 8 << 20  # read of a qrels file, or of one line
STORED_SHARE = 1.1  # bytes of a store for each of a corpus.jsonl: no keys, but hashes and offsets
PYSTDLIB = Needs(
    dataset="pystdlib",
    passages={"pystdlib": 5600},
    disk_bytes=4_000_000,
    mean_characters=440,
    estimated=True,
    queries={"train": 3100, "validation": 720, "test": 1300},
)
"""Approximate constants, from Python 3.11; other versions differ by some hundreds."""


def local_needs(name: str, config: Tier1Config) -> Needs:
    """What pystdlib or a folder in BEIR layout needs; of any other name, and of what cannot be read, nothing."""
    stores = cache_folder(config) / "corpora"
    if name == "pystdlib":
        count = max((_count(each) for each in stores.glob(f"pystdlib-{platform.python_version()}-*")), default=0)
        counted = {"passages": {"pystdlib": count}, "estimated": False, "disk_bytes": 0}
        return replace(PYSTDLIB, **counted) if count else PYSTDLIB
    if not name.startswith(BEIR):
        return Needs(name)
    folder, judgements = beir_parts(name.removeprefix(BEIR))
    try:
        return _beir_needs(name, Path(folder).expanduser(), judgements or "test", stores)
    except (OSError, RuntimeError):  # loading will say what is wrong
        return Needs(name)


def _beir_needs(name: str, folder: Path, judgements: str, stores: Path) -> Needs:
    path = folder / "corpus.jsonl"
    size = path.stat().st_size
    parts = [part for part in _parts(path, size) if part]
    if not parts:
        return Needs(name)
    # Places are equally far apart in bytes, so where lines are short there are more of them than were looked at.
    lines_a_byte = sum(len(part) / sum(map(len, part)) for part in parts) / len(parts)
    characters_a_byte = sum(sum(map(_characters, part)) / sum(map(len, part)) for part in parts) / len(parts)
    stored = _count(stores / f"beir-{store_key(path)}")
    dev = "dev" if (folder / "qrels" / "dev.tsv").exists() else "validation"
    files = {"train": "train", "validation": dev, "test": judgements}
    queries = {split: _queries(folder / "qrels" / f"{file}.tsv") for split, file in files.items()}
    return Needs(
        dataset=name,
        passages={str(path): stored or (len(parts[0]) if size <= SMALL else round(size * lines_a_byte))},
        disk_bytes=0 if stored else round(STORED_SHARE * size),
        mean_characters=round(characters_a_byte / lines_a_byte),
        estimated=not stored and size > SMALL,
        queries={split: number for split, number in queries.items() if number},
    )


def _parts(path: Path, size: int) -> list[list[bytes]]:
    """Lines that are not blank: all of a small file, else twenty from each of fifty places."""
    parts = []
    with path.open("rb") as file:
        for number in range(1 if size <= SMALL else PARTS):
            file.seek(size * number // PARTS)
            if number:
                file.readline(MOST_BYTES)  # the rest of a line
            lines = iter(partial(file.readline, MOST_BYTES), b"")
            some = lines if size <= SMALL else itertools.islice(lines, PART_LINES)
            parts.append([line for line in some if line.strip()])
    return parts


def _characters(line: bytes) -> int:
    """Characters of title and text; of the line itself, where it is not what it should be."""
    try:
        value = json.loads(line)
        return len(f"{value.get('title') or ''} {value['text']}".strip())
    except (ValueError, KeyError, TypeError, AttributeError):
        return len(line)


def _queries(path: Path) -> int:
    """How many queries a qrels file judges, 0 if there is none; of a large file, those in its first part."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return len({line.split(b"\t", 1)[0] for line in file.readlines(MOST_BYTES)[1:] if line.strip()})


def _count(store: Path) -> int:
    """Passages in a store, 0 if there is none."""
    with contextlib.suppress(DataError, ValueError, KeyError, TypeError):
        return int(read_json(store / "manifest.json")["count"])
    return 0
