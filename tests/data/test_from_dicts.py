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
        ({"qrels": {}}, "qrels: no query that it judges is in queries; qrels is empty"),
        ({"qrels": {0: {}}}, "qrels: no query has a relevant document; at least one needs a grade of 1 or more"),
        ({"qrels": {0: {0: 0}, 1: {2: -1}}}, "qrels: no query has a relevant document"),
        ({"qrels": {0: {0: 1, 3: 1}}}, "qrels[0][3]: 3 is no position in docs; they go from 0 to 2"),
        ({"qrels": {0: {"gone": 1}}}, "qrels[0]['gone']: 'gone' is no position in docs"),
        ({"qrels": {0: {0: 1}, "gone": {0: 1}}}, "qrels['gone']: 'gone' is no position in queries"),
        ({"docs": {"x": {"title": "only a title"}}}, "docs['x']: a text is needed, not None (NoneType)"),
        ({"docs": {"x": {"title": 7, "text": "x"}}}, "docs['x']: a text is needed, not 7 (int)"),
        ({"queries": {"0": {"text": "question"}}}, "queries['0']: a text is needed, not {'text': 'question'} (dict)"),
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


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_judged_document_that_is_not_there_is_kept_and_counted(caplog):
    gone = {f"gone{i}": 1 for i in range(4)}
    data = as_retrieval_data(IDS | {"qrels": {"qa": {"x": 1} | gone, "qb": {"lost": 2}}}, "test")
    assert (data.query_ids, data.qrels) == (["qa", "qb"], {"qa": {"x": 1} | gone, "qb": {"lost": 2}})
    first, second = warnings(caplog)
    assert first == (
        "test data, qrels: 5 judgements of test queries name passages that are not in the corpus; a relevant one "
        "counts as not found, as in trec_eval: "
        "'gone0' for the query 'qa', 'gone1' for the query 'qa', 'gone2' for the query 'qa'"
    )
    assert second.endswith("1 test queries have no relevant passage in the corpus; they score 0, as in trec_eval")


@pytest.mark.parametrize("qrels", [{"qc": {"x": 1}}, {"qc": {"x": 0}}, {"qc": {"gone": 1}}, {"qc": {}}])
def test_a_judged_query_that_is_not_there_is_left_out_and_counted(qrels, caplog):
    extra = {"negatives": {"qc": ["y"], "qb": ["y"]}, "answers": {"qc": ["ten"], "qa": ["two"]}}
    data = as_retrieval_data(IDS | extra | {"qrels": IDS["qrels"] | qrels}, "test")
    assert (data.query_ids, data.qrels) == (["qa", "qb"], IDS["qrels"])
    assert (data.negatives, data.answers) == ({"qb": ["y"]}, {"qa": ["two"]})
    text = "test data, qrels: 1 judged queries are not among the queries and are left out: 'qc'"
    assert warnings(caplog) == [text]


@pytest.mark.parametrize("judged", [{}, {"x": 0}, {"y": -1, "gone": 0}, None])
@pytest.mark.parametrize("data", [IDS, LISTS])
def test_a_query_without_a_relevant_document_is_left_out_and_counted(data, judged, caplog):
    first, second = (str(query) for query in data["qrels"])
    judged = (
        judged and {{"x": 0, "y": 1, "gone": 2}[doc]: grade for doc, grade in judged.items()}
        if data is LISTS
        else judged
    )
    qrels = {second: data["qrels"][next(reversed(data["qrels"]))]} | ({} if judged is None else {first: judged})
    found = as_retrieval_data(data | {"qrels": qrels, "negatives": {first: []}}, "test")
    assert (found.query_ids, found.negatives) == ([second], {})
    assert f"1 queries have no relevant document (grade 1 or more) and are left out: '{first}'" in warnings(caplog)[0]


@pytest.mark.parametrize("name", ["train", "validation"])
def test_nothing_is_learned_from_a_query_whose_documents_are_not_there(name, caplog):
    extra = {"negatives": {"qa": ["y"], "qb": ["y"]}}
    data = as_retrieval_data(IDS | extra | {"qrels": {"qa": {"x": 1, "gone": 1}, "qb": {"lost": 2, "y": 0}}}, name)
    assert (data.query_ids, data.qrels, data.negatives) == (["qa"], {"qa": {"x": 1, "gone": 1}}, {"qa": ["y"]})
    assert warnings(caplog)[1].endswith(f"1 {name} queries have no relevant passage in the corpus; they are left out")


@pytest.mark.parametrize("name", ["test", "train", "validation", "dev"])
@pytest.mark.parametrize(
    "qrels, message",
    [
        ({"qc": {"x": 1}}, "no query that it judges is in queries: there is no 'qc'; are the two of one version?"),
        (
            {"qa": {"gone": 1}, "qc": {"x": 1}},
            "none of the 1 {name} queries has a relevant passage that is in the corpus, "
            "which has no 'gone' for the query 'qa'; are the two of one version?",
        ),
        (
            {"qa": {"gone": 1, "x": 0}, "qb": {"lost": 1}},
            "none of the 2 {name} queries has a relevant passage that is in "
            "the corpus, which has no 'gone' for the query 'qa'; are the two of one version?",
        ),
    ],
)
def test_data_of_which_nothing_is_left_is_refused(name, qrels, message):
    with pytest.raises(DataError) as caught:
        as_retrieval_data(IDS | {"qrels": qrels}, name)
    assert str(caught.value) == f"{name} data, qrels: {message.format(name=name)}"


def test_ids_that_differ_in_unicode_normalisation_are_named(caplog):
    data = {"queries": {"caf\u00e9": "a", "b": "b"}, "docs": {"x\u00e9": "x", "y": "y"}}
    as_retrieval_data(data | {"qrels": {"cafe\u0301": {"y": 1}, "b": {"xe\u0301": 1, "y": 1}}}, "test")
    unknown, without, missing = warnings(caplog)
    assert "differs only in Unicode normalisation (NFC/NFD)" in unknown
    assert without.endswith("are left out: 'caf\u00e9'")
    assert "differs only in Unicode normalisation (NFC/NFD)" in missing


@pytest.mark.parametrize("key", ["negatives", "answers"])
def test_an_unknown_id_that_qrels_do_not_judge_is_named(key):
    with pytest.raises(DataError, match=rf"{key}\['qc'\]: there is no 'qc' in queries; add it"):
        as_retrieval_data(IDS | {key: {"qc": ["x"]}}, "test")


def test_an_unknown_negative_is_named():
    with pytest.raises(DataError, match=r"negatives\['qa'\]: there is no 'gone' in docs; add it"):
        as_retrieval_data(IDS | {"negatives": {"qa": ["gone"]}}, "test")


def test_documents_as_beirs_loader_gives_them():
    docs = {"x": {"text": "doc zero", "title": "A title"}, "y": {"text": "doc one", "title": None}, "z": {"text": ""}}
    corpus = as_retrieval_data(IDS | {"docs": docs}, "test").corpus
    assert list(corpus.records([0, 1, 2])) == [("x", "A title", "doc zero"), ("y", "", "doc one"), ("z", "", "")]
    plain = as_retrieval_data(IDS | {"docs": {"x": "doc zero", "y": "doc one", "z": ""}}, "test").corpus
    assert corpus.take([1, 2]) == plain.take([1, 2]) and corpus.take([0]) != plain.take([0])


def test_metrics_with_documents_that_are_not_there_are_those_of_pytrec_eval(tiny_settings):
    """Recall and ideal DCG count relevant documents that are not there; a query without any other scores 0."""
    import pytrec_eval

    from maw.evaluation.evaluate import evaluate_retriever
    from maw.models.retriever import BaselineRetriever

    qrels = {"qa": {"x": 1, "gone": 2, "y": 0, "lost": 0}, "qb": {"gone": 1}, "qc": {"x": 1}}
    config = tiny_settings()
    found = evaluate_retriever(BaselineRetriever(config), IDS | {"qrels": qrels}, config)
    run = {
        query: {"xyz"[row]: float(score) for row, score in zip(rows, scores)}
        for query, rows, scores in zip(found.query_ids, found.run["rows"], found.run["scores"])
    }
    measures = {"ndcg_cut.10", "ndcg", "recall.10", "bpref", "P.10"}
    expected = pytrec_eval.RelevanceEvaluator({q: qrels[q] for q in ("qa", "qb")}, measures).evaluate(run)
    assert found.query_ids == ["qa", "qb"]
    for key in ("ndcg_cut_10", "ndcg", "recall_10", "bpref", "P_10"):
        assert found.per_query[key].tolist() == [expected["qa"][key], expected["qb"][key]], key
        assert found[key] == (expected["qa"][key] + expected["qb"][key]) / 2, key
    assert found.per_query["recall_10"].tolist() == [0.5, 0.0]


@pytest.mark.parametrize("data", [None, [], "text", 5])
def test_what_is_no_dictionary_is_refused(data):
    with pytest.raises(DataError, match="a dictionary with queries, docs and qrels is needed"):
        as_retrieval_data(data, "test")
