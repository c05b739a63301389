"""Folds of queries: disjoint, complete, groups kept together, the same for all methods; refused pools."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace

import networkx
import pytest
from conftest import WORDS, random_texts

from maw.config.tier1_config import Tier1Config
from maw.data.collection import Collection, RetrievalData
from maw.data.corpus import Corpus
from maw.data.folds import assign, make_folds, pool
from maw.data.leakage import connected
from maw.data.normalise import normalise
from maw.errors import DataError

SPLITS = ("train", "validation", "test")


def texts(count: int) -> list[str]:
    return [" ".join(each) for each in itertools.islice(itertools.product(WORDS, repeat=3), count)]


def collection(sizes=(30, 12, 18), passages=90, groups=None, **changes) -> Collection:
    """Three splits over one corpus; query i is relevant to passage i."""
    corpus = Corpus.from_lists([f"d{i}" for i in range(passages)], random_texts(passages, seed=5))
    questions, start, splits = texts(sum(sizes)), 0, {}
    for name, size in zip(SPLITS, sizes):
        rows = range(start, start + size)
        ids = [f"q{i}" for i in rows]
        qrels = {f"q{i}": {f"d{i}": 1} for i in rows}
        splits[name] = RetrievalData(corpus, name, ids, [questions[i] for i in rows], qrels, **changes)
        start += size
    return Collection("tiny", "Tiny", **splits, facts={"warnings": ["as drawn"]}, groups=groups or {})


def config(tmp_path, **changes) -> Tier1Config:
    return Tier1Config(datasets=["pystdlib"], cache_dir=str(tmp_path), **({"folds": 4} | changes))


# ------------------------------------------------------------------------------------------------------------ groups


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_the_components_of_a_graph(seed):
    source = random.Random(seed)
    labels = {
        f"q{i}": source.sample([f"l{k}" for k in range(30)], source.randint(1, 3))
        for i in range(source.randint(0, 25))
    }
    graph = networkx.Graph()
    graph.add_nodes_from(labels)
    graph.add_edges_from((item, label) for item, each in labels.items() for label in each)
    expected = {frozenset(part & labels.keys()) for part in networkx.connected_components(graph)}
    found = connected(labels)
    parts = {frozenset(i for i in labels if found[i] == group) for group in set(found.values())}
    assert parts == expected - {frozenset()}
    assert connected(dict(reversed(labels.items()))) == found
    assert all(
        group == min(label for i in labels if found[i] == group for label in labels[i]) for group in found.values()
    )


# ------------------------------------------------------------------------------------------------------------- folds


@pytest.mark.parametrize("number", [3, 4, 7])
def test_every_query_is_tested_once_and_never_by_a_model_that_saw_it(tmp_path, number):
    folds = make_folds(collection(), config(tmp_path, folds=number))
    everything = {f"q{i}" for i in range(60)}
    tested = [query for each in folds.collections for query in each.test.query_ids]
    assert Counter(tested) == dict.fromkeys(everything, 1)
    assert folds.whole.test.query_ids == tested, "methods that do not train are evaluated in the same order"
    assert not len(folds.whole.train) and not len(folds.whole.validation)
    for index, each in enumerate(folds.collections):
        parts = [set(getattr(each, name).query_ids) for name in SPLITS]
        assert set.union(*parts) == everything and sum(map(len, parts)) == 60
        assert each.validation.query_ids == folds.collections[(index + 1) % number].test.query_ids
        for name in SPLITS:
            split = getattr(each, name)
            assert split.name == name
            assert split.qrels == {i: {f"d{i[1:]}": 1} for i in split.query_ids}
            assert split.queries == [texts(60)[int(i[1:])] for i in split.query_ids]
    sizes = [len(each.test) for each in folds.collections]
    assert max(sizes) - min(sizes) <= 1, "single queries fill the folds evenly"


def test_groups_and_equal_texts_stay_together(tmp_path):
    groups = {f"q{i}": f"module {i // 7}" for i in range(0, 42)}
    data = collection(groups=groups)
    train = data.train
    same = replace(
        train, queries=[train.queries[0].upper() + "!!" if i == 29 else q for i, q in enumerate(train.queries)]
    )
    folds = make_folds(replace(data, train=same), config(tmp_path))
    fold_of = {query: index for index, each in enumerate(folds.collections) for query in each.test.query_ids}
    for group in set(groups.values()):
        assert len({fold_of[query] for query in groups if groups[query] == group}) == 1
    assert normalise(same.queries[29]) == normalise(same.queries[0])
    assert fold_of["q29"] == fold_of["q0"], "modules 0 and 4 are one group by a text that both have"
    assert folds.whole.facts["folds"]["groups"] == 6 - 1 + 18


def test_a_group_that_is_torn_apart_would_be_seen(tmp_path, monkeypatch):
    """The check of each fold does not rest on the grouping: without it equal texts end the run."""
    data = collection()
    again = [data.train.queries[0] if i % 2 else q for i, q in enumerate(data.train.queries)]
    twice = replace(data, train=replace(data.train, queries=again))
    assert make_folds(twice, config(tmp_path)).collections
    monkeypatch.setattr("maw.data.folds.connected", lambda labels: {i: i for i in labels})
    with pytest.raises(DataError, match=r"tiny, fold 1: .* share .* questions under different ids"):
        make_folds(twice, config(tmp_path))


def test_the_division_depends_on_the_seed_and_the_queries_alone(tmp_path):
    data = collection()
    first = make_folds(data, config(tmp_path)).whole.facts["folds"]
    arms = config(tmp_path, methods=["lora"], num_epochs=7, learning_rate=0.1, val_corpus_size=40)
    assert make_folds(data, arms).whole.facts["folds"] == first
    backwards = replace(
        data, **{name: getattr(data, name).only(getattr(data, name).query_ids[::-1]) for name in SPLITS}
    )
    assert make_folds(backwards, config(tmp_path)).whole.facts["folds"] == first
    swapped = replace(data, train=replace(data.test, name="train"), test=replace(data.train, name="test"))
    assert make_folds(swapped, config(tmp_path)).whole.facts["folds"]["sha256"] == first["sha256"]
    assert make_folds(data, config(tmp_path, seed=43)).whole.facts["folds"]["sha256"] != first["sha256"]


def test_too_few_groups(tmp_path):
    with pytest.raises(
        DataError, match="tiny: the 60 queries make 3 groups that must stay together, too few for 4 folds"
    ):
        make_folds(collection(groups={f"q{i}": f"g{i % 3}" for i in range(60)}), config(tmp_path))


def test_large_groups_fill_the_folds_as_evenly_as_they_can():
    sizes = [40, 9, 9, 8, 7, 7, 5, 5, 4, 3, 2, 1]
    names = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    data = collection((len(names), 0, 0), passages=len(names)).train
    for seed in range(20):
        fold_of, count = assign(data, {f"q{i}": name for i, name in enumerate(names)}, 3, seed)
        filled = Counter(fold_of.values())
        assert count == len(sizes) and sum(filled.values()) == len(names)
        assert 0 < min(filled.values()) and max(filled.values()) - min(filled.values()) <= max(sizes)


# ------------------------------------------------------------------------------------------------------------- corpus


def test_all_rounds_search_one_corpus_sampled_for_all_queries(tmp_path):
    folds = make_folds(collection(passages=90), config(tmp_path, corpus_size=70, val_corpus_size=20))
    corpora = {each.test.corpus.fingerprint for each in folds.collections}
    assert corpora == {folds.whole.test.corpus.fingerprint}
    assert len(folds.whole.test.corpus) == 70
    assert (folds.whole.test.corpus.rows_of([f"d{i}" for i in range(60)]) >= 0).all(), "judged passages of all queries"
    for each in folds.collections:
        assert len(each.validation.corpus) == 20
        assert (folds.whole.test.corpus.rows_of(list(each.validation.corpus.ids)) >= 0).all()
        assert len(each.train.corpus) == 90, "hard negatives come from the whole collection"
    assert folds.whole.facts["corpora"]["test"]["passages"] == "sampled: 70 of 90 passages"


def test_facts_and_answers(tmp_path):
    data = collection()
    answers = {"q31": ["forty-two"]}
    data = replace(data, validation=replace(data.validation, answers=answers))
    folds = make_folds(data, config(tmp_path))
    assert folds.whole.test.answers == answers
    assert [len(each.test.answers) for each in folds.collections].count(1) == 1
    facts = folds.whole.facts
    assert facts["warnings"] == ["as drawn"]
    assert facts["folds"]["queries"] == [len(each.test) for each in folds.collections]
    assert list(facts["rounds"]) == ["1", "2", "3", "4"]
    assert facts["rounds"]["2"]["train"] == 30 and set(facts["rounds"]["2"]["near_duplicates"].values()) == {0}


def test_without_training_there_is_one_evaluation_and_no_round(tmp_path):
    data = collection((0, 0, 18))
    folds = make_folds(data, config(tmp_path, methods=["zero_shot"]))
    assert folds.collections == () and sorted(folds.whole.test.query_ids) == sorted(data.test.query_ids)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_other_corpora_are_refused():
    data = collection()
    other = Corpus.from_lists([f"d{i}" for i in range(91)], random_texts(91, seed=5))
    with pytest.raises(DataError, match="train and test queries cannot be pooled into folds: they search different"):
        pool(replace(data, test=replace(data.test, corpus=other)))


def test_judgements_of_another_kind_are_refused():
    data = collection()
    graded = {i: dict.fromkeys(judged, 3) for i, judged in data.test.qrels.items()}
    with pytest.raises(DataError, match=r"judgements differ in kind, .*those of train binary.*those of test graded"):
        pool(replace(data, test=replace(data.test, qrels=graded)))
    graded = {i: dict.fromkeys(judged, 3) for i, judged in data.validation.qrels.items()}
    with pytest.raises(DataError, match=r"those of train binary, those of validation graded, those of test binary"):
        pool(replace(data, validation=replace(data.validation, qrels=graded)))
    with pytest.raises(DataError, match="their relevance levels differ"):
        pool(replace(data, test=replace(data.test, relevance_level=2)))


@pytest.mark.parametrize("name", ["nq", "triviaqa", "trec_dl_2019", "trec_dl_2020"])
def test_public_datasets_that_cannot_be_pooled_are_refused_before_anything_is_loaded(name, models):
    from maw.errors import ConfigError
    from maw.experiment.config_checks import validate

    settings = {"model": str(models("bert")), "datasets": ["msmarco", name]}
    with pytest.raises(ConfigError, match=f"folds: {name} cannot be divided into folds: its? "):
        validate(Tier1Config(folds=3, **settings))
    validate(Tier1Config(folds=0, **settings))
