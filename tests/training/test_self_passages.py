"""The query itself, under whichever id, is never its negative: mined, given, drawn, in a batch, the bank, a reward."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maw.data.collection import RetrievalData
from maw.data.corpus import Corpus
from maw.training.contrastive import TrainingPairs
from maw.training.hard_negatives import mine_negatives
from maw.training.router.rollout import embed_greedy, try_routings

TOPICS = ["file", "list", "string", "date"]
DOCS = {f"{topic}a": f"open and read the {topic} to return text" for topic in TOPICS}
DOCS |= {f"{topic}b": f"close the {topic} and write no text" for topic in TOPICS}
DOCS |= {f"copy{i}": f"Open, and READ the {topic} to return text!" for i, topic in enumerate(TOPICS[:2])}
TITLED = {"titled": ("Open and read", "the string to return text")}
DOCS |= {f"other{i}": f"sort the {topic} of the path by number and time" for i, topic in enumerate(TOPICS)}
QUERIES = {f"{topic}a": DOCS[f"{topic}a"] for topic in TOPICS}
QRELS = {f"{topic}a": {f"{topic}b": 1} for topic in TOPICS}
OWN = {"filea": {"filea", "copy0"}, "lista": {"lista", "copy1"}, "stringa": {"stringa", "titled"}, "datea": {"datea"}}


def make_train(qrels=QRELS, **more):
    ids, titles = [*DOCS, *TITLED], [""] * len(DOCS) + [title for title, _ in TITLED.values()]
    corpus = Corpus.from_lists(ids, [*DOCS.values(), *(text for _, text in TITLED.values())], titles)
    return RetrievalData(corpus, "train", list(QUERIES), list(QUERIES.values()), qrels, **more)


@pytest.fixture
def config(tiny_settings):
    def make(**changes):
        return tiny_settings(**({"num_negatives": 20, "negative_margin": 1.0} | changes))

    return make


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({"negative_source": "bm25"}, {}),
        ({"negative_source": "dense"}, {}),
        ({"negative_source": "dense", "corpus_size": 11}, {}),
        ({"negative_source": "given"}, {q: [*sorted(OWN[q]), "other0"] for q in QUERIES}),
        ({"negative_source": "auto", "hard_negative_ratio": 0.0}, {}),
    ],
)
def test_it_is_not_mined_given_or_drawn(config, changes, given):
    # With its best match as a positive, too, the margin lets the query itself pass.
    qrels = QRELS | {"stringa": {"stringb": 1, "stringa": 1}} if changes["negative_source"] == "dense" else QRELS
    data, facts = mine_negatives(make_train(qrels, negatives=given), config(**changes))
    for query, chosen in data.negatives.items():
        assert chosen and not OWN[query] & set(chosen), query
    if given:
        assert facts["kept_out"]["the query itself"] == sum(map(len, OWN.values()))
    if changes.get("hard_negative_ratio") == 0.0:
        assert set(data.negatives["filea"]) == {*DOCS, *TITLED} - OWN["filea"] - {"fileb"}, "every other passage"


def masked(training, query):
    """Ids of the training's passages that are no candidates of a query."""
    rows = np.arange(len(training.corpus_rows))
    mask = training._candidate_mask(np.array([list(QUERIES).index(query)]), rows)[0]
    ids = make_train().corpus.id_of(training.corpus_rows)
    return {name for name, candidate in zip(ids, mask, strict=True) if not candidate}


@pytest.mark.parametrize("bank", [0, 2])
def test_it_is_no_candidate_in_the_batch_or_the_bank(bank):
    """Its own passage is among its negatives, and its copies are positives or negatives of other queries."""
    qrels = QRELS | {"datea": {"dateb": 1, "copy0": 1, "titled": 1, "lista": 1}}
    negatives = {"filea": ["filea", "other0"], "lista": ["copy1"], "stringa": ["filea", "copy0"]}
    training = TrainingPairs(make_train(qrels, negatives=negatives), negatives=5, bank=bank)
    present = {"fileb", "listb", "stringb", "dateb", "copy0", "titled", "lista", "filea", "other0", "copy1"}
    for query in QUERIES:
        expected = {p for p, grade in qrels[query].items() if grade >= 1} | OWN[query]
        copies = {"filea", "copy0"} if query == "datea" else set()  # equal but for case and marks is no copy there
        assert masked(training, query) - copies == expected & present - copies
    assert masked(training, "datea") >= {"dateb", "copy0", "titled", "lista"}
    ids = make_train().corpus.id_of(training.corpus_rows)
    for batch in training.batches(1, 2):
        for row, query in enumerate(batch.queries):
            name = list(QUERIES)[query]
            names = [ids[p] for p in batch.passages]
            for column, passage in enumerate(names):
                if column == row:
                    assert batch.candidate_mask[row, column] and qrels[name][passage] >= 1
                elif passage in OWN[name]:
                    assert not batch.candidate_mask[row, column]
            assert not bank or batch.bank_candidate_mask.shape[0] == len(batch.queries)


def test_judged_relevant_it_is_a_positive():
    qrels = QRELS | {"filea": {"filea": 1}}
    training = TrainingPairs(make_train(qrels))
    ids = make_train().corpus.id_of(training.corpus_rows)
    (batch,) = training.batches(1, 4)
    row = list(batch.queries).index(0)
    assert ids[batch.passages[row]] == "filea" and bool(batch.candidate_mask[row, row])
    assert [ids[p] for p in training.positives[0]] == ["filea"]


def test_rewards_do_not_count_it():
    """A text that only its own passage could beat has the best reward."""
    negatives = {"filea": ["filea"]}
    training = TrainingPairs(make_train(negatives=negatives), negatives=1)
    (batch,) = training.batches(1, 4)
    row = list(batch.queries).index(0)
    queries = torch.eye(4)
    passages = torch.cat((0.5 * torch.eye(4), torch.eye(4)[row : row + 1]))  # the last is the query itself

    class Engine(torch.nn.Module):
        def forward(self, inputs, mode="embed", **options):
            found = (queries if inputs["kind"] == "query" else passages)[: len(inputs["attention_mask"])]
            return {"embedding": found[:, None], "depths": [], "states": []}

    inputs = [{"kind": kind, "attention_mask": torch.ones(count, 1)} for kind, count in (("query", 4), ("passage", 5))]
    positives = inputs[1] | {"attention_mask": torch.ones(4, 1)}
    options = {"temperature": 1.0, "reward": "reciprocal_rank", "query_options": {}, "positive_options": {}}
    embedded = embed_greedy(Engine(), *inputs)
    for rollout in try_routings(Engine(), inputs[0], positives, batch, embedded, **options):
        assert rollout.reward_BG.flatten().tolist() == [1.0] * 4
