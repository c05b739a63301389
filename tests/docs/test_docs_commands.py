"""Every command in README and docs works: run as it is if it needs no network, else with --dry-run.

Names of models, folders and finished runs stand for tiny ones here. `tests/docs/test_use_docs.py` runs docs/use.md,
whose lines depend on one another.
"""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import write_model

import tier_1
from docs.test_extending import do, steps
from maw.cli.commands import COMMANDS
from maw.cli.flags import parse_command_line
from maw.config.paths import short_path
from maw.config.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = "python tier_1.py"
STARTS = (
    "python ",
    "torchrun ",
    "accelerate ",
    "srun ",
    "make ",
    "pip ",
    "cd ",
    "gzip ",
    "ir_measures ",
    "OMP_NUM_THREADS",
)
NOT_HERE = ("pip ", "cd ", "gzip ", "srun ")
"""Needs a network, belongs to the line after it, or needs trec_eval's own program or SLURM."""


def lines_of(page):
    """The lines of the indented blocks of a page, those that a backslash parts joined, and what follows # left out."""
    text = re.sub(r" *\\\n\s*", " ", page.read_text())
    lines = [line.strip() for line in text.splitlines() if re.match(r" {4}\S", line)]
    return [re.split(r"\s+# |\s{3,}#", line)[0].strip() for line in lines]


def commands():
    """The commands of all pages, each once: of blocks, and of the table of first tasks."""
    found = [line for page in PAGES if page.name != "use.md" for line in lines_of(page) if line.startswith(STARTS)]
    found += re.findall(rf"`({RUN} [^`]+)`", (ROOT / "docs" / "faq.md").read_text())
    return list(dict.fromkeys(found))


ALL = commands()
RESUMED = [line for line in ALL if line.startswith(f"{RUN} --resume")]
OF_RUNS = [line for line in ALL if "tier_1.py" in line and line not in RESUMED and not line.startswith(NOT_HERE)]


@pytest.fixture
def place(tiny_run, tiny_beir, tmp_path, monkeypatch):
    """A folder with finished runs, collections in BEIR layout and a model, under the names that the pages use."""
    for name in ("tier1", "a", "b"):
        shutil.copytree(tiny_run, tmp_path / "logs" / name)
    for name in ("folder", "msmarco", "nq"):
        shutil.copytree(tiny_beir, tmp_path / "path" / "to" / name)
    write_model(tmp_path / "path" / "to" / "folder")
    for step in steps("Adding a method"):
        do(step, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAW_CACHE", str(tmp_path / "maw-cache"))
    monkeypatch.setattr("maw.experiment.plan.plan._rate", lambda *given: "not measured in tests")
    return tmp_path


def flags(line):
    """The words behind tier_1.py, up to a redirection; what stands for more of them is left out."""
    own = re.split(r"\s(?:2?>|\|)", line.partition("tier_1.py")[2])[0]
    words = [word for word in shlex.split(own) if word != "..."]
    return ["path/to/folder" if word == "NAME" else word for word in words]


def begun(place, folder):
    """Leaves an unfinished run in a folder, as one that was stopped at its first training."""
    import maw.experiment.dataset_run

    def stop(*given):
        raise KeyboardInterrupt

    words = ["--datasets", "beir:path/to/nq", "--model", "path/to/folder", "--num-epochs", "1", "--methods", "lora"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maw.experiment.dataset_run.MethodRunner, "_train_and_test", stop)
        assert (
            tier_1.main([*words, "--device", "cpu", "--log-dir", folder, "--cache-dir", str(place / "cache")]) == 130
        )


@pytest.mark.parametrize("line", OF_RUNS)
def test_a_command_works(place, capsys, line):
    words = flags(line)
    if words[:1] and words[0] in COMMANDS:
        assert tier_1.main(words) == 0 or words == ["doctor"], capsys.readouterr().err
    elif "--help" in words:
        with pytest.raises(SystemExit, match=r"^0$"):
            tier_1.main(words)
    else:
        words += [] if {"--model", "--preset"} & set(words) else ["--model", "path/to/folder"]
        words += [] if "--dry-run" in words else ["--dry-run"]
        assert tier_1.main(words) == 0, capsys.readouterr().err


def test_a_run_goes_on(place, capsys):
    begun(place, "logs/first")
    configs = [parse_command_line(flags(line)) for line in RESUMED]
    assert len(configs) == 2 and [config.log_dir for config in configs] == ["logs/first"] * 2
    assert tier_1.main(flags(RESUMED[0])) == 0, capsys.readouterr().err
    assert (place / "logs" / "first" / "summary" / "report.html").is_file()


def test_a_command_that_does_not_work_would_be_noticed(place, capsys):
    for line in (f"{RUN} --preset offlin", f"{RUN} compare logs/a logs/c", f"{RUN} --datasets beir:path/to/none"):
        with pytest.raises(AssertionError):
            test_a_command_works(place, capsys, line)


@pytest.mark.parametrize("line", [line for line in ALL if line not in OF_RUNS + RESUMED])
def test_what_the_other_commands_name_is_there(line):
    words = shlex.split(line)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
    elif line.startswith("python -m pytest "):
        markers = [word for flag, word in pairwise(words[3:]) if flag == "-m" and word]
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
        assert set(markers) <= {re.match(r"\w+", each)[0] for each in known}
    elif line.startswith(("python -m bench.", "python bench/")):
        name = words[2] if words[1] == "-m" else words[1].removesuffix(".py").replace("/", ".")
        source = Path(importlib.util.find_spec(name).origin).read_text()
        source += (ROOT / "bench" / "common.py").read_text() if "common" in source else ""
        assert all(f'"{word}"' in source for word in words if word.startswith("--")), line
    else:
        assert line.startswith((*NOT_HERE, "ir_measures ", "python examples/")), line


def test_no_command_is_forgotten():
    assert {each.split()[0] for each in ALL} >= {"python", "torchrun", "make", "ir_measures"} and len(OF_RUNS) > 30
    for page in PAGES:
        others = [line for line in lines_of(page) if RUN in line and not line.startswith((*STARTS, "stopped by"))]
        assert others == [], page


# ------------------------------------------------------------------------------------------------- other tools, Python


@pytest.mark.parametrize("line", [line for line in ALL if line.startswith("python examples/")])
def test_an_example_works(place, monkeypatch, capsys, line):
    words = shlex.split(line)[1:]
    needs = {"examples/pyterrier_experiment.py": "pyterrier", "examples/mteb_task.py": "mteb"}.get(words[0])
    if needs:
        pytest.importorskip(needs, reason=f"{needs} is not installed (requirements-dev.txt has it)")
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    assert "maw" in capsys.readouterr().out


def test_ir_measures_reads_what_a_run_writes(place):
    (line,) = [line for line in ALL if line.startswith("ir_measures ")]
    (folder,) = (place / "logs" / "tier1").glob("*/runs")
    words = shlex.split(line.replace("pystdlib", "beir_small").replace(".trec.gz", ".trec"))
    done = subprocess.run(
        [Path(sys.executable).with_name("ir_measures"), *words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [row.split("\t")[0] for row in done.stdout.splitlines()] == words[3:]


def python_paragraphs(page):
    """The indented lines of Python of a page, up to the next blank line each."""
    found = map(textwrap.dedent, re.findall(r"(?:^ {4}.*\n)+", page.read_text(), re.M))
    return [part for part in found if re.match(r"(from|import) ", part)]


def test_the_readmes_lines_of_python_work(place, monkeypatch, capsys):
    """They are what `make run` does, too: with tiny data, to the end, and docs/console.md shows what is shown."""
    assert f"$(BIN)/{RUN} --preset offline" in (ROOT / "Makefile").read_text()
    offline = {"datasets": ["beir:path/to/nq"], "model": "path/to/folder", "depth_dim": 4, "num_epochs": 1}
    monkeypatch.setitem(PRESETS, "offline", offline | {"permutations": 200, "device": "cpu", "precision": "float32"})
    (part,) = python_paragraphs(ROOT / "README.md")
    found = {}
    exec(part, found)
    assert set(found["results"]) == {"beir_nq"}
    shown = capsys.readouterr().out
    fill = runpy.run_path(str(ROOT / "docs" / "draw_first_run.py"))
    (folder,) = (short_path(path.parent) for path in Path("logs/tier1").glob("beir_nq_*/dataset.json"))
    printed = fill["console_end"](found["results"]["beir_nq"], folder)
    assert shown.endswith(f"{printed}\n"), "docs/draw_first_run.py writes what a run prints"
    example = (ROOT / "docs" / "console.md").read_text().split("```\n")[1]
    assert form(example) == form(printed), "python docs/draw_first_run.py RUN fills docs/console.md"
    table = (ROOT / "README.md").read_text().partition("| | Zero-shot")[2].partition("This is seed")[0]
    assert form(table) == form(fill["readme_table"](found["results"]["beir_nq"]).partition("| | Zero-shot")[2])


def form(text):
    """A run's end without what changes with the run: numbers, names of data, letters, warnings, and the outcome."""
    text = re.sub(r"^.* \(\w+\)\n=+\n", "DATASET\n", text)
    text = re.sub(r"\nA letter after.*", "", text)
    text = re.sub(r"Warnings\n.*?\n\n", "", text, flags=re.DOTALL)
    text = re.sub(r"Written to \S+", "Written to", text)
    text = re.sub(r"(cases\.).*?(?=\n\n|$)", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"\([a-z]\) |  \(embeddings from cache\)", "", text)
    text = re.sub(r"[\d,]*\d(\.\d+)?( \*?[a-c]+\*?(?=\s|$))*", "0", text)
    return re.sub(r" +", " ", re.sub(r"-+", "-", text))


def test_other_tools_read_a_run_as_evidence_says(place, monkeypatch):
    (folder,) = (place / "logs" / "tier1").glob("beir_small_*/runs")
    monkeypatch.chdir(folder)
    ranx, pandas = python_paragraphs(ROOT / "docs" / "evidence.md")
    assert "from ranx" in ranx, "tests/report/test_trec.py runs these calls, where ranx is installed"
    exec(pandas.replace("pystdlib", "beir_small"), {})
