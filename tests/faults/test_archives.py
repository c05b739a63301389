"""Row 15: malicious archives in place of the published ones."""

from __future__ import annotations

import gzip
import io
import random
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from source_fixtures import forget_library, settings, tar, write_beir_nq, write_msmarco, write_triviaqa

from faults.tools import tree
from maw.data.download import archives
from maw.data.registry import load_collection
from maw.errors import DataError

NAMES = [
    "../evil",
    "../../../../evil",
    "collection/../../evil",
    "../ir_datasets-evil/evil",
    "../msmarco-passage-evil/evil",
    "/tmp/evil",
    "/evil",
    "..\\evil",
    "C:\\evil",
    "\\\\server\\evil",
    "a/../../../evil",
]
LIMIT = 4 << 20


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"evil") -> tuple:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o777
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    info.devmajor, info.devminor = 1, 3
    return info, content


TAR_MEMBERS = {
    **{f"name {name}": tar_member(name) for name in NAMES},
    "link out": tar_member("link", tarfile.SYMTYPE, "../../evil"),
    "absolute link": tar_member("link", tarfile.SYMTYPE, "/etc/passwd"),
    "link in place of the passages": tar_member("collection.tsv", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": tar_member("link", tarfile.LNKTYPE, "../../evil"),
    "hard link in place of the passages": tar_member("collection.tsv", tarfile.LNKTYPE, "/etc/passwd"),
    "character device": tar_member("device", tarfile.CHRTYPE),
    "block device": tar_member("device", tarfile.BLKTYPE),
    "pipe": tar_member("collection.tsv", tarfile.FIFOTYPE),
    "bomb": tar_member("bomb", content=bytes(2 * LIMIT)),
}


def hostile_tar(home: Path, kind: str, first: bool) -> str:
    """A good MS MARCO archive with one member more, in front or behind."""
    write_msmarco(home)
    path = home / "msmarco-passage" / "collectionandqueries.tar.gz"
    members = []
    with tarfile.open(path) as archive:
        members = [(info, archive.extractfile(info).read()) for info in archive]
    members.insert(0 if first else len(members), TAR_MEMBERS[kind])
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content) if info.isfile() else None)
    return "msmarco"


def zip_link(name: str, target: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


ZIP_MEMBERS: dict[str, tuple] = {
    **{f"name {name}": (name, b"evil") for name in NAMES},
    "link": (zip_link("link", "../../evil"), b"../../evil"),
    "link in place of the passages": (zip_link("nq/corpus.jsonl", "/etc/passwd"), b"/etc/passwd"),
    "bomb": ("nq/bomb", bytes(2 * LIMIT)),
    "bomb in place of the passages": ("nq/corpus.jsonl", b" " * (2 * LIMIT)),
}


def hostile_zip(home: Path, kind: str, first: bool) -> str:
    """A good BEIR archive with one member more."""
    write_beir_nq(home)
    path = home / "beir" / "nq" / "source.zip"
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    members.insert(0 if first else len(members), ZIP_MEMBERS[kind])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content, zipfile.ZIP_DEFLATED)
    return "nq"


def hostile_gzip(home: Path, kind: str, first: bool) -> str:
    """DPR's passages, packed so that they unpack to much."""
    write_triviaqa(home)
    path = home / "dpr-w100" / "docs.tsv.gz"
    rows = gzip.decompress(path.read_bytes())
    bomb = b"\n" * (2 * LIMIT)
    path.write_bytes(gzip.compress(rows + bomb if kind == "bomb" else rows) + gzip.compress(bomb))
    return "triviaqa"


ARCHIVES: list[tuple[Callable[[Path, str, bool], str], str, bool]] = [
    *((hostile_tar, kind, first) for kind in TAR_MEMBERS for first in (True, False)),
    *((hostile_zip, kind, first) for kind in ZIP_MEMBERS for first in (True, False)),
    (hostile_gzip, "bomb", True),
    (hostile_gzip, "bomb behind", True),
]


def nothing_gets_out(home: Path, folder: Path, make, kind: str, first: bool) -> None:
    """Loads a dataset from the archive without comparing its MD5: refused, nothing written elsewhere, and little."""
    name = make(home, kind, first)
    outside = folder / "outside"
    outside.mkdir(exist_ok=True)

    def state() -> list:
        evil = [Path(place).exists() for place in ("/tmp/evil", "/evil")]
        unpacked = {path for path in home.rglob("*") if not path.is_dir()}
        return [tree(outside), evil, unpacked, {*folder.iterdir()}]

    before = state()
    with pytest.raises(DataError) as caught:
        load_collection(name, settings(folder, methods=["zero_shot"]))
    text = str(caught.value)
    assert "it was not unpacked" in text and str(home) in text and "\n" not in text and text.isprintable(), text
    after = state()
    assert after[:-1] == before[:-1], "something was written outside"
    assert after[-1] - before[-1] <= {folder / "cache", folder / "tmp"}, "something was written outside"
    written = sum(path.stat().st_size for place in ("cache", "tmp") for path in (folder / place).rglob("*"))
    assert written < LIMIT


def test_hostile_archives_are_refused(home, tmp_path, monkeypatch, repeats, trial):
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", LIMIT)
    cases = random.Random(15).sample(ARCHIVES, repeats(5, len(ARCHIVES)))
    assert len(ARCHIVES) >= 30
    for make, kind, first in cases:
        with trial(15, "archives", f"{make.__name__}, {kind}, {first}"):
            shutil.rmtree(home, ignore_errors=True)
            forget_library()
            nothing_gets_out(home, tmp_path, make, kind, first)


def test_control_an_archive_that_is_unpacked_by_its_names_is_noticed(home, tmp_path, monkeypatch):
    def careless(path: Path) -> None:
        with tarfile.open(path) as archive:
            archive.extractall(path.parent / "unpacked", filter="fully_trusted")
        raise DataError(f"{path}: it was not unpacked")

    monkeypatch.setattr(archives, "look_through", careless)
    with pytest.raises(AssertionError, match="written outside"):
        nothing_gets_out(home, tmp_path, hostile_tar, "name ../ir_datasets-evil/evil", True)


def test_control_a_bomb_within_the_limits_would_be_unpacked(home, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_RATIO", 10**6)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - pytest's own, of what did not raise
        nothing_gets_out(home, tmp_path, hostile_zip, "bomb", True)
    assert "DID NOT RAISE" in str(caught.value)


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 10)
    for name, data in (("a.tar.gz", tar({f"{i}": b"" for i in range(11)})), ("b.zip", many_members(11))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="holds more than 10 files"):
            archives.look_through(tmp_path / name)


def many_members(count: int) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number}", b"")
    return packed.getvalue()


def test_good_archives_are_looked_through_once(home, tmp_path, monkeypatch):
    looked = []
    real = archives.look_through
    monkeypatch.setattr(archives, "look_through", lambda path: (looked.append(path.name), real(path)))
    write_msmarco(home)
    for _ in range(2):
        shutil.rmtree(tmp_path / "cache" / "corpora", ignore_errors=True)
        load_collection("msmarco", settings(tmp_path, methods=["zero_shot"]))
    assert sorted(looked) == ["collectionandqueries.tar.gz"]
