"""Building blocks of plain-text reports: headings, bullets, facts and tables, at most 100 columns wide.

`fact` and `bullet` make their text safe to display. Any other text from data or files must pass through `clean`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 100
_HASHES = ("hash", "sha256", "fingerprint")
_HASH_LENGTH = 12


def fact(key: str, value: Any) -> list[str]:
    """Lines for one fact; for a dictionary of dictionaries one for each entry."""
    label = clean(str(key)).replace("_", " ")
    if isinstance(value, Mapping) and any(isinstance(each, Mapping) for each in value.values()):
        texts = [f"{clean(str(name))}: {_value(str(name), each)}" for name, each in value.items()]
    else:
        texts = [_value(key, value)]
    labels = [label, *[""] * (len(texts) - 1)]
    return [line for name, text in zip(labels, texts, strict=True) for line in wrapped(f"  {name:<22} ", text)]


def _value(key: str, value: Any) -> str:
    if value is None or value in ({}, []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(
            f"{clean(str(name)).replace('_', ' ')} {_value(str(name), each)}" for name, each in value.items()
        )
    if isinstance(value, list | tuple):
        return ", ".join(_value(key, each) for each in value)
    if key.endswith(_HASHES):
        return clean(str(value))[:_HASH_LENGTH]
    return f'"{clean(value, keep_blanks=True)}"' if key.endswith("prefix") else clean(str(value))


def as_table(header: Sequence[str], rows: Sequence[Sequence[str]], gap: int = 2) -> str:
    """A table, its first column aligned left, the others right; columns that do not fit follow below.

    `gap` is the number of blanks between columns.
    """
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    widths[0] = min(widths[0], WIDTH // 2)
    blocks, columns, used = [], [], widths[0]
    for column in range(1, len(header)):
        if columns and used + widths[column] + gap > WIDTH:
            blocks.append(columns)
            columns, used = [], widths[0]
        columns.append(column)
        used += widths[column] + gap
    blocks.append(columns)
    return "\n\n".join(_block(header, rows, widths, columns, " " * gap) for columns in blocks)


def _block(
    header: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int], columns: Sequence[int], gap: str
) -> str:
    def line(row: Sequence[str]) -> str:
        first = row[0][: widths[0]].ljust(widths[0])
        return (first + "".join(f"{gap}{row[column]:>{widths[column]}}" for column in columns)).rstrip()

    rule = "-" * (widths[0] + sum(widths[column] + len(gap) for column in columns))
    return "\n".join([line(header), rule, *map(line, rows)])


def heading(text: str, rule: str) -> str:
    """A line of text, cut to the width, underlined with the character `rule`."""
    text = text[:WIDTH]
    return f"{text}\n{rule * len(text)}"


def p_value(p: float | None) -> str:
    """A p-value with four digits; a dash for None."""
    return "-" if p is None else "<0.0001" if p < 0.00005 else f"{p:.4f}"


def number(value: float | None, form: str) -> str:
    """A number in a form of `format`; a dash for None."""
    return "-" if value is None else f"{value:{form}}"


def bullet(text: str) -> list[str]:
    """Lines of one item of a list."""
    return wrapped("  - ", clean(text))


def wrapped(first: str, text: str) -> list[str]:
    """Text wrapped to the width behind `first`, later lines indented as far."""
    indents = {"initial_indent": first, "subsequent_indent": " " * len(first)}
    return textwrap.wrap(text, WIDTH, **indents, break_on_hyphens=False) or [first.rstrip()]  # a flag stays whole


def clean(text: str, *, keep_blanks: bool = False) -> str:
    """The text as one line, safe for a terminal: unprintable characters become question marks."""
    text = text if keep_blanks else " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in text)
