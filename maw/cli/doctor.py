"""The command `doctor`: checks whether this machine can do a run, and says what to do if not.

    python tier_1.py doctor                          # for the run of `python tier_1.py`
    python tier_1.py doctor --preset offline         # for another run, by its flags
    python tier_1.py doctor --full                   # also reads corpora for which that takes longer than ten seconds

Each check prints a line: `ok`, or `problem` with what to do. Nothing is downloaded. Local data are read by the
functions that a run reads them with, and what was found is kept in the cache folder. The exit code is 1 after a
problem. `--dry-run` shows the disk space and time that a run needs.
"""

from __future__ import annotations

import copy
import importlib.metadata
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from maw.cli.flags import read_command_line
from maw.config.paths import absolute
from maw.config.tier1_config import Tier1Config, cache_folder
from maw.errors import MAWError
from maw.runtime.network import told_to_stay_offline, unreachable
from maw.storage.disk import GIGABYTE
from maw.storage.files import check_writable

OLDEST_PYTHON = (3, 11)
LEAST_FREE_GB = 2.0  # more than the corpora and activations of the smallest preset
DISTRIBUTION = "maw-transformers"
REQUIREMENTS = "requirements-common.txt"
FULL = "--full"


@dataclass(frozen=True)
class Check:
    """Result of one check: whether a run works with it, what was found, and what to do ("" for nothing)."""

    ok: bool
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{'ok' if self.ok else 'problem':<9}{self.text}"
        return f"{line}\n{'':9}-> {self.remedy}" if self.remedy else line


def main(argv: Sequence[str]) -> int:
    """The command `doctor`, see `maw.cli.commands`; it takes the flags of a run."""
    if {"-h", "--help"} & set(argv):
        sys.stdout.write(f"{__doc__}\n")
        return 0
    healthy = True
    for check in examine([word for word in argv if word != FULL], full=FULL in argv):
        healthy &= check.ok
        sys.stdout.write(f"{check}\n")
        sys.stdout.flush()
    sys.stdout.write("everything is there\n" if healthy else "problems were found; their lines above say what to do\n")
    return 0 if healthy else 1


def examine(argv: Sequence[str], *, full: bool = False) -> Iterator[Check]:
    """Runs all checks for a run with these flags, the quick ones first; `full` as in `maw.data.check`."""
    yield python_version(sys.version_info)
    yield from packages()
    config, mistakes = read_command_line(argv)
    for mistake in mistakes:
        yield Check(False, mistake)  # it includes the remedy
    model_failed = any(mistake.startswith(f"model {config.model}:") for mistake in mistakes)
    for check in (torch_and_device, faiss, folders, *(() if model_failed else (model,)), downloads):
        yield from _guarded(check, config)
    yield from data(config, full)


def _guarded(check: Callable[[Tier1Config], Iterator[Check]], config: Tier1Config) -> Iterator[Check]:
    """The results of a check; if it raises, a problem, so that the other checks still run."""
    try:
        yield from check(config)
    except (MAWError, ImportError, OSError) as error:
        yield Check(False, f"{check.__name__.replace('_', ' ')}: {error}")


def python_version(version: tuple[int, ...]) -> Check:
    """The Python version."""
    text = f"Python {'.'.join(map(str, version[:3]))} on {platform.system()} {platform.machine()}"
    oldest = ".".join(map(str, OLDEST_PYTHON))
    if tuple(version[:2]) < OLDEST_PYTHON:
        return Check(False, text, f"install Python {oldest} or later")
    return Check(True, text)


def packages() -> Iterator[Check]:
    """Required packages: installed, and at the tested version."""
    pins = _pins()
    found = {name: _installed(name) for name in pins}
    missing = [name for name, version in found.items() if version is None]
    other = [f"{name} {found[name]}, not {pins[name]}" for name in pins if found[name] not in (None, pins[name])]
    if missing:
        install = "pip install " + " ".join(f"{name}=={pins[name]}" for name in missing)
        yield Check(False, f"missing packages: {', '.join(missing)}", install)
    if other:
        yield Check(True, f"packages at other than the tested versions: {', '.join(other)}")
    same = len(pins) - len(missing) - len(other)
    yield Check(True, f"{same} of {len(pins)} packages at the tested version")


def torch_and_device(config: Tier1Config) -> Iterator[Check]:
    """PyTorch, and the device of a run."""
    import torch

    from maw.runtime.devices import pick_device

    device = pick_device(config)
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield Check(True, f"torch {torch.__version__}, {cuda}; a run computes on {device}")
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield Check(True, f"GPU {index}: {facts.name}, {facts.total_memory / GIGABYTE:.0f} GB")
    elif shutil.which("nvidia-smi") and config.device is None:
        text = "nvidia-smi is there, but torch sees no GPU"
        yield Check(False, text, "install a torch for this driver (pytorch.org/get-started), or set --device cpu")


def faiss(config: Tier1Config) -> Iterator[Check]:
    """FAISS, which --search exact does not need."""
    both = [name for name in ("faiss-cpu", "faiss-gpu") if _installed(name)]
    if len(both) == 2:
        remedy = "pip uninstall faiss-cpu faiss-gpu, then install one of them"
        yield Check(False, "faiss-cpu and faiss-gpu are both installed and overwrite each other", remedy)
    elif both:
        yield Check(True, f"{both[0]} {_installed(both[0])}")
    elif config.search == "exact":
        yield Check(True, "no FAISS; --search exact does not need it")


def folders(config: Tier1Config) -> Iterator[Check]:
    """Cache and results folders: writable, with enough free space."""
    for what, folder, flag in (
        ("cache", cache_folder(config), "--cache-dir FOLDER or MAW_CACHE"),
        ("results", Path(absolute(config.log_dir)), "--log-dir FOLDER"),
    ):
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        remedy = f"choose another folder: {flag}"
        try:
            check_writable(there)
            free = shutil.disk_usage(there).free / GIGABYTE
        except (MAWError, OSError) as error:
            yield Check(False, f"{what} folder {folder}: {error}", remedy)
            continue
        text = f"{what} folder {folder}: {free:,.1f} GB free"
        yield Check(free >= LEAST_FREE_GB, text, "" if free >= LEAST_FREE_GB else f"free disk space, or {remedy}")


def model(config: Tier1Config) -> Iterator[Check]:
    """The pretrained weights: present or downloadable. Other problems of a model are mistakes of the flags."""
    from huggingface_hub import constants

    from maw.experiment.plan.encoding_speed import weights_are_here
    from maw.models.model_files import NotCachedError
    from maw.models.pretrained import read_spec, verify_weights
    from maw.models.retriever import load_tokenizer

    try:
        spec = read_spec(config, local_only=True)
    except NotCachedError:
        spec = None
    except MAWError:
        return  # reported with the flags
    if spec is not None and spec.folder and not any(spec.folder.glob("*.safetensors")):
        text = f"model {config.model}: there are no weights (*.safetensors) in {spec.folder}"
        yield Check(False, text, "place them beside config.json; save_pretrained of a current transformers makes them")
        return
    if spec is not None and weights_are_here(spec):
        verify_weights(spec)
        if spec.folder or told_to_stay_offline():  # else what is missing of a hub model would be downloaded
            load_tokenizer(spec)
        yield Check(True, f"model {config.model}: its weights are here")
        return
    text = f"model {config.model}: its weights are not here"
    if told_to_stay_offline() or unreachable([constants.ENDPOINT]):
        remedy = "place its files in a folder and pass --model FOLDER, or use --model packaged:all-MiniLM-L6-v2"
        yield Check(False, f"{text}, and {constants.ENDPOINT} cannot be reached", remedy)
    else:
        yield Check(True, f"{text}; they will be downloaded from {constants.ENDPOINT}")


def downloads(config: Tier1Config) -> Iterator[Check]:
    """Source files that are missing: downloadable or not."""
    from maw.data.registry import needs_of

    for name in config.datasets:
        try:
            needs = needs_of(name, config)
        except MAWError:
            continue  # reported with the flags
        missing = [file for file in needs.files if not file.present]
        if not missing:
            continue
        dead = [file for file in missing if told_to_stay_offline() or file.url in unreachable([file.url])]
        size = f"{needs.download_bytes / GIGABYTE:,.2f} GB" if needs.download_bytes else "of unknown size"
        if not dead:
            yield Check(True, f"dataset {name}: {len(missing)} files, {size}, will be downloaded")
            continue
        places = "; ".join(f"{file.url} to {file.path}" for file in dead)
        text = f"dataset {name}: {len(dead)} source files are missing and cannot be reached"
        yield Check(False, text, f"place {places}; or run with --preset offline, which needs none")


def data(config: Tier1Config, full: bool) -> Iterator[Check]:
    """What is in the datasets' files, as far as they are here."""
    from maw.data.check import check_data
    from maw.experiment.config_checks import dataset_problem, distractor_problems

    config = copy.copy(config)  # without what is reported with the flags
    config.datasets = [name for name in config.datasets if dataset_problem(name) is None]
    config.distractors = None if distractor_problems(config) else config.distractors
    for found in check_data(config, full=full):
        yield Check(not found.problem, f"dataset {found.name}: {found.problem or found.text}")
        yield from (Check(True, f"  {warning}") for warning in found.warnings)


def _pins() -> dict[str, str]:
    """Package -> tested version, from the source tree, or from the metadata of the installed project."""
    path = Path(__file__).resolve().parents[2] / REQUIREMENTS
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
    else:
        lines = [each for each in importlib.metadata.requires(DISTRIBUTION) or () if "extra ==" not in each]
    found = (re.match(r"([A-Za-z0-9._-]+)==([^\s;#]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None
