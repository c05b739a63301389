"""The rooms of the package: every import points down the list, and no files import each other in a circle.

`ROOMS` is the order. `docs/architecture.md` explains the rooms, and its picture is drawn from this table.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Room -> the rooms that it may import, beside the root package, which imports nothing.
ROOMS: dict[str, tuple[str, ...]] = {"errors": (), "storage": ("errors",), "config": ("errors", "storage")}
ROOMS["runtime"] = (*ROOMS["config"], "config")
ROOMS["attention"] = ("errors",)
ROOMS["data"] = (*ROOMS["runtime"], "runtime")
ROOMS["models"] = (*ROOMS["data"], "attention", "data")
ROOMS["search"] = ("errors", "runtime")
ROOMS["encoding"] = (*ROOMS["models"], "models")
ROOMS["evaluation"] = (*ROOMS["encoding"], "search", "encoding")
ROOMS["training"] = (*ROOMS["evaluation"], "evaluation")
ROOMS["report"] = (*ROOMS["evaluation"], "evaluation")
ROOMS["experiment"] = (*ROOMS["training"], "training", "report")
ROOMS["cli"] = (*ROOMS["experiment"], "experiment")

MOST_IMPORTS, MEDIAN_IMPORTS = 20, 4


def sources(root: Path) -> dict[str, str]:
    """Module name -> its code, of the whole package."""
    found = {}
    for path in sorted((root / "maw").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        found[name] = path.read_text(encoding="utf-8")
    return found


def imports(code: str, modules: Mapping[str, object]) -> Iterator[tuple[str, int]]:
    """(imported module of the package, line) for each import, those inside of functions included."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "maw":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in modules else node.module), node.lineno
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] == "maw")


def room_of(module: str) -> str:
    """The room in which a module lies; "" for the root package."""
    return module.partition(".")[2].partition(".")[0]


def wrong_imports(code: Mapping[str, str]) -> list[str]:
    """One line for each import that points up, and for each file outside of all rooms."""
    found = [f"{name}: {room_of(name)} is no room" for name in code if room_of(name) not in ("", *ROOMS)]
    for name in code:
        own = room_of(name)
        for imported, line in imports(code[name], code):
            if room_of(imported) not in ("", own, *ROOMS.get(own, ())):
                found.append(f"{name}:{line}: {own or 'the root package'} may not import {imported}")
    return found


def circle(code: Mapping[str, str]) -> list[str]:
    """Modules of which each imports the next and the last the first; none if there is no circle."""
    edges = {name: sorted({imported for imported, _ in imports(code[name], code)} - {name, "maw"}) for name in code}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :]]
        if name in done:
            return []
        for imported in edges.get(name, ()):
            found = visit(imported, (*path, name))
            if found:
                return found
        done.add(name)
        return []

    return next((found for name in code if (found := visit(name, ()))), [])


@pytest.fixture(scope="module")
def code() -> dict[str, str]:
    return sources(ROOT)


def test_every_import_points_down(code):
    assert wrong_imports(code) == []


def test_no_files_import_each_other_in_a_circle(code):
    assert circle(code) == []


def test_the_package_has_the_rooms_of_the_table_and_nothing_else():
    entries = {path.stem for path in (ROOT / "maw").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert entries - {"__init__", "__pycache__"} == set(ROOMS)


def test_no_file_imports_half_of_the_package(code):
    counts = {name: len({module for module, _ in imports(code[name], code)} - {name}) for name in code}
    assert {name: count for name, count in counts.items() if count > MOST_IMPORTS} == {}
    assert statistics.median(count for name, count in counts.items() if code[name].count("\n") > 5) <= MEDIAN_IMPORTS


@pytest.mark.parametrize(
    ("module", "line", "expected"),
    [
        ("maw.attention.routers", "from maw.storage.files import sha256", "may not import maw.storage.files"),
        ("maw.storage.files", "def f():\n    import maw.runtime.console", "may not import maw.runtime.console"),
        ("maw.report.rebuild", "from maw.training import trainer", "report may not import maw.training.trainer"),
        ("maw.helpers", "", "helpers is no room"),
    ],
)
def test_a_planted_import_is_found(code, module, line, expected):
    (found,) = wrong_imports(code | {module: f"{code.get(module, '')}\n{line}\n"})
    assert found.endswith(expected)


def test_a_planted_circle_is_found(code):
    planted = code["maw.storage.locks"] + "\nimport maw.storage.run_record\n"
    planted_back = code["maw.storage.run_record"] + "\nimport maw.storage.locks\n"
    found = circle(code | {"maw.storage.locks": planted, "maw.storage.run_record": planted_back})
    assert set(found) == {"maw.storage.locks", "maw.storage.run_record"}
