"""A wheel built from this tree: what is in it, what it asks for, and that it works away from the tree."""

from __future__ import annotations

import email
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import maw
import tier_1

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("maw", "tier_1.py", "pyproject.toml", "README.md", "LICENSE", "requirements-common.txt")


def run(*words, cwd, **environment):
    # The interpreter's own packages stay, for nothing is installed from a network here; the tree goes.
    known = {name: each for name, each in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, words)),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        env=known | environment,
        check=False,
    )


def pins(name):
    """The requirements of a file, without comments and includes."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line and not line.startswith("-r")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built without a network by the setuptools that is installed, from a copy so that the tree stays clean."""
    for module in ("setuptools", "pip"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"building a wheel without a network needs {module}, which is not installed")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, source / part)
    words = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-w", out)
    done = run(sys.executable, *words, source, cwd=out)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = out.glob("*.whl")
    return path


def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith("METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_the_package_and_the_module_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {each for each in archive.namelist() if ".dist-info/" not in each}
    files = [*(ROOT / "maw").rglob("*.py"), *(ROOT / "maw" / "report" / "html" / "templates").iterdir()]
    expected = {str(path.relative_to(ROOT)) for path in files} | {"tier_1.py"}
    assert names == expected | {"maw/py.typed"}, "py.typed says that the annotations are meant for others"


def test_the_wheel_says_what_it_is_and_asks_for_the_pins(wheel):
    facts = metadata(wheel)
    assert facts["Name"] == "maw-transformers" and facts["Version"] == maw.__version__
    assert facts["License-Expression"] == "MIT"
    assert facts["Requires-Python"] == ">=3.11"
    assert "MAW Transformers" in facts.get_payload()
    asked = facts.get_all("Requires-Dist")
    assert sorted(each for each in asked if "extra" not in each) == sorted(pins("requirements-common.txt"))


def test_the_modules_of_all_public_names_are_checked_for_types():
    """By mypy, which `make lint` runs."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    homes = {f"{home.replace('.', '/')}.py" for module in (maw, tier_1) for home in module._HOMES.values()}
    assert settings["strict"] and {"tier_1.py", "maw/__init__.py", *homes} <= set(settings["files"])
    assert "mypy\n" in (ROOT / "Makefile").read_text().partition("lint:")[2].partition("\n\n")[0] + "\n"
    ignored = [p for p in settings["files"] if "type: ignore" in (ROOT / p).read_text()]
    assert ignored == [], "what mypy finds is mended"


def test_faiss_is_an_extra_at_the_version_of_the_requirements():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras == {"cpu": pins("requirements.txt"), "gpu": pins("requirements-gpu.txt")}


def test_the_wheel_works_away_from_the_tree(wheel, tmp_path):
    site = tmp_path / "site"
    words = ("-m", "pip", "install", "--no-deps", "--no-index", "--disable-pip-version-check", "--target", site)
    done = run(sys.executable, *words, wheel, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    code = (
        "import maw, tier_1, sys\n"
        "assert 'torch' not in sys.modules\n"
        "print(maw.__version__, maw.__file__, tier_1.Tier1Config.from_preset('offline').num_epochs)\n"
        "from maw.report.html.page import environment\n"
        "environment().get_template('page.html')\n"
    )
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    version, place, epochs = done.stdout.split()
    assert version == maw.__version__ and Path(place).is_relative_to(site) and epochs == "3"
    command = site / "bin" / "maw-tier1"
    done = run(sys.executable, command, "--version", cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == maw.__version__
