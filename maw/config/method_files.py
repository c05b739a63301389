"""Methods of users: a class in a file, of an installed package, or made in Python; and those of PEFT.

    --methods zero_shot,lora,path/to/mine.py:MyMethod          # a file and its class
    --methods zero_shot,lora,peft:dora                         # see `maw.config.peft_methods`
    --methods zero_shot,lora,bottleneck                        # an entry point of the group maw.methods
    Tier1Config(methods=["lora", MyMethod])                    # from Python

A configuration holds references: /path/mine.py:MyMethod, installed:NAME or python:MyMethod. Reading a configuration
loads no code, for checkpoints and results have one too. `load_methods` loads it, where a run starts or resumes. The
code that is executed is that of the bytes which are hashed.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from maw.config import peft_methods
from maw.config.method import Method, Origin, digest, read_code
from maw.config.methods import METHOD_NAMES, Described, add_method, find_method, is_known
from maw.config.paths import absolute, short_path
from maw.errors import ConfigError, MAWError, ModelError, NotFiniteError, is_out_of_memory, reason, show, suggestion

GROUP = "maw.methods"
"""The group of entry points: in pyproject.toml of a package, [project.entry-points."maw.methods"]."""
INSTALLED, PYTHON = "installed:", "python:"
_IN_FILE = re.compile(r"(?P<file>.+\.py):(?P<name>[^:/\\]*)", re.S)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_NAME_HELP = "a small letter and then small letters, digits and underscores, 32 at most"


def is_reference(text: str) -> bool:
    """Whether a text in `methods` names a method of a user, not one of the table."""
    return text.startswith((INSTALLED, PYTHON, peft_methods.PREFIX)) or _IN_FILE.fullmatch(text) is not None


def as_reference(value: Any) -> Any:
    """A method of `methods` as a configuration holds it; nothing is loaded.

    Args:
        value: a name, a reference with any path, or a class, which is entered as a method.

    Raises:
        ConfigError: the class is no method.
    """
    if isinstance(value, type):
        origin = _of_class(value)
        _enter(value, origin)
        return origin.reference
    if isinstance(value, str) and value.startswith(peft_methods.PREFIX):
        return peft_methods.as_reference(value)
    match = _IN_FILE.fullmatch(value) if isinstance(value, str) else None
    if match:
        return f"{absolute(match['file'])}:{match['name']}"
    if isinstance(value, str) and value not in (*METHOD_NAMES, "all") and value in installed():
        return f"{INSTALLED}{value}"
    return value


def installed() -> dict[str, importlib.metadata.EntryPoint]:
    """The methods of installed packages, by the names of their entry points."""
    return {each.name: each for each in importlib.metadata.entry_points(group=GROUP)}


def load_methods(names: Iterable[str]) -> list[str]:
    """Loads the methods of users among those named; returns the mistakes, one line each."""
    problems: list[str] = []
    taken: dict[str, str] = {}
    for name in filter(is_reference, names):
        try:
            method = load_method(name)
        except ConfigError as error:
            problems += error.problems
            continue
        if method.name in taken:
            other = short_path(taken[method.name])
            how = "rename the file or its folder" if name.startswith(peft_methods.PREFIX) else "choose another"
            problems.append(f"{place_of(method)}: the name {show(method.name)} is taken by {other}; {how}")
        taken[method.name] = method.origin.reference if method.origin else name
    return problems


def load_method(reference: str) -> Method:
    """The method of a reference; a file that has not changed since it was loaded is not executed again.

    Raises:
        ConfigError: it cannot be loaded, or is no method; the line names the file and the line in it.
    """
    known = find_method(reference) if is_known(reference) else None
    if known is not None and isinstance(known, Described):
        known = None
    if reference.startswith(PYTHON):
        if known is None:
            text = f"{reference}: was defined in Python and is not known here; "
            raise ConfigError([text + "define it and pass the class in methods=[...], or put it into a file"])
        return known
    if reference.startswith(INSTALLED):
        return known or _load_installed(reference)
    if reference.startswith(peft_methods.PREFIX):
        return _load_of_peft(reference, known)
    match = _IN_FILE.fullmatch(reference)
    if match is None:
        raise ConfigError([f"{show(reference)}: must be FILE.py:CLASS"])
    path = match["file"]
    code = read_code(path)
    if known is not None and known.origin is not None and known.origin.digest == digest(code):
        return known
    found = vars(_execute(path, code))
    classes = [name for name, each in found.items() if _is_method(each) and each.__module__ == found["__name__"]]
    name = match["name"]
    if name not in found:
        text = f"has no class {show(name)}{suggestion(name, classes)}"
        text += f"; it has {', '.join(classes)}" if classes else "; a method is a class that inherits from maw.Method"
        raise ConfigError([f"{short_path(path)}: {text}"])
    line = _line_of_class(code, name)
    return _enter(found[name], Origin(reference, f"{short_path(path)}:{line}", path, digest(code), path))


def without_code(name: str, reference: str, digest: str) -> Method | None:
    """A method whose use loads no code of a user: PEFT's, or one that this process has loaded; else None.

    Args:
        name, reference, digest: what a checkpoint says of the method; another digest of a file or a class is another
            method, and one of PEFT another version.
    """
    if reference.startswith(peft_methods.PREFIX):
        with contextlib.suppress(ConfigError):
            found = load_method(reference)
            if found.origin is not None and (found.origin.file is None or found.origin.digest == digest):
                return found
        return None
    known = find_method(name) if is_known(name) else None
    if known is None or known.origin is None or isinstance(known, Described):
        return None
    return known if known.origin.digest == digest else None


def why_not_found(reference: str) -> str:
    """Why `without_code` finds no method of a reference, and how to give it."""
    if reference.startswith(peft_methods.PREFIX):
        why = f"{reference} is gone or has changed since; if you have the file as it was, give it"
        return f"{why}: --method-file {peft_methods.PREFIX}FILE.json, in Python method="
    why = "no code is loaded from a place that a file names; if you trust it, give it"
    return f"{why}: --method-file {reference}, in Python method="


def code_of(names: Iterable[str]) -> dict[str, str]:
    """The hashes of the code of the users' methods among those named, without loading any: code -> digest.

    Raises:
        ConfigError: the code is gone.
    """
    found: dict[str, str] = {}
    for name in filter(is_reference, names):
        match = _IN_FILE.fullmatch(name)
        if name.startswith(peft_methods.PREFIX):
            found |= peft_methods.code_of(name)
        elif name.startswith(INSTALLED):
            entry = _entry(name)
            found[_distribution(entry)[0]] = _distribution(entry)[1]
        elif match:
            found[match["file"]] = digest(read_code(match["file"]))
        elif is_known(name):
            origin = find_method(name).origin
            assert origin is not None
            found[origin.code] = origin.digest
    return found


@contextlib.contextmanager
def mistakes_of(method: Method, *, everything: bool = False) -> Iterator[None]:
    """Turns an error inside a user's method into one line that names its file and line.

    Args:
        everything: whether any error in the block is the method's, not only one that passed through its file.

    Raises:
        ModelError: the error in one line.
        NotFiniteError: as raised in the block, with the place of the method.
    """
    try:
        yield
    except NotFiniteError as error:
        if method.origin is None or place_of(method) in str(error):
            raise
        raise NotFiniteError(f"{place_of(method)}: {method.name}: {error}") from error
    except MAWError:
        raise
    except Exception as error:
        file = method.origin.file if method.origin else None
        line = _last_line(file, error)
        if method.origin is None or is_out_of_memory(error) or (line is None and not everything):
            raise
        place = f"{short_path(file)}:{line}" if file and line else place_of(method)
        raise ModelError(f"{place}: {method.name}: {type(error).__name__}: {reason(error)}") from error


def place_of(method: Method) -> str:
    """The file and line of a user's method, or its package, for messages."""
    return method.origin.place if method.origin else method.name


def _load_of_peft(reference: str, known: Method | None) -> Method:
    """A method of PEFT: the known one, unless its file has changed."""
    method = peft_methods.load(reference)
    if known is not None and known.origin == method.origin:
        return known
    add_method(method)
    return method


def _load_installed(reference: str) -> Method:
    entry = _entry(reference)
    name, version = _distribution(entry)
    place = f"{name} {version}, entry point {entry.name} = {entry.value}"
    try:
        found = entry.load()
    except Exception as error:
        raise ConfigError([f"{place}: {type(error).__name__}: {reason(error)}"]) from error
    file = inspect.getsourcefile(found) if isinstance(found, type) else None
    return _enter(found, Origin(reference, place, name, version, file))


def _entry(reference: str) -> importlib.metadata.EntryPoint:
    there, name = installed(), reference.removeprefix(INSTALLED)
    if name not in there:
        known = f"; there are {', '.join(there)}" if there else ""
        raise ConfigError([f"methods: no installed package has a method {show(name)}{suggestion(name, there)}{known}"])
    return there[name]


def _distribution(entry: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution of an entry point."""
    return (entry.dist.name, entry.dist.version) if entry.dist else (entry.value, "no version")


def _of_class(found: type) -> Origin:
    """The origin of a class from Python: its file if another process can find it there, else its source."""
    name = found.__qualname__
    file = getattr(sys.modules.get(found.__module__), "__file__", None)
    if file and file.endswith(".py") and Path(file).is_file() and name.isidentifier():
        path, code = absolute(file), read_code(file)
        line = _line_of_class(code, name)
        return Origin(f"{path}:{name}", f"{short_path(path)}:{line}", path, digest(code), path)
    parts = [f"{key}={value!r}" for key, value in sorted(vars(found).items()) if not callable(value)]
    for key, value in sorted(vars(found).items()):
        if inspect.isfunction(value):
            with contextlib.suppress(OSError):
                parts.append(f"{key}: {inspect.getsource(value)}")
    reference = f"{PYTHON}{name.rpartition('.')[2]}"
    functions = filter(inspect.isfunction, vars(found).values())
    file = next((each.__code__.co_filename for each in functions), None)
    first = min((each.__code__.co_firstlineno for each in vars(found).values() if inspect.isfunction(each)), default=0)
    place = f"{file}:{first}" if file else reference
    return Origin(reference, place, reference, digest("\n".join(parts).encode()), file)


def _enter(found: Any, origin: Origin) -> Method:
    """Makes the method of a class and enters it.

    Raises:
        ConfigError: the class is no method, or lacks something.
    """
    problem = _problem(found)
    if problem is None:
        try:
            method = found()
        except Exception as error:  # noqa: BLE001 - a user's code, whose error is told in one line
            problem = f"{type(error).__name__}: {reason(error)}"
    if problem is not None:
        raise ConfigError([f"{origin.place}: {problem}"])
    method.origin = origin
    add_method(method)
    return method


def _is_method(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Method)


def _problem(found: Any) -> str | None:
    """What is wrong with a class as a method; None if nothing is."""
    if not _is_method(found):
        return f"{getattr(found, '__name__', show(found))} must be a class that inherits from maw.Method"
    who = found.__name__
    if not isinstance(found.name, str) or not _NAME.fullmatch(found.name) or "_vs_" in found.name:
        return f"{who}.name must be {_NAME_HELP}, got {show(found.name)}"
    if found.name in METHOD_NAMES or found.name == "all":
        return f"the name {show(found.name)} is taken by a method of the benchmark; choose another"
    if not isinstance(found.label, str) or not found.label.strip() or not found.label.isprintable():
        return f"{who}.label must be a line of text, got {show(found.label)}"
    if found.adapt is Method.adapt:
        return f"{who} must define adapt(self, backbone, context)"
    if not isinstance(found.rates, Mapping):
        return f"{who}.rates must be names with learning rates, got {show(found.rates)}"
    if found.trained and found.learning_rate is None:
        return (
            f"{who} needs a learning_rate, the default of what it trains; one that trains nothing sets trained = False"
        )
    for name, rate in {"learning_rate": found.learning_rate, **found.rates}.items():
        if rate is not None and (not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate <= 1):
            return f"{who}: {name} must be a number above 0 and at most 1, got {show(rate)}"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            return f"{who}.rates: a name must be {_NAME_HELP}, got {show(name)}"
    unknown = [name for name in found.tuned or () if name != "learning_rate" and name not in found.rates]
    if unknown:
        return f"{who}.tuned names {show(unknown[0])}, which is no learning rate of it"
    return None


def _execute(path: str, code: bytes) -> ModuleType:
    """The module of a file, from the bytes that were read."""
    module = ModuleType(f"maw_method_{Path(path).stem}_{digest(code)}")
    module.__file__ = path
    before = list(sys.path)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(Path(path).parent))  # as for a script: it may import what lies beside it
    try:
        exec(compile(code, path, "exec"), vars(module))
    except SyntaxError as error:
        place = f"{short_path(error.filename or path)}:{error.lineno}"
        raise ConfigError([f"{place}: {type(error).__name__}: {reason(error)}"]) from error
    except (Exception, SystemExit) as error:
        line = _last_line(path, error)
        raise ConfigError([f"{short_path(path)}:{line}: {type(error).__name__}: {reason(error)}"]) from error
    finally:
        sys.path[:] = before
    return module


def _last_line(file: str | None, error: BaseException) -> int | None:
    """The innermost line of a file through which an error passed."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return lines[-1] if lines else None


def _line_of_class(code: bytes, name: str) -> int:
    with contextlib.suppress(SyntaxError, ValueError):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ClassDef) and node.name == name:
                return node.lineno
    return 1
