"""TREC run files, judgements and per-query tables: other tools read them and compute the same numbers."""

from __future__ import annotations

import gzip

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from evaluation.test_metrics_comparison import in_ir_measures
from pyarrow import parquet

from maw.data.from_dicts import as_retrieval_data
from maw.errors import DataError, MAWError
from maw.evaluation.metrics import METRICS, compute_metrics
from maw.report.tables.trec import RunFiles, read_qrels, token, write_run

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
    assert token("a b\u00a0c\u2028") == "a%20b%C2%A0c%E2%80%A8" and token("50%_é") == "50%_é"
    path = write_run(tmp_path / "a.trec", ["q 1"], [["d 1", "d2"]], np.array([[1.5, -0.0]], np.float32), "maw")
    assert path.read_text() == "q%201 Q0 d%201 1 1.5 maw\nq%201 Q0 d2 2 -0 maw\n"


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
