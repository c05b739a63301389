"""The collection made from Python's own library, against `ast` and `inspect` alone."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import random
import sys
import textwrap
from collections import Counter
from itertools import combinations

import pytest

from maw.config.tier1_config import Tier1Config
from maw.data.datasets import pystdlib
from maw.data.datasets.pystdlib import Function, make_splits, read_library, split_of, without_docstring
from maw.data.normalise import normalise
from maw.data.registry import load_collection, load_folds

ALL = {"train_samples": 10_000, "val_samples": 10_000, "test_samples": 10_000}


@pytest.fixture(scope="module")
def loaded(library_cache):
    return load_collection("pystdlib", Tier1Config(datasets=["pystdlib"], cache_dir=library_cache, **ALL))


@pytest.fixture(scope="module")
def passages(loaded):
    corpus = loaded.test.corpus
    return dict(zip(corpus.ids, corpus.take(range(len(corpus))), strict=True))


def splits_of(loaded):
    return (loaded.train, loaded.validation, loaded.test)


def sources(source):
    """The passages of all documented functions in `source`, by name."""
    lines = source.encode("utf-8").split(b"\n")
    found = pystdlib._functions(ast.parse(source), "")
    return {name: without_docstring(lines, node) for name, node in found if ast.get_docstring(node)}


def test_sizes(loaded):
    sizes = [len(split) for split in splits_of(loaded)]
    assert sum(sizes) > 3000
    if sys.version_info[:2] == (3, 11):
        assert sizes[0] >= 2200
        assert sizes[1] >= 600
        assert sizes[2] >= 1100
        assert 5000 <= sum(sizes) <= 5400


def test_facts_agree_with_the_collection(loaded):
    facts = loaded.facts
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["passages"] == len(loaded.test.corpus) == facts["pairs"]
    assert facts["corpus_sha256"] == loaded.test.corpus.fingerprint
    for split in splits_of(loaded):
        assert facts["splits"][split.name]["available"] == len(split)
        assert facts["splits"][split.name]["qrels_sha256"] == split.qrels_hash()
    assert facts["modules"] < facts["pairs"] < facts["functions"]
    assert facts["unreadable_modules"] == 0


def test_no_module_has_queries_in_two_splits(loaded, passages):
    homes = {}
    for split in splits_of(loaded):
        for query_id in split.query_ids:
            assert query_id.removeprefix("q-") in passages
            homes.setdefault(module_of(query_id.removeprefix("q-")), set()).add(split.name)
    assert len(homes) > 200
    assert {len(names) for names in homes.values()} == {1}


@functools.cache
def module_of(identifier):
    """The longest importable prefix of an id, found on disk."""
    parts = identifier.split(".")
    library = pystdlib.library_folder()
    for n in range(len(parts), 0, -1):
        path = library.joinpath(*parts[:n])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return ".".join(parts[:n])
    raise AssertionError(identifier)


def test_no_text_and_no_relevant_passage_serves_two_splits(loaded):
    texts = Counter(text for split in splits_of(loaded) for text in {normalise(query) for query in split.queries})
    relevant = Counter(
        doc for split in splits_of(loaded) for doc in {doc for judged in split.qrels.values() for doc in judged}
    )
    assert max(texts.values()) == 1
    assert max(relevant.values()) == 1


def test_folds_keep_modules_and_relevant_passages_together(library_cache, loaded):
    config = Tier1Config(datasets=["pystdlib"], cache_dir=library_cache, folds=5, **ALL)
    folds = load_folds("pystdlib", config)
    assert len(folds.whole.test) == sum(len(split) for split in splits_of(loaded)) == len(loaded.groups)
    home = {query: module_of(query.removeprefix("q-")) for query in loaded.groups}
    parts = []
    for each in folds.collections:
        modules = {home[query] for query in each.test.query_ids}
        modules |= {module_of(passage) for judged in each.test.qrels.values() for passage in judged}
        parts.append((modules, {passage for judged in each.test.qrels.values() for passage in judged}))
        assert 0.17 < len(each.test) / len(folds.whole.test) < 0.23
    for one, other in combinations(parts, 2):
        assert not one[0] & other[0] and not one[1] & other[1]
    assert len(set(home.values())) > len(set(loaded.groups.values())), "a shared passage joins modules"


def test_within_a_split_each_text_is_one_query(loaded):
    for split in splits_of(loaded):
        assert len({normalise(query) for query in split.queries}) == len(split)


def test_copies_of_a_relevant_passage_are_relevant(loaded, passages):
    copies = {}
    for identifier, passage in passages.items():
        copies.setdefault(" ".join(passage.split()), set()).add(identifier)
    several = 0
    for split in splits_of(loaded):
        for judged in split.qrels.values():
            for identifier in judged:
                same = copies[" ".join(passages[identifier].split())]
                several += len(same) > 1
                assert same <= judged.keys()
    assert several > 10


def test_passages_are_the_source_without_the_docstring(loaded, passages):
    """A passage parses to the function that `ast` sees in the file, less its docstring; on a sample."""
    sample = random.Random(0).sample(sorted(passages), 150)
    by_module = {}
    for identifier in sample:
        by_module.setdefault(module_of(identifier), []).append(identifier)
    for module, identifiers in by_module.items():
        path = pystdlib.library_folder().joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        dumps = {dump_without_docstring(node) for node in documented(ast.parse(path.read_bytes()))}
        for identifier in identifiers:
            (node,) = ast.parse(passages[identifier]).body
            assert node.name == identifier.split("~")[0].split(".")[-1]
            assert ast.dump(node) in dumps, identifier


def documented(tree):
    functions = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return [node for node in functions if ast.get_docstring(node)]


def dump_without_docstring(node):
    body, node.body = node.body, node.body[1:]
    text = ast.dump(node)
    node.body = body
    return text


def test_no_passage_holds_its_query(loaded, passages):
    """Word for word, in one paragraph: what a docstring left behind would look like."""
    collapsed = {identifier: " ".join(passage.split()) for identifier, passage in passages.items()}
    held = [
        query_id
        for split in splits_of(loaded)
        for query_id, query in zip(split.query_ids, split.queries, strict=True)
        if len(query.split()) > 5 and query in collapsed[query_id.removeprefix("q-")]
    ]
    assert len(held) <= 5, held  # a function that contains its own description as text or comment


def test_known_functions(loaded, passages):
    queries = {q: (split.name, text) for split in splits_of(loaded) for q, text in zip(split.query_ids, split.queries)}
    split, query = queries["q-textwrap.dedent"]
    assert split == split_of("textwrap")
    assert query == " ".join(inspect.getdoc(textwrap.dedent).split("\n\n")[0].split())
    source = inspect.getsource(textwrap.dedent)
    start, end = source.index('"""'), source.index('"""', source.index('"""') + 3) + 3
    assert passages["textwrap.dedent"] == (source[:start].rstrip() + source[end:]).rstrip()
    assert passages["json.decoder.JSONDecoder.decode"].startswith("def decode(self, s, _w=WHITESPACE.match):\n    ")


@pytest.mark.parametrize("part", ["test", "tests", "idle_test", "site-packages", "turtledemo", "idlelib", "lib2to3"])
def test_what_is_no_library_is_left_out(part):
    library = pystdlib.library_folder()
    files = pystdlib.library_files(library)
    assert files == sorted(files)
    assert not [path for path in files if part in path.relative_to(library).parts]


def test_the_second_load_uses_the_store(loaded, library_cache, monkeypatch):
    monkeypatch.setattr(pystdlib, "read_library", lambda *_: pytest.fail("read again"))
    small = load_collection("pystdlib", Tier1Config(datasets=["pystdlib"], cache_dir=library_cache, train_samples=100))
    assert len(small.train) == 100
    assert small.train.query_ids == loaded.train.query_ids[:100]
    assert small.test.corpus.fingerprint == loaded.test.corpus.fingerprint


def test_a_changed_rule_or_library_makes_another_collection(tmp_path, monkeypatch):
    library = tmp_path / "lib"
    library.mkdir()
    (library / "one.py").write_text('def f(x):\n    """Give back the argument."""\n    return x\n')
    first = pystdlib.open_corpus(library, tmp_path / "stores")
    assert first.take([0]) == ["def f(x):\n    return x"]
    (library / "one.py").write_text('def f(x):\n    """Give back the argument."""\n    return x + 1\n')
    assert pystdlib.open_corpus(library, tmp_path / "stores").take([0]) == ["def f(x):\n    return x + 1"]
    monkeypatch.setattr(pystdlib, "does_something", lambda node: node.name != "f")
    monkeypatch.setattr(pystdlib, "_rules", lambda: "others")
    (library / "two.py").write_text('def g(x):\n    """Give back nothing at all."""\n    return None\n')
    assert list(pystdlib.open_corpus(library, tmp_path / "stores").ids) == ["two.g"]


SHAPES = '''
@decorator(
    "with a text")
def decorated(a, b="""x
    y"""):
    """One line of text."""

    # a comment
    return """kept
    as it is""" + f"""{a}
  and this"""

class Outer:
    class Inner:
        async def method(self):
            r"""Several
            lines of text.

            More."""  # remark
            text = """
            indented
"""
            def inside():
                """Not taken out."""
            return inside

    def one_line(self): "the docstring"; return 1

    def after(self):
        "h\u00e9 \u4e2d"; x = "\u00e9"; return x

    def joined(self):
        ("first "
         "second")
        return (self +
  1)

    def contents(self):
        """Stays out."""
        return [
            "a" "b"
            "c",
        # a comment further left
        ]

if True:
    def conditional():
        """Text."""
        pass; return 2
'''

EXPECTED = {
    "decorated": '''@decorator(
    "with a text")
def decorated(a, b="""x
    y"""):

    # a comment
    return """kept
    as it is""" + f"""{a}
  and this"""''',
    "Outer.Inner.method": '''async def method(self):
    # remark
    text = """
            indented
"""
    def inside():
        """Not taken out."""
    return inside''',
    "Outer.one_line": "def one_line(self): return 1",
    "Outer.after": 'def after(self):\n    x = "\u00e9"; return x',
    "Outer.joined": "def joined(self):\n    return (self +\n  1)",
    "Outer.contents": """def contents(self):
    return [
        "a" "b"
            "c",
    # a comment further left
    ]""",
    "conditional": "def conditional():\n    pass; return 2",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_docstring_is_cut_out_exactly(name):
    assert sources(SHAPES)[name] == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_left_means_the_same(name):
    nodes = dict(pystdlib._functions(ast.parse(SHAPES), ""))
    (left,) = ast.parse(sources(SHAPES)[name]).body
    assert ast.dump(left) == dump_without_docstring(nodes[name])


@pytest.mark.parametrize(
    "body, kept",
    [
        ('"""Two words."""\n return 1', False),
        ('"""Now three words."""\n return 1', True),
        ('"""Now three words."""', False),
        ('"""Now three words."""\n pass', False),
        ('"""Now three words."""\n ...', False),
        ("return 1", False),
        ('"""\n\n One\n  two\tthree.\n \n Another paragraph."""\n return 1', True),
    ],
)
def test_which_functions_count(tmp_path, body, kept):
    (tmp_path / "module.py").write_text(f"def f():\n {body}\n")
    found, counts = read_library(tmp_path, [tmp_path / "module.py"])
    assert [function.id for function in found] == ["module.f"] * kept
    assert (counts["functions"], counts["pairs"]) == (1, int(kept))
    if "One" in body:
        assert found[0].query == "One two three."


def test_names_and_encodings(tmp_path):
    function = 'def f(x):\n    """\u00c9tat of the thing."""\n    return "\u00e9"\n'
    (tmp_path / "package").mkdir()
    files = {"package/__init__.py": function, "twice.py": function + function, "broken.py": "def f(:\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(f"# coding: latin-1\r\n{function}".replace("\n", "\r\n").encode("latin-1"))
    found, counts = read_library(tmp_path, pystdlib.library_files(tmp_path))
    assert [each.id for each in found] == ["latin.f", "package.f", "twice.f", "twice.f~2"]
    assert {each.query for each in found} == {"\u00c9tat of the thing."}
    assert {each.passage for each in found} == {'def f(x):\n    return "\u00e9"'}
    assert counts == {"modules": 3, "functions": 4, "unreadable_modules": 1, "pairs": 4}


def modules_by_split():
    names = {}
    for n in range(1000):
        names.setdefault(split_of(f"module{n}"), []).append(f"module{n}")
    return names


def test_texts_and_passages_of_two_splits_stay_in_test_before_validation_before_train():
    homes = modules_by_split()
    train, validation, test = (homes[name][0] for name in ("train", "validation", "test"))

    def function(module, name, query, passage):
        return Function(f"{module}.{name}", module, query, passage)

    functions = [
        function(train, "a", "Text in three.", "one"),
        function(train, "b", "Only in train.", "two"),
        function(train, "b2", "only  in train", "three"),
        function(train, "c", "Copied code here.", "same  code"),
        function(validation, "d", "text in three", "four"),
        function(validation, "e", "Text in two.", "five"),
        function(train, "f", "Text in TWO", "six"),
        function(test, "g", "Text in three!", "seven"),
        function(test, "h", "Described in another way.", "same code"),
    ]
    splits, skipped = make_splits(functions)
    assert splits["test"] == {
        "queries": {f"q-{test}.g": "Text in three!", f"q-{test}.h": "Described in another way."},
        "qrels": {
            f"q-{test}.g": {f"{train}.a": 1, f"{validation}.d": 1, f"{test}.g": 1},
            f"q-{test}.h": {f"{train}.c": 1, f"{test}.h": 1},
        },
    }
    assert splits["validation"]["qrels"] == {f"q-{validation}.e": {f"{validation}.e": 1, f"{train}.f": 1}}
    assert splits["train"] == {
        "queries": {f"q-{train}.b": "Only in train."},
        "qrels": {f"q-{train}.b": {f"{train}.b": 1, f"{train}.b2": 1}},
    }
    assert skipped == {
        "queries_merged": 1,
        "dropped_for_text": {"test": 0, "validation": 1, "train": 2},
        "dropped_for_passage": {"test": 0, "validation": 0, "train": 1},
    }
