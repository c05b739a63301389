"""The pages on compatibility name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests").rglob("test_*.py"))
NAME = re.compile(r"(?:(tests/[\w/]+\.py)::)?\b(test_\w+)\b(?!\.py)")


def missing(text):
    defined = {path: set(re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))) for path in FILES}
    anywhere = set().union(*defined.values())
    names = {(file, name) for file, name in NAME.findall(text)}
    return {
        (file, name) for file, name in names if name not in (defined.get(ROOT / file, set()) if file else anywhere)
    }


@pytest.mark.parametrize("page", ["compatibility.md", "compatibility_models.md"])
def test_every_test_that_a_page_names_exists(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert len(NAME.findall(text)) > 10
    assert not missing(text)


def test_a_name_that_does_not_exist_is_seen():
    assert missing("`tests/docs/test_site.py::test_nothing_of_the_kind`, `test_nowhere`") == {
        ("tests/docs/test_site.py", "test_nothing_of_the_kind"), ("", "test_nowhere"),
    }  # fmt: skip
    assert missing("`tests/docs/test_site.py::test_every_test_that_a_page_names_exists`")
