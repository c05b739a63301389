"""Whether a passage holds an answer: DPR's criterion for open-domain questions.

    contains_answer(texts, ["Zanzibar", "Sansibar"])    # (N,) bool

A text holds an answer if the answer's tokens stand in it one after the other. Tokens are runs of letters, digits and
marks, or single other characters that are not blank, after NFD and in lower case.

Source: Karpukhin et al. 2020, `has_answer` with SimpleTokenizer.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import regex

TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


def contains_answer(texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Which texts hold at least one of the answers: (len(texts),) bool; an answer without a token is in no text."""
    wanted = [f" {' '.join(tokens)} " for answer in answers if (tokens := tokenise(answer))]
    found = []
    for text in texts:
        spaced = f" {' '.join(tokenise(text))} "  # no token holds a blank, so a whole-token match is a substring
        found.append(any(answer in spaced for answer in wanted))
    return np.array(found, bool)


def tokenise(text: str) -> list[str]:
    """The tokens of a text in lower case."""
    return TOKEN.findall(unicodedata.normalize("NFD", text).lower())
