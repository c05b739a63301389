"""Every public name says what it takes and gives: arguments, what comes back, errors, shapes, and its source."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import maw
import tier_1
from maw import errors
from maw.cli.flags import field_documentation

ROOT = Path(__file__).resolve().parents[2]
MODULES = (tier_1, maw)
SOURCES = {
    "GRPORouter": "Shao et al. 2024",
    "BaselineRetriever": "Hu et al. 2021",
    "train_retriever": "van den Oord et al. 2018",
    "evaluate_retriever": "trec_eval",
    "EvaluationResult": "trec_eval",
}
"""Public names that do what others have published, and whose."""
_SHAPE = re.compile(r"\((?:\w+ ?\* ?)?(?:[A-Z]\w*|\.\.\.|\d)(?:, ?(?:[\w *]+|\.\.\.))*,?\)|_[A-Z]{1,5}\b")


def public():
    """(name, object) of every public function and class, and of the public methods and properties of the classes."""
    from maw.evaluation.metrics import EvaluationResult
    from maw.evaluation.mteb import MTEBEncoder
    from maw.training.state import History

    named = {name: getattr(module, name) for module in MODULES for name in module.__all__}
    named |= {each.__name__: each for each in (EvaluationResult, History, MTEBEncoder)}
    named["TrainedParameters"] = importlib.import_module("maw.models.add_maw").TrainedParameters
    found = dict(named)
    for name, each in named.items():
        if inspect.isclass(each):
            others = set(named.values()) - {each}
            own = [base for base in each.__mro__ if base.__module__.startswith("maw") and base not in others]
            found |= {
                f"{name}.{attribute}": value
                for base in reversed(own)
                for attribute, value in vars(base).items()
                if not attribute.startswith("_") and isinstance(_function(value), type(public))
            }
    return found


def _function(value):
    """What is behind a method, whatever kind it is of."""
    return getattr(value, "fget", None) or getattr(value, "__func__", value)


PUBLIC = public()


def text_of(name):
    """Its docstring; that of the method which it overrides, if it has none."""
    return inspect.getdoc(PUBLIC[name]) or _inherited(name)


def _inherited(name):
    owner, _, method = name.partition(".")
    for base in PUBLIC[owner].__mro__[1:] if method else ():
        known = inspect.getdoc(vars(base).get(method))
        if known:
            return known
    return ""


def told(name):
    """Its docstring, and those it builds on: of a class' bases, and where arguments are "as" another's of that one."""
    text = text_of(name)
    if inspect.isclass(PUBLIC[name]):
        text += "".join(inspect.getdoc(base) or "" for base in PUBLIC[name].__mro__ if "maw" in base.__module__)
    for other in re.findall(r"[Aa]s (?:for )?`([\w.]+)`", text):
        owner, last = name.partition(".")[0], other.rpartition(".")[2]
        known = next((each for each in (other, f"{owner}.{last}", last) if each in PUBLIC), None)
        text += text_of(known) if known else ""
    return text


def parameters(name):
    each = PUBLIC[name]
    if isinstance(each, property) or is_dataclass(each):
        return []
    function = each.__init__ if inspect.isclass(each) else _function(each)
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    signature = inspect.signature(function).parameters
    return [p for p in signature if p not in ("self", "cls") and signature[p].kind not in kinds]


def body_of(name):
    each = PUBLIC[name]
    function = _function(each.__init__ if inspect.isclass(each) else each)
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


@pytest.mark.parametrize("name", PUBLIC)
def test_it_has_a_docstring_with_a_sentence(name):
    first = text_of(name).partition("\n\n")[0]
    assert len(first) > 10 and first.rstrip()[-1] in ".:;)", first


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_named(name):
    known = told(name)
    assert [each for each in parameters(name) if not re.search(rf"\b{each}\b", known)] == []


def raised(name):
    """The errors of its own that a function raises, by name."""
    kinds = {each for each, kind in vars(errors).items() if inspect.isclass(kind)} | {"ValueError", "TypeError"}
    if inspect.isclass(PUBLIC[name]) and not inspect.isfunction(PUBLIC[name].__init__):
        return set()
    calls = [node.exc for node in ast.walk(body_of(name)) if isinstance(node, ast.Raise) and node.exc]
    return {each.func.id for each in calls if isinstance(each, ast.Call) and getattr(each.func, "id", "") in kinds}


@pytest.mark.parametrize("name", [name for name in PUBLIC if not is_dataclass(PUBLIC[name])])
def test_every_error_that_it_raises_is_named(name):
    part = told(name).partition("Raises:")[2]
    for kind in raised(name):
        bases = [each.__name__ for each in getattr(errors, kind, ValueError).__mro__]
        assert any(f"{each}:" in part for each in (kind, *bases)), f"{name} raises {kind}"


def has_arrays(name):
    each = _function(PUBLIC[name])
    if inspect.isclass(each):
        return False
    return any(re.search(r"\b(Tensor|ndarray)\b", str(kind)) for kind in each.__annotations__.values())


@pytest.mark.parametrize("name", [name for name in PUBLIC if has_arrays(name)])
def test_arrays_have_shapes(name):
    known = told(name) + str(inspect.signature(_function(PUBLIC[name])))
    assert _SHAPE.search(known) or "shape" in known, text_of(name)


@pytest.mark.parametrize("name", [name for name in PUBLIC if "Args:" in text_of(name)])
def test_what_comes_back_is_said(name):
    each = _function(PUBLIC[name])
    if inspect.isclass(each) or each.__annotations__.get("return") in (None, "None"):
        return
    first = text_of(name).partition("\n\n")[0]
    assert "Returns:" in told(name) or not re.match(r"(Adds|Writes|Reads|Runs|Trains|Installs|Loads) ", first), first


def test_every_setting_and_field_has_a_line():
    assert set(field_documentation()) == {each.name for each in fields(tier_1.Tier1Config)}
    for name in ("TrainedParameters",):
        source = inspect.getsource(PUBLIC[name])
        assert all(re.search(rf'    {each.name}: .*\n    """', source) for each in fields(PUBLIC[name]))


@pytest.mark.parametrize("name", SOURCES)
def test_what_others_have_published_names_its_source(name):
    each = PUBLIC[name]
    modules = [importlib.import_module(each.__module__)]
    modules += [
        importlib.import_module(m) for m in re.findall(r"maw(?:\.[a-z_0-9]+)+", text_of(name) + modules[0].__doc__)
    ]
    assert any(SOURCES[name] in (known or "") for known in (text_of(name), *(m.__doc__ for m in modules)))


@pytest.mark.parametrize("name", [each for each in vars(errors) if each.endswith("Error")])
def test_every_error_says_what_it_means(name):
    assert inspect.getdoc(getattr(errors, name))
