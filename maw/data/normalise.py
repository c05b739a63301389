"""Normalisation of texts, to recognise equal questions."""

from __future__ import annotations

import re
import unicodedata

NOT_WORD = re.compile(r"[\W_]+")


class _Kept(dict[int, int | str]):
    """Code point -> itself, or a blank unless it is a letter, number or mark; cached."""

    def __missing__(self, point: int) -> int | str:
        self[point] = point if unicodedata.category(chr(point))[0] in "LNM" else " "
        return self[point]


_KEPT = _Kept()


def normalise(text: str) -> str:
    """Normalises a text: NFKC, casefold; punctuation, symbols and whitespace become one blank.

    Marks stay, because many scripts write vowels with them. A text of only punctuation stays as it is; otherwise all
    such texts would be equal.
    """
    if text.isascii():  # a fast path: most texts have neither marks nor other forms
        folded = text.lower()
        return NOT_WORD.sub(" ", folded).strip() or " ".join(folded.split())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(_KEPT).split()) or " ".join(folded.split())
