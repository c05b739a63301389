"""Row 20: logs of runs that were killed in the middle of a line, and damaged lines."""

from __future__ import annotations

import gzip
import json
import logging
import random
from pathlib import Path

import pytest

import maw.runtime.run_log as logs
from maw.errors import DataError
from maw.runtime.run_log import EventFile, log_event, read_events


def write_log(path: Path, source: random.Random) -> list[dict]:
    """A log of some events, written as a run does."""
    target = logging.getLogger(f"torn {path}")
    target.setLevel(logging.DEBUG)
    target.propagate = False
    handler = EventFile(path)
    target.addHandler(handler)
    events = [
        {"event": "epoch", "epoch": number, "train_loss": source.random(), "text": source.choice("aé\n\0\u2028") * 3}
        for number in range(source.randint(2, 9))
    ]
    for each in events:
        log_event(target, **each)
    handler.close()
    return events


def without_time(found: list[dict]) -> list[dict]:
    return [{name: value for name, value in each.items() if name != "time"} for each in found]


def torn_last_line_is_forgiven(folder: Path, seed: int) -> None:
    source = random.Random(f"torn {seed}")
    path = folder / f"{seed}.jsonl"
    events = write_log(path, source)
    data = path.read_bytes()
    start = data.rstrip(b"\n").rfind(b"\n") + 1
    torn = data[: source.randrange(start + 1, len(data) - 1)]
    torn += source.choice([b"", bytes(source.randint(1, 50)), b"\n"])  # NUL: what a crash leaves of a file's end
    if source.random() < 0.3:
        path = path.with_suffix(".jsonl.gz")
        torn = gzip.compress(torn)
    path.write_bytes(torn)
    assert without_time(read_events(path)) == events[:-1]


def torn_middle_line_is_an_error(folder: Path, seed: int) -> None:
    source = random.Random(f"middle {seed}")
    path = folder / f"{seed}.jsonl"
    lines = [json.dumps(each).encode() for each in write_log(path, source)]
    lines.append(lines[-1])
    place = source.randrange(len(lines) - 1)
    whole = lines[place]
    lines[place] = source.choice(
        [whole[: source.randrange(1, len(whole))], b"", b"\0" * 20, b"[]", b"\xff" + whole, b'{"a": 1}', b"[" * 9999]
    )
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(DataError) as caught:
        read_events(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:{place + 1}: not an event") and text.isprintable(), text


def test_a_torn_last_line_is_forgiven(tmp_path, repeats, trial):
    for seed in range(repeats(20, 100)):
        with trial(20, "torn last lines", seed):
            torn_last_line_is_forgiven(tmp_path, seed)


def test_a_torn_middle_line_is_an_error_with_its_number(tmp_path, repeats, trial):
    for seed in range(repeats(20, 100)):
        with trial(20, "torn middle lines", seed):
            torn_middle_line_is_an_error(tmp_path, seed)


def test_control_readers_that_forgive_too_much_or_too_little_are_noticed(tmp_path, monkeypatch):
    def lenient(path):
        found = []
        for line in Path(path).read_bytes().split(b"\n"):
            try:
                found.append(json.loads(line))
            except (ValueError, RecursionError):
                continue
        return found

    monkeypatch.setattr(f"{__name__}.read_events", lenient)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - pytest's own, of what did not raise
        torn_middle_line_is_an_error(tmp_path, 0)
    assert "DID NOT RAISE" in str(caught.value)
    monkeypatch.setattr(f"{__name__}.read_events", lambda path: [json.loads(x) for x in path.read_text().split("\n")])
    with pytest.raises(ValueError, match=r".*"):
        torn_last_line_is_forgiven(tmp_path, 0)


def test_a_log_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none.jsonl: cannot be read"):
        read_events(tmp_path / "none.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"event": "a"}\n' * 99)[:-20])
    with pytest.raises(DataError, match=r"cut.jsonl.gz: cannot be read \("):
        read_events(tmp_path / "cut.jsonl.gz")
    assert logs.read_events is read_events
