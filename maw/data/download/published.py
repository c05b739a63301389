"""Files that publishers serve: where they lie, whether they are whole, and fetching what is missing.

ir_datasets knows addresses, sizes and MD5 sums, keeps the files under $IR_DATASETS_HOME (~/.ir_datasets, if not set),
and fetches them. What it leaves open is done here:

- it takes a file that lies at its place as it is; with `verify_sources` its MD5 is compared once, and remembered in
  the cache folder together with the file's size and time of change;
- without a network it tries for a long time; here the missing files are named first, all of them, each with its
  address and the place where a copy may be put. With HF_HUB_OFFLINE=1 no connection is tried;
- an archive whose MD5 is not compared is looked through for what does harm (`maw.data.download.archives`);
- whatever goes wrong while a file is fetched or unpacked becomes one line that names the file.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import locale
import logging
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from filelock import FileLock

from maw.config.tier1_config import Tier1Config, cache_folder
from maw.data.download import archives
from maw.data.download.needs import SourceFile
from maw.errors import DataError, reason
from maw.runtime.network import told_to_stay_offline, unreachable
from maw.storage.files import read_json, write_json

logger = logging.getLogger(__name__)

DAMAGED = (EOFError, tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error)
MISREAD = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError)
"""What ir_datasets may raise for a file that is not what it expects; UnicodeError is a ValueError."""


@dataclass(frozen=True)
class Published(SourceFile):
    """A source file as ir_datasets knows it.

    Attributes:
        group: its part of ir_datasets, such as "beir"; files lie in the folder of that name.
        key: its name in there.
        md5: of the file, as published; None where the file is kept unpacked only.
        products: what ir_datasets unpacks from it; where all of them lie there the file itself is not needed.
        copy: where ir_datasets also looks for it, under the name of its MD5.
    """

    group: str = ""
    key: str = ""
    md5: str | None = None
    products: tuple[Path, ...] = ()
    copy: Path | None = None

    @property
    def present(self) -> bool:
        """Whether nothing has to be fetched for it."""
        there = self.path.is_file() or (self.copy is not None and self.copy.is_file())
        return there or self.unpacked

    @property
    def unpacked(self) -> bool:
        """Whether all that is used of it has been unpacked already."""
        return bool(self.products) and all(product.is_file() for product in self.products)


@dataclass(frozen=True)
class Inside:
    """A compressed file, read as if it were unpacked: as much of a `Path` as `maw.data.datasets.beir` asks for.

    Attributes:
        archive: a zip archive, or a file compressed with gzip.
        member: name in the zip archive; empty for gzip.
    """

    archive: Path
    member: str = ""

    def __str__(self) -> str:
        return str(self.archive / self.member)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return Path(self.member).name or self.archive.name

    def is_file(self) -> bool:
        """Whether the archive is there; a member that it lacks is found out on opening."""
        return self.archive.is_file()

    @contextlib.contextmanager
    def open(self, mode: str = "rb") -> Iterator[BinaryIO]:
        """The unpacked bytes; zip and gzip compare a checksum at their end."""
        if not self.member:
            with gzip.open(self.archive, mode) as file:
                yield file
            return
        with zipfile.ZipFile(self.archive) as archive, archive.open(self.member) as file:
            yield io.BufferedReader(file, 1 << 20)


def ir_datasets() -> ModuleType:
    """The library, with its messages sent through `logging` like ours.

    Raises:
        DataError: its home folder cannot be made, or the locale would make it misread texts.
    """
    encoding = locale.getpreferredencoding(False)
    if encoding.lower().replace("-", "") != "utf8":
        raise DataError(f"ir_datasets would read texts as {encoding}, the locale's encoding; set PYTHONUTF8=1")
    try:
        import ir_datasets as library
    except OSError as error:
        raise DataError(
            f"{error.filename}: ir_datasets cannot make its folder ({error.strerror}); set IR_DATASETS_HOME to one "
            "that can be written"
        ) from error
    theirs = library.log.easy().logger()
    theirs.handlers[:] = [_Forward()]
    return library


class _Forward(logging.Handler):
    """Hands on ir_datasets' messages, those on each start and end of a step as details; its bars stay as they are."""

    def emit(self, record: logging.LogRecord) -> None:
        detail = record.getMessage().startswith(("[starting]", "[finished]", "[error]"))
        logger.log(logging.DEBUG if detail else record.levelno, "%s", record.getMessage())


def home(group: str) -> Path:
    """The folder of one part of ir_datasets."""
    return Path(ir_datasets().util.home_path()) / group


def published(group: str, key: str, *products: str) -> Published:
    """What ir_datasets knows of a file.

    Args:
        group: a part of ir_datasets, such as "beir".
        key: the file's name there.
        products: what is used of its unpacked contents, as paths in the group's folder.
    """
    library, folder = ir_datasets(), home(group)
    entry = library.util.DownloadConfig.context(group, folder).contents()[key]
    kept = entry.get("cache_path")
    return Published(
        name=entry["url"].rsplit("/", 1)[-1],
        url=entry["url"],
        path=folder / (kept or products[0]),
        size=entry.get("size_hint"),
        group=group,
        key=key,
        md5=entry["expected_md5"] if kept else None,
        products=tuple(folder / product for product in products),
        copy=folder.parent / "downloads" / entry["expected_md5"] if kept else None,
    )


def require(files: Sequence[Published], config: Tier1Config, dataset: str) -> None:
    """Makes sure that files are there and are what was published; fetches those that are missing.

    Raises:
        DataError: a file is missing and cannot be fetched, or is not the published one.
    """
    files = list(dict.fromkeys(files))
    missing = [file for file in files if not file.present]
    if missing:
        refuse_without_network(missing, dataset)
    for file in files:
        if file.md5 and not file.path.is_file() and not file.unpacked:
            _fetch(file, config)
        if file.md5 and file.path.is_file():
            if config.verify_sources:
                verify(file, config)
            else:
                look_through(file, config)


def refuse_without_network(missing: Sequence[SourceFile], dataset: str) -> None:
    """Names the files that are missing and cannot be fetched: where from, and where to put them.

    Raises:
        DataError: connections are forbidden, or a publisher's server takes none; within seconds.
    """
    if told_to_stay_offline():
        why = "HF_HUB_OFFLINE forbids connections"
    else:
        dead = unreachable([file.url for file in missing])
        if not dead:
            return
        why = "the network cannot be reached"
        missing = [file for file in missing if file.url in dead]
    places = "; ".join(f"{file.name} from {file.url}, to be placed {_where(file)}" for file in missing)
    count = f"{len(missing)} source file{'s are' if len(missing) > 1 else ' is'} missing"
    raise DataError(f"{dataset}: {count} and {why}: {places}; or run with --preset offline, which needs none")


def _where(file: SourceFile) -> str:
    packed = [name.endswith(".gz") for name in (file.name, file.path.name)]
    return f"{'unpacked ' if packed == [True, False] else ''}at {file.path}"


def _fetch(file: Published, config: Tier1Config) -> None:
    with lock(f"{file.group}-{file.key}", config):
        if file.path.is_file():  # another process was faster
            return
        if file.copy is not None and file.copy.is_file():
            _compare(file, file.copy, "remove it")
        else:
            logger.info("fetching %s to %s", file.url, file.path)
        with reading(file.path, file.url):
            ir_datasets().util.DownloadConfig.context(file.group, home(file.group))[file.key].path()
        _remember(file, config)  # it was compared while it came in


def verify(file: Published, config: Tier1Config) -> None:
    """Compares a file with its published MD5, unless that was done before and it has not changed since.

    Raises:
        DataError: it is another file, or cannot be read.
    """
    with reading(file.path), lock(f"{file.group}-{file.key}", config):
        if _read_marker(file, config) == _state(file):
            return
        logger.info("comparing %s with its published MD5", file.path)
        _compare(file, file.path, "remove it and it is fetched again, or use it all the same with --no-verify-sources")
        _remember(file, config)


def look_through(file: Published, config: Tier1Config) -> None:
    """Looks through an archive whose MD5 is not compared, unless that was done before and it has not changed since.

    Raises:
        DataError: it is damaged, or holds what no dataset does.
    """
    with reading(file.path), lock(f"{file.group}-{file.key}", config):
        looked = _state(file) | {"looked_through": True}
        if file.unpacked or _read_marker(file, config) in (looked, _state(file)):
            return
        archives.look_through(file.path)
        write_json(_marker(file, config), looked)


def _compare(file: Published, path: Path, advice: str) -> None:
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "md5").hexdigest()
    if found != file.md5:
        raise DataError(f"{path}: this is not {file.url} as published: MD5 {found} instead of {file.md5}; {advice}")


def _state(file: Published) -> dict[str, Any]:
    stat = file.path.stat()
    return {"path": str(file.path), "md5": file.md5, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _marker(file: Published, config: Tier1Config) -> Path:
    return cache_folder(config) / "sources" / f"{file.group}-{file.key.replace('/', '-')}.json"


def _remember(file: Published, config: Tier1Config) -> None:
    write_json(_marker(file, config), _state(file))


def _read_marker(file: Published, config: Tier1Config) -> Any:
    try:
        return read_json(_marker(file, config))
    except DataError:  # never written, or damaged: compare again
        return None


@contextlib.contextmanager
def lock(name: str, config: Tier1Config) -> Iterator[None]:
    """Lets one process at a time fetch or unpack what `name` stands for."""
    path = cache_folder(config) / "sources" / f"{name.replace('/', '-')}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path)
        held.acquire()
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({reason(error)}); choose another cache_dir") from error
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def reading(path: Path | Inside, url: str = "") -> Iterator[None]:
    """Turns whatever goes wrong while a source file is fetched, unpacked or read into one line that names it."""
    try:
        yield
    except DataError:
        raise
    except (*DAMAGED, *MISREAD, *_of_libraries()) as error:
        raise DataError(f"{path}: {_problem(error, url)}") from error


def _of_libraries() -> tuple[type[Exception], ...]:
    import ijson
    import requests

    return ijson.JSONError, requests.RequestException


def _problem(error: Exception, url: str) -> str:
    reason = _reason(error)
    again = "remove it, and what was unpacked from it, and it is fetched again"
    if url or type(error).__module__.startswith("requests"):
        return f"could not be fetched from {url or 'its publisher'} ({reason}); try again, or place a copy there"
    if isinstance(error, DAMAGED) or type(error).__module__.startswith("ijson"):
        return f"the file is damaged or cut short ({reason}); {again}"
    if isinstance(error, UnicodeError):
        return f"the file is not UTF-8 ({reason}); {again}"
    if isinstance(error, OSError):
        return f"the file cannot be read or unpacked ({reason})"
    return f"ir_datasets cannot make sense of the file ({reason}); {again}"


def _reason(error: Exception) -> str:
    if len(error.args) == 2 and isinstance(error.args[1], list) and error.args[1]:  # every mirror, and its error
        error = error.args[1][-1][-1]
    name = f"{type(error).__name__}: " if isinstance(error, LookupError) else ""
    return f"{name}{reason(error)}"[:300]
