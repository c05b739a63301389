"""Natural Questions: BEIR's test queries and passages, DPR's training questions and passages.

    python tier_1.py --datasets nq

- Test: `beir/nq`, 3,452 queries over 2,681,468 passages of its own. Training: `dpr-w100/natural-questions/train`,
  58,880 questions over DPR's 21,015,324 passages, since BEIR's collection has a test split only.
- Validation: DPR's own dev split (6,515 questions), the one that was published for this, so that the training split
  stays whole.
- Training and validation questions that occur in BEIR's test, by normalised text, are left out and counted.
- BEIR has no answers to its questions. Where DPR has the same question, by normalised text, the test query gets DPR's
  answers; the facts say how many have some.

Source: Kwiatkowski et al., Natural Questions, TACL 2019; Thakur et al., BEIR, arXiv:2104.08663;
    `maw.data.datasets.dpr`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from maw.config.methods import trained_methods
from maw.config.tier1_config import Tier1Config
from maw.data.collection import Collection
from maw.data.dataset_table import Dataset
from maw.data.datasets import dpr, irds
from maw.data.download.corpus_source import Source, beir_source
from maw.data.download.needs import Needs
from maw.data.download.published import Published, published, require
from maw.data.normalise import normalise
from maw.data.splits import Pool

TEST = "beir/nq"
TRAINING = {"train": f"{dpr.GROUP}/natural-questions/train", "validation": f"{dpr.GROUP}/natural-questions/dev"}


def load(config: Tier1Config, dataset: Dataset) -> Collection:
    """The collection; train and validation are left empty where no method trains.

    Raises:
        DataError: a source is missing, or not as published; one line.
    """
    require(source_files(config), config, dataset.name)
    file, ids = test_file(config), split_ids(config)
    texts = {query.query_id: query.text for query in irds.read_queries(TEST, file, config)}
    splits = {split: dpr.questions(ids[split], config) for split in TRAINING if split in ids}
    answers, answer_facts = join_answers(texts, [split.pool for split in splits.values()])
    test = irds.judged_in_beir(TEST, irds.qrels_path(TEST, file, config), texts)
    splits["test"] = replace(test, pool=replace(test.pool, answers=answers))
    corpora = {"test": beir_source("nq", mean_characters=500).corpus(config)}
    if trained_methods(config):
        corpora |= dict.fromkeys(TRAINING, dpr.wikipedia().corpus(config))
    pools, facts = irds.separate(splits, config)
    if "train" in pools:
        pools["train"] = dpr.with_negatives(pools["train"], splits["train"], config)
    facts = {
        "source": ids,
        "corpus_rule": "test: all passages of BEIR's NQ; train and validation: all of DPR's Wikipedia passages",
        **facts,
        "grades": dpr.GRADES_RULE,
        "answers": answer_facts,
    }
    return irds.finish(config, dataset, splits, pools, corpora, facts)


def needs(config: Tier1Config, dataset: Dataset) -> Needs:
    """What the dataset needs, without fetching anything."""
    ids = split_ids(config)
    unpacked = dpr.unpacked_bytes(each for each in ids.values() if each in dpr.FILES)
    return irds.needs_of(dataset.name, config, sources(config), source_files(config), ids, unpacked)


def split_ids(config: Tier1Config) -> dict[str, str]:
    """The splits that a run uses, by their names in ir_datasets."""
    return (TRAINING if trained_methods(config) else {}) | {"test": TEST}


def sources(config: Tier1Config) -> list[Source]:
    """The corpora that a run uses."""
    return [beir_source("nq", mean_characters=500), *([dpr.wikipedia()] if trained_methods(config) else [])]


def test_file(config: Tier1Config) -> Published:
    """The zip archive; once the corpus is stored what ir_datasets unpacked from it is enough."""
    stored = sources(config)[0].stored(config)
    return published("beir", "nq", *(["nq/queries.json", "nq/test.qrels"] if stored else []))


def source_files(config: Tier1Config) -> list[Published]:
    """All files that a run uses."""
    files = [test_file(config)]
    if trained_methods(config):
        passages = dpr.wikipedia()
        files += [] if passages.stored(config) else [passages.file]
        files += [dpr.questions_file(each) for each in TRAINING.values()]
    return files


def join_answers(texts: dict[str, str], pools: Iterable[Pool]) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Answers of the same questions in `pools`, by normalised text, and facts on how many there are."""
    known: dict[str, list[str]] = {}
    for pool in pools:
        for query_id, answers in pool.answers.items():
            known.setdefault(normalise(pool.queries[query_id]), answers)
    found = {i: known[normal] for i, text in texts.items() if (normal := normalise(text)) in known}
    facts = {
        "source": "the same questions in DPR's train and dev files" if known else "none: no method trains",
        "test_queries": len(texts),
        "with_answers": len(found),
        "share": round(len(found) / len(texts), 4) if texts else 0.0,
    }
    return found, facts
