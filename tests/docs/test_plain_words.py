"""Phrases that plain words have replaced do not come back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

RETIRED = {
    "What of a dataset is done": "Resumable state of one dataset",
    "How far a training is": "Epoch history and best weights of one training",
    "What came of the routings": "GRPO rollouts",
    "All runs of one arm": "Concatenates folds, then averages seeds per query",
    "that the main process goes through first": "Runs on rank 0 first",
    "To be called before anything is kept": "Saves the activation log before",
    "No difference is shown between": "do not differ significantly",
    "fixed beforehand": "planned",
    "would have been found with": "detects",
    "lies elsewhere": "distance",
    "the one that was kept": "the best epoch",
    "greedy picks": "greedy depths",
    "passages looked at": "ranked passages",
    "can fall below the level": "can be below the level",
    "it beats at p <": "significantly higher than that of the method with this letter",
    "names a method with a significantly lower": "significantly higher than that of the method with this letter",
    "nothing that it learnt shows": "it has learnt nothing that validation shows",
    "picks their depth": "picks one of several learned weightings",
    "train against nothing but": "their negatives are only",
    "the first that needs them pays": "counts for the first method that needs them",
    "chosen by the size of the difference": "the queries with the largest differences",
    "beside what it reached": "cost and quality",
}
"""Retired phrase -> what is said instead; compared without regard to case and line breaks."""


def found_in(text: str) -> list[str]:
    """The retired phrases in a text."""
    words = " ".join(text.split()).lower()
    return [phrase for phrase in RETIRED if phrase.lower() in words]


def texts() -> Iterator[Path]:
    """Whatever users or developers read."""
    for folder in ("maw", "docs"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".html", ".md"))
    yield ROOT / "README.md"


def test_no_retired_phrase_is_used():
    found = {str(path.relative_to(ROOT)): found_in(path.read_text(encoding="utf-8")) for path in texts()}
    assert len(found) > 100 and {path: phrases for path, phrases in found.items() if phrases} == {}


def test_a_retired_phrase_is_seen_across_lines_and_in_capitals():
    assert found_in("the comparison was Fixed\n    beforehand.") == ["fixed beforehand"]
    assert found_in("it was planned before the run") == []
