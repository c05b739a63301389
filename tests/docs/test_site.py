"""The documentation as a site: every link and anchor leads somewhere, and no page asks another server for anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOADED = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^"' >]+""")
GENERATED = {"performance.md", "research.md"}  # by scripts of bench/, as all of docs/research/


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(source / "mkdocs.yml")]
    return subprocess.run(
        [*command, "--site-dir", str(target)],
        capture_output=True, text=True, timeout=300, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    target = tmp_path_factory.mktemp("site") / "site"
    done = build(ROOT, target)
    assert done.returncode == 0, done.stderr
    return target


def test_every_page_is_in_the_site_and_loads_nothing_from_elsewhere(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    for page in site.rglob("*.html"):
        assert not LOADED.findall(page.read_text(encoding="utf-8")), page.name


def test_what_a_page_would_load_is_seen():
    assert LOADED.search('<script src="https://unpkg.com/iframe-worker/shim"></script>')
    assert LOADED.search('<link rel="stylesheet" href="https://fonts.googleapis.com/css">')
    assert not LOADED.search('<a href="https://ir-datasets.com">ir_datasets</a><script src="assets/a.js"></script>')


@pytest.mark.parametrize("planted", ["[no page](nowhere.md)", "[no anchor](data.md#nowhere)"])
def test_a_link_that_leads_nowhere_fails(tmp_path, planted):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "index.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{planted}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0 and "nowhere" in done.stderr


def broken_links(page: Path, text: str) -> list[str]:
    """The links to files that are not there; mkdocs checks those of docs/."""
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    return [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("name", ["README.md", "examples/README.md"])
def test_the_links_of_a_page_outside_of_the_site_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert broken_links(ROOT / name, text) == []
    assert broken_links(ROOT / name, text + "[a](docs/nowhere.md) [b](nowhere.ipynb#there)") == [
        "docs/nowhere.md", "nowhere.ipynb",
    ]  # fmt: skip


def test_pages_written_by_hand_are_short():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "docs").glob("*.md")}
    assert not {name: length for name, length in lengths.items() if name not in GENERATED and length >= 250}
