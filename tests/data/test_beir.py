"""BEIR folders: reading a valid one, and one line with file and line for every possible mistake."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import unicodedata
from pathlib import Path

import pytest

from maw.config.presets import PRESETS
from maw.config.tier1_config import Tier1Config
from maw.data import beir_format, collection
from maw.data.dataset_table import DATASETS
from maw.data.datasets import beir
from maw.data.registry import load_collection
from maw.errors import DataError
from maw.evaluation.metrics import compute_metrics

SHARED = Path(__file__).parents[3] / "shared" / "data"
HEADER = "query-id\tcorpus-id\tscore\n"
GOOD = {
    "corpus.jsonl": "".join(
        json.dumps({"_id": f"d{i}", "title": f"title {i}" if i % 2 else "", "text": f"text of {i}"}) + "\n"
        for i in range(8)
    ),
    "queries.jsonl": "".join(json.dumps({"_id": f"q{i}", "text": f"question {i}"}) + "\n" for i in range(8)),
    "qrels/train.tsv": HEADER + "q0\td0\t1\nq0\td1\t0\nq1\td1\t2\nq2\td2\t1\n",
    "qrels/dev.tsv": HEADER + "q3\td3\t1\nq4\td4\t1\n",
    "qrels/test.tsv": HEADER + "q5\td5\t1\nq5\td0\t-1\nq6\td6\t3\n",
}
SAMPLES = {"train_samples": 2, "val_samples": 2, "test_samples": 2}


@pytest.fixture
def load(tmp_path):
    """`load({"qrels/dev.tsv": None})` loads the good folder with that change; bytes stay as they are."""

    def call(changes=None, methods=("zero_shot", "lora", "maw"), **settings):
        call.folder = tmp_path / "tiny"
        for name, content in (GOOD | (changes or {})).items():
            path = call.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        config = Tier1Config(cache_dir=str(tmp_path / "cache"), methods=list(methods), **(SAMPLES | settings))
        return load_collection(f"beir:{call.folder}", config)

    return call


def everything(data):
    return dict(zip(data.query_ids, data.queries)), data.qrels


def lines(text, *changes):
    """`text` with lines replaced: `(number from 1, new line)`."""
    rows = text.splitlines()
    for number, row in changes:
        rows[number - 1] = row
    return "\n".join(rows) + "\n"


def test_a_good_folder(load):
    data = load(test_samples=9, train_samples=9)
    assert (data.name, data.title) == ("beir_tiny", "tiny (BEIR folder)")
    assert everything(data.test) == (
        {"q5": "question 5", "q6": "question 6"},
        {"q5": {"d5": 1, "d0": -1}, "q6": {"d6": 3}},
    )
    assert data.train.qrels == {"q0": {"d0": 1, "d1": 0}, "q1": {"d1": 2}, "q2": {"d2": 1}}
    assert set(data.validation.query_ids) == {"q3", "q4"}
    assert data.test.corpus is data.train.corpus is data.validation.corpus
    assert data.test.corpus.take([0, 1]) == ["text of 0", "title 1 text of 1"]
    json.dumps(data.facts, allow_nan=False)
    assert data.facts["passages"] == 8
    assert data.facts["splits"]["test"] == {
        "available": 2,
        "queries": 2,
        "judgements": 3,
        "relevant": 2,
        "judged_not_relevant": 0,  # the grade of the third is -1
        "qrels_sha256": data.test.qrels_hash(),
    }


def test_fewer_queries_than_asked_for_is_a_warning(load, caplog):
    with caplog.at_level(logging.WARNING):
        warnings = load(train_samples=5).facts["warnings"]
    assert warnings == ["tiny: train_samples asks for 5 queries and train has 3; all are used"] == caplog.messages


@pytest.mark.parametrize("asked", [{}, PRESETS["quick"], PRESETS["production"]])
def test_fewer_queries_than_a_default_or_a_preset_has_is_no_warning(load, caplog, asked):
    names = ("train_samples", "val_samples", "test_samples")
    wanted = {name: asked.get(name, getattr(Tier1Config, name)) for name in names}
    with caplog.at_level(logging.WARNING):
        data = load(**wanted)
    assert data.facts["warnings"] == caplog.messages == []
    assert data.facts["splits"]["train"]["queries"] == 3, "the report still says how many there are"


@pytest.mark.parametrize(("name", "file"), [("query-id", "queries.jsonl"), ("corpus-id", "corpus.jsonl")])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_ids_that_differ_only_in_unicode_normalisation_are_explained(load, name, file, forms):
    there, judged = (unicodedata.normalize(form, "caf\u00e9") for form in forms)
    line = json.dumps({"_id": there, "text": "a text"}, ensure_ascii=False)
    row = f"{judged}\td5\t1\n" if name == "query-id" else f"q5\t{judged}\t1\n"
    with pytest.raises(DataError) as caught:
        load({file: GOOD[file] + line + "\n", TEST: HEADER + row})
    text = f"({there!r} differs only in Unicode normalisation (NFC/NFD): {judged!a} is not {there!a}); are the two"
    assert text in str(caught.value)


def test_a_grade_of_more_digits_than_python_reads_is_out_of_range(load):
    with pytest.raises(DataError, match=r"is out of range; grades go from -1000 to 1000"):
        load({TEST: HEADER + f"q5\td5\t{'9' * 5000}\n"})


def test_samples_do_not_depend_on_the_order_of_the_files(load):
    names = ("queries.jsonl", "qrels/train.tsv")
    first = load()
    head, *rows = GOOD["qrels/train.tsv"].splitlines(keepends=True)
    turned = {names[0]: "".join(GOOD[names[0]].splitlines(keepends=True)[::-1]), names[1]: head + "".join(rows[::-1])}
    second = load(turned)
    assert second.train.query_ids == first.train.query_ids
    assert second.train.qrels_hash() == first.train.qrels_hash()
    assert set(load(train_samples=1).train.query_ids) < set(first.train.query_ids)


def with_bom(text):
    return b"\xef\xbb\xbf" + text.encode()


@pytest.mark.parametrize(
    "form",
    [
        lambda text: text.replace("\n", "\r\n"),
        with_bom,
        lambda text: with_bom(text.replace("\n", "\r\n")),
        lambda text: text.rstrip("\n"),
        lambda text: "\n" + text.replace("\n", "\n \n"),
        lambda text: with_bom("\n" + text),
    ],
    ids=["crlf", "bom", "bom and crlf", "no last line end", "blank lines", "bom and blank line"],
)
def test_forms_of_text_files_that_mean_the_same(load, form):
    want, got = load(), load({name: form(text) for name, text in GOOD.items()})
    for split in ("train", "validation", "test"):
        assert everything(getattr(got, split)) == everything(getattr(want, split))
    assert got.test.corpus.fingerprint == want.test.corpus.fingerprint


@pytest.mark.parametrize("title", ["", '"title": null, ', '"title": "", '])
def test_the_title_may_be_missing(load, title):
    data = load({"corpus.jsonl": lines(GOOD["corpus.jsonl"], (6, f'  {{"_id": "d5", {title}"text": "alone"}}'))})
    assert data.test.corpus.take(data.test.corpus.rows_of(["d5"])) == ["alone"]


def test_validation_tsv_serves_where_there_is_no_dev_tsv(load):
    data = load({"qrels/dev.tsv": None, "qrels/validation.tsv": GOOD["qrels/dev.tsv"]})
    assert set(data.validation.query_ids) == {"q3", "q4"}


def test_without_a_validation_file_training_queries_are_held_out(load):
    rows = "".join(f"q{i}\td{i}\t1\n" for i in (0, 1, 2, 3, 4, 7))
    changes = {"qrels/dev.tsv": None, "qrels/train.tsv": HEADER + rows}
    data = load(changes, train_samples=5, val_samples=5)
    assert data.facts["skipped"]["queries_shared_with_another_split"] == {"train": 0, "validation": 0}
    assert len(data.validation) == 1  # a fifth of six, though five were asked for
    assert set(data.train.query_ids) | set(data.validation.query_ids) == {"q0", "q1", "q2", "q3", "q4", "q7"}
    assert not set(data.train.query_ids) & set(data.validation.query_ids)
    assert "validation: 1 of 6 training queries, held out by hash" in data.facts["split_rule"]
    assert load(changes, train_samples=5, val_samples=5).validation.query_ids == data.validation.query_ids


def test_copies_of_a_query_held_out_are_counted(load):
    """Of three copies of one text either none is held out, or one is, and the two others are left out."""
    copies = "".join(f'{{"_id": "c{i}", "text": "The same words."}}\n' for i in range(3))
    rows = "".join(f"c{i}\td{i}\t1\n" for i in range(3)) + "q0\td0\t1\nq1\td1\t1\n"
    changes = {
        "qrels/dev.tsv": None,
        "qrels/train.tsv": HEADER + rows,
        "queries.jsonl": GOOD["queries.jsonl"] + copies,
    }
    counts = set()
    for seed in range(8):
        data = load(changes, train_samples=5, val_samples=5, seed=seed)
        left_out = 5 - len(data.train) - len(data.validation)
        assert data.facts["skipped"]["queries_shared_with_another_split"] == {"train": left_out, "validation": 0}
        warning = f"tiny: {left_out} train questions occur in another split too and are left out of train"
        assert (warning in data.facts["warnings"]) is (left_out > 0)
        counts.add(left_out)
    assert counts == {0, 2}


@pytest.mark.parametrize("dev", [None, GOOD["qrels/dev.tsv"]])
def test_zero_shot_needs_no_training_queries(load, dev):
    changes = {"qrels/train.tsv": None, "qrels/dev.tsv": dev}
    data = load(changes, methods=["zero_shot"])
    assert (len(data.train), len(data.validation), len(data.test)) == (0, 2 if dev else 0, 2)
    with pytest.raises(DataError, match=r"qrels/train\.tsv: there is no such file and lora, maw must train; add it"):
        load(changes)


def test_what_is_unusable_is_counted_and_left_out(load, caplog):
    queries = GOOD["queries.jsonl"] + '{"_id": "blank", "text": " "}\n{"_id": "q8", "text": "QUESTION 5!"}\n'
    with caplog.at_level(logging.WARNING):
        data = load(
            {
                "queries.jsonl": queries,
                "corpus.jsonl": GOOD["corpus.jsonl"] + '{"_id": "d8", "text": ""}\n',
                "qrels/train.tsv": GOOD["qrels/train.tsv"] + "q7\td7\t0\nq8\td5\t1\nq0\td0\t1\nq3\td3\t1\n",
            }
        )
    assert data.facts["skipped"] == {
        "queries_without_relevant_passage": {"train": 1, "validation": 0, "test": 0},
        "queries_shared_with_another_split": {"validation": 0, "train": 2},
        "repeated_judgements": {"train": 1, "validation": 0, "test": 0},
        "empty_queries_without_judgements": 1,
    }
    assert data.facts["empty_passages"] == 1
    assert data.facts["splits"]["train"]["available"] == 3
    assert (
        data.facts["warnings"]
        == caplog.messages
        == [
            "tiny: 1 train queries have no relevant passage and are left out",
            "tiny: 2 train questions occur in another split too and are left out of train",
            "tiny: 1 judgements in train are repeated and count once",
            "tiny: 1 queries without judgements are empty and are ignored",
            "tiny: 1 passages have no text; they are kept",
            "tiny: train_samples asks for 2 queries and train has 3; all are used",
        ][:5]
    )


CORPUS, QUERIES, TRAIN, TEST = "corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/test.tsv"
DEEP = "[" * 100_000

MALFORMED = [
    (CORPUS, None, "", "there is no such file"),
    (QUERIES, None, "", "there is no such file"),
    (TEST, None, "", "there is no such file"),
    (CORPUS, "", 1, "the file is empty"),
    (QUERIES, "\n \r\n", 1, "the file is empty"),
    (TEST, "", 1, "the file is empty; it needs a header"),
    (TEST, b"\xef\xbb\xbf", 1, "the file is empty; it needs a header"),
    (TEST, HEADER, 1, "there is no judgement under the header"),
    (CORPUS, b'{"_id": "d0", "text": "\xe9t\xe9"}\n', 1, "byte 24 is not UTF-8; save the file as UTF-8"),
    (CORPUS, GOOD[CORPUS].encode("utf-16"), 1, "byte 1 is not UTF-8"),
    (QUERIES, GOOD[QUERIES].encode() + b"\xff\n", 9, "byte 1 is not UTF-8"),
    (TRAIN, b"query-id\tcorpus-id\tscore\nq\xc3\td0\t1\n", 2, "byte 2 is not UTF-8"),
    (CORPUS, lines(GOOD[CORPUS], (3, '{"_id": "d2"')), 3, "the line is not JSON ("),
    (CORPUS, lines(GOOD[CORPUS], (3, "{'_id': 'd2'}")), 3, "the line is not JSON ("),
    (CORPUS, lines(GOOD[CORPUS], (3, '{"_id": "d2", "text": "x"} {}')), 3, "the line is not JSON ("),
    (CORPUS, lines(GOOD[CORPUS], (3, '{"_id": "d2", "n": ' + "9" * 5000 + "}")), 3, "the line is not JSON ("),
    (CORPUS, lines(GOOD[CORPUS], (3, '{"_id": "d2", "text": "a\0b"}')), 3, "the line is not JSON (it holds a NUL"),
    (CORPUS, lines(GOOD[CORPUS], (3, '{"_id": "d2", "text": "a\\u0000b"}')), 3, "the text holds a NUL character"),
    (CORPUS, lines(GOOD[CORPUS], (3, '{"_id": "d2", "text": "", "title": "\\u0000"}')), 3, "the title holds a NUL"),
    (CORPUS, lines(GOOD[CORPUS], (3, '{"_id": "d2", "text": "a\\ud800b"}')), 3, "an escape is half of a surrogate"),
    (QUERIES, lines(GOOD[QUERIES], (3, '{"_id": "q2", "text": "a\\u0000b"}')), 3, "the text holds a NUL character"),
    (QUERIES, lines(GOOD[QUERIES], (3, '{"_id": "q2", "text": "\\udc00"}')), 3, "an escape is half of a surrogate"),
    (QUERIES, lines(GOOD[QUERIES], (3, '{"_id": "q\\t2", "text": "x"}')), 3, "the query id holds a control character"),
    (CORPUS, lines(GOOD[CORPUS], (3, '{"_id": "d\\n2", "text": "x"}')), 3, "the passage id holds a control character"),
    (CORPUS, lines(GOOD[CORPUS], (3, DEEP)), 3, "the JSON is nested too deeply"),
    (CORPUS, lines(GOOD[CORPUS], (3, '["d2", "text"]')), 3, "the line is not a JSON object but a list"),
    (QUERIES, lines(GOOD[QUERIES], (8, "null")), 8, "the line is not a JSON object but a NoneType"),
    (CORPUS, lines(GOOD[CORPUS], (3, '{"text": "x"}')), 3, 'there is no "_id"; add it'),
    (CORPUS, lines(GOOD[CORPUS], (3, '{"_id": "", "text": "x"}')), 3, '"_id" is empty'),
    (CORPUS, lines(GOOD[CORPUS], (3, '{"_id": null, "text": "x"}')), 3, '"_id" is None; write a string in quotes'),
    (CORPUS, lines(GOOD[CORPUS], (3, '{"_id": "d2"}')), 3, 'there is no "text"; add it'),
    (CORPUS, lines(GOOD[CORPUS], (3, '{"_id": "d2", "text": null}')), 3, '"text" is None; write a string in quotes'),
    (CORPUS, lines(GOOD[CORPUS], (3, '{"_id": "d2", "text": []}')), 3, '"text" is []; write a string in quotes'),
    (CORPUS, lines(GOOD[CORPUS], (3, '{"_id": "d2", "text": "", "title": 5}')), 3, '"title" is 5; write a string'),
    (CORPUS, lines(GOOD[CORPUS], (3, '{"_id": "d2", "text": "", "title": 0}')), 3, '"title" is 0; write a string'),
    (QUERIES, lines(GOOD[QUERIES], (3, '{"_id": "q2"}')), 3, 'there is no "text"; add it'),
    (QUERIES, lines(GOOD[QUERIES], (3, '{"_id": false, "text": ""}')), 3, '"_id" is False; write a string'),
    (TEST, "query-id,corpus-id,score\nq5,d5,1\n", 1, "the first line is 'query-id,corpus-id,score"),
    (TEST, HEADER + "q5\td5\n", 2, "2 columns instead of 3"),
    (TEST, HEADER + "q5\t0\td5\t1\n", 2, "4 columns instead of 3"),
    (TEST, HEADER + "q5 d5 1\n", 2, "1 columns instead of 3"),
    (TEST, HEADER + "\td5\t1\n", 2, "the query-id is empty"),
    (TEST, HEADER + "q5\t\t1\n", 2, "the corpus-id is empty"),
    (TEST, HEADER + "q5\0\td5\t1\n", 2, "the line holds a NUL character"),
    *[
        (TEST, HEADER + f"q5\td5\t1\nq6\td6\t{grade}\n", 3, f"the score {grade!r} is not an integer; write a grade")
        for grade in ("", "high", "1e3", "nan", "1_0", "0x1", " 1", "\u0661", "--1")
    ],
    *[
        (TEST, HEADER + f"q5\td5\t1\nq6\td6\t{grade}\n", 3, f"the score '{grade}' is out of range")
        for grade in (1001, -1001, 999999999, 2147483648, "9" * 30, "-" + "9" * 30, "+1001")
    ],
    (TEST, HEADER + "q5\td5\t0\nq6\td6\t-1\n", 3, "the file ends and no query has a relevant passage"),
    (TRAIN, HEADER + "q0\td0\t0\n", 2, "the file ends and no query has a relevant passage"),
    (TEST, HEADER + "q98\td5\t1\nq99\td5\t1\n", 3, "the file ends and no query that it judges is in queries.jsonl"),
    (TEST, "q5 0 d5 1\nq6 0 d6\n", 2, "3 columns instead of 4, as in the first line"),
    (TEST, "q5\t0\td5\t1\nq6\td6\t1\n", 2, "3 columns instead of 4, as in the first line"),
    (TEST, HEADER + "q5\td5\thigh\t1\n", 2, "4 columns instead of 3"),
    (TRAIN, HEADER + "q5\td5\t1\n", "", "no train query is left once the questions of the other splits are taken out"),
    ("qrels/validation.tsv", HEADER + "q3\td3\t1\n", "", "there is a dev.tsv too and both are the validation split"),
]


@pytest.mark.parametrize("name, content, line, message", MALFORMED)
def test_a_malformed_file_is_named_with_its_line(load, name, content, line, message):
    with pytest.raises(DataError) as caught:
        load({name: content})
    text = str(caught.value)
    place = "qrels" if "no train query is left" in message else f"{name}:{line}" if line else name
    assert text.startswith(f"{load.folder}/{place}: {message}")
    assert "\n" not in text
    assert len(text) < 500
    assert text.isprintable()


MISSING = "judgements of {} queries name passages that are not in the corpus; a relevant one counts as not found"
Q5 = '{"_id": "q5", "text": "the last text"}\n'
D5 = '{"_id": "d5", "title": "", "text": "the last passage"}\n'
BEST = {"q5": {"d5": 1, "d0": -1}, "q6": {"d6": 3}}

COUNTED = {
    "a relevant passage that is missing": (
        {TEST: HEADER + "q5\td5\t1\nq5\td99\t2\nq6\td6\t3\n"},
        {"q5": {"d5": 1, "d99": 2}, "q6": {"d6": 3}},
        f"1 {MISSING.format('test')}, as in trec_eval: 'd99' for the query 'q5'",
    ),
    "a missing passage of grade 0": (
        {TEST: HEADER + "q5\td5\t1\nq6\td6\t3\nq6\td98\t0\nq6\td99\t0\n"},
        {"q5": {"d5": 1}, "q6": {"d6": 3, "d98": 0, "d99": 0}},
        f"2 {MISSING.format('test')}, as in trec_eval: 'd98' for the query 'q6', 'd99' for the query 'q6'",
    ),
    "a query all of whose passages are missing": (
        {TEST: HEADER + "q5\td99\t1\nq6\td6\t3\n"},
        {"q5": {"d99": 1}, "q6": {"d6": 3}},
        "1 test queries have no relevant passage in the corpus; they score 0, as in trec_eval",
    ),
    "a query that is missing": (
        {TEST: GOOD[TEST] + "q97\td5\t1\nq98\td5\t0\nq99\td99\t1\nq96\td1\t1\n"},
        BEST,
        "4 judged queries are not among the queries and are left out: 'q97' in test.tsv, 'q98' in test.tsv, 'q99' in "
        "test.tsv",
    ),
    "an equal judgement": (
        {TEST: GOOD[TEST] + "q5\td5\t1\n"},
        BEST,
        "1 judgements in test are repeated and count once",
    ),
    "a contradictory judgement": (
        {TEST: GOOD[TEST] + "q6\td6\t0\nq6\td6\t2\n"},
        {"q5": {"d5": 1, "d0": -1}, "q6": {"d6": 2}},
        "2 judgements give a pair another grade than before; the last one counts, as in BEIR: 'd6' for the query "
        "'q6': 3, then 0 in test.tsv:5, 'd6' for the query 'q6': 0, then 2 in test.tsv:6",
    ),
    "no header": (
        {TEST: GOOD[TEST].removeprefix(HEADER)},
        BEST,
        "1 first lines are no header but a judgement, and are read as one: test.tsv:1: 'q5 d5 1'",
    ),
    "other names in the header": (
        {TEST: GOOD[TEST].replace(HEADER, "qid\tpid\tlabel\n")},
        BEST,
        "1 first lines are taken for a header, though they are not query-id, corpus-id and score: test.tsv:1: 'qid",
    ),
    "TREC's columns, tabs": (
        {TEST: "q5\t0\td5\t1\nq5\t0\td0\t-1\nq6\tQ0\td6\t3\n"},
        BEST,
        "1 files have TREC's four columns: query, iteration, passage and grade: test.tsv:1: 'q5 0 d5 1'",
    ),
    "TREC's columns, blanks": (
        {TEST: "\n q5 0  d5 1\r\nq5 0 d0 -1 \n\nq6 Q0 d6 3"},
        BEST,
        "1 files have TREC's four columns: query, iteration, passage and grade: test.tsv:2: ",
    ),
    "ids with a number sign in TREC's columns": (
        {
            TEST: "q5 0 msmarco#5 1\n#6 0 d6 3\n",
            CORPUS: GOOD[CORPUS].replace('"d5"', '"msmarco#5"'),
            QUERIES: GOOD[QUERIES].replace('"q6"', '"#6"'),
        },
        {"q5": {"msmarco#5": 1}, "#6": {"d6": 3}},
        "1 files have TREC's four columns: query, iteration, passage and grade: test.tsv:1: 'q5 0 msmarco#5 1'",
    ),
    "a trailing tab": (
        {TEST: GOOD[TEST].replace("\n", "\t\n")},
        BEST,
        "3 judgements have more than three columns; what follows the third is ignored: test.tsv:2, test.tsv:3,",
    ),
    "a remark behind the grade": (
        {TEST: GOOD[TEST].replace("d6\t3", "d6\t3\tby Ann")},
        BEST,
        "1 judgements have more than three columns; what follows the third is ignored: test.tsv:4",
    ),
    "a grade with a point": (
        {TEST: GOOD[TEST].replace("\t3", "\t3.0")},
        BEST,
        "1 grades have a decimal point; what follows it is cut off, as in trec_eval: 3.0 in test.tsv:4",
    ),
    "a fraction as grade": (
        {TEST: GOOD[TEST].replace("\t-1", "\t0.9").replace("\t3", "\t3.7")},
        {"q5": {"d5": 1, "d0": 0}, "q6": {"d6": 3}},
        "2 grades have a decimal point; what follows it is cut off, as in trec_eval: 0.9 in test.tsv:3, 3.7",
    ),
    "a judged query without text": (
        {QUERIES: lines(GOOD[QUERIES], (6, '{"_id": "q5", "text": " \\n"}'))},
        BEST,
        "1 judged queries have an empty text; they are kept, as in BEIR: 'q5'",
    ),
    "a query id used again": (
        {QUERIES: GOOD[QUERIES] + Q5},
        BEST,
        "1 query ids are used again; the last text counts, as in BEIR: 'q5' in queries.jsonl:9",
    ),
    "a passage id used again": (
        {CORPUS: GOOD[CORPUS] + D5 + D5},
        BEST,
        "1 passage ids are used again; the last passage counts, as in BEIR: 'd5'",
    ),
    "ids that are numbers": (
        {
            CORPUS: GOOD[CORPUS].replace('"d5"', "5"),
            QUERIES: GOOD[QUERIES].replace('"q5"', "0"),
            TEST: HEADER + "0\t5\t1\nq6\td6\t3\n",
        },
        {"0": {"5": 1}, "q6": {"d6": 3}},
        "1 ids are numbers without quotes, and are read as text: 5 in corpus.jsonl:6",
    ),
}


@pytest.mark.parametrize("case", COUNTED)
def test_what_is_unusual_is_counted_and_read_as_in_beir_or_trec_eval(load, caplog, case):
    changes, qrels, warning = COUNTED[case]
    with caplog.at_level(logging.WARNING):
        data = load(changes)
    assert data.test.qrels == qrels
    assert any(each.startswith(f"tiny: {warning}") for each in data.facts["warnings"]), data.facts["warnings"]
    assert caplog.messages == data.facts["warnings"], "each is said once"
    again = load(changes)
    assert again.facts == data.facts, "also from the stored passages"
    json.dumps(data.facts, allow_nan=False)


def test_of_several_lines_with_an_id_the_last_counts(load):
    data = load({QUERIES: GOOD[QUERIES] + Q5, CORPUS: "\n" + D5.replace("last", "first") + GOOD[CORPUS] + D5})
    assert len(data.test.corpus) == 8 and list(data.test.corpus.ids).count("d5") == 1
    assert data.test.corpus.take(data.test.corpus.rows_of(["d5"])) == ["the last passage"]
    assert dict(zip(data.test.query_ids, data.test.queries))["q5"] == "the last text"
    assert data.facts["counted"] == {"repeated_query_ids": 1, "repeated_passage_ids": 1}


def test_missing_passages_and_queries_are_in_the_facts(load):
    data = load({TEST: HEADER + "q5\td5\t1\nq5\td98\t0\nq6\td99\t1\nq99\td1\t1\n"})
    test = data.facts["splits"]["test"]
    assert (test["queries"], test["judged_passages_missing"], test["queries_without_passage"]) == (2, 2, 1)
    assert data.facts["counted"] == {"unknown_queries": 1}


def test_a_training_or_validation_query_whose_passages_are_missing_is_left_out(load):
    changes = {TRAIN: GOOD[TRAIN] + "q7\td99\t1\nq0\td98\t1\n", "qrels/dev.tsv": HEADER + "q3\td3\t1\nq4\tx\t1\n"}
    data = load(changes, train_samples=9, val_samples=9)
    assert set(data.train.query_ids) == {"q0", "q1", "q2"} and data.validation.query_ids == ["q3"]
    assert data.train.qrels["q0"] == {"d0": 1, "d1": 0, "d98": 1}
    for split, lost in (("train", 1), ("validation", 1)):
        assert (
            f"tiny: {lost} {split} queries have no relevant passage in the corpus; they are left out"
            in data.facts["warnings"]
        )


@pytest.mark.parametrize("split, name", [("test", TEST), ("train", TRAIN), ("validation", "qrels/dev.tsv")])
def test_a_split_of_which_nothing_is_left_is_refused(load, split, name):
    judged = {"test": ("q5", "q6"), "train": ("q0", "q1"), "validation": ("q3", "q4")}[split]
    changes = {name: HEADER + "".join(f"{query}\tgone{query}\t1\n{query}\td1\t0\n" for query in judged)}
    with pytest.raises(DataError, match=f"tiny: none of the 2 {split} queries has a relevant passage"):
        load(changes)
    if split != "test":
        assert len(load(changes, methods=["zero_shot"]).test) == 2, "no method uses these"


@pytest.mark.parametrize(
    "name, content",
    [
        (TRAIN, "no tabs here\n"),
        (TRAIN, ""),
        (TRAIN, HEADER + "q0\td0\thigh\n"),
        (TRAIN, HEADER + "q0\td0\t0\n"),
        (TRAIN, HEADER + "q99\td99\t1\n"),
        ("qrels/dev.tsv", b"\xff\xfe"),
        ("qrels/validation.tsv", HEADER),
    ],
)
def test_judgements_that_no_method_uses_never_refuse(load, name, content):
    data = load({name: content}, methods=["zero_shot"])
    assert data.test.qrels == BEST
    with pytest.raises(DataError):
        load({name: content})
    with pytest.raises(DataError):
        load({name: content}, methods=["zero_shot"], folds=3)


def test_metrics_with_missing_passages_are_those_of_pytrec_eval(load):
    """Recall and ideal DCG count relevant passages that the corpus lacks, and a query without any other scores 0."""
    import pytrec_eval

    rows = "q5\td5\t1\nq5\td4\t3\nq5\tgone\t2\nq5\td1\t0\nq5\tlost\t0\nq6\tgone\t1\n"
    data = load({TEST: HEADER + rows})
    ids = list(data.test.corpus.ids)
    scores = {"q5": [0.1, 0.9, 0.3, 0.2, 0.5, 0.7, 0.6, 0.4], "q6": [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]}
    queries = data.test.query_ids
    found = compute_metrics(queries, [ids] * 2, [scores[query] for query in queries], data.test.qrels)
    judgements = {"q5": {"d5": 1, "d4": 3, "gone": 2, "d1": 0, "lost": 0}, "q6": {"gone": 1}}
    keys = {"ndcg_cut_10", "ndcg", "map", "recall_10", "Rprec", "bpref", "P_10"}
    measures = {"ndcg_cut.10", "ndcg", "map", "recall.10", "Rprec", "bpref", "P.10"}
    run = {query: dict(zip(ids, scores[query])) for query in queries}
    expected = pytrec_eval.RelevanceEvaluator(judgements, measures).evaluate(run)
    for key in keys:
        assert dict(zip(found.query_ids, found.per_query[key].tolist())) == {q: expected[q][key] for q in queries}, key
        assert found[key] == sum(expected[query][key] for query in queries) / 2
    assert found.per_query["recall_10"][queries.index("q5")] == 2 / 3 and expected["q6"]["ndcg"] == 0


def test_a_huge_line_is_refused_without_being_read(load, monkeypatch):
    monkeypatch.setattr(beir_format, "LONGEST_LINE", 1000)
    fits = '{"_id": "d0", "text": "' + "x" * 974 + '"}\n'
    assert len(fits) == 1000
    load({CORPUS: fits + "\n".join(GOOD[CORPUS].splitlines()[1:])})
    with pytest.raises(DataError, match=r"corpus\.jsonl:1: the line is longer than"):
        load({CORPUS: fits.replace("x", "xx", 1) + GOOD[CORPUS]})


def test_an_endless_line_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "corpus.jsonl"
    with path.open("wb") as file:  # sparse: 4 GiB of NUL that take no space
        file.truncate(4 << 30)
    with pytest.raises(DataError, match=r"corpus\.jsonl:1: the line is longer than 16 MiB"):
        list(beir.read_corpus(path))


def test_the_corpus_is_parsed_once(load, monkeypatch):
    first = load()
    monkeypatch.setattr(beir, "read_corpus", lambda path: pytest.fail("parsed again"))
    config = Tier1Config(cache_dir=str(load.folder.parent / "cache"), methods=["zero_shot"])
    second = load_collection(f"beir:{load.folder}", config)
    assert second.test.corpus.fingerprint == first.test.corpus.fingerprint


def test_a_changed_corpus_is_parsed_again(load):
    before = load().test.corpus
    path = load.folder / CORPUS
    stat = path.stat()
    path.write_text(GOOD[CORPUS].replace("text of 5", "TEXT OF 5"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size and time of modification
    config = Tier1Config(cache_dir=str(load.folder.parent / "cache"), methods=["zero_shot"])
    after = load_collection(f"beir:{load.folder}", config).test.corpus
    assert after.fingerprint != before.fingerprint
    assert after.take([5]) == ["title 5 TEXT OF 5"]


def test_a_corpus_that_changes_while_it_is_read_is_refused(load, monkeypatch):
    real = beir.read_corpus

    def growing(path, counts):
        yield from real(path, counts)
        with path.open("a") as file:
            file.write('{"_id": "late", "text": "x"}\n')

    monkeypatch.setattr(beir, "read_corpus", growing)
    with pytest.raises(DataError, match=r"corpus\.jsonl: the file changed while it was read"):
        load()


@pytest.mark.parametrize(
    "name",
    [
        "msmarc",
        "",
        "../pystdlib",
        "pystdlib/../..",
        "py\0stdlib",
        "x" * 300,
        "pystdlib ",
        "BEIR:x",
        "$(touch x)",
        "\ud800",
    ],
)
def test_an_unknown_dataset_is_refused(name):
    with pytest.raises(DataError) as caught:
        load_collection(name, Tier1Config())
    assert str(caught.value).startswith("there is no dataset ")
    assert f"{', '.join(DATASETS)} and beir:DIR, a folder in BEIR layout" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "folder", ["", "nowhere", "a\0b", "x" * 300, "/" + "x/" * 3000, "~nobody-of-this-name/x", "\ud800"]
)
def test_a_folder_that_is_not_there_is_refused(folder):
    with pytest.raises(DataError) as caught:
        load_collection(f"beir:{folder}", Tier1Config())
    assert "there is no such folder" in str(caught.value)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["two words", "-rf", ".hidden", "caf\u00e9", "x" * 65, "a;b", "=1+1", "new\nline"])
def test_a_folder_whose_name_is_unfit_for_results_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="the folder's name becomes that of the results") as caught:
        load_collection(f"beir:{tmp_path / name}", Tier1Config())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["tiny/", "tiny/.", "tiny/../tiny", "tiny/qrels/.."])
def test_the_name_is_that_of_the_folder_however_it_is_written(load, tmp_path, path):
    load()
    config = Tier1Config(cache_dir=str(tmp_path / "cache"), methods=["zero_shot"])
    assert load_collection(f"beir:{tmp_path}/{path}", config).name == "beir_tiny"


GRADED = {"qrels/dl19.tsv": HEADER + "q7\td7\t3\nq7\td6\t1\nq0\td2\t1\n"}


def test_other_test_judgements(load, tmp_path):
    plain = load(GRADED)
    assert (plain.name, plain.facts["test_judgements"], plain.test.relevance_level) == ("beir_tiny", "test.tsv", 1)
    (load.folder / "qrels" / "test.tsv").unlink()
    config = Tier1Config(cache_dir=str(tmp_path / "cache"), methods=["zero_shot"], relevance_level=2, **SAMPLES)
    data = load_collection(f"beir:{tmp_path}/tiny@dl19", config)
    assert data.name == "beir_tiny_dl19"
    assert sorted(data.test.query_ids) == ["q0", "q7"] and data.test.qrels["q7"] == {"d7": 3, "d6": 1}
    assert "q0" not in data.train.query_ids, "a question stays in test before train"
    assert data.test.relevance_level == data.facts["relevance_level"] == 2
    grades = [grade for judged in data.test.qrels.values() for grade in judged.values()]
    assert data.facts["splits"]["test"]["relevant"] == sum(grade >= 2 for grade in grades) < len(grades)
    assert data.facts["test_judgements"] == "dl19.tsv"


def test_a_grade_below_zero_is_not_judged(load):
    facts = load({"qrels/test.tsv": HEADER + "q5\td5\t1\nq5\td0\t-1\nq6\td6\t1\nq6\td1\t0\n"}).facts
    assert {key: facts["splits"]["test"][key] for key in ("judgements", "relevant", "judged_not_relevant")} == {
        "judgements": 4,
        "relevant": 2,
        "judged_not_relevant": 1,
    }


@pytest.mark.parametrize("name", ["", "..", "a b", "x" * 61, "-x", "caf\u00e9"])
def test_a_name_of_judgements_that_is_unfit_is_refused(load, tmp_path, name):
    load()
    with pytest.raises(DataError, match="what follows @ names the test judgements") as caught:
        load_collection(f"beir:{tmp_path}/tiny@{name}", Tier1Config())
    assert "\n" not in str(caught.value)


def test_judgements_that_are_not_there_are_named(load, tmp_path):
    load()
    with pytest.raises(DataError, match=r"qrels/dl19\.tsv: there is no such file, and @dl19 asks for its judgements"):
        load_collection(f"beir:{tmp_path}/tiny@dl19", Tier1Config())
    with pytest.raises(DataError, match="there is no such folder"):
        load_collection(f"beir:{tmp_path}/nowhere@dl19", Tier1Config())


def test_a_folder_with_an_at_sign_is_a_folder(load, tmp_path):
    load(GRADED)
    whole = tmp_path / "at@dir" / "tiny"
    whole.parent.mkdir()
    (tmp_path / "tiny").rename(whole)
    config = Tier1Config(cache_dir=str(tmp_path / "cache"), methods=["zero_shot"], **SAMPLES)
    assert load_collection(f"beir:{whole}", config).name == "beir_tiny"
    assert load_collection(f"beir:{whole}@dl19", config).name == "beir_tiny_dl19"
    whole.rename(tmp_path / "tiny@dl19")
    with pytest.raises(DataError, match="the folder's name becomes that of the results"):
        load_collection(f"beir:{tmp_path}/tiny@dl19", config)


FUZZ_SEED = 20240607
PIECES = [
    b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\n", b"\t", b'"', b"{", b"}", b"[" * 2000, b",",
    b":", b"\\ud800", b"\\u0000", b"\\", b"null", b"1.5", b"-1", b"0", b"99999999999", b"NaN", b" ", b"q1",
    b"d1", b"_id", "\u2028".encode(), "\u0085".encode(), b"x" * 3000,
]  # fmt: skip


def mutated(data, source):
    """One to three random edits: a byte, an insertion, a removal, a repetition or a cut."""
    data = bytearray(data)
    for _ in range(source.randint(1, 3)):
        place = source.randrange(len(data) + 1)
        end = min(len(data), place + source.choice([1, 3, 30, 300]))
        edit = source.randrange(5)
        if edit == 0 and place < len(data):
            data[place] = source.randrange(256)
        elif edit == 1:
            data[place:place] = source.choice(PIECES)
        elif edit == 2:
            del data[place:end]
        elif edit == 3:
            data[place:place] = data[place:end]
        else:
            data[place:end] = source.choice(PIECES)
    return bytes(data)


@pytest.mark.parametrize("round_", range(150))
def test_a_mutated_file_is_parsed_or_refused_with_its_line(load, round_):
    source = random.Random(FUZZ_SEED + round_)
    name = source.choice(sorted(GOOD))
    content = mutated(GOOD[name].encode(), source)
    try:
        data = load({name: content})
    except DataError as error:
        text = str(error)
        # emptied by questions in two splits, or by other ids of passages
        left = (
            f"{load.folder}/qrels: no (train|validation) query is left|tiny: none of the [0-9]+ [a-z]+ queries has a"
        )
        assert re.match(rf"{load.folder}/[a-z./]+:\d+: |{left}", text), (FUZZ_SEED + round_, text)
        assert text.isprintable(), FUZZ_SEED + round_
        assert len(text) < 600, FUZZ_SEED + round_
    else:
        check_valid(data)


def check_valid(data):
    """The splits are whole, and the facts say what is missing."""
    known = set(data.test.corpus.ids)
    assert len(known) == len(data.test.corpus)
    for split in (data.train, data.validation, data.test):
        assert len(split) >= 1
        assert all(max(split.qrels[query_id].values()) >= 1 for query_id in split.query_ids)
        facts = data.facts["splits"][split.name]
        missing = sum(len(judged.keys() - known) for judged in split.qrels.values())
        assert missing <= facts.get("judged_passages_missing", 0)
        if split.name == "test" or not facts.get("queries_without_passage"):
            assert missing == facts.get("judged_passages_missing", 0)
        empty = sum(not text.strip() for text in split.queries)
        assert empty <= data.facts.get("counted", {}).get("empty_queries", 0)
    json.dumps(data.facts, allow_nan=False)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real collections are not at {SHARED}")
@pytest.mark.parametrize(
    "name, passages, sizes, judgements",
    [("msmarco", 41180, (2113, 407, 409), (2158, 417, 421)), ("nq", 4898, (2794, 618, 604), (2888, 640, 623))],
)
def test_the_real_collections_have_their_published_counts(real_cache, name, passages, sizes, judgements):
    config = Tier1Config(
        cache_dir=real_cache, train_samples=5000, val_samples=5000, test_samples=5000, methods=["zero_shot"]
    )
    data = load_collection(f"beir:{SHARED / name}", config)
    splits = [data.facts["splits"][split] for split in ("train", "validation", "test")]
    assert len(data.test.corpus) == passages
    assert tuple(split["queries"] for split in splits) == sizes
    assert tuple(split["relevant"] for split in splits) == judgements
    with (SHARED / name / "corpus.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert list(data.test.corpus.ids) == [row["_id"] for row in rows]
    texts = [f"{row.get('title') or ''} {row['text']}" if row.get("title") else row["text"] for row in rows]
    assert data.test.corpus.take(range(passages)) == texts
    assert data.test.corpus.rows_of([row["_id"] for row in rows]).tolist() == list(range(passages))
    assert collection.Corpus.open(data.test.corpus.folder).fingerprint == data.facts["corpus_sha256"]


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory):
    """The stores of the real collections, each built once."""
    return str(tmp_path_factory.mktemp("real"))


@pytest.mark.parametrize("name, queries, grades", [("dl19", 43, (1591, 1592, 1788, 692)), ("dl20", 54, None)])
def test_graded_judgements_of_real_queries(real_cache, name, queries, grades):
    if not (SHARED / "msmarco" / "qrels" / f"{name}.tsv").is_file():
        pytest.skip(f"there is no {SHARED / 'msmarco'} with {name}.tsv")
    config = Tier1Config(cache_dir=real_cache, methods=["zero_shot"], relevance_level=2)
    data = load_collection(f"beir:{SHARED / 'msmarco'}@{name}", config)
    assert (data.name, len(data.test)) == (f"beir_msmarco_{name}", queries)
    assert all(max(judged.values()) >= 2 for judged in data.test.qrels.values())
    found = [grade for judged in data.test.qrels.values() for grade in judged.values()]
    if grades:
        assert tuple(found.count(grade) for grade in range(4)) == grades
