"""Runs commands of Python in forks of one process that has loaded the libraries, but nothing of the project.

    forks = Forks(folder)
    done = forks.run("tier_1.py", "--help", cwd=ROOT)       # as subprocess.run(["python", "tier_1.py", "--help"])

Most commands compute for a second, and their imports take three. What depends on a fresh interpreter, as what is
imported when, or on variables that a library reads when it is loaded, needs a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch", "transformers.models.bert.modeling_bert", "transformers.models.auto.tokenization_auto",
    "sentence_transformers", "peft", "datasets", "pandas", "scipy.stats", "statsmodels.stats.power", "pytest",
    "matplotlib.backends.backend_pdf", "matplotlib.backends.backend_svg", "matplotlib.backends.backend_agg",
)  # fmt: skip

LIMIT = 600
"""Seconds after which a command and all that it started are killed."""


class Forks:
    """The process that has loaded the libraries.

    Args:
        folder: where it keeps nothing and runs.
    """

    def __init__(self, folder: Path):
        known = {name: each for name, each in os.environ.items() if name != "PYTHONPATH"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-P", str(Path(__file__))]
        self.process = subprocess.Popen(command, text=True, cwd=folder, env=known, **pipes)

    def run(
        self, *words: Any, cwd: Path, path: tuple[Path, ...] = (), **environment: Any
    ) -> subprocess.CompletedProcess[str]:
        """Runs `python WORDS` in a folder, with the folders of `path` as PYTHONPATH, to its end."""
        known = {name: str(each) for name, each in environment.items()}
        known["PYTHONPATH"] = os.pathsep.join(map(str, path))
        request = {"words": list(map(str, words)), "cwd": str(cwd), "environment": known}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the process that forks has ended"
        return subprocess.CompletedProcess(list(words), **json.loads(line))

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait(30)


# ------------------------------------------------------------------------------------------------- in the process


def serve() -> None:
    """Answers one request a line until there are no more."""
    for name in LIBRARIES:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(_answer(**json.loads(line))) + "\n")
        answers.flush()


def _answer(words: list[str], cwd: str, environment: dict[str, str]) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as error:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for standard, file in ((1, output), (2, error)):
                os.dup2(file.fileno(), standard)
            os.chdir(cwd)
            os.environ |= environment
            os._exit(_command(words))
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
    serve()
