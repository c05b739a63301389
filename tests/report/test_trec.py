"""TREC run files, judgements and per-query tables: other tools read them and compute the same numbers."""

from __future__ import annotations

import gzip

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from evaluation.test_metrics_comparison import in_ir_measures
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from maw.data.from_dicts import as_retrieval_data
from maw.errors import DataError, MAWError
from maw.evaluation.metrics import METRICS, compute_metrics
from maw.report.tables.trec import RunFiles, identifier, read_qrels, read_run, token, write_qrels, write_run

OURS = ("recip_rank_10", "F1_10")
DOCS, QUERIES, DEPTH = 300, 24, 120


def make_case(seed=0, *, ties=True, docs=DOCS):
    """A split and the evaluation of a ranking of it, best first, with close and equal scores and graded judgements."""
    random = np.random.default_rng(seed)
    names = [f"d{number}" for number in range(docs)]
    qrels = {
        f"q{q}": {names[d]: int(random.integers(0, 4)) for d in random.choice(docs, 8, replace=False)}
        for q in range(QUERIES)
    }
    for judged in qrels.values():
        judged[next(iter(judged))] = 2
    texts = {name: f"passage {name}" for name in names}
    data = as_retrieval_data({"queries": {q: f"query {q}" for q in qrels}, "docs": texts, "qrels": qrels})
    rows, scores = [], []
    order = data.corpus.tie_order()
    for _ in qrels:
        found = random.choice(docs, DEPTH, replace=False)
        values = (0.7 + 1e-5 * random.random(DEPTH)).astype(np.float32)  # float32 has about 170 values in there
        values = np.where(random.random(DEPTH) < 0.5, values, values[0]) if ties else np.linspace(1, 0.9, DEPTH)
        values = values.astype(np.float32)
        best = np.lexsort((order[found], -values))
        rows.append(found[best])
        scores.append(values[best])
    rows, scores = np.array(rows), np.array(scores, dtype=np.float32)
    result = compute_metrics(data.query_ids, data.corpus.ids_of(rows), scores, data.qrels)
    result.run = {"rows": rows, "scores": scores}
    return data, result


@pytest.fixture(scope="module", params=["ties, plain", "ties, gzip", "no ties"])
def written(request, tmp_path_factory):
    """(its folder, the evaluation, the name of the run file)."""
    data, result = make_case(ties=request.param.startswith("ties"))
    folder = tmp_path_factory.mktemp("run")
    form = "gzip" if request.param.endswith("gzip") else "plain"
    RunFiles("tiny", data, {"maw": {42: result}}, form).write(folder)
    return folder / "runs", result, "tiny_maw.trec" + (".gz" if form == "gzip" else "")


def test_the_files_are_named_by_dataset_and_method(written):
    folder, _, run = written
    assert {path.name for path in folder.iterdir()} == {"tiny_qrels.trec", run, "tiny_maw_per_query.parquet"}


def test_ir_measures_reads_the_same_numbers(written):
    folder, result, run = written
    qrels = list(ir_measures.read_trec_qrels(str(folder / "tiny_qrels.trec")))
    ranking = list(ir_measures.read_trec_run(str(folder / run)))
    measures = {in_ir_measures(key): key for key in METRICS if key not in OURS}
    place, compared = {query: row for row, query in enumerate(result.query_ids)}, 0
    for each in ir_measures.iter_calc(list(measures), qrels, ranking):
        assert result.per_query[measures[each.measure]][place[each.query_id]] == pytest.approx(each.value, abs=1e-9)
        compared += 1
    assert compared == 34 * QUERIES


def test_trec_evals_own_code_reads_the_same_numbers(written):
    """pytrec_eval's parsers, and its build of trec_eval: every value to the last bit."""
    folder, result, run = written
    with (folder / "tiny_qrels.trec").open() as lines:
        qrels = pytrec_eval.parse_qrel(lines)
    with (gzip.open if run.endswith(".gz") else open)(folder / run, "rt") as lines:
        ranking = pytrec_eval.parse_run(lines)
    values = pytrec_eval.RelevanceEvaluator(qrels, pytrec_eval.supported_measures).evaluate(ranking)
    shared = [key for key in METRICS if key in next(iter(values.values()))]
    assert len(shared) >= 28
    for key in shared:
        assert result.per_query[key].tolist() == [values[query][key] for query in result.query_ids]


def test_ranx_reads_the_same_numbers(tmp_path):
    """Without equal scores, to which ranx gives no order of its own."""
    ranx = pytest.importorskip("ranx", reason="ranx is compared with where it is installed (requirements-bench.txt)")
    from bench.metrics import RANX_NAMES, renamed

    data, result = make_case(ties=False)
    RunFiles("tiny", data, {"maw": {42: result}}, "gzip").write(tmp_path)
    qrels = ranx.Qrels.from_file(str(tmp_path / "runs" / "tiny_qrels.trec"))
    ranking = ranx.Run.from_file(str(tmp_path / "runs" / "tiny_maw.trec.gz"))
    shown = ("ndcg_cut_10", "map", "recip_rank", "recall_100", "P_10", "F1_10", "success_5", "Rprec")
    names = {key: renamed(key, RANX_NAMES) for key in shown}  # all 36: bench/metrics.py
    found = ranx.evaluate(qrels, ranking, list(names.values()), return_mean=True)
    assert {key: found[name] for key, name in names.items()} == pytest.approx({key: result[key] for key in names})


def test_scores_come_back_as_they_were_and_lines_stand_in_order(written):
    folder, result, run = written
    with (gzip.open if run.endswith(".gz") else open)(folder / run, "rt") as lines:
        rows = [line.split() for line in lines]
    assert len(rows) == QUERIES * DEPTH
    scores = np.array([row[4] for row in rows], dtype=np.float32).reshape(QUERIES, DEPTH)
    np.testing.assert_array_equal(scores, result.run["scores"])
    assert [int(row[3]) for row in rows] == list(range(1, DEPTH + 1)) * QUERIES
    assert {(row[1], row[5]) for row in rows} == {("Q0", "maw")}
    for query in range(QUERIES):
        part = [(np.float32(row[4]), row[2]) for row in rows[query * DEPTH : (query + 1) * DEPTH]]
        assert part == sorted(part, reverse=True), "by score, equal ones by id, both descending"


def test_fewer_digits_would_change_the_numbers():
    """The planted error: six digits make scores equal that are not."""
    data, result = make_case(3)
    rounded = np.array([[float(f"{each:.6g}") for each in row] for row in result.run["scores"]], dtype=np.float32)
    again = compute_metrics(data.query_ids, data.corpus.ids_of(result.run["rows"]), rounded, data.qrels)
    assert dict(again) != dict(result)


def test_the_table_holds_every_value_of_every_seed(tmp_path):
    data, one = make_case(0)
    _, two = make_case(0, ties=False)
    RunFiles("tiny", data, {"zero_shot": {42: one}, "lora": {42: one, 43: two}}).write(tmp_path)
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert {"tiny_zero_shot.trec", "tiny_lora_seed42.trec", "tiny_lora_seed43.trec"} <= names
    table = parquet.read_table(tmp_path / "runs" / "tiny_lora_per_query.parquet").to_pydict()
    assert list(table) == ["query_id", "seed", *METRICS]
    assert table["seed"] == [42] * QUERIES + [43] * QUERIES and table["query_id"] == one.query_ids * 2
    for key in METRICS:
        assert table[key] == [*one.per_query[key].tolist(), *two.per_query[key].tolist()]


def test_rankings_may_be_left_out_and_long_ones_are_compressed(tmp_path, monkeypatch):
    data, result = make_case()
    RunFiles("tiny", data, {"maw": {42: result}}, "none").write(tmp_path / "none")
    names = {path.name for path in (tmp_path / "none" / "runs").iterdir()}
    assert names == {"tiny_qrels.trec", "tiny_maw_per_query.parquet"}
    for limit, name in ((QUERIES * DEPTH, "tiny_maw.trec"), (QUERIES * DEPTH - 1, "tiny_maw.trec.gz")):
        monkeypatch.setattr("maw.report.tables.trec._LONG", limit)
        RunFiles("tiny", data, {"maw": {42: result}}).write(tmp_path / name)
        assert (tmp_path / name / "runs" / name).is_file()


def test_the_same_ranking_makes_the_same_bytes(tmp_path, monkeypatch):
    data, result = make_case()
    for name, moment in (("a", 0.0), ("b", 1e9)):
        monkeypatch.setattr("time.time", lambda moment=moment: moment)
        RunFiles("tiny", data, {"maw": {42: result}}, "gzip").write(tmp_path / name)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name / "runs").iterdir()} for name in "ab"]
    assert files[0] == files[1]


def test_blanks_in_ids_do_not_part_columns(tmp_path):
    assert token("a b\u00a0c\u2028") == "a%20b%C2%A0c%E2%80%A8" and token("50%_é") == "50%25_é"
    path = write_run(tmp_path / "a.trec", ["q 1"], [["d 1", "d2"]], np.array([[1.5, -0.0]], np.float32), "maw")
    assert path.read_text() == "q%201 Q0 d%201 1 1.5 maw\nq%201 Q0 d2 2 -0 maw\n"


EVERY = [chr(number) for number in range(0x110000)]


def some_ids():
    """Ids of one code point, the coded ones also between letters, and ids that look like what others become."""
    special = [each for each in EVERY if token(each) != each]
    alone = dict.fromkeys([*EVERY[:0x3100], *special, *EVERY[0xD7F0:0xE010], *EVERY[::97], EVERY[-1]])
    coded = [token(each) for each in special]
    inside = [f"a{each}b" for each in dict.fromkeys([*special, *EVERY[:0x100]])]
    return [*alone, *inside, "", *coded, *map(token, coded), "%2", "%2 0", "%C2", "%25 %"]


def test_no_two_ids_become_one():
    for ids in (EVERY, some_ids()):
        written = [token(each) for each in ids]
        assert len(set(written)) == len(set(ids)) and [identifier(each) for each in written] == ids
        assert all(one == each for one, each in zip(written, ids, strict=True) if each and not set(each) & SPECIAL)
        assert not any(set(each) & (SPECIAL - {"%"}) for each in written)


SPECIAL = {"%", *(each for each in EVERY if each.isspace())}


def test_every_code_point_comes_back_as_itself(tmp_path):
    """Through both files, as this project and as any program that splits lines at white space read them."""
    ids = some_ids()
    scores = np.arange(len(ids), 0, -1, dtype=np.float32)
    ranking = write_run(tmp_path / "run.trec.gz", ids[-2:], [ids, ids[:9]], [scores, scores[:9]], "my run")
    judged = write_qrels(tmp_path / "qrels.trec", {each: {each: 1, "other": 2} for each in ids})
    assert read_run(ranking) == {
        ids[-2]: dict(zip(ids, scores.tolist())),
        ids[-1]: dict(zip(ids[:9], scores.tolist())),
    }
    assert read_qrels(judged) == {each: {each: 1, "other": 2} for each in ids}
    with gzip.open(ranking, "rt", encoding="utf-8", errors="surrogatepass") as lines:
        rows = [line.split() for line in lines]
    assert {len(row) for row in rows} == {6} and {row[5] for row in rows} == {"my%20run"}
    assert [row[2] for row in rows] == [token(each) for each in (*ids, *ids[:9])]
    with judged.open(encoding="utf-8", errors="surrogatepass") as lines:
        assert [line.split()[2] for line in lines][::2] == [token(each) for each in ids]


@given(
    st.lists(st.text(st.one_of(st.characters(), st.sampled_from("%2 50\u00a0\r\u2028CEA")), max_size=8), unique=True)
)
def test_ids_come_back_and_stay_apart(ids):
    written = [token(each) for each in ids]
    assert len(set(written)) == len(ids) and [identifier(each) for each in written] == ids
    assert " ".join(written).split() == written


def test_two_ids_that_look_alike_keep_their_numbers(tmp_path):
    """In other tools too: a relevant passage `doc one` is not the passage `doc%20one`."""
    data = as_retrieval_data(
        {
            "queries": {"q 1": "one", "q%201": "two"},
            "docs": {"doc one": "a passage", "doc%20one": "another", "c": "a third"},
            "qrels": {"q 1": {"doc one": 2}, "q%201": {"doc%20one": 1}},
        }
    )
    rows, scores = np.array([[0, 1, 2], [2, 0, 1]]), np.array([[3, 2, 1], [3, 2, 1]], np.float32)
    result = compute_metrics(data.query_ids, data.corpus.ids_of(rows), scores, data.qrels)
    result.run = {"rows": rows, "scores": scores}
    RunFiles("tiny", data, {"maw": {42: result}}, "plain").write(tmp_path)
    files = [tmp_path / "runs" / name for name in ("tiny_qrels.trec", "tiny_maw.trec")]
    qrels, ranking = ir_measures.read_trec_qrels(str(files[0])), ir_measures.read_trec_run(str(files[1]))
    (value,) = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, ranking).values()
    assert value == pytest.approx(result["ndcg_cut_10"])
    with files[0].open() as judged, files[1].open() as ranked:
        assert {token(query) for query in data.qrels} == set(pytrec_eval.parse_qrel(judged))
        assert {len(docs) for docs in pytrec_eval.parse_run(ranked).values()} == {3}
    table = parquet.read_table(tmp_path / "runs" / "tiny_maw_per_query.parquet").to_pydict()
    assert table["query_id"] == data.query_ids, "the table needs no code"


def test_files_of_earlier_versions_are_read(tmp_path):
    """They wrote a percent sign as it is."""
    path = tmp_path / "old_qrels.trec"
    path.write_text("q%201 0 100%_é 2\nq%201 0 a%41 1\nq2 0 50%2 0\n")
    assert read_qrels(path) == {"q 1": {"100%_é": 2, "a%41": 1}, "q2": {"50%2": 0}}


def test_what_is_not_a_ranking_is_refused(tmp_path):
    path = tmp_path / "a.trec"
    for text, words in {
        "q Q0 d 1 0.5 maw\nq Q0 e 2 0.4\n": r"a\.trec:2: a line of a ranking must be QUERY Q0 PASSAGE RANK SCORE NAME",
        "q Q0 d 1 high maw\n": r"a\.trec:1: a line of a ranking must be",
        "q Q0 d 1 0.5 maw\nq Q0 d 2 0.4 maw\n": r"a\.trec:2: 'd' is there twice for 'q'",
    }.items():
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            read_run(path)
    path.write_bytes(b"q Q0 d\xff 1 0.5 maw\n")
    with pytest.raises(DataError, match=r"a\.trec:1: a line of a ranking"):
        read_run(path)


def test_judgements_come_back(tmp_path):
    data, result = make_case()
    path, *_ = RunFiles("tiny", data, {"maw": {42: result}}).write(tmp_path)
    assert read_qrels(path) == data.qrels
    path.write_text(path.read_text() + "q1 0 d1\n")
    with pytest.raises(DataError, match=rf"tiny_qrels\.trec:{QUERIES * 8 + 1}: a line of judgements must be"):
        read_qrels(path)


def test_a_folder_that_cannot_be_written(tmp_path):
    data, result = make_case()
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(MAWError, match=r"cannot write .*tiny_qrels"):
        RunFiles("tiny", data, {"maw": {42: result}}).write(tmp_path)
