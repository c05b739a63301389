"""Module paths of earlier versions: the documented names still work, with a warning."""

from __future__ import annotations

import importlib

import pytest

import maw

MOVED = [(module, name) for module, names in maw._MOVED.items() for name in names]


@pytest.mark.parametrize(("module", "name"), MOVED)
def test_an_old_path_gives_the_same_object_and_says_where_it_is_now(module, name):
    with pytest.warns(DeprecationWarning, match=f"{module}.{name} has moved: from maw import {name}"):
        found = getattr(importlib.import_module(module), name)
    assert found is getattr(maw, name)


def test_the_statement_of_the_old_documentation_works():
    with pytest.warns(DeprecationWarning, match="from maw import top_k"):
        from maw.search import top_k
    with pytest.warns(DeprecationWarning, match="from maw import PastRun"):
        from maw.past_run import PastRun
    assert callable(top_k) and callable(PastRun)


@pytest.mark.parametrize("module", maw._MOVED)
def test_a_name_that_was_never_there_is_refused(module):
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nosuch'"):
        _ = importlib.import_module(module).nosuch
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("maw.nosuch")
