"""Pieces of HTML: everything that is text passes through `escaped`, and nothing else makes a tag.

Texts of passages, queries and file names are other people's. What would be markup is escaped, what would drive a
terminal or turn the direction of the writing becomes a replacement character.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_KEPT = "\n\t"
_UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"


class Markup(str):
    """HTML that is finished: escaping leaves it as it is."""

    __slots__ = ()

    def __add__(self, other: Any) -> Markup:
        return Markup(str.__add__(self, escaped(other)))


def escaped(value: Any) -> Markup:
    """Text as HTML, safe inside an element and inside a quoted attribute; `Markup` as it is."""
    if isinstance(value, Markup):
        return value
    text = "".join(each if each.isprintable() or each in _KEPT else _UNPRINTABLE for each in str(value))
    return Markup(html.escape(text, quote=True))


def element(tag: str, *content: Any, **attributes: Any) -> Markup:
    """An element; `class_` is the attribute class, `aria_label` aria-label; attributes that are None are left out."""
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    given = "".join(f' {names[name]}="{escaped(value)}"' for name, value in attributes.items() if value is not None)
    return Markup(f"<{tag}{given}>{''.join(map(escaped, content))}</{tag}>")


def joined(parts: Iterable[Any], between: str = "\n") -> Markup:
    """Parts one after the other; empty ones are left out."""
    return Markup(escaped(between).join(escaped(part) for part in parts if part))


def paragraph(*content: Any, class_: str | None = None) -> Markup:
    """A paragraph."""
    return element("p", *content, class_=class_)


def bullets(items: Sequence[Any], class_: str | None = None) -> Markup:
    """A list; nothing where it is empty."""
    return element("ul", *(element("li", item) for item in items), class_=class_) if items else Markup("")


def table(
    caption: Any, header: Sequence[Any], rows: Sequence[Sequence[Any]], *, numbers_from: int = 1, name: str = ""
) -> Markup:
    """A table in a group that scrolls by itself, which the keyboard can reach; nothing where it has no rows.

    Args:
        caption: what it shows.
        header: of the columns.
        rows: cells; the first of each is the row's header.
        numbers_from: the first column whose cells stand to the right.
        name: of the group, for screen readers; a caption that is text, if not given.
    """
    if not rows:
        return Markup("")
    side = ["n" if column >= numbers_from else None for column in range(len(header))]
    head = [element("th", cell, scope="col", class_=side[column]) for column, cell in enumerate(header)]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell, class_=side[column]) for column, cell in enumerate(row) if column),
        )
        for row in rows
    ]
    made = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", element("tr", *head)),
        element("tbody", *body),
    )
    return element("div", made, class_="scroll", role="group", tabindex="0", aria_label=name or str(caption))


def details(summary: Any, *content: Any, open_: bool = False) -> Markup:
    """Content that opens on demand, without a script."""
    start = Markup("<details open>") if open_ else Markup("<details>")
    return Markup(f"{start}{element('summary', summary)}{''.join(map(escaped, content))}</details>")


def section(identifier: str, level: int, title: Any, *content: Any) -> Markup:
    """A section with its heading, on the second level a landmark; nothing where there is no content.

    Sections further down have the same headings in every dataset, and landmarks of one name cannot be told apart.
    """
    parts = [part for part in content if part]
    if not parts:
        return Markup("")
    heading = element(f"h{level}", title, id=identifier)
    return element("section", heading, *parts, aria_labelledby=identifier if level == 2 else None)


def facts(values: Mapping[str, Any]) -> Markup:
    """Names and values as a list of definitions; what is nested becomes a list inside."""
    entries = [(str(key).replace("_", " "), _fact(value)) for key, value in values.items()]
    return element("dl", *(Markup(element("dt", name) + element("dd", value)) for name, value in entries))


def _fact(value: Any) -> Any:
    if isinstance(value, Mapping):
        return facts(value) if value else "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) if value else "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else value
