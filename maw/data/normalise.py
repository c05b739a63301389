"""Normalisation of texts, to recognise equal questions, and the words of a text."""

from __future__ import annotations

import re
import unicodedata

import regex

# Letters that do not make words by themselves, as Unicode (UAX #29) has it: Chinese, Japanese, Thai, Lao, Khmer,
# Burmese and others are written without blanks. Hangul is among them, since Korean particles stick to words.
UNSPACED = r"[[\p{Han}\p{Ideographic}\p{Hiragana}\p{WB=Katakana}\p{Hangul}\p{Line_Break=SA}]--\p{M}]"
CHARACTER = rf"{UNSPACED}\p{{M}}*"
_WORD = regex.compile(rf"{CHARACTER}|[[\p{{L}}\p{{N}}\p{{M}}]--{UNSPACED}]+", regex.V1)

# NFKC would turn x² into x2 and 5½ into 51/2; CO₂ may become CO2.
_NOT_NFKC = regex.compile(r"([\p{dt=Super}\p{dt=Fraction}\p{dt=Circle}]|(?<!\p{L})\p{dt=Sub})")
_ONE_FORM = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u2032\u00b4", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
    | dict.fromkeys("\u00ad\u200b\u200c\u200e\u200f\u2060\ufe0e\ufe0f\ufeff")  # unseen
)
_TWO_LETTERS = r"(?<=[\p{L}\p{M}]{2})"  # behind less, "-" may be a minus, and a comma may separate a pair
_HYPHEN = regex.compile(rf"{_TWO_LETTERS}-(?=\p{{L}}[\p{{L}}\p{{M}}])")
_WORD_END = r"(?<=[\p{L}\p{M}]{2}|\b[ai]|\p{N})"  # behind anything else, "!" may be a factorial
_COMMA = regex.compile(rf"{_TWO_LETTERS}[,;:\u060c](?=\s)")
_END = r"[[\s\p{Sentence_Terminal}]--!]"
_ENDS = regex.compile(rf"^[\s¿¡]+|{_WORD_END}[\s\p{{Sentence_Terminal}}]+$|(?<!{_END}){_END}+$", regex.V1)


def normalise(text: str) -> str:
    """Normalises a question: one form of characters that differ in form only; all that carry meaning stay.

    Equal become: upper and lower case (casefold); runs of whitespace and one blank; characters that NFKC makes equal,
    except for superscripts, fractions, numbers in circles, and subscripts that do not follow a letter; typographic and
    straight quotes; dashes, minus and hyphen. Unseen characters go, and so do marks that end a sentence, "¿" and "¡"
    before it, and commas, colons and semicolons behind a word. A hyphen between two words is a blank. "!" ends a
    sentence only after a word or number: n! is no n. A text of only such marks stays as it is; otherwise all such
    texts would be equal.
    """
    if text.isascii():  # a fast path: most texts have no other forms
        folded = " ".join(text.lower().split())
    else:
        folded = " ".join(_one_form(_one_form(text).casefold()).split())
    return _ENDS.sub("", _COMMA.sub("", _HYPHEN.sub(" ", folded))) or folded


def words(text: str) -> list[str]:
    """The words of a normalised text, without symbols; of scripts without blanks, each character with its marks."""
    normal = normalise(text)
    return re.findall(r"[a-z0-9]+", normal) if normal.isascii() else _WORD.findall(normal)


def _one_form(text: str) -> str:
    parts = _NOT_NFKC.split(text.translate(_ONE_FORM))
    return "".join(part if i % 2 else unicodedata.normalize("NFKC", part) for i, part in enumerate(parts))
