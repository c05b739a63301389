"""The blocks of docs/extending.md, put where the page says into a copy of the package, and run there."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from pathlib import Path

import pytest
from conftest import WORDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
PLACE = r"(?:, as the last row of `(?P<table>\w+)`|, the line of `(?P<line>\w+)` with the new name)?"
STEP = re.compile(
    rf"^(?:New file|At the end of|In) `(?P<path>[^`]+)`{PLACE}:\n\n(?P<code>(?: {{4}}.*\n|\n+(?= {{4}}))+)", re.M
)
RUN = (
    "tier_1.py", "--device", "cpu", "--precision", "float32", "--num-epochs", "1", "--batch-size", "8",
    "--depth-dim", "4", "--permutations", "200", "--log-dir", "logs", "--cache-dir", "cache",
)  # fmt: skip

UNDRAWN = "import maw.report.rebuild\nmaw.report.rebuild._draw = lambda *_: None  # figures take longer than the run"


def steps(section: str) -> list[re.Match[str]]:
    """The edits that a section asks for, in order."""
    return list(STEP.finditer(PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]))


def do(step: re.Match[str], folder: Path) -> None:
    """Makes one edit in the package below a folder."""
    path, code = folder / step["path"], textwrap.dedent(step["code"]).strip("\n") + "\n"
    text = path.read_text() if path.exists() else ""
    if step["table"]:
        end = re.search(rf"^{step['table']}\b.*?^( *)\)\n", text, re.M | re.S)
        place = end.start(1)
        path.write_text(text[:place] + textwrap.indent(code, end[1] + "    ") + text[place:])
    elif step["line"]:
        text, count = re.subn(rf"^    {step['line']}: .*\n", textwrap.indent(code, "    "), text, flags=re.M)
        assert count == 1
        path.write_text(text)
    else:
        path.write_text(f"{text}\n\n{code}" if text else code)


@pytest.fixture
def run(forks):
    """`run(folder, "tier_1.py", "--help")` is what Python says there; it must succeed."""

    def call(folder: Path, *words: str) -> str:
        done = forks.run(*words, cwd=folder, path=(folder, folder / "tests"))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


@pytest.fixture
def passed(run):
    """`passed(folder, "ernie", "tests/test_a.py")`: the selected tests of these files; all of them must pass there."""

    def call(folder: Path, words: str, *files: str) -> list[str]:
        said = run(folder, "-m", "pytest", "-rp", "-p", "no:cacheprovider", *files, "-k", words)
        return re.findall(r"^PASSED (.*)$", said, re.M)

    return call


@pytest.fixture
def extended(tmp_path):
    """`extended("Adding a method")` gives a copy of the package with that section's blocks in it."""

    def make(section: str) -> Path:
        for name in ("maw", "tests"):
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("tier_1.py", "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path)
        for step in steps(section):
            do(step, tmp_path)
        return tmp_path

    return make


def results(folder: Path) -> dict:
    (path,) = (folder / "logs").glob("*/dataset.json")
    return json.loads(path.read_text())


def test_every_section_has_short_blocks():
    sections = [title for title in re.findall(r"^## (.*)$", PAGE, re.M) if title.startswith("Adding")]
    assert sections == ["Adding a dataset", "Adding a method", "Adding a router", "Adding an encoder family"]
    assert [len(steps(section)) for section in sections] == [2, 1, 2, 1]
    assert all(sum(step["code"].count("\n") for step in steps(section)) <= 40 for section in sections)
    blocks = re.findall(r"\n\n(?: {4}.*\n|\n+(?= {4}))+", PAGE)
    said = ["    python tier_1.py --preset", '    [project.entry-points."maw.methods"]']  # no steps
    blocks = [block for block in blocks if not block.strip("\n").startswith(tuple(said))]
    assert len(STEP.findall(PAGE)) == len(blocks), "a block says no place"


def test_a_dataset(extended, run, models):
    folder = extended("Adding a dataset")
    sizes = {"train": 12, "validation": 5, "test": 6}
    notes = {}
    for split, size in sizes.items():
        notes[split] = {f"{WORDS[i]} {split}": f"the {WORDS[-i]} of {i} in {split}" for i in range(size)}
    (folder / "notes.json").write_text(json.dumps(notes))
    run(folder, *RUN, "--datasets", "notes", "--methods", "zero_shot,lora", "--model", str(models("bert")))
    found = results(folder)
    assert (found["dataset"], found["data"]["source"]) == ("notes", "notes.json")
    assert {split: each["queries"] for split, each in found["data"]["splits"].items()} == sizes
    assert "Team notes" in (folder / "logs" / "summary" / "benchmark_summary.txt").read_text()
    assert "notes" in run(folder, "tier_1.py", "--help") and "notes" in run(folder, "tier_1.py", "completion", "bash")


def test_a_method(tmp_path, forks, models, tiny_beir):
    """The file lies outside of the package, which stays as it is."""
    (step,) = steps("Adding a method")
    do(step, tmp_path)
    words = [*RUN[1:], "--datasets", f"beir:{tiny_beir}", "--model", str(models("bert")), "--compare", "bottleneck"]
    words += ["--methods", "zero_shot,lora,mine.py:Bottleneck"]
    done = forks.run(ROOT / RUN[0], *words, cwd=tmp_path, path=(ROOT,))
    assert done.returncode == 0, done.stderr
    found = results(tmp_path)
    assert found["results"]["bottleneck_retriever"]["trained_parameters"] == 2 * 16 * 16 + 16 + 16
    assert list(found["confirmatory"]["comparisons"]) == ["bottleneck_vs_lora"]
    assert "Bottleneck" in (tmp_path / "logs" / "summary" / "benchmark_summary.txt").read_text()


def test_a_router(extended, run, passed, models, tiny_beir):
    folder = extended("Adding a router")
    model = str(models("bert"))
    words = [*RUN[1:], "--datasets", f"beir:{tiny_beir}", "--model", model, "--methods", "maw", "--router", "length"]
    code = f"""
import maw, tier_1, transformers as tf
{UNDRAWN}
assert tier_1.main({words}) == 0
model = maw.add_maw(tf.AutoModel.from_pretrained({model!r}), depths=4, router="length")
texts = ["a", "a " * 4, "a " * 30]
batch = tf.AutoTokenizer.from_pretrained({model!r})(texts, padding=True, return_tensors="pt")
print([depths.flatten().tolist() for depths in maw.picked_depths(model, batch).values()])
"""
    assert run(folder, "-c", code).splitlines()[-1] == "[[0, 1, 3]]"
    history = results(folder)["results"]["3_maw_fine_tuned_retriever"]["training_history"]
    assert history[0]["val_routing"]["query"]["depth_histogram"]
    assert len(passed(folder, "length or names", "tests/attention/test_routers.py")) == 5


def test_an_encoder_family(extended, run, passed, tiny_beir):
    folder = extended("Adding an encoder family")
    words = [*RUN[1:], "--datasets", f"beir:{tiny_beir}", "--model", "model", "--methods", "lora,maw"]
    code = f"""
import conftest, pathlib, tier_1
{UNDRAWN}
conftest.write_model(pathlib.Path("model"), "ernie")
assert tier_1.main({words}) == 0
"""
    run(folder, "-c", code)
    assert set(results(folder)["results"]) == {"2_lora_fine_tuned_retriever", "3_maw_fine_tuned_retriever"}
    assert len(passed(folder, "ernie", "tests/attention/test_attention.py", "tests/models/test_pretrained.py")) > 10
