"""Published files: their paths, checks and download.

ir_datasets knows addresses, sizes and MD5 sums, stores the files under $IR_DATASETS_HOME (default ~/.ir_datasets) and
downloads them. This module adds:

- With `verify_sources`, the MD5 of a file that exists already is checked once; the result is stored in the cache
  folder with the file's size and modification time.
- Without a network ir_datasets tries for a long time. Here all missing files are reported first, each with its address
  and the path for a copy. With HF_HUB_OFFLINE=1 no connection is tried.
- An archive whose MD5 is not checked is checked for harmful contents (`maw.data.download.archives`).
- Every error while a file is downloaded or unpacked becomes one line that names the file.
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

import ijson
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
"""Errors of ir_datasets for unexpected file contents; UnicodeError is a ValueError."""
DOWNLOAD_AGAIN = "remove it, and the files unpacked from it, to download it again"


@dataclass(frozen=True)
class Published(SourceFile):
    """A source file as ir_datasets knows it.

    Attributes:
        group: its part of ir_datasets, such as "beir", and the name of its folder.
        key: its name in that part.
        md5: published MD5; None if only its unpacked contents are kept.
        products: files that ir_datasets unpacks from it; if all exist the file itself is not needed.
        copy: second path where ir_datasets looks for it, named by its MD5.
    """

    group: str = ""
    key: str = ""
    md5: str | None = None
    products: tuple[Path, ...] = ()
    copy: Path | None = None

    @property
    def present(self) -> bool:
        """Whether no download is needed."""
        there = self.path.is_file() or (self.copy is not None and self.copy.is_file())
        return there or self.unpacked

    @property
    def unpacked(self) -> bool:
        """Whether all its products exist."""
        return bool(self.products) and all(product.is_file() for product in self.products)


@dataclass(frozen=True)
class Inside:
    """A compressed file, read as if it were unpacked; has the methods of `Path` that readers need.

    Attributes:
        archive: a zip archive or a gzip file.
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
        """Whether the archive exists; a missing member is an error of `open`."""
        return self.archive.is_file()

    @contextlib.contextmanager
    def open(self, mode: str = "rb") -> Iterator[BinaryIO]:
        """Opens the unpacked bytes; zip and gzip check a checksum at the end."""
        if not self.member:
            with gzip.open(self.archive, mode) as file:
                yield file
            return
        with zipfile.ZipFile(self.archive) as archive, archive.open(self.member) as file:
            yield io.BufferedReader(file, 1 << 20)


def ir_datasets() -> ModuleType:
    """Imports the library and sends its messages through `logging`.

    Raises:
        DataError: its home folder cannot be created, or it would misread texts in this locale.
    """
    encoding = locale.getpreferredencoding(False)
    if encoding.lower().replace("-", "") != "utf8":
        raise DataError(f"ir_datasets would read texts as {encoding}, the locale's encoding; set PYTHONUTF8=1")
    try:
        import ir_datasets as library
    except OSError as error:
        text = f"ir_datasets cannot create its folder ({error.strerror}); set IR_DATASETS_HOME to a writable folder"
        raise DataError(f"{error.filename}: {text}") from error
    theirs = library.log.easy().logger()
    theirs.handlers[:] = [_Forward()]
    return library


class _Forward(logging.Handler):
    """Forwards ir_datasets' messages; those about starts and ends of steps at level DEBUG."""

    def emit(self, record: logging.LogRecord) -> None:
        detail = record.getMessage().startswith(("[starting]", "[finished]", "[error]"))
        logger.log(logging.DEBUG if detail else record.levelno, "%s", record.getMessage())


def home(group: str) -> Path:
    """The folder of one part of ir_datasets."""
    return Path(ir_datasets().util.home_path()) / group


def published(group: str, key: str, *products: str) -> Published:
    """File `key` of `group`, a part of ir_datasets; `products` are unpacked files that are used, as relative paths."""
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
    """Checks files and downloads missing ones.

    Raises:
        DataError: a file is missing and cannot be downloaded, or is not the published one.
    """
    files = list(dict.fromkeys(files))
    missing = [file for file in files if not file.present]
    if missing:
        refuse_without_network(missing, dataset)
    for file in files:
        if file.md5 and not file.path.is_file() and not file.unpacked:
            _fetch(file, config)
        if file.md5 and file.path.is_file():
            check_file(file, config)


def check_file(file: Published, config: Tier1Config) -> None:
    """Checks a file that is here against its MD5 or, without `verify_sources`, for harmful contents; once.

    Raises:
        DataError: as `verify` and `look_through`.
    """
    (verify if config.verify_sources else look_through)(file, config)


def is_checked(file: Published, config: Tier1Config) -> bool:
    """Whether `check_file` has been done and the file is unchanged since, so that it is not read again."""
    known, state = _read_marker(file, config), _state(file)
    return known == state or (not config.verify_sources and known == state | {"looked_through": True})


def refuse_without_network(missing: Sequence[SourceFile], dataset: str) -> None:
    """Raises an error if missing files cannot be downloaded; it names each with its address and local path.

    Raises:
        DataError: connections are forbidden, or a server accepts none; within seconds.
    """
    if told_to_stay_offline():
        why = "HF_HUB_OFFLINE forbids connections"
    else:
        dead = unreachable([file.url for file in missing])
        if not dead:
            return
        why = "the network cannot be reached"
        missing = [file for file in missing if file.url in dead]
    places = []
    for file in missing:
        unpacked = file.name.endswith(".gz") and not file.path.name.endswith(".gz")
        places.append(f"{file.name} from {file.url}, to be placed {'unpacked ' if unpacked else ''}at {file.path}")
    count = f"{len(missing)} source file{'s are' if len(missing) > 1 else ' is'} missing"
    raise DataError(
        f"{dataset}: {count} and {why}: {'; '.join(places)}; or run with --preset offline, which needs none"
    )


def _fetch(file: Published, config: Tier1Config) -> None:
    with lock(f"{file.group}-{file.key}", config):
        if file.path.is_file():  # another process was faster
            return
        if file.copy is not None and file.copy.is_file():
            _compare(file, file.copy, "remove it")
        else:
            logger.info("downloading %s to %s", file.url, file.path)
        with reading(file.path, file.url):
            ir_datasets().util.DownloadConfig.context(file.group, home(file.group))[file.key].path()
        write_json(_marker(file, config), _state(file))  # the download has checked it


def verify(file: Published, config: Tier1Config) -> None:
    """Checks a file against its published MD5, unless it is unchanged since the last check.

    Raises:
        DataError: it is another file, or cannot be read.
    """
    with reading(file.path), lock(f"{file.group}-{file.key}", config):
        if is_checked(file, config):
            return
        logger.info("checking the MD5 of %s", file.path)
        _compare(file, file.path, "remove it to download it again, or use it anyway with --no-verify-sources")
        write_json(_marker(file, config), _state(file))


def look_through(file: Published, config: Tier1Config) -> None:
    """Checks an archive without a verified MD5 for harmful contents, unless it is unchanged since the last check.

    Raises:
        DataError: it is damaged or harmful.
    """
    with reading(file.path), lock(f"{file.group}-{file.key}", config):
        if file.unpacked or is_checked(file, config):
            return
        archives.look_through(file.path)
        write_json(_marker(file, config), _state(file) | {"looked_through": True})


def _compare(file: Published, path: Path, advice: str) -> None:
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "md5").hexdigest()
    if found != file.md5:
        raise DataError(f"{path}: is not the published {file.url}: MD5 {found} instead of {file.md5}; {advice}")


def _state(file: Published) -> dict[str, Any]:
    stat = file.path.stat()
    return {"path": str(file.path), "md5": file.md5, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _marker(file: Published, config: Tier1Config) -> Path:
    return cache_folder(config) / "sources" / f"{file.group}-{file.key.replace('/', '-')}.json"


def _read_marker(file: Published, config: Tier1Config) -> Any:
    try:
        return read_json(_marker(file, config))
    except DataError:  # missing or damaged: check again
        return None


@contextlib.contextmanager
def lock(name: str, config: Tier1Config) -> Iterator[None]:
    """Lets only one process at a time download or unpack `name`."""
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
    """Turns any error while a source file is downloaded, unpacked or read into one line that names it."""
    try:
        yield
    except DataError:
        raise
    except (*DAMAGED, *MISREAD, ijson.JSONError) as error:  # an error of requests is an OSError
        raise DataError(f"{path}: {_problem(error, url)}") from error


def _problem(error: Exception, url: str) -> str:
    reason = _reason(error)
    if url or type(error).__module__.startswith("requests"):
        return f"could not be downloaded from {url or 'its publisher'} ({reason}); try again, or place a copy there"
    if isinstance(error, DAMAGED) or type(error).__module__.startswith("ijson"):
        return f"the file is damaged or incomplete ({reason}); {DOWNLOAD_AGAIN}"
    if isinstance(error, UnicodeError):
        return f"the file is not UTF-8 ({reason}); {DOWNLOAD_AGAIN}"
    if isinstance(error, OSError):
        return f"the file cannot be read or unpacked ({reason})"
    return f"ir_datasets cannot read the contents of the file ({reason}); {DOWNLOAD_AGAIN}"


def _reason(error: Exception) -> str:
    if len(error.args) == 2 and isinstance(error.args[1], list) and error.args[1]:  # all mirrors with their errors
        error = error.args[1][-1][-1]
    name = f"{type(error).__name__}: " if isinstance(error, LookupError) else ""
    return f"{name}{reason(error)}"[:300]
