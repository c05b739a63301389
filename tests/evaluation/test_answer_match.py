"""Answer match against DPR's own search for an answer, written out token by token."""

from __future__ import annotations

import json
import time
import unicodedata

import numpy as np
import pytest
import regex
from conftest import random_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from maw.config.tier1_config import Tier1Config
from maw.data.collection import RetrievalData
from maw.data.corpus import Corpus
from maw.evaluation import answer_match as answers
from maw.evaluation.answer_match import _phrase, answer_match, contains_answer
from maw.evaluation.evaluate import evaluate_retriever

PATTERN = regex.compile(r"([\p{L}\p{N}\p{M}]+)|([^\p{Z}\p{C}])", regex.IGNORECASE + regex.UNICODE + regex.MULTILINE)
PIECES = ["a", "B", "ab", "7", "7.5", "\u00c9", "e\u0301", "\u00df", "\u0391\u03a3", "\u03a3", "\u03c3", "\u0130"]
PIECES += ["\u4eac", "\ufb01", "\u00b2", "'", "-", "_", "\u00a0", "\n", "\u200b", "\x1f", "\u0301", "\U0001f600"]
PIECES += ["\U0001d49c", "", "\u00a7", " ", " ", " "]
mixed = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


def words(text: str) -> list[str]:
    return [match.group().lower() for match in PATTERN.finditer(unicodedata.normalize("NFD", text))]


def has_answer(text: str, wanted: list[str]) -> bool:
    """DPR's loop, O(n m); an answer of no token counts as in no text."""
    tokens = words(text)
    for answer in map(words, wanted):
        for start in range(len(tokens) - len(answer) + 1):
            if answer and tokens[start : start + len(answer)] == answer:
                return True
    return False


@pytest.mark.parametrize(
    "text, answer, found",
    [
        ("It lies off Zanzibar.", "zanzibar", True),
        ("It lies off Zanzibar.", "Zanz", False),  # a part of a token
        ("New York City", "york city", True),
        ("New York, City", "york city", False),  # the comma is a token
        ("U.S. Open", "U.S.", True),
        ("Beyonce\u0301 sang", "BEYONC\u00c9", True),  # combining and composed accents
        ("Beyonce sang", "Beyoncé", False),
        ("in 1984", "84", False),
        ("a b a c", "a c", True),
        ("anything", "", False),
        ("anything", " \t\u200b", False),  # blanks and format characters are no tokens
        ("end", "end of", False),  # runs over the end of the text
        ("", "a", False),
        ("snake_case", "case", True),  # the underscore is a token by itself
    ],
)
def test_by_hand(text, answer, found):
    assert contains_answer([text], [answer]).tolist() == [found]
    assert contains_answer([text, "b", text], ["nowhere", answer]).tolist() == [found, False, found]


def test_nothing_to_look_for():
    assert contains_answer(["a", "b"], []).tolist() == [False, False]
    assert contains_answer([], ["a"]).shape == (0,) and contains_answer([], ["a"]).dtype == bool


@settings(max_examples=300, deadline=None)
@given(st.lists(mixed, min_size=1, max_size=4), st.lists(mixed, max_size=3))
def test_the_reference_agrees(texts, wanted):
    assert [_phrase(text).split() for text in texts] == [words(text) for text in texts]
    assert contains_answer(texts, wanted).tolist() == [has_answer(text, wanted) for text in texts]


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(max_codepoint=127), max_size=30))
def test_the_fast_way_for_ascii_gives_the_same_tokens(text):
    assert _phrase(text).split() == words(text)


@settings(max_examples=100, deadline=None)
@given(st.lists(mixed, min_size=1, max_size=4), st.lists(mixed, max_size=3), mixed)
def test_another_answer_never_lowers_the_result(texts, wanted, another):
    assert (contains_answer(texts, [*wanted, another]) >= contains_answer(texts, wanted)).all()


def test_a_planted_error_is_caught(monkeypatch):
    """Substrings of the text itself, the usual mistake, find answers inside of words; the reference tells."""
    monkeypatch.setattr(answers, "_phrase", lambda text: text.lower())
    assert contains_answer(["New Yorkers"], ["New York"]).tolist() != [has_answer("New Yorkers", ["New York"])]


# ------------------------------------------------------------------------------------------------------- rankings


def collection(texts, found, titles=None):
    corpus = Corpus.from_lists([f"d{row}" for row in range(len(texts))], texts, titles)
    ids = [f"q{number}" for number in range(len(found))]
    return RetrievalData(corpus, "test", ids, ids, {query: {"d0": 1} for query in ids}, {}, found)


def by_loop(data, rows):
    """Rank of the first passage with an answer, query by query and passage by passage."""
    first = []
    for query, row_K in zip(data.query_ids, rows):
        wanted = data.answers.get(query)
        hits = [rank for rank, text in enumerate(data.corpus.take(row_K[:100]), 1) if has_answer(text, wanted or [])]
        first.append((hits or [0])[0] if wanted else None)
    return first


@pytest.fixture(scope="module")
def ranked():
    texts = random_texts(400, seed=5, longest=6)
    random = np.random.default_rng(5)
    found = {f"q{each}": random_texts(2, seed=each, longest=3) for each in range(60) if each % 4}
    data = collection(texts, dict.fromkeys([f"q{each}" for each in range(60)]) | found)
    data.answers.update({query: [] for query, each in data.answers.items() if each is None})
    return data, np.stack([random.permutation(400)[:150] for _ in range(60)])


def test_first_hits_and_shares(ranked):
    data, rows = ranked
    result, expected = answer_match(data, rows), by_loop(data, rows)
    assert result["first_hit"] == expected
    ranks = [rank for rank in expected if rank is not None]
    assert {0, 1} < set(ranks) and max(ranks) > 5, "the case must tell cutoffs apart"
    for k in (1, 5, 20, 100):
        assert result[f"top_{k}"] == sum(0 < rank <= k for rank in ranks) / len(ranks)
    assert (result["queries"], result["coverage"]) == (45, 0.75)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert answer_match(data, rows) == result


def test_a_passage_is_tokenised_once_at_most_and_none_without_need(ranked, monkeypatch):
    data, rows = ranked
    seen, whole = [], answers._phrase
    monkeypatch.setattr(answers, "_phrase", lambda text: (seen.append(text), whole(text))[1])
    monkeypatch.setattr(answers, "_TEXTS_AT_ONCE", 7)
    assert answer_match(data, rows)["first_hit"] == by_loop(data, rows)
    tokenised = len(seen) - sum(map(len, data.answers.values()))
    assert tokenised <= len(np.unique(rows[:, :100]))
    one = collection(["x", "y", "z"], {"q0": ["x"]})
    seen.clear()
    monkeypatch.setattr(answers, "_TEXTS_AT_ONCE", 1)
    answer_match(one, np.array([[0, 1, 2]]))
    assert seen == ["x", "x"], "the answer and the first passage; the others cannot be first"


def test_the_title_counts():
    data = collection(["an island", "a town"], {"q0": ["Zanzibar"]}, ["Zanzibar", ""])
    assert answer_match(data, np.array([[1, 0]]))["first_hit"] == [2]


def test_cutoffs_beyond_what_was_ranked_are_open_unless_all_was_ranked():
    data = collection([f"t{row}" for row in range(30)], {"q0": ["t9"]})
    some, whole = answer_match(data, np.arange(10)[None]), answer_match(data, np.arange(30)[None])
    assert [some[f"top_{k}"] for k in (1, 5, 20, 100)] == [0.0, 0.0, None, None]
    assert [whole[f"top_{k}"] for k in (1, 5, 20, 100)] == [0.0, 0.0, 1.0, 1.0]


def test_a_thousand_queries_by_a_hundred_passages_take_seconds():
    texts = [f"{number} " + " ".join(random_texts(12, seed=number % 50)) for number in range(20_000)]
    data = collection(texts, {f"q{each}": ["not there"] for each in range(1000)})
    rows = np.random.default_rng(0).integers(0, 20_000, (1000, 100))
    started = time.perf_counter()
    assert answer_match(data, rows)["top_100"] == 0.0
    assert time.perf_counter() - started < 10


def test_evaluation_reports_it_beside_the_36(models):
    from maw.models.retriever import BaselineRetriever

    config = Tier1Config(model=str(models("bert")), device="cpu", top_k=20)
    docs = list(dict.fromkeys(random_texts(40, seed=1)))[:30]
    data = {"queries": docs[:6], "docs": docs, "qrels": {number: {number: 1} for number in range(6)}}
    model = BaselineRetriever(config)
    without = evaluate_retriever(model, data, config)
    assert "answer_match" not in without.facts
    result = evaluate_retriever(model, data | {"answers": {0: [docs[0]], 3: ["xyz"]}}, config)
    assert dict(result) == dict(without) and len(result) == 36
    match = result.facts["answer_match"]
    assert match["queries"] == 2 and match["top_20"] == 0.5 and match["top_100"] is None
    assert match["first_hit"][1:3] == [None, None] and match["first_hit"][3] == 0 and match["first_hit"][0] >= 1
