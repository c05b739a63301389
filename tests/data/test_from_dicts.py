"""The user's dictionaries: by position, by id, and every mistake named by its key."""

from __future__ import annotations

import numpy as np
import pytest

from maw.data.from_dicts import as_retrieval_data
from maw.errors import DataError

LISTS = {
    "queries": ["first question", "second question"],
    "docs": ["doc zero", "doc one", "doc two"],
    "qrels": {0: {0: 1, 1: 0}, 1: {2: 2}},
}
IDS = {
    "queries": {"qa": "first question", "qb": "second question"},
    "docs": {"x": "doc zero", "y": "doc one", "z": "doc two"},
    "qrels": {"qa": {"x": 1, "y": 0}, "qb": {"z": 2}},
}


def test_positions_become_string_ids():
    data = as_retrieval_data(LISTS, "test")
    assert (data.name, data.query_ids, data.queries) == ("test", ["0", "1"], LISTS["queries"])
    assert data.qrels == {"0": {"0": 1, "1": 0}, "1": {"2": 2}}
    assert list(data.corpus.ids) == ["0", "1", "2"]
    assert data.corpus.take([2, 0]) == ["doc two", "doc zero"]


def test_ids_are_kept():
    data = as_retrieval_data(IDS, "train")
    assert (data.query_ids, data.qrels) == (["qa", "qb"], IDS["qrels"])
    assert list(data.corpus.ids) == ["x", "y", "z"]


@pytest.mark.parametrize(
    "qrels",
    [
        {"0": {"0": 1, "1": 0}, "1": {"2": 2}},
        {np.int64(0): {np.int32(0): np.int64(1), 1: 0}, 1: {2: np.uint8(2)}},
        {1: {2: 2}, 0: {1: 0, 0: 1}},
    ],
)
def test_positions_may_be_strings_or_numpy_integers(qrels):
    data = as_retrieval_data(LISTS | {"qrels": qrels}, "test")
    assert data.qrels == {"0": {"0": 1, "1": 0}, "1": {"2": 2}}
    assert data.qrels_hash() == as_retrieval_data(LISTS, "test").qrels_hash()
    assert all(type(grade) is int for judged in data.qrels.values() for grade in judged.values())


def test_integer_ids_become_strings():
    data = as_retrieval_data({"queries": {7: "question"}, "docs": {10: "doc"}, "qrels": {7: {10: 1}}}, "test")
    assert (data.query_ids, data.qrels) == (["7"], {"7": {"10": 1}})


def test_negatives_are_resolved():
    data = as_retrieval_data(LISTS | {"negatives": {0: [1, "2", 1], 1: []}}, "train")
    assert data.negatives == {"0": ["1", "2"], "1": []}
    assert as_retrieval_data(LISTS | {"negatives": None}, "train").negatives == {}


def test_answers_are_resolved():
    data = as_retrieval_data(LISTS | {"answers": {0: ["ten", "10", "ten"], "1": []}}, "test")
    assert data.answers == {"0": ["ten", "10"]}
    assert as_retrieval_data(LISTS | {"answers": {0: ("a",), "0": ["b"]}}, "test").answers == {"0": ["a", "b"]}
    assert as_retrieval_data(LISTS | {"answers": None}, "test").answers == {}


def test_retrieval_data_passes_through():
    data = as_retrieval_data(LISTS, "test")
    assert as_retrieval_data(data, "anything") is data


def test_empty_documents_are_counted():
    assert as_retrieval_data(LISTS | {"docs": ["doc", " \t", ""], "qrels": {0: {0: 1}, 1: {0: 1}}}).corpus.empty == 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"qrels": {5: {0: 1}}}, "qrels[5]: 5 is no position in queries; they go from 0 to 1"),
        ({"qrels": {-1: {0: 1}}}, "qrels[-1]: -1 is no position in queries; they go from 0 to 1"),
        ({"qrels": {0: {3: 1}}}, "qrels[0][3]: 3 is no position in docs; they go from 0 to 2"),
        ({"qrels": {0: {0: 1.0}}}, "qrels[0][0]: the grade 1.0 is not an integer"),
        ({"qrels": {0: {0: True}}}, "qrels[0][0]: the grade True is not an integer"),
        ({"qrels": {0: {0: "1"}}}, "qrels[0][0]: the grade '1' is not an integer"),
        ({"qrels": {0: {0: float("nan")}}}, "qrels[0][0]: the grade nan is not an integer"),
        ({"qrels": {0: {0: 10**12}}}, "qrels[0][0]: the grade 1000000000000 is out of range"),
        ({"qrels": {0: {0: 1001}}}, "qrels[0][0]: the grade 1001 is out of range; write -1000 to 1000"),
        ({"qrels": {0: {0: 1}}}, "qrels['1']: the query has no relevant document"),
        ({"qrels": {0: {0: 1}, 1: {2: 0}}}, "qrels['1']: the query has no relevant document"),
        ({"qrels": {0: [0], 1: {2: 1}}}, "qrels[0]: a dictionary is needed, not [0] (list)"),
        ({"qrels": {0.0: {0: 1}}}, "qrels[0.0]: an id is a text or an integer, not 0.0 (float)"),
        ({"qrels": {True: {0: 1}}}, "qrels[True]: an id is a text or an integer"),
        ({"qrels": {0: {0: 1}, "0": {1: 1}}}, "qrels['0']: the query is judged twice"),
        ({"qrels": {0: {0: 1, "0": 1}}}, "qrels[0]['0']: the document is judged twice"),
        ({"qrels": None}, "qrels: a dictionary is needed, not None (NoneType)"),
        ({"queries": ["first", "  "]}, "queries['1']: the query is empty"),
        ({"queries": "first"}, "queries: a list of texts or a dictionary of id to text is needed, not 'first' (str)"),
        ({"queries": ["first", None]}, "queries[1]: a text is needed, not None (NoneType)"),
        ({"queries": []}, "queries: it is empty"),
        ({"docs": {}}, "docs: it is empty"),
        ({"docs": {"": "x"}}, "docs['']: an id is a text or an integer"),
        ({"docs": {1: "x", "1": "y"}}, "docs['1']: the id occurs twice"),
        ({"docs": ["a", "b\0", "c"]}, "docs: passage 1: the text holds a NUL character"),
        ({"docs": ["a", "b", "\ud800"]}, "docs: passage 2: an escape is half of a surrogate pair"),
        ({"negatives": {0: [0]}}, "negatives[0]: '0' is relevant in qrels"),
        ({"negatives": {0: 1}}, "negatives[0]: a list of documents is needed, not 1 (int)"),
        ({"negatives": {0: ["nowhere"]}}, "negatives[0]: 'nowhere' is no position in docs"),
        ({"answers": ["ten"]}, "answers: a dictionary is needed, not ['ten'] (list)"),
        ({"answers": {7: ["ten"]}}, "answers[7]: 7 is no position in queries"),
        ({"answers": {0: "ten"}}, "answers[0]: a list of texts is needed, not 'ten' (str)"),
        ({"answers": {0: ["ten", 10]}}, "answers[0][1]: a text is needed, not 10 (int)"),
        ({"answers": {0: [" "]}}, "answers[0][0]: the answer is empty"),
        ({"qrel": {}}, "'qrel': there is no such key (did you mean qrels?)"),
    ],
)
def test_a_mistake_is_named_by_its_key(change, message):
    with pytest.raises(DataError) as caught:
        as_retrieval_data(LISTS | change, "test")
    assert str(caught.value).startswith(f"test data, {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["queries", "docs", "qrels"])
def test_a_missing_key_is_named(key):
    data = {name: value for name, value in LISTS.items() if name != key}
    with pytest.raises(DataError, match=f"^test data, {key}: the key is missing"):
        as_retrieval_data(data, "test")


def test_an_unknown_id_is_named():
    with pytest.raises(DataError, match=r"qrels\['qc'\]: there is no 'qc' in queries; add it"):
        as_retrieval_data(IDS | {"qrels": {"qc": {"x": 1}}}, "test")


@pytest.mark.parametrize("data", [None, [], "text", 5])
def test_what_is_no_dictionary_is_refused(data):
    with pytest.raises(DataError, match="a dictionary with queries, docs and qrels is needed"):
        as_retrieval_data(data, "test")
