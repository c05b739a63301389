"""Runs commands of Python in forks of one process that has loaded the libraries, but nothing of the project.

    with forking(folder) as address:
        forks = Forks(address)
        done = forks.run("tier_1.py", "--help", cwd=ROOT)       # as subprocess.run(["python", "tier_1.py", "--help"])
        pipe = forks.start("-m", "faults.runs", cwd=TESTS)      # its standard input and output

Any number of processes may use one address at once, as the workers of pytest-xdist do.

Most commands compute for a second, and their imports take three. What depends on a fresh interpreter, as what is
imported when, or on variables that a library reads when it is loaded, needs a process of its own.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch", "transformers.models.bert.modeling_bert", "transformers.models.auto.tokenization_auto",
    "sentence_transformers", "peft", "datasets", "pandas", "scipy.stats", "statsmodels.stats.power", "pytest",
    "matplotlib.backends.backend_pdf", "matplotlib.backends.backend_svg", "matplotlib.backends.backend_agg",
)  # fmt: skip

LIMIT = 600
"""Seconds after which a command and all that it started are killed."""


@contextlib.contextmanager
def forking(folder: Path) -> Iterator[str]:
    """The address of a process that loads the libraries and forks until the block ends, or this process does."""
    known = {name: each for name, each in os.environ.items() if name != "PYTHONPATH"}
    with socket.socket(socket.AF_UNIX) as listener:
        address = str(folder / "forks")
        listener.bind(address)
        listener.listen(64)
        number = listener.fileno()
        command = [sys.executable, "-P", str(Path(__file__)), str(number)]
        process = subprocess.Popen(command, cwd=folder, env=known, stdin=subprocess.PIPE, pass_fds=[number])
    try:
        yield address
    finally:
        process.stdin.close()
        process.wait(30)


class Forks:
    """What the process at an address is asked for."""

    def __init__(self, address: str):
        self.address = address

    def run(
        self, *words: Any, cwd: Path, path: tuple[Path, ...] = (), **environment: Any
    ) -> subprocess.CompletedProcess[str]:
        """Runs `python WORDS` in a folder, with the folders of `path` as PYTHONPATH, to its end."""
        with self._asked(words, cwd, path, environment, ends=True) as connection, connection.makefile() as answer:
            line = answer.readline()
        assert line, "the process that forks has ended"
        return subprocess.CompletedProcess(list(words), **json.loads(line))

    def start(self, *words: Any, cwd: Path, path: tuple[Path, ...] = (), **environment: Any) -> socket.socket:
        """Starts `python WORDS`; what is sent is its standard input, and its standard output is what is received."""
        return self._asked(words, cwd, path, environment, ends=False)

    def _asked(
        self, words: tuple[Any, ...], cwd: Path, path: tuple[Path, ...], environment: dict[str, Any], ends: bool
    ) -> socket.socket:
        known = {name: str(each) for name, each in environment.items()}
        known["PYTHONPATH"] = os.pathsep.join(map(str, path))
        request = {"words": list(map(str, words)), "cwd": str(cwd), "environment": known, "ends": ends}
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.address)
        connection.sendall(json.dumps(request).encode() + b"\n")
        return connection


# ------------------------------------------------------------------------------------------------- in the process


def serve(listener: socket.socket) -> None:
    """Answers each connection in a fork of its own, until standard input ends."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    gc.set_threshold(50_000)
    os.fsync = lambda handle: None  # it waits for the disk, and what was written outlives its process without it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for these forks
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        with connection:
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                _answer(connection)
                os._exit(0)


def _answer(connection: socket.socket) -> None:
    with connection.makefile("rb", buffering=0) as lines:  # what follows the line is the command's
        request = json.loads(lines.readline())
    if request.pop("ends"):
        connection.sendall(json.dumps(_done(**request)).encode() + b"\n")
    else:
        _become(**request, files=(connection.fileno(), connection.fileno(), 2))


def _become(words: list[str], cwd: str, environment: dict[str, str], files: tuple[int, int, int]) -> None:
    """Runs a command with these files as its standard ones, and ends the process."""
    os.setsid()
    for standard, file in enumerate(files):
        os.dup2(file, standard)
    os.chdir(cwd)
    os.environ |= environment
    os._exit(_command(words))


def _done(**command: Any) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as error:
        child = os.fork()
        if child == 0:
            _become(**command, files=(os.open(os.devnull, os.O_RDONLY), output.fileno(), error.fileno()))
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(child, signal.SIGKILL))
        signal.alarm(LIMIT)
        _, status = os.waitpid(child, 0)
        signal.alarm(0)
        for file in (output, error):
            file.seek(0)
        return {"returncode": os.waitstatus_to_exitcode(status), "stdout": output.read(), "stderr": error.read()}


def _command(words: list[str]) -> int:
    """The exit code of `python WORDS`."""
    code = 0
    sys.path[:0] = filter(None, os.environ["PYTHONPATH"].split(os.pathsep))
    try:
        if words[0] == "-c":
            sys.argv = words[:1] + words[2:]
            sys.path.insert(0, "")
            exec(words[1], {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, "")
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter itself
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    return code


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
