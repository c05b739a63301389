"""Room on disk: what goes to make it, what stays, and locks whose files go too and still keep others out."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest
from filelock import FileLock

from maw.storage import cache_entry
from maw.storage.cache_entry import make_room, only_builder
from maw.storage.locks import held


def test_what_a_killed_run_left_is_cleared_and_what_is_being_written_is_not(tmp_path):
    for name in ("dead", "alive"):
        (tmp_path / f"{name}.x1.tmp").mkdir()
        (tmp_path / f"{name}.x1.tmp" / "embeddings.npy").write_bytes(bytes(100))
    with FileLock(tmp_path / "alive.lock"):
        make_room(tmp_path, 50, 150)
        assert [path.name for path in tmp_path.glob("*.tmp")] == ["alive.x1.tmp"]
        with pytest.raises(OSError, match="what other runs are writing"):
            make_room(tmp_path, 51, 150)


def test_half_an_entry_is_the_first_to_go(tmp_path):
    for name, age in (("old", 100), ("half", None), ("new", 200)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "embeddings.npy").write_bytes(bytes(100))
        if age:
            (tmp_path / name / "manifest.json").touch()
            os.utime(tmp_path / name / "manifest.json", (age, age))
    for size, left in ((0, {"old", "half", "new"}), (100, {"old", "new"}), (200, {"new"}), (300, set())):
        make_room(tmp_path, size, 300)
        assert {path.name for path in tmp_path.iterdir()} == left


def entry(folder, name: str, age: int) -> None:
    """An entry of 100 bytes with the lock file that its builder left."""
    (folder / name).mkdir()
    (folder / name / "embeddings.npy").write_bytes(bytes(100))
    (folder / name / "manifest.json").touch()
    os.utime(folder / name / "manifest.json", (age, age))
    (folder / f"{name}.lock").touch()


def test_locks_of_entries_that_are_gone_go_with_them(tmp_path):
    for name, age in (("old", 100), ("new", 200)):
        entry(tmp_path, name, age)
    for name in ("room.lock", "never-finished.lock"):
        (tmp_path / name).touch()
    make_room(tmp_path, 100, 200)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "new.lock", "room.lock"}


def test_a_lock_that_is_held_stays_and_keeps_others_out(tmp_path):
    entry(tmp_path, "building", 100)
    with FileLock(tmp_path / "building.lock"), FileLock(tmp_path / "starting.lock"):
        make_room(tmp_path, 100, 100)
        assert {path.name for path in tmp_path.iterdir()} == {"building.lock", "starting.lock"}
        for name in ("building", "starting"):
            with held(tmp_path / f"{name}.lock") as found:
                assert found is None
    make_room(tmp_path, 100, 100)
    assert not list(tmp_path.iterdir())


def test_a_lock_whose_file_goes_just_before_it_is_taken_is_taken_again(tmp_path, monkeypatch):
    """Between a builder's opening of the file and its lock on it another run clears the file away."""
    import fcntl

    lock, waiting = fcntl.flock, [tmp_path]

    def late(file: int, operation: int) -> None:
        if waiting:
            cache_entry._clear_locks(waiting.pop())
            assert not list(tmp_path.iterdir())
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with only_builder(tmp_path / "entry"):
        assert not waiting and (tmp_path / "entry.lock").exists()
        with held(tmp_path / "entry.lock") as other:
            assert other is None


def _build_and_sweep(folder, barrier, queue) -> None:
    """Builds the same entry again and again, and clears locks away whenever it is not building."""
    met = 0
    barrier.wait(60)
    for _ in range(40):
        with only_builder(folder / "entry"):
            try:
                (folder / "inside").mkdir()  # fails if another is inside
                time.sleep(0.0005)
                (folder / "inside").rmdir()
            except OSError:
                met += 1
        cache_entry._clear_locks(folder)
    queue.put(met)


def test_builders_never_meet_though_lock_files_come_and_go(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_build_and_sweep, args=(tmp_path, barrier, queue)) for _ in range(3)]
    for each in processes:
        each.start()
    assert [queue.get(timeout=120) for _ in processes] == [0, 0, 0]
    for each in processes:
        each.join(60)
    assert not (tmp_path / "inside").exists()
