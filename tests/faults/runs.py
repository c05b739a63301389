"""Whole runs in their own processes, which can be killed anywhere, and the comparison of two runs.

    server = RunServer(forks, folder)
    done = server.run(["--datasets", ...], boundary=17)      # SIGKILL at the 17th write, flush, rename or removal
    done.code, done.in_save, done.boundaries

    python -m faults.runs                                    # the server: loads the project once, forks for each run

The server itself never trains, since autograd's threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import random
import re
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import random_texts
from forks import Forks

ROOT = Path(__file__).parents[2]
TIMES = ("seconds", "minutes", "per_second", "joules", "evaluated_at")
STAMP = re.compile(r"_\d{8}_\d{6}$")  # of a result's folder; its hour may be 20, as the first digits of its year
_COUNTERS = struct.Struct("qqq")  # boundaries passed, those inside a checkpoint's save, whether inside one now


@dataclass(frozen=True)
class Done:
    """How a run ended.

    Attributes:
        code: exit code; -9 if it was killed.
        seconds: from the fork to its end.
        after_signal: seconds from the last signal that was sent to its end; None if none was.
        output: standard output and error.
        boundaries: writes, flushes, renames and removals that it began.
        in_saves: those of them inside a checkpoint's save.
        in_save: whether it ended inside one.
    """

    code: int
    seconds: float
    after_signal: float | None
    output: str
    boundaries: int
    in_saves: int
    in_save: bool


class RunServer:
    """Starts runs.

    Args:
        forks: what it is forked from.
        folder: for the runs' output.
    """

    def __init__(self, forks: Forks, folder: Path):
        self.connection = forks.start("-m", "faults.runs", cwd=folder, path=(ROOT, ROOT / "tests"))
        self.answers = self.connection.makefile()

    def run(self, flags: Sequence[Any], **how: Any) -> Done:
        """Runs tier_1.py to its end, whichever that is.

        Args:
            flags: its command line.
            how: `boundary`, at which it is killed; `save_boundary`, the same counted inside checkpoints' saves alone;
                `signals`, pairs of seconds after the start and a signal's number; `await_file`, pattern of a file
                that must be there before the seconds begin.
        """
        request = {"flags": [str(flag) for flag in flags], **how}
        self.connection.sendall(json.dumps(request).encode() + b"\n")
        line = self.answers.readline()
        assert line, "the server of runs has ended"
        return Done(**json.loads(line))

    def close(self) -> None:
        """Ends the server."""
        self.answers.close()
        self.connection.close()


def beir_folder(folder: Path, passages: int = 60) -> Path:
    """A folder in BEIR layout in which each query is a few words of its passage; a third of them in each split."""
    texts = list(dict.fromkeys(random_texts(2 * passages, seed=11)))[:passages]
    questions: dict[str, int] = {}
    for number, text in enumerate(texts):
        questions.setdefault(" ".join(text.split()[1:5]) + " of", number)
    (folder / "qrels").mkdir(parents=True)
    rows = {
        "corpus": [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)],
        "queries": [{"_id": f"q{i}", "text": text} for i, text in enumerate(questions)],
    }
    for name, each in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    third = len(questions) // 3
    for number, split in enumerate(("train", "dev", "test")):
        part = list(enumerate(questions.values()))[number * third : (number + 1) * third]
        lines = ["query-id\tcorpus-id\tscore", *(f"q{query}\td{passage}\t1" for query, passage in part)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


# --------------------------------------------------------------------------------------------------- in the server


def serve() -> None:
    """Answers one request a line until there are no more."""
    import datasets  # noqa: F401 - what a run would load by and by
    import pandas  # noqa: F401
    import torch
    import transformers.models.bert.modeling_bert  # noqa: F401

    import maw.experiment.benchmark
    import maw.experiment.plan.plan
    import maw.report.rebuild
    import tier_1  # noqa: F401
    from maw.experiment.plan.encoding_speed import Rate

    torch.set_num_threads(1)
    gc.freeze()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for jobs in the background
    maw.experiment.plan.plan.measure = lambda *_: Rate(
        200, 20_000, 2.0, "cpu"
    )  # how fast the machine is says the plan alone
    maw.report.rebuild._draw = lambda *_: None  # half of a run's time, and written as every other file is
    answers = os.fdopen(os.dup(1), "w")
    for number, line in enumerate(sys.stdin):
        answers.write(json.dumps(_serve(json.loads(line), Path(f"output-{os.getpid()}-{number}"))) + "\n")
        answers.flush()


def _serve(request: dict[str, Any], output: Path) -> dict[str, Any]:
    counters = mmap.mmap(-1, _COUNTERS.size)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(request, output, counters)
    sent = _send(child, request, started)
    _, status = os.waitpid(child, 0)
    ended = time.monotonic()
    boundaries, in_saves, in_save = _COUNTERS.unpack(counters[:])
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": ended - started,
        "after_signal": None if sent is None else ended - sent,
        "output": output.read_text(errors="replace"),
        "boundaries": boundaries,
        "in_saves": in_saves,
        "in_save": bool(in_save),
    }


def _send(child: int, request: dict[str, Any], started: float) -> float | None:
    """Sends the signals that are asked for; when the last was sent."""
    sent = None
    if "await_file" in request:
        folder, pattern = request["await_file"]
        while not any(Path(folder).glob(pattern)) and not _has_ended(child):
            time.sleep(0.002)
        started = time.monotonic()
    for seconds, number in request.get("signals", ()):
        time.sleep(max(0.0, started + seconds - time.monotonic()))
        if not _has_ended(child):
            os.kill(child, number)
            sent = time.monotonic()
    return sent


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _child(request: dict[str, Any], output: Path, counters: mmap.mmap) -> None:
    code = 99
    try:
        handle = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for standard in (1, 2):
            os.dup2(handle, standard)
        import tier_1

        with watched(counters, request.get("boundary", 0), request.get("save_boundary", 0)):
            code = tier_1.main(request["flags"])
        sys.stdout.flush()
        sys.stderr.flush()
    except SystemExit as error:
        code = error.code
        sys.stdout.flush()
    except Exception:  # a mistake in the program, which the test then shows
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


@contextlib.contextmanager
def watched(counters: mmap.mmap, boundary: int = 0, save_boundary: int = 0) -> Iterator[None]:
    """Counts the boundaries inside the block, and ends the process at one of them, from 1; 0: at none.

    Every operation has two: before it, and, of a write when half of it is done, of the others when they are over.
    """
    from maw.training import checkpoint

    real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "rmdir", "link")}
    write, bundle = Path.write_bytes, checkpoint.write_bundle

    def passed() -> None:
        total, in_saves, inside = _COUNTERS.unpack(counters[:])
        total, in_saves = total + 1, in_saves + inside
        counters[:] = _COUNTERS.pack(total, in_saves, inside)
        if total == boundary or (inside and in_saves == save_boundary):
            os.kill(os.getpid(), signal.SIGKILL)

    def around(operation: Callable[..., Any]) -> Callable[..., Any]:
        def operate(*arguments: Any, **options: Any) -> Any:
            passed()
            result = operation(*arguments, **options)
            passed()
            return result

        return operate

    def write_bytes(path: Path, content: bytes) -> int:
        passed()
        write(path, content[: len(content) // 2])
        passed()
        return write(path, content)

    def write_bundle(*arguments: Any, **options: Any) -> None:
        total, in_saves, _ = _COUNTERS.unpack(counters[:])
        counters[:] = _COUNTERS.pack(total, in_saves, 1)
        bundle(*arguments, **options)
        total, in_saves, _ = _COUNTERS.unpack(counters[:])
        counters[:] = _COUNTERS.pack(total, in_saves, 0)

    try:
        for name, operation in real.items():
            setattr(os, name, around(operation))
        Path.write_bytes, checkpoint.write_bundle = write_bytes, write_bundle
        yield
    finally:
        for name, operation in real.items():
            setattr(os, name, operation)
        Path.write_bytes, checkpoint.write_bundle = write, bundle


# ---------------------------------------------------------------------------------------------------- what is compared


def outcome(log_dir: Path) -> dict[str, Any]:
    """All that a run has left, but for times: results, values of every query, and the best weights by their hash."""
    found: dict[str, Any] = {}
    for path in sorted(log_dir.rglob("*.json")):
        if path.parent.name == "summary" or path.name.endswith("_metrics.json") or path.name == "dataset.json":
            name = "summary" if path.parent.name == "summary" else STAMP.sub("", path.parent.name)
            found[f"{name}/{path.name}"] = without_times(json.loads(path.read_text()))
    for path in sorted((log_dir / "checkpoints").glob("*/checkpoint.json")):
        record = without_times(json.loads(path.read_text()))
        files = {group: entry["sha256"] for group, entry in record["files"].items()}
        kept = ("epoch", "step", "best_val_metric", "training_history", "dataset", "method")
        found[path.parent.name] = {"files": files} | {key: record[key] for key in kept}
    return found


def without_times(value: Any) -> Any:
    """A value without what differs between two runs that did the same: times, memory and energy, where embeddings
    came from."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if not key.endswith(TIMES) and key != "embeddings"}
        kept.pop("runtime_summary", None)
        kept.pop("peak_memory_bytes", None)
        kept.pop("energy", None)
        kept.pop("log_dir", None)
        kept.pop("cache_dir", None)
        return {key: without_times(each) for key, each in kept.items()}
    if isinstance(value, list):
        return [without_times(each) for each in value]
    return value


def stray_files(log_dir: Path) -> list[str]:
    """What only an unfinished run has in its folder."""
    strays = [path for path in log_dir.rglob("*") if path.name.endswith(".tmp") or path.name.startswith("run.lock")]
    return [str(path) for path in (*strays, *log_dir.glob("state"), *log_dir.glob("run.holder.json"))]


def truncate(path: Path, source: random.Random) -> None:
    """Cuts a file anywhere, its start included."""
    os.truncate(path, source.randrange(path.stat().st_size))


def flip(path: Path, source: random.Random) -> None:
    """Changes one bit."""
    content = bytearray(path.read_bytes())
    content[source.randrange(len(content))] ^= 1 << source.randrange(8)
    path.write_bytes(bytes(content))


if __name__ == "__main__":
    serve()
