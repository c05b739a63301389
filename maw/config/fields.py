"""Types and rules of configuration fields, and messages for wrong values.

`maw.config.tier1_config` states the rules as annotations (`Annotated[int, Range(1, 4096)]`); this module reads and
applies them. A value is typed in Python, or is text from a flag or a file; both pass the same check.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from maw.config.paths import BEIR, beir_parts, is_folder
from maw.errors import show, suggestion

Layers = None | str | int | list[int]
"""Layers counted from 1, or from the end with -1; `last`, `all`, `none`; None means the last."""

LAYER_WORDS = ("last", "all", "none")
_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")  # Python reads at most 4300 digits
_LAYER_HELP = "must be last, all, none, or layer numbers like 5,6 or -1"


class Range(NamedTuple):
    """Numbers that a field may hold; an `open` end is excluded."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def holds(self, number: float) -> bool:
        """Whether the number lies in the range."""
        above = self.low < number if self.open_low else self.low <= number
        return above and (number < self.high if self.open_high else number <= self.high)

    def __str__(self) -> str:
        low, high = (int(end) if end == int(end) else end for end in self[:2])
        above, below = "above" if self.open_low else "at least", "below" if self.open_high else "at most"
        return f"{above} {low} and {below} {high}"


class Pattern(NamedTuple):
    """A regular expression for the whole text, and its `meaning` in words."""

    regex: str
    meaning: str


class Problem(NamedTuple):
    """One mistake: its field, its text, and other fields that it depends on."""

    name: str
    text: str
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {self.text}" if self.name else self.text


class Kind(NamedTuple):
    """Type and rules of one field."""

    base: type | str
    optional: bool
    choices: tuple[str, ...] = ()
    rule: Range | Pattern | None = None
    word: str = ""
    """A word allowed in place of a number, such as full."""


def kinds_of(config_class: type[Any]) -> dict[str, Kind]:
    """The kind of every field, from its annotation."""
    hints = get_type_hints(config_class, include_extras=True)
    return {name: _kind(hints[name]) for name in config_class.__dataclass_fields__}


def _kind(hint: Any) -> Kind:
    if hint == Layers:
        return Kind("layers", optional=True)
    optional = False
    word = ""
    if get_origin(hint) in (Union, UnionType):
        others = [arg for arg in get_args(hint) if arg is not NoneType]
        optional = len(others) < len(get_args(hint))
        words = [arg for arg in others if get_origin(arg) is Literal and len(others) > 1]
        (hint,) = (arg for arg in others if arg not in words)
        word = get_args(words[0])[0] if words else ""
    if get_origin(hint) is Literal:
        return Kind(str, optional, choices=get_args(hint))
    rule = None
    if get_origin(hint) is Annotated:
        hint, rule = get_args(hint)
    return Kind(get_origin(hint) or hint, optional, rule=rule, word=word)


def from_text(kind: Kind, text: str) -> Any:
    """Converts text to the field's type; returns the text itself if that fails, for `check` to report.

    `none` means None; for layers it means no layer.
    """
    if kind.base == "layers":
        return _layers_from_text(text)
    if kind.optional and text.strip().lower() == "none":
        return None
    if kind.base is int and _INTEGER.fullmatch(text.strip()):
        return int(text)
    if kind.base is float and "_" not in text and text.isascii():
        number = _float(text)
        return text if number is None or (math.isinf(number) and re.search("[0-9]", text)) else number
    if kind.base is bool:
        return {"true": True, "false": False}.get(text.strip().lower(), text)
    if kind.base is list:
        return split_names(text)
    if kind.base is dict:
        parts = [part.partition("=") for part in text.replace(",", " ").split()]
        numbers = {name: _float(number) for name, _, number in parts}
        return text if None in numbers.values() or len(numbers) < len(parts) else numbers
    return text


def split_names(text: str) -> list[str]:
    """Splits names at commas and blanks; a folder that exists keeps its own, and a `beir:` path its blanks."""
    parts, names = text.split(","), []
    while parts:
        wholes = (",".join(parts[:size]).strip() for size in range(len(parts), 0, -1))
        whole = next((each for each in wholes if _is_one_folder(each.removeprefix(BEIR))), "")
        name = whole or parts[0].strip()
        names += [name] if whole or name.startswith(BEIR) else name.split()
        parts = parts[name.count(",") + 1 :]
    return names


def _is_one_folder(text: str) -> bool:
    folder, judgements = beir_parts(text)
    return is_folder(folder) and "," not in (judgements or "")


def _layers_from_text(text: str) -> Any:
    words = [word.strip() for word in text.split(",")] if "," in text else text.split()
    if words and all(_INTEGER.fullmatch(word) for word in words):
        return [int(word) for word in words]
    return text


def check(kind: Kind, value: Any) -> tuple[Any, str | None]:
    """The value in its final form, and its mistake or None.

    An int may stand for a float and a tuple for a list; a bool is never a number.
    """
    if kind.base == "layers":
        return _check_layers(value)
    if value is None and kind.optional:
        return None, None
    if kind.base is bool:
        return value, None if isinstance(value, bool) else f"must be true or false, got {show(value)}"
    if kind.base in (int, float):
        return _check_number(kind, value)
    if kind.base is list:
        return _check_names(value)
    if kind.base is dict:
        return _check_rates(value)
    return value, _check_text(kind, value)


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _read_by_people(text: str) -> float | None:
    """The number in a text that only the rules of a field do not take as one: 3.0, 1,000, 1_000, a Unicode digit."""
    plain = unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("_", "").strip()
    if re.fullmatch(r"[+-]?[0-9]{1,3}(,[0-9]{3})+", plain):
        plain = plain.replace(",", "")
    return _float(plain) if re.search(r"\d", plain) else None


def _check_number(kind: Kind, value: Any) -> tuple[Any, str | None]:
    types, what = (int, "a whole number") if kind.base is int else ((int, float), "a number")
    if kind.word and isinstance(value, str) and value.strip().lower() == kind.word:
        return kind.word, None
    if not isinstance(value, types) or isinstance(value, bool):
        number = _read_by_people(value) if isinstance(value, str) else None
        if number is not None and math.isinf(number):
            return value, f"must be {kind.rule}, got {show(value)}"
        right = "" if number is None or (kind.base is int and number != int(number)) else f"{number:.15g}"
        hint = f"; write {right}" if right not in ("", "0", "-0", value) else ""
        return value, f"must be {what}{f' or {kind.word}' if kind.word else ''}, got {show(value)}{hint}"
    if isinstance(value, float) and not math.isfinite(value):
        return value, f"must be a finite number, got {value}; it must be {kind.rule}"
    if isinstance(kind.rule, Range) and not kind.rule.holds(value):
        return value, f"must be {kind.rule}, got {show(value)}"
    return int(value) if kind.base is int else float(value) + 0.0, None  # which turns -0.0 into 0.0


def _check_text(kind: Kind, value: Any) -> str | None:
    if kind.choices and (not isinstance(value, str) or value not in kind.choices):
        close = suggestion(value, kind.choices) if isinstance(value, str) else ""
        return f"must be one of {', '.join(kind.choices)}, got {show(value)}{close}"
    if not isinstance(value, str):
        return f"must be text, got {show(value)}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"must be valid Unicode, got {show(value)}"
    if "\0" in value or len(value) > 4096:
        return f"must have at most 4096 characters and no NUL, got {show(value)}"
    if isinstance(kind.rule, Pattern) and not re.fullmatch(kind.rule.regex, value):
        return f"must be {kind.rule.meaning}, got {show(value)}"
    return None


def _check_names(value: Any) -> tuple[Any, str | None]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        return value, f"must be a list of names, got {show(value)}"
    if not value:
        return value, "must have at least one name, got none"
    twice = sorted({name for name in value if value.count(name) > 1})
    if twice:
        return value, f"names {', '.join(map(show, twice))} more than once"
    return list(value), None


def _check_rates(value: Any) -> tuple[Any, str | None]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return value, f"must be names with numbers, like gate_learning_rate=0.01, got {show(value)}"
    for name, rate in value.items():
        if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate <= 1:
            return value, f"{name} must be a number above 0 and at most 1, got {show(rate)}"
    return {name: float(rate) for name, rate in value.items()}, None


def _check_layers(value: Any) -> tuple[Any, str | None]:
    if isinstance(value, str):
        value = _layers_from_text(value)
    if isinstance(value, str):
        word = value.strip().lower()
        return word, None if word in LAYER_WORDS else f"{_LAYER_HELP}, got {show(value)}"
    if value is None:
        return None, None
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        return value, f"{_LAYER_HELP}, got {show(value)}"
    if 0 in numbers:
        return value, "there is no layer 0; layers are counted from 1"
    return numbers, None


def check_all(kinds: Mapping[str, Kind], values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Checks each value by its field's kind; returns the good values in final form, and the problems."""
    good: dict[str, Any] = {}
    problems = []
    for name, value in values.items():
        if not isinstance(name, str) or name not in kinds:
            close = suggestion(name, kinds) if isinstance(name, str) else ""
            problems.append(Problem(show(name).strip("'"), f"no such setting{close}"))
            continue
        final, wrong = check(kinds[name], value)
        if wrong:
            problems.append(Problem(name, wrong))
        else:
            good[name] = final
    return good, problems
