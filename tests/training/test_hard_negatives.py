"""Hard negatives: forbidden passages, the margin, order, the cache, and the cut of the training corpus."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from dataclasses import replace

import numpy as np
import pytest
from conftest import WORDS

from maw.config.presets import PRESETS
from maw.config.tier1_config import Tier1Config
from maw.data.bm25 import Bm25Index
from maw.data.collection import Collection, RetrievalData
from maw.data.corpus import Corpus
from maw.data.corpus_sampling import sample_corpus
from maw.data.normalise import normalise
from maw.encoding.activation_cache import ActivationStore
from maw.errors import DataError
from maw.evaluation.answer_match import contains_answer
from maw.training import hard_negatives as mining
from maw.training.contrastive import TrainingPairs
from maw.training.hard_negatives import mine_negatives
from maw.training.miners import limit
from maw.training.prepare import prepare_training


def passages(count=300, seed=0):
    source = random.Random(seed)
    weights = [1 / (i + 1) for i in range(len(WORDS))]
    return {f"d{i}": " ".join(source.choices(WORDS, weights, k=source.randint(4, 20))) for i in range(count)}


TEXTS = passages()
COPIES = {f"c{i}": TEXTS[f"d{i}"].upper() + "!" for i in range(10)}
QUERIES = {f"q{i}": " ".join(TEXTS[f"d{i}"].split()[:4]) for i in range(10)}


def make_train(order=0, texts=TEXTS | COPIES, **changes):
    source = random.Random(order)
    ids, query_ids = list(texts), list(QUERIES)
    if order:
        source.shuffle(ids)
        source.shuffle(query_ids)
    fields = {"qrels": {q: {f"d{q[1:]}": 1, f"d{int(q[1:]) + 20}": 2, f"d{int(q[1:]) + 40}": 0} for q in query_ids}}
    queries = [QUERIES[i] for i in query_ids]
    corpus = Corpus.from_lists(ids, [texts[i] for i in ids])
    return RetrievalData(corpus, "train", query_ids, queries, **(fields | changes))


@pytest.fixture
def config(tiny_settings):
    def make(**changes):
        return tiny_settings(**({"negative_source": "bm25", "num_negatives": 5, "negative_margin": 1.0} | changes))

    return make


def text_of(identifier):
    return (TEXTS | COPIES)[identifier]


def assert_clean(data):
    for query_id, chosen in data.negatives.items():
        relevant = [passage for passage, grade in data.qrels[query_id].items() if grade >= 1]
        assert not set(chosen) & set(relevant)
        assert not {normalise(text_of(i)) for i in chosen} & {normalise(text_of(i)) for i in relevant}
        assert len(set(chosen)) == len(chosen)


def by_hand(data, query_id, count, margin, index):
    """The negatives of one query from all BM25 scores."""
    ids = list(data.corpus.ids)
    scores = index.scores(QUERIES[query_id], range(len(ids)))
    score_of = dict(zip(ids, scores))
    relevant = {passage for passage, grade in data.qrels[query_id].items() if grade >= 1}
    texts = {normalise(text_of(i)) for i in relevant}
    best = sorted((i for i in ids if score_of[i] > 0), key=lambda i: (score_of[i], i.encode()), reverse=True)[:100]
    highest = margin * max(score_of[i] for i in relevant)
    return [i for i in best if i not in relevant and score_of[i] <= highest and normalise(text_of(i)) not in texts][
        :count
    ]


@pytest.mark.parametrize("margin", [1.0, 0.95, 0.5])
@pytest.mark.parametrize("count", [1, 5, 40])
def test_bm25_negatives_are_those_of_the_rule(config, tmp_path, margin, count):
    settings = config(negative_margin=margin, num_negatives=count)
    data, facts = mine_negatives(make_train(), settings)
    index = Bm25Index.cached(data.corpus, tmp_path / "cache" / "bm25")
    expected = {query_id: by_hand(data, query_id, count, margin, index) for query_id in QUERIES}
    assert data.negatives == expected
    assert_clean(data)
    assert facts["hard"] == sum(map(len, expected.values()))
    assert facts["queries_without_a_hard_one"] == sum(not each for each in expected.values())
    assert facts["queries_by_source"] == {"bm25": 10}


def test_passages_above_the_margin_are_counted_and_kept_out(config):
    strict, strict_facts = mine_negatives(make_train(), config(negative_margin=0.3, num_negatives=3))
    loose, loose_facts = mine_negatives(make_train(), config(negative_margin=1.0, num_negatives=3))
    assert strict_facts["kept_out"]["score above the margin"] > loose_facts["kept_out"]["score above the margin"]
    assert strict.negatives != loose.negatives


@pytest.mark.parametrize(
    "scores,margin,expected",
    [([10.0], 0.95, 9.5), ([10.0, 4.0], 0.95, 9.5), ([-2.0], 0.95, -2.1), ([0.0], 0.5, 0.0), ([-4.0, 3.0], 1.0, 3.0)],
)
def test_the_limit_lies_below_the_highest_positive_whatever_its_sign(scores, margin, expected):
    assert limit(np.array(scores), margin) == pytest.approx(expected)
    assert limit(np.array(scores), margin) <= max(scores)


def test_order_makes_no_difference(config, tmp_path):
    for source in ("bm25", "given", "auto"):
        given = {"q1": ["d50", "d60"], "q2": ["d70"]}
        results = []
        for order in range(3):
            settings = config(negative_source=source, hard_negative_ratio=0.5, cache_dir=str(tmp_path / f"{order}"))
            results.append(mine_negatives(make_train(order, negatives=given), settings)[0].negatives)
        assert results[0] == results[1] == results[2]


def test_given_negatives_are_screened_too(config):
    given = {q: [f"d{q[1:]}", "elsewhere", f"c{q[1:]}", "d290", "d291", "d290"] for q in QUERIES}
    data, facts = mine_negatives(make_train(negatives=given), config(negative_source="given"))
    assert data.negatives == {q: ["d290", "d291"] for q in QUERIES}
    assert facts["kept_out"] == {"copy of a relevant passage": 10, "judged relevant": 10, "not in the corpus": 10}


def test_auto_mines_only_for_queries_without_given_ones(config):
    given = {"q1": ["d290"], "q2": []}
    data, facts = mine_negatives(make_train(negatives=given), config(negative_source="auto"))
    mined, _ = mine_negatives(make_train(), config())
    assert data.negatives == mined.negatives | {"q1": ["d290"]}
    assert list(data.negatives) == data.query_ids
    assert facts["queries_by_source"] == {"given": 1, "bm25": 9}


def test_given_without_any_is_refused(config):
    with pytest.raises(DataError, match="negative_source given: the data has no negatives; use auto"):
        mine_negatives(make_train(), config(negative_source="given"))


@pytest.mark.parametrize("changes", [{"negative_source": "none"}, {"num_negatives": 0}])
def test_none_means_none(config, changes):
    data, facts = mine_negatives(make_train(negatives={"q1": ["d290"]}), config(**changes))
    assert data.negatives == {}
    assert facts == {"source": "none"}


def test_a_passage_with_an_answer_is_no_negative(config):
    first, _ = mine_negatives(make_train(), config(num_negatives=1))
    query_id, (blocked,) = next((q, chosen) for q, chosen in first.negatives.items() if chosen)
    answers = {query_id: ["nowhere", TEXTS[blocked].title()]}
    data, facts = mine_negatives(make_train(answers=answers), config(num_negatives=1))
    assert data.negatives[query_id] != [blocked]
    assert facts["kept_out"]["holds an answer"] >= 1
    assert not contains_answer([text_of(i) for i in data.negatives[query_id]], answers[query_id]).any()
    assert {q: n for q, n in data.negatives.items() if q != query_id} == {
        q: n for q, n in first.negatives.items() if q != query_id
    }


@pytest.mark.parametrize("ratio,hard", [(1.0, 4), (0.5, 2), (0.6, 2), (0.0, 0), (0.9, 4)])
def test_the_share_that_is_hard(config, ratio, hard):
    settings = config(num_negatives=4, hard_negative_ratio=ratio)
    data, facts = mine_negatives(make_train(), settings)
    mined, _ = mine_negatives(make_train(), config(num_negatives=4))
    for query_id, chosen in data.negatives.items():
        best = mined.negatives[query_id][:hard]
        assert chosen[: len(best)] == best
        assert len(chosen) == len(best) + 4 - hard
    assert_clean(data)
    assert facts["drawn_from_the_corpus"] == 10 * (4 - hard)
    if not hard:
        assert facts["queries_without_a_hard_one"] == 0


def test_drawn_negatives_differ_by_query_and_seed(config):
    def drawn(seed):
        settings = config(num_negatives=3, hard_negative_ratio=0.0, seed=seed)
        return mine_negatives(make_train(), settings)[0].negatives

    one, other = drawn(1), drawn(2)
    assert len({tuple(chosen) for chosen in one.values()}) == 10
    assert one != other and one == drawn(1)


def test_a_tiny_corpus_gives_what_it_has(config):
    texts = {i: TEXTS[i] for i in ("d0", "d1", "d2")} | {"c0": COPIES["c0"]}
    corpus = Corpus.from_lists(list(texts), list(texts.values()))
    data = RetrievalData(corpus, "train", ["q0"], [QUERIES["q0"]], {"q0": {"d0": 1}})
    mined, _ = mine_negatives(data, config(num_negatives=9, hard_negative_ratio=0.0))
    assert sorted(mined.negatives["q0"]) == ["d1", "d2"]


@pytest.mark.parametrize("source", ["bm25", "auto"])
def test_queries_for_which_bm25_finds_nothing_get_drawn_negatives(config, source):
    """q9 has only stop words and is one too few; two more, and three of ten are drawn for."""
    given, settings = {"q1": ["d290"]}, config(negative_source=source, num_negatives=4)
    train, unfound = make_train(negatives=given), ["q3", "q4", "q9"]
    train.queries[3:5] = ["\U0001f600", "\u8c01\u5199\u7684"]
    before, few = mine_negatives(make_train(negatives=given), settings)
    data, facts = mine_negatives(train, settings)
    assert (few["queries_without_bm25"], before.negatives["q9"], few["drawn_from_the_corpus"]) == (1, [], 0)
    assert (facts["queries_without_bm25"], facts["drawn_from_the_corpus"]) == (3, 12)
    assert [len(data.negatives[q]) for q in unfound] == [4, 4, 4]
    assert len({tuple(data.negatives[q]) for q in unfound}) == 3
    others = [q for q in QUERIES if q not in unfound]
    assert [data.negatives[q] for q in others] == [before.negatives[q] for q in others]
    assert facts["hard"] == sum(len(data.negatives[q]) for q in others)
    assert_clean(data)


# ------------------------------------------------------------------------------------------------ the pretrained one


def test_dense_negatives_are_the_retrievers_own_best(config):
    from maw.models.retriever import BaselineRetriever

    settings = config(negative_source="dense", negative_margin=0.98, num_negatives=6)
    retriever = BaselineRetriever(settings)
    train = make_train(qrels={q: {f"d{q[1:]}": 1} | ({"d7": 1} if q == "q3" else {}) for q in QUERIES})
    data, facts = mine_negatives(train, settings, retriever)
    ids = list(data.corpus.ids)
    vectors = retriever.encode([text_of(i) for i in ids])
    for query_id, query in QUERIES.items():
        scores = dict(zip(ids, (vectors @ retriever.encode([query], "query")[0]).tolist()))
        relevant = [i for i, grade in data.qrels[query_id].items() if grade >= 1]
        highest = max(scores[i] for i in relevant)
        chosen = data.negatives[query_id]
        assert all(scores[i] <= highest - 0.02 * abs(highest) + 1e-5 for i in chosen)
        assert [scores[i] for i in chosen] == sorted((scores[i] for i in chosen), reverse=True)
        best = sorted(scores, key=scores.get, reverse=True)[:100]
        texts = {normalise(text_of(i)) for i in relevant}
        fitting = [i for i in best if scores[i] < highest - 0.02 * abs(highest) - 1e-5 and i not in relevant]
        fitting = [i for i in fitting if normalise(text_of(i)) not in texts]
        assert np.allclose([scores[i] for i in fitting[:6]], [scores[i] for i in chosen], atol=1e-5)
    assert_clean(data)
    assert facts["source"] == "dense" and facts["hard"] > 10


def test_dense_mining_samples_a_corpus_that_is_too_large(config):
    settings = config(negative_source="dense", corpus_size=60, num_negatives=20)
    data, _ = mine_negatives(make_train(), settings)
    chosen = {i for each in data.negatives.values() for i in each}
    sample, _ = sample_corpus(data, 60, settings)
    assert len(sample) == 60 and len(data.corpus) == 310
    assert chosen and chosen <= set(sample.ids)


def test_what_mining_stores_is_noted_before_the_negatives_are_kept(config, tmp_path):
    """A run that was killed behind that does not mine again, and would store the training texts in other batches."""
    noted = []
    for margin, files in ((0.98, 0), (0.97, 1)):  # the second time with embeddings from the cache
        settings = config(negative_source="dense", negative_margin=margin, cache_dir=str(tmp_path))
        with ActivationStore(tmp_path / "activations", 1) as store:

            def keep(fills=store.activation_log.fills):
                noted.append(([fill.rows.tolist() for fill in fills], len([*tmp_path.glob("negatives/*.json")])))

            store.before_commit = keep
            mine_negatives(make_train(), settings, activations=store)
        assert noted[-1][1] == files
    assert len(noted) == 2 and len(noted[0][0]) == 2 and noted[0][0] == noted[1][0]


@pytest.mark.parametrize("what", ["nothing", "weights", "a norm's epsilon", "tokenizer"])
def test_another_retriever_is_another_key(config, what):
    import torch
    from tokenizers import normalizers

    from maw.models.retriever import BaselineRetriever

    settings = config(negative_source="dense")
    first = mining._key(make_train(), settings, BaselineRetriever(settings))
    retriever = BaselineRetriever(settings)
    if what == "weights":
        with torch.no_grad():
            next(retriever.parameters()).add_(0.1)
    elif what == "a norm's epsilon":
        retriever.encoder.backbone.encoder.layer[0].output.LayerNorm.eps = 1e-6
    elif what == "tokenizer":
        retriever.tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert (mining._key(make_train(), settings, retriever) == first) is (what == "nothing")


def test_the_format_of_the_embeddings_is_part_of_the_key(config):
    """Rounded to float16 they may rank otherwise; BM25 does not see them."""
    from maw.models.retriever import BaselineRetriever

    for source, same in (("dense", False), ("bm25", True)):
        settings = [config(negative_source=source, embedding_precision=form) for form in ("float32", "float16")]
        one, other = (mining._key(make_train(), each, BaselineRetriever(each)) for each in settings)
        assert (one == other) is same


# --------------------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def chosen(monkeypatch):
    """Counts how often negatives are chosen and not read."""
    calls, choose = [], mining._choose
    monkeypatch.setattr(mining, "_choose", lambda *words: (calls.append(1), choose(*words))[1])
    return calls


def test_negatives_are_mined_once(config, chosen):
    first = mine_negatives(make_train(), config())
    again = mine_negatives(make_train(), config())
    assert len(chosen) == 1
    assert again[0].negatives == first[0].negatives and again[1] == first[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1}, {"num_negatives": 6}, {"negative_margin": 0.9}, {"hard_negative_ratio": 0.4},
        {"negative_source": "auto"},
    ],
)  # fmt: skip
def test_each_setting_is_part_of_the_key(config, chosen, changes):
    mine_negatives(make_train(), config())
    mine_negatives(make_train(), config(**changes))
    assert len(chosen) == 2


def test_the_data_is_part_of_the_key(config, chosen):
    mine_negatives(make_train(), config())
    mine_negatives(make_train(answers={"q1": ["x"]}), config())
    mine_negatives(make_train(qrels={q: {f"d{q[1:]}": 1} for q in QUERIES}), config())
    mine_negatives(make_train(texts=passages(seed=1) | COPIES), config())
    assert len(chosen) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "not json", "changed", "a list", "of an earlier version"])
def test_a_damaged_cache_is_chosen_again_with_a_warning(config, chosen, tmp_path, caplog, damage):
    expected = mine_negatives(make_train(), config())[0].negatives
    (path,) = (tmp_path / "cache" / "negatives").glob("*.json")
    whole = path.read_text()
    record = json.loads(whole)
    earlier = json.dumps({key: record[key] for key in ("key", "negatives", "facts")}, sort_keys=True)
    earlier = earlier[:-1] + f', "sha256": "{hashlib.sha256(earlier.encode()).hexdigest()}"}}'
    record["negatives"]["q0"] = ["d299"]
    contents = {"cut": whole[:-20], "empty": "", "not json": "{", "changed": json.dumps(record), "a list": "[]"}
    contents["of an earlier version"] = earlier
    path.write_text(contents[damage])
    with caplog.at_level(logging.WARNING):
        assert mine_negatives(make_train(), config())[0].negatives == expected
    assert len(chosen) == 2
    assert "choosing the negatives again" in caplog.text
    assert mine_negatives(make_train(), config())[0].negatives == expected
    assert len(chosen) == 2


# --------------------------------------------------------------------------------------------------- a run's training


def make_collection(train, test=None):
    test = test or make_train(texts={i: TEXTS[i] for i in TEXTS if int(i[1:]) < 200})
    return Collection("tiny", "Tiny", train, test, test, {"corpora": {"train": {"passages": "all"}}, "warnings": []})


def test_the_training_corpus_is_cut_to_what_training_reads(config):
    got = prepare_training(make_collection(make_train()), config())
    judged = {passage for each in got.train.qrels.values() for passage in each}
    used = {passage for each in got.train.negatives.values() for passage in each}
    assert set(got.train.corpus.ids) == judged | used
    count = len(judged | used)
    assert got.facts["corpora"]["train"] == {"passages": f"cut to the {count} of 310 passages that training reads"}
    assert got.facts["hard_negatives"]["hard"] == sum(map(len, got.train.negatives.values()))
    pairs = TrainingPairs(got.train, negatives=5)
    relevant = {p for each in got.train.qrels.values() for p, grade in each.items() if grade > 0}
    assert len(pairs.corpus_rows) == len(relevant | used)
    json.dumps(got.facts)


def test_a_corpus_that_is_also_searched_stays_whole(config):
    train = make_train()
    got = prepare_training(make_collection(train, replace(train, name="test")), config())
    assert got.train.corpus is train.corpus
    assert got.facts["corpora"]["train"] == {"passages": "all"}


def test_without_negatives_the_corpus_is_cut_too(config):
    got = prepare_training(make_collection(make_train()), config(num_negatives=0))
    assert set(got.train.corpus.ids) == {passage for each in got.train.qrels.values() for passage in each}


def test_queries_without_a_negative_are_warned_of(config, caplog):
    with caplog.at_level(logging.WARNING):
        got = prepare_training(make_collection(make_train()), config(negative_margin=0.001))
    assert got.facts["warnings"] == [
        "tiny: 10 of 10 training queries have no usable hard negative: their negatives are only the other passages "
        "of their batches; a larger --negative-margin may keep some"
    ]
    assert got.facts["warnings"][0] in caplog.text


@pytest.mark.parametrize("margin, others", [(1.0, 0), (0.001, 7)])
def test_queries_for_which_bm25_finds_nothing_are_warned_of(config, margin, others):
    train = make_train()
    train.queries[3:5] = ["\U0001f600", "\u8c01\u5199\u7684"]  # and q9, which has only stop words
    got = prepare_training(make_collection(train), config(negative_margin=margin))
    warnings = [
        "tiny: BM25 finds nothing for 3 of 10 training queries; all their negatives are drawn from the corpus by "
        "hash, and none is hard",
        "tiny: 7 of 10 training queries have no usable hard negative: their negatives are only the other passages "
        "of their batches; a larger --negative-margin may keep some",
    ]
    assert got.facts["warnings"] == warnings[: 1 + bool(others)]
    assert got.facts["hard_negatives"]["queries_without_a_hard_one"] == 3 + others


def test_a_query_with_drawn_negatives_alone_has_no_hard_one(config):
    settings = config(negative_margin=0.001, hard_negative_ratio=0.5, num_negatives=4)
    got = prepare_training(make_collection(make_train()), settings)
    assert [len(chosen) for chosen in got.train.negatives.values()] == [2] * 10
    assert got.facts["hard_negatives"]["hard"] == 0
    assert got.facts["hard_negatives"]["queries_without_a_hard_one"] == 10
    assert got.facts["warnings"] == [
        "tiny: 10 of 10 training queries have no usable hard negative: their negatives are passages drawn from the "
        "corpus and the other passages of their batches; a larger --negative-margin may keep some"
    ]


def test_a_negative_that_is_relevant_to_another_query_of_the_batch_does_not_count_against_it():
    train = make_train(negatives={"q0": ["d1", "c2", "d200"]})
    pairs = TrainingPairs(train, negatives=3)
    (batch,) = pairs.batches(1, 10)
    ids = train.corpus.id_of(pairs.corpus_rows)
    names = [ids[row] for row in batch.passages[10:]]
    assert sorted(names) == ["c2", "d1", "d200"]
    for row, query in enumerate(batch.queries):
        allowed = dict(zip(names, batch.candidate_mask[row, 10:].tolist()))
        assert allowed["d1"] == (query != 1)
        assert allowed["d200"]


def test_the_offline_preset_mines_nothing():
    assert PRESETS["offline"]["num_negatives"] == 0
    assert Tier1Config.from_preset("offline").num_negatives == 0
