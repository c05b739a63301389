"""A code-search collection made from the running Python's own standard library; no download.

    python tier_1.py --datasets pystdlib

A query is the first paragraph of a function's or method's docstring; its passage is the source of that
function without the docstring. Splits go by module file, decided by a hash of the module's name, so that no
module has queries in two splits; all splits search the same corpus of every such function.

- A function counts if the first paragraph of its docstring has three words or more and its body does
  something. Functions inside functions belong to the outer one. Tests, bundled packages and the programs
  shipped in the library's folder (IDLE, 2to3, distutils and the like) are left out.
- Queries of the same normalised text are one query, to which every function so described is relevant,
  whatever its module. Identical copies of a relevant passage are relevant too.
- A text, or a relevant passage, that would serve two splits serves one: test before validation before train.
  The queries dropped for it are counted in the facts.
- Where queries are divided anew (`maw.data.folds`) those of one module stay together, and those that share a relevant
  passage.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import platform
import re
import sysconfig
import tokenize
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maw.config.tier1_config import Tier1Config, cache_folder
from maw.data import hash_sampling, leakage
from maw.data.collection import Collection
from maw.data.corpus import Corpus
from maw.data.dataset_table import Dataset
from maw.data.hash_sampling import fraction
from maw.data.leakage import KEEPS_FIRST, connected
from maw.data.normalise import normalise
from maw.data.splits import Pool, draw_splits
from maw.errors import DataError

TESTS = {"test", "tests", "idle_test", "__phello__"}
NOT_LIBRARY = {"__pycache__", "_bundled", "dist-packages", "lib-dynload", "site-packages"}
PROGRAMS = {"distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}
EXCLUDED = TESTS | NOT_LIBRARY | PROGRAMS
# A few modules hold a large part of all functions, so that most salts miss the shares below by far. This is
# the first number that meets them to 1.5 points on Python 3.11; only sizes decided, before any model was run.
SALT = "pystdlib 16"
TEST_SHARE, VALIDATION_SHARE = 0.25, 0.15
SPLIT_RULE = (
    "by hash of the module's name (60% train, 15% validation, 25% test); a text or relevant passage of two "
    "splits stays in test before validation before train"
)

AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    """A documented function: passage id, module, first paragraph of the docstring, source without it."""

    id: str
    module: str
    query: str
    passage: str


def load(config: Tier1Config, dataset: Dataset) -> Collection:
    """The collection of the running Python, from its store, which is built on first use in some seconds.

    Raises:
        DataError: this Python has no library sources.
    """
    corpus = open_corpus(library_folder(), cache_folder(config) / "corpora")
    stored = corpus.attachment("splits")
    pools = {name: Pool(**stored[name]) for name in KEEPS_FIRST}
    splits, split_facts, notes = draw_splits(config, corpus, pools, dataset.name)
    version = platform.python_version()
    facts = {
        "source": f"standard library of Python {version}",
        "version": version,
        "passages": len(corpus),
        "empty_passages": corpus.empty,
        "corpus_sha256": corpus.fingerprint,
        "corpus_rule": "every documented function of the library, for every split",
        "split_rule": SPLIT_RULE,
        "splits": split_facts,
        **corpus.attachment("counts"),
        "warnings": notes,
    }
    group_of = corpus.attachment("groups")
    group_of = {query_id: group_of[query_id] for split in splits.values() for query_id in split.query_ids}
    return Collection(dataset.collection_name, dataset.title, **splits, facts=facts, groups=group_of)


def library_folder() -> Path:
    """Where the running Python keeps its library."""
    return Path(sysconfig.get_path("stdlib"))


def open_corpus(library: Path, stores: Path) -> Corpus:
    """The store of a library, with the attachments "splits", "groups" and "counts"; built where there is none.

    It is keyed by the Python version, by name, size and time of change of every source file, and by the code
    that makes the collection, so that a store built by other rules is never used.
    """
    files = library_files(library)
    if not files:
        raise DataError(f"{library}: this Python has no library sources here; use another Python or another dataset")
    sha = hashlib.sha256()
    for path in files:
        stat = path.stat()
        sha.update(f"{path.relative_to(library)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    version = platform.python_version()
    source = {"format": "pystdlib", "rules": _rules(), "python": version, "files": sha.hexdigest()}

    def make() -> tuple[Any, Any, dict[str, Any]]:
        functions, counts = read_library(library, files)
        splits, dropped = make_splits(functions)
        records = ((function.id, "", function.passage) for function in functions)
        return (
            records,
            lambda row: functions[row].id,
            {"splits": splits, "groups": make_groups(functions, splits), "counts": counts | {"skipped": dropped}},
        )

    return Corpus.cached(stores / f"pystdlib-{version}-{sha.hexdigest()[:12]}", source, make)


def library_files(library: Path) -> list[Path]:
    """The source files of the library proper, in order of their names."""
    found: list[Path] = []
    for folder, subfolders, names in os.walk(library):
        subfolders[:] = [name for name in subfolders if name not in EXCLUDED and not name.startswith("config-")]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found)


def read_library(library: Path, files: Iterable[Path]) -> tuple[list[Function], dict[str, int]]:
    """All documented functions, each under an id of its own, and counts of modules and functions."""
    counts = {"modules": 0, "functions": 0, "unreadable_modules": 0}
    found: list[Function] = []
    taken: dict[str, int] = defaultdict(int)
    for path in files:
        module = _module_name(path.relative_to(library))
        try:
            source = _source(path)
            tree = _parse(source)
        except (SyntaxError, UnicodeDecodeError):  # kept broken on purpose, as material for other tests
            counts["unreadable_modules"] += 1
            continue
        counts["modules"] += 1
        lines = source.encode("utf-8").split(b"\n")
        for qualified, node in _functions(tree, f"{module}."):
            counts["functions"] += 1
            query = first_paragraph(node)
            if len(query.split()) < 3 or not does_something(node):
                continue
            taken[qualified] += 1  # a property and its setter, or one name defined under two conditions
            identifier = qualified if taken[qualified] == 1 else f"{qualified}~{taken[qualified]}"
            found.append(Function(identifier, module, query, without_docstring(lines, node)))
    return found, counts | {"pairs": len(found)}


def first_paragraph(node: AnyFunction) -> str:
    """The first paragraph of a docstring with whitespace collapsed; empty where there is no docstring."""
    docstring = ast.get_docstring(node) or ""
    return " ".join(re.split(r"\n\s*\n", docstring.replace("\0", " ").strip(), maxsplit=1)[0].split())


def does_something(node: AnyFunction) -> bool:
    """Whether the body holds more than docstring, `pass` and `...`."""
    return any(
        not isinstance(statement, ast.Pass)
        and not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in node.body
    )


def without_docstring(lines: Sequence[bytes], node: AnyFunction) -> str:
    """The source of a documented function, decorators and comments included, dedented, without its docstring.

    Args:
        lines: the file's lines as UTF-8, in which `ast` counts columns.
        node: a function whose first statement is its docstring.
    """
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
    docstring = node.body[0]
    start, end = docstring.lineno - 1, docstring.end_lineno - 1
    before, after = lines[start][: docstring.col_offset], lines[end][docstring.end_col_offset :]
    after = re.sub(rb"^[ \t]*;[ \t]*", b"", after)
    rest = [before + after.lstrip()] if (before + after).strip() else []
    indent = re.match(rb"[ \t]*", lines[first])[0]
    literal = _inside_literals(node)

    def dedented(numbers: Iterable[int]) -> list[bytes]:
        return [lines[n] if n in literal else lines[n].removeprefix(indent) for n in numbers]

    rest = [line.removeprefix(indent) for line in rest]
    body = [*dedented(range(first, start)), *rest, *dedented(range(end + 1, node.end_lineno))]
    return b"\n".join(body).decode("utf-8").replace("\0", " ").rstrip()


def make_splits(functions: Sequence[Function]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Queries and judgements of each split by the rules above.

    Returns:
        Split -> {"queries": id -> text, "qrels": id -> passage id -> 1}, and how many queries were merged
        with another of their split, or dropped from a split because of their text or of a relevant passage.
    """
    same_text, same_passage = defaultdict(list), defaultdict(list)
    for row, function in enumerate(functions):
        same_text[normalise(function.query)].append(row)
        same_passage[_collapsed(function.passage)].append(row)
    splits: dict[str, Any] = {}
    skipped: dict[str, Any] = {"queries_merged": 0, "dropped_for_text": {}, "dropped_for_passage": {}}
    used_texts: set[str] = set()
    used_rows: set[int] = set()
    for name in KEEPS_FIRST:
        queries, qrels, texts, claimed, dropped = {}, {}, set(), set(), Counter()
        for text, rows in same_text.items():
            own = [functions[row] for row in rows if split_of(functions[row].module) == name]
            if not own:
                continue
            relevant = {copy for row in rows for copy in same_passage[_collapsed(functions[row].passage)]}
            if text in used_texts or relevant & used_rows:
                dropped["text" if text in used_texts else "passage"] += 1
                continue
            query_id = f"q-{own[0].id}"
            queries[query_id] = own[0].query
            qrels[query_id] = {functions[row].id: 1 for row in sorted(relevant)}
            skipped["queries_merged"] += len(own) - 1
            texts.add(text)
            claimed |= relevant
        splits[name] = {"queries": queries, "qrels": qrels}
        used_texts |= texts
        used_rows |= claimed
        for why in ("text", "passage"):
            skipped[f"dropped_for_{why}"][name] = dropped[why]
    return splits, skipped


def make_groups(functions: Iterable[Function], splits: Mapping[str, Any]) -> dict[str, str]:
    """Query id -> its group: queries with relevant passages in one module have the same, directly or by way of others.

    A query's own function is relevant to it, so this holds for queries of one module, too.
    """
    module_of = {function.id: function.module for function in functions}
    labels = {
        query_id: [f"module {module_of[each]}" for each in relevant]
        for split in splits.values()
        for query_id, relevant in split["qrels"].items()
    }
    return connected(labels)


def split_of(module: str) -> str:
    """The split of a module, by a hash of its name."""
    place = fraction(SALT, module)
    if place < TEST_SHARE:
        return "test"
    return "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"


def _rules() -> str:
    modules = (__file__, leakage.__file__, inspect.getfile(normalise), hash_sampling.__file__)
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in modules)).hexdigest()


def _collapsed(source: str) -> str:
    return " ".join(source.split())


def _module_name(relative: Path) -> str:
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _source(path: Path) -> str:
    with tokenize.open(path) as file:
        return file.read()


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own invalid escapes are not the user's concern
        return ast.parse(source)


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, AnyFunction]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, AnyFunction):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, (ast.stmt, ast.ExceptHandler, ast.match_case)):
            yield from _functions(child, prefix)


def _inside_literals(node: AnyFunction) -> set[int]:
    """Numbers, from 0, of lines that begin inside a string: their blanks are contents, not indentation."""
    strings = (
        each
        for each in ast.walk(node)
        if isinstance(each, ast.JoinedStr) or (isinstance(each, ast.Constant) and isinstance(each.value, (str, bytes)))
    )
    return {number for each in strings for number in range(each.lineno, each.end_lineno)}
