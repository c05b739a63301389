"""The form in which two texts count as the same question."""

from __future__ import annotations

import re
import unicodedata

NOT_WORD = re.compile(r"[\W_]+")


class _Kept(dict[int, int | str]):
    """Code point -> itself, or a blank for what is no letter, number or mark; looked up once for each."""

    def __missing__(self, point: int) -> int | str:
        self[point] = point if unicodedata.category(chr(point))[0] in "LNM" else " "
        return self[point]


_KEPT = _Kept()


def normalise(text: str) -> str:
    """`text` as it is compared: NFKC, casefolded, punctuation, symbols and whitespace collapsed to one blank.

    Marks stay: many scripts write vowels with them, and words that differ in a vowel would be one. A text of nothing
    but punctuation keeps it, or all such texts would be one.
    """
    if text.isascii():  # most are, and have neither marks nor other forms
        folded = text.lower()
        return NOT_WORD.sub(" ", folded).strip() or " ".join(folded.split())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(_KEPT).split()) or " ".join(folded.split())
