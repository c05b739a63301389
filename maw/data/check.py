"""Checks the data of a run, before a model is loaded: `doctor`, `--dry-run` and the run itself all come here.

    for found in check_data(config, full=True):
        print(found.name, found.problem or found.text)

A folder in BEIR layout is read by the functions that load it in a run, so nothing passes here that a run refuses. Its
passages are stored on the way (`maw.data.corpus`), and the run reads them from there. A corpus.jsonl that takes longer
than about ten seconds is read only if `full`. Files of published datasets are compared with their MD5, as far as they
are here; nothing is downloaded, and passages are counted when they are stored.

What was found in a folder is kept in `checks` of the cache folder, with size, times of change and SHA-256 of every
file: a second look at the same files is instant, also if they were only touched. A refusal is not kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from maw import __version__
from maw.config.methods import trained_methods
from maw.config.paths import BEIR
from maw.config.tier1_config import Tier1Config, cache_folder
from maw.data.datasets import beir
from maw.data.download.published import Published, check_file, is_checked
from maw.data.folds import divide
from maw.data.registry import load_splits, needs_of
from maw.data.self_passages import leave_out_of
from maw.errors import DataError, MAWError, show
from maw.storage.checksummed import read_signed, write_signed
from maw.storage.disk import size_text
from maw.storage.files import json_sha, sha256

RULES_VERSION = 2
PARSED_QUICKLY = 300 << 20
HASHED_QUICKLY = 4 << 30
"""Bytes of a corpus.jsonl, and of a published file, that are read in about ten seconds."""
_SETTINGS = (
    *("train_samples", "val_samples", "test_samples", "seed", "folds", "relevance_level"),
    *("num_negatives", "negative_source", "self_passages"),
)
"""What else than files and methods decides whether a run refuses a folder."""
UNREAD = "not read (`doctor --full` and a run read it)"


@dataclass
class Checked:
    """What was found of one dataset or folder of distractors.

    Attributes:
        name: as in the configuration.
        text: one line about what is there.
        warnings: one line for each thing that is unusual.
        unread: files that were not read, because that takes long.
        problem: why a run refuses it; "" if it does not.
    """

    name: str
    text: str = ""
    warnings: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    problem: str = ""


def check_data(config: Tier1Config, *, full: bool) -> Iterator[Checked]:
    """Checks every dataset and every folder of distractors of a run; yields each when it is done.

    Args:
        config: datasets, distractors, methods, samples, folds and cache folder are used.
        full: also read what takes longer than about ten seconds.
    """
    for check, names in ((_dataset, config.datasets), (_distractor, config.distractors or ())):
        for name in names:
            try:
                yield check(name, config, full)
            except MAWError as error:
                yield Checked(name, problem=str(error))


def _dataset(name: str, config: Tier1Config, full: bool) -> Checked:
    if not name.startswith(BEIR):
        return _published(name, config, full)
    folder, _, _ = beir.checked_folder(name.removeprefix(BEIR))
    files = [folder / "corpus.jsonl", folder / "queries.jsonl", *sorted((folder / "qrels").glob("*.tsv"))]
    settings = {key: getattr(config, key) for key in _SETTINGS} | {"trained": bool(trained_methods(config))}
    key = {"rules": [RULES_VERSION, __version__], "name": name, "folder": str(folder.resolve()), "settings": settings}
    record = cache_folder(config) / "checks" / f"{json_sha(key)[:24]}.json"
    kept = _kept(record, files, full)
    if kept is not None:
        return kept
    states = {str(file): beir.file_state(file) for file in files}
    found = _folder(name, config, full)
    hashes = {str(file): None if str(file) in found.unread else sha256(file) for file in files if file.is_file()}
    write_signed(record, {"states": states, "hashes": hashes, "found": asdict(found)})
    return found


def _kept(record: Path, files: list[Path], full: bool) -> Checked | None:
    """What was found at the last look, if the files are still the same and it went as far as this one."""
    try:
        kept = read_signed(record)
    except MAWError:  # missing or damaged: look again
        return None
    found = Checked(**kept["found"])
    states = {str(file): beir.file_state(file) for file in files}
    if (full and found.unread) or states.keys() != kept["states"].keys():
        return None
    for file in (each for each in files if states[str(each)] != kept["states"][str(each)]):
        if not file.is_file() or kept["hashes"].get(str(file)) != sha256(file):
            return None
    if states != kept["states"]:
        write_signed(record, kept | {"states": states})
    return found


def _folder(name: str, config: Tier1Config, full: bool) -> Checked:
    outline = beir.read(name.removeprefix(BEIR), config)
    corpus = outline.folder / "corpus.jsonl"
    unread = _unread(corpus, config, full)
    if unread:
        queries = ", ".join(f"{len(pool):,} {split}" for split, pool in outline.pools.items())
        return Checked(name, f"queries: {queries}; passages: {unread}", outline.warnings, [str(corpus)])
    collection = load_splits(name, config)
    divide(collection, config) if config.folds else leave_out_of(collection, config)
    drawn = ", ".join(f"{each['queries']:,} {split}" for split, each in collection.facts["splits"].items())
    return Checked(name, f"{collection.facts['passages']:,} passages; queries: {drawn}", collection.facts["warnings"])


def _distractor(name: str, config: Tier1Config, full: bool) -> Checked:
    corpus = Path(name.removeprefix(BEIR)).expanduser() / "corpus.jsonl"
    unread = _unread(corpus, config, full)
    if unread:
        return Checked(name, f"distractors: {unread}", unread=[str(corpus)])
    return Checked(name, f"distractors: {len(beir.open_corpus(corpus, cache_folder(config) / 'corpora')):,} passages")


def _unread(corpus: Path, config: Tier1Config, full: bool) -> str:
    """Why a corpus.jsonl is not read; "" if it is."""
    size = next(iter(beir.file_state(corpus)), 0)
    if full or size <= PARSED_QUICKLY or beir.is_stored(corpus, cache_folder(config) / "corpora"):
        return ""
    return f"{corpus.name}, {size_text(size)}, {UNREAD}"


def _published(name: str, config: Tier1Config, full: bool) -> Checked:
    files = list(dict.fromkeys(needs_of(name, config).files))
    if not files:
        return Checked(name, "needs no files")
    unread = []
    here = [file for file in files if isinstance(file, Published) and file.md5 and file.path.is_file()]
    for file in here:
        if full or file.path.stat().st_size <= HASHED_QUICKLY or is_checked(file, config):
            check_file(file, config)
        else:
            unread.append(str(file.path))
    texts = [f"{sum(file.present for file in files)} of {len(files)} files are here"]
    if here and config.verify_sources:
        texts.append(f"the MD5 of {len(here) - len(unread)} is the published one")
    texts += [f"{show(Path(path).name)}: {UNREAD}" for path in unread]
    return Checked(name, "; ".join(texts), unread=unread)


def refuse(checks: list[Checked]) -> None:
    """Raises a DataError with the problems of all datasets, if there are any."""
    problems = [each.problem for each in checks if each.problem]
    if problems:
        raise DataError("; ".join(problems))
