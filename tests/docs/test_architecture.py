"""docs/architecture.md: its picture is what the script draws, and every place in the code that it names is there."""

from __future__ import annotations

import ast
import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from test_rooms import ROOMS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"


@pytest.fixture(scope="module")
def script():
    """docs/draw_rooms.py as a module."""
    spec = importlib.util.spec_from_file_location("draw_rooms", ROOT / "docs" / "draw_rooms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def places(page):
    """(file, name) of each `file.py:function` on the page."""
    return re.findall(r"`([\w/]+\.py):([\w.]+)`", page)


def missing(page):
    """Those of them that the code does not have."""
    return [f"{file}:{name}" for file, name in places(page) if not is_defined(ROOT / file, name.split("."))]


def is_defined(path, names):
    body = ast.parse(path.read_text()).body if path.is_file() else []
    for name in names:
        found = [each for each in body if getattr(each, "name", None) == name]
        if not found:
            return False
        body = found[0].body
    return True


def test_every_place_on_the_page_is_there():
    page = PAGE.read_text()
    assert missing(page) == []
    assert len(places(page)) > 45


@pytest.mark.parametrize("place", ("maw/search/exact.py:top_j", "maw/exact.py:top_k", "maw/attention/noise.py:A.b"))
def test_a_place_that_is_not_there_would_be_noticed(place):
    assert missing(f"{PAGE.read_text()}\n`{place}`\n") == [place]


def test_the_picture_is_what_the_script_draws(script):
    assert (ROOT / "docs" / "rooms.svg").read_text() == script.draw(ROOMS, script.words_of(PAGE.read_text()))


def test_another_table_of_rooms_is_another_picture(script):
    words = script.words_of(PAGE.read_text())
    fewer = ROOMS | {"search": ("errors",)}
    assert script.draw(fewer, words) != script.draw(ROOMS, words)


def test_page_and_picture_have_all_rooms_in_words(script):
    words = script.words_of(PAGE.read_text())
    assert set(words) == set(ROOMS)
    texts = [each.text for each in ET.parse(ROOT / "docs" / "rooms.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert {*ROOMS, *words.values()} <= set(texts)


def test_the_arrows_and_the_notes_say_all_that_the_table_says(script):
    drawn = {room: tuple(below for other, below in script.arrows(ROOMS) if other == room) for room in ROOMS}
    for room, below in ROOMS.items():
        shown = script.note(ROOMS, room)
        told = set(shown[-1].split(", ")) if shown else script.reachable(drawn, drawn[room])
        assert told == set(below), room
    assert [room for room in ROOMS if script.note(ROOMS, room)] == ["search"]
