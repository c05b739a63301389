"""The check of a run's data: what a run refuses, `doctor` and `--dry-run` refuse, too, each in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from source_fixtures import settings, write_beir_nq, write_msmarco

import maw.experiment.run_datasets
import tier_1
from data.test_beir import GOOD, HEADER, lines
from maw.config.tier1_config import Tier1Config
from maw.data import check
from maw.data.check import check_data
from maw.data.datasets import beir
from maw.data.registry import load_collection, load_folds
from maw.errors import DataError
from maw.experiment.plan.encoding_speed import Rate

CORPUS, QUERIES, TRAIN, DEV, TEST = (
    "corpus.jsonl",
    "queries.jsonl",
    "qrels/train.tsv",
    "qrels/dev.tsv",
    "qrels/test.tsv",
)

BROKEN = {
    "no training judgements": ({TRAIN: None}, "qrels/train.tsv: there is no such file and lora must train"),
    "no relevant test judgement": ({TEST: HEADER + "q5\td5\t0\n"}, "test.tsv:2: the file ends and no query has a"),
    "a passage that is no JSON": ({CORPUS: lines(GOOD[CORPUS], (7, "{"))}, "corpus.jsonl:7: the line is not JSON"),
    "a query that is no JSON": ({QUERIES: lines(GOOD[QUERIES], (3, "q2"))}, "queries.jsonl:3: the line is not JSON"),
    "only unknown queries": ({TEST: HEADER + "q99\td5\t1\n"}, "no query that it judges is in queries.jsonl"),
    "only unknown passages": ({TEST: HEADER + "q5\td99\t1\n"}, "none of the 1 test queries has a relevant passage"),
    "two columns": ({DEV: HEADER + "q3\td3\n"}, "qrels/dev.tsv:2: 2 columns instead of 3"),
    "a comma for a tab": ({TEST: GOOD[TEST].replace("\t", ",")}, "test.tsv:1: the first line is 'query-id,corpus-id,"),
    "two validation files": ({"qrels/validation.tsv": GOOD[DEV]}, "there is a dev.tsv too"),
    "a folder packed with gzip": ({CORPUS: b"\x1f\x8b\x08\0\0"}, "corpus.jsonl:1: byte 2 is not UTF-8"),
    "all training queries in test": ({TRAIN: HEADER + "q5\td5\t1\n"}, "qrels: no train query is left"),
    "test queries that find themselves alone": (
        {
            CORPUS: GOOD[CORPUS]
            + json.dumps({"_id": "q5", "text": json.loads(GOOD[QUERIES].splitlines()[5])["text"]})
            + "\n",
            TEST: HEADER + "q5\tq5\t1\n",
        },
        "each query's only relevant passage is the query itself",
    ),
    "an id that is no text": ({CORPUS: lines(GOOD[CORPUS], (2, '{"_id": [1], "text": ""}'))}, ':2: "_id" is [1]'),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No model is loaded for the plan."""
    monkeypatch.setattr("maw.experiment.plan.plan.measure", lambda *_: Rate(200, 20_000, 2.0, "cpu"))


def written(folder: Path, changes=None) -> Path:
    for name, content in (GOOD | (changes or {})).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture
def words(models, tmp_path):
    """The flags of a run over a folder."""

    def make(folder: Path, *more: str) -> list[str]:
        places = ["--cache-dir", str(tmp_path / "cache"), "--log-dir", str(tmp_path / "logs"), "--device", "cpu"]
        given = ["--datasets", f"beir:{folder}", "--methods", "zero_shot,lora", "--model", str(models("bert"))]
        return [*given, *places, "--num-epochs", "1", *more]

    return make


def check_all(words, monkeypatch, capsys) -> dict[str, tuple[int, str]]:
    """Exit code and output of doctor, dry run and run, with the same flags; no dataset may be run."""
    monkeypatch.setattr(maw.experiment.run_datasets, "run_dataset", lambda *_: pytest.fail("the run went on"))
    found = {}
    for name, argv in (("doctor", ["doctor", *words]), ("dry run", [*words, "--dry-run"]), ("run", words)):
        code = tier_1.main(argv)
        said = capsys.readouterr()
        found[name] = code, said.out + said.err
    return found


@pytest.mark.parametrize("case", BROKEN)
def test_doctor_dry_run_and_run_refuse_the_same(words, tmp_path, monkeypatch, capsys, case):
    changes, message = BROKEN[case]
    folder = written(tmp_path / "tiny", changes)
    found = check_all(words(folder), monkeypatch, capsys)
    assert [(code, said.count(message)) for code, said in found.values()] == [(1, 1)] * 3, found
    assert found["run"][1].startswith("Plan\n====") and f"problem  dataset beir:{folder}: " in found["doctor"][1]
    assert not (tmp_path / "logs" / "state").exists(), "no unfinished run is left behind"
    config = Tier1Config(datasets=[f"beir:{folder}"], methods=["lora"], cache_dir=str(tmp_path / "other"))
    with pytest.raises(DataError) as caught:
        load_collection(f"beir:{folder}", config)
    assert message in str(caught.value)


def test_a_second_look_with_other_settings_is_a_look_of_its_own(words, tmp_path, monkeypatch, capsys):
    folder = written(tmp_path / "tiny")
    assert tier_1.main(["doctor", *words(folder)]) == 0
    given = words(folder, "--negative-source", "given", "--num-negatives", "1")
    for code, said in check_all(given, monkeypatch, capsys).values():
        assert code == 1 and said.count("negative_source given: the data has no negatives") == 1


@pytest.mark.parametrize("name", ["my data", "caf\u00e9", "-rf"])
def test_a_folder_with_an_unfit_name_is_refused_by_all_three(words, tmp_path, monkeypatch, capsys, name):
    found = check_all(words(written(tmp_path / name)), monkeypatch, capsys)
    for place, (code, said) in found.items():
        assert code == (1 if place == "doctor" else 2) and "the folder's name becomes that of the results" in said


@pytest.mark.parametrize("name", [CORPUS, QUERIES, TEST])
def test_a_missing_file_is_a_mistake_of_the_command_line(words, tmp_path, monkeypatch, capsys, name):
    found = check_all(words(written(tmp_path / "tiny", {name: None})), monkeypatch, capsys)
    assert [code for code, _ in found.values()] == [1, 2, 2]
    assert all(said.count(f"{name} is missing") == 1 for _, said in found.values())


def test_a_good_folder_passes_and_its_counts_are_shown(words, tmp_path, monkeypatch, capsys):
    folder = written(tmp_path / "tiny", {TEST: GOOD[TEST] + "q6\td99\t1\nq99\td1\t1\n"})
    monkeypatch.setattr(maw.experiment.benchmark, "run_datasets", lambda *_: {})
    assert tier_1.main(["doctor", *words(folder)]) == 0
    shown = capsys.readouterr().out
    assert f"dataset beir:{folder}: 8 passages; queries: 3 train, 2 validation, 2 test" in shown
    assert "1 judged queries are not among the queries and are left out: 'q99' in test.tsv" in shown
    assert tier_1.main([*words(folder), "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Data beir:tiny: 8 passages; queries: 3 train, 2 validation, 2 test" in shown
    assert "1 judgements of test queries name passages that are not in the corpus" in shown
    assert tier_1.main(words(folder)) == 0
    assert "8 passages; queries" in capsys.readouterr().out


def checked(folder: Path, tmp_path: Path, full: bool = False, **changes) -> check.Checked:
    common = {"datasets": [f"beir:{folder}"], "methods": ["lora"], "cache_dir": str(tmp_path / "cache")}
    found = list(check_data(Tier1Config(**(common | changes)), full=full))
    return found[-1]


def forbid_reading(monkeypatch) -> None:
    for name in ("read_corpus", "read_queries", "read_qrels"):
        monkeypatch.setattr(beir, name, lambda *_: pytest.fail("it was read again"))


def test_a_second_look_reads_nothing(tmp_path, monkeypatch):
    folder = written(tmp_path / "tiny")
    first = checked(folder, tmp_path)
    forbid_reading(monkeypatch)
    monkeypatch.setattr(check, "sha256", lambda path: pytest.fail("it was hashed again"))
    assert checked(folder, tmp_path) == first == checked(folder, tmp_path, full=True)


def test_files_that_were_only_touched_are_not_parsed_again(tmp_path, monkeypatch):
    folder = written(tmp_path / "tiny")
    first = checked(folder, tmp_path)
    shutil.copy(folder / CORPUS, tmp_path / "copy")
    (tmp_path / "copy").replace(folder / CORPUS)
    os.utime(folder / TEST)
    with pytest.MonkeyPatch.context() as patch:
        forbid_reading(patch)
        assert checked(folder, tmp_path) == first
        patch.setattr(check, "sha256", lambda path: pytest.fail("it was hashed again"))
        assert checked(folder, tmp_path) == first


@pytest.mark.parametrize("name", [CORPUS, QUERIES, TRAIN, DEV, TEST])
def test_a_changed_file_is_read_again(tmp_path, name):
    folder = written(tmp_path / "tiny")
    assert not checked(folder, tmp_path).problem
    path = folder / name
    stat = path.stat()
    path.write_bytes(b"}" + path.read_bytes()[1:-2] + b"x\n" if name.endswith("l") else b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert name in checked(folder, tmp_path).problem


@pytest.mark.parametrize("change", [{"methods": ["zero_shot"]}, {"seed": 1}, {"test_samples": 1}])
def test_other_settings_are_checked_for_themselves(tmp_path, change):
    folder = written(tmp_path / "tiny")
    checked(folder, tmp_path)
    assert not checked(folder, tmp_path, **change).problem
    assert len(list((tmp_path / "cache" / "checks").glob("*.json"))) == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "queries cannot be pooled into folds: judgements differ in kind"),
        ({TRAIN: HEADER + "q0\td0\t1\nq1\td1\t1\n", TEST: HEADER + "q5\td5\t1\n"}, "too few for 30 folds"),
    ],
)
def test_what_folds_refuse_is_refused(tmp_path, changes, message):
    folder, config = written(tmp_path / "tiny", changes), {"methods": ["lora"], "folds": 30}
    with pytest.raises(DataError, match=message) as caught:
        load_folds(f"beir:{folder}", Tier1Config(**config, cache_dir=str(tmp_path / "other")))
    assert not checked(folder, tmp_path).problem and checked(folder, tmp_path, **config).problem == str(caught.value)


def test_a_damaged_record_is_made_again(tmp_path):
    folder = written(tmp_path / "tiny")
    first = checked(folder, tmp_path)
    (record,) = (tmp_path / "cache" / "checks").glob("*.json")
    for content in ("", "{", record.read_text().replace("8 passages", "9 passages")):
        record.write_text(content)
        assert checked(folder, tmp_path) == first


def test_a_large_corpus_is_read_only_in_full(tmp_path, monkeypatch, words, capsys):
    folder = written(tmp_path / "tiny", {CORPUS: GOOD[CORPUS] + "no JSON\n"})
    monkeypatch.setattr(check, "PARSED_QUICKLY", 10)
    found = checked(folder, tmp_path)
    assert not found.problem and found.unread == [str(folder / CORPUS)]
    assert "passages: corpus.jsonl, 420 B, not read (`doctor --full` and a run read it)" in found.text
    assert "corpus.jsonl:9: the line is not JSON" in checked(folder, tmp_path, full=True).problem
    assert tier_1.main([*words(folder), "--dry-run"]) == 0
    assert "not read" in capsys.readouterr().out
    assert tier_1.main(["doctor", *words(folder)]) == 0
    assert tier_1.main(["doctor", "--full", *words(folder)]) == 1
    assert "corpus.jsonl:9: the line is not JSON" in capsys.readouterr().out
    assert tier_1.main(words(folder)) == 1, "the run reads it"


def test_judgements_of_a_large_corpus_are_checked_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "PARSED_QUICKLY", 10)
    folder = written(tmp_path / "tiny", {TEST: HEADER + "q5\td5\n"})
    assert "test.tsv:2: 2 columns" in checked(folder, tmp_path).problem
    written(folder)
    assert checked(folder, tmp_path).unread and not checked(folder, tmp_path, full=True).unread
    assert not checked(folder, tmp_path).unread, "it was read in full before, and is in its store"


def test_folders_of_distractors_are_read(tmp_path, monkeypatch):
    folder, other = written(tmp_path / "tiny"), written(tmp_path / "other", {CORPUS: GOOD[CORPUS] + "{}\n"})
    found = checked(folder, tmp_path, distractors=[str(other)])
    assert found.name == str(other) and 'other/corpus.jsonl:9: there is no "_id"' in found.problem
    monkeypatch.setattr(check, "PARSED_QUICKLY", 10)
    assert checked(folder, tmp_path, distractors=[str(other)]).unread == [str(other / CORPUS)]


def test_all_problems_are_said_at_once(tmp_path, words, capsys):
    first, second = written(tmp_path / "one", {TEST: HEADER}), written(tmp_path / "two", {CORPUS: "x"})
    argv = words(first)
    argv[1:2] = [f"beir:{first}", f"beir:{second}"]
    assert tier_1.main([*argv, "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert (
        "one/qrels/test.tsv:1: there is no judgement" in error and "two/corpus.jsonl:1: the line is not JSON" in error
    )


def test_negatives_that_a_folder_does_not_have(tmp_path):
    folder = written(tmp_path / "tiny")
    assert "the data has no negatives" in checked(folder, tmp_path, negative_source="given").problem
    assert not checked(folder, tmp_path, negative_source="given", methods=["zero_shot"]).problem


def test_published_files_are_compared_without_a_download(home, tmp_path, monkeypatch):
    write_beir_nq(home)
    archive = home / "beir" / "nq" / "source.zip"

    def found(full=False, **changes):
        (one,) = check_data(settings(tmp_path, datasets=["nq"], methods=["zero_shot"], **changes), full=full)
        return one

    assert "MD5" in found(verify_sources=True).problem and str(archive) in found(verify_sources=True).problem
    assert found().text == "1 of 1 files are here"
    monkeypatch.setattr(check, "HASHED_QUICKLY", 10)
    assert not found().unread, "it was looked through before and has not changed"
    archive.write_bytes(archive.read_bytes()[:-300])
    assert found().unread == [str(archive)] and "not read" in found().text
    assert "damaged or incomplete" in found(full=True).problem
    archive.unlink()
    assert found().text == "0 of 1 files are here"


def test_a_gzip_file_that_is_cut_short_is_found(home, tmp_path):
    write_msmarco(home)
    path = home / "msmarco-passage" / "queries.tar.gz"
    path.write_bytes(path.read_bytes()[:-100])
    (found,) = check_data(settings(tmp_path, datasets=["msmarco"], methods=["lora"]), full=False)
    assert found.problem.startswith(f"{path}: the file is damaged or incomplete (")
    json.dumps(found.__dict__)
