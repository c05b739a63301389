"""TriviaQA as DPR has it: trivia questions over DPR's Wikipedia passages.

    python tier_1.py --datasets triviaqa

- Training: `dpr-w100/trivia-qa/train`, 78,785 questions; validation queries are held out of them. Test:
  `dpr-w100/trivia-qa/dev`, 8,837 questions, since the test questions have no public passages. 21,015,324 passages.
- No person judged these passages. Relevant are those among BM25's first that hold an answer, so the labels are
  incomplete and favour passages that share words with the question. Also report whether an answer is in the first k
  passages; test queries carry answers for this.
- TriviaQA is not part of BEIR.

Source: Joshi et al., TriviaQA, arXiv:1705.03551; `maw.data.datasets.dpr`.
"""

from __future__ import annotations

from maw.config.methods import trained_methods
from maw.config.tier1_config import Tier1Config
from maw.data.collection import Collection
from maw.data.dataset_table import Dataset
from maw.data.datasets import dpr, irds
from maw.data.download.needs import Needs
from maw.data.download.published import Published, require

TRAIN, TEST = f"{dpr.GROUP}/trivia-qa/train", f"{dpr.GROUP}/trivia-qa/dev"
NOTE = "TriviaQA is not part of BEIR"
LABELS = "incomplete: BM25's first passages that hold an answer count as relevant, and no person judged them"


def load(config: Tier1Config, dataset: Dataset) -> Collection:
    """The collection; train and validation are left empty where no method trains.

    Raises:
        DataError: a source is missing, or not as published; one line.
    """
    require(source_files(config), config, dataset.name)
    splits = {split: dpr.questions(each, config) for split, each in split_ids(config).items()}
    corpus = dpr.wikipedia().corpus(config)
    pools, facts = irds.separate(splits, config)
    if "train" in pools:
        pools["train"] = dpr.with_negatives(pools["train"], splits["train"], config)
    facts = {
        "source": split_ids(config),
        "note": NOTE,
        "corpus_rule": "all of DPR's Wikipedia passages, for every split",
        **facts,
        "grades": dpr.GRADES_RULE,
        "labels": LABELS,
        "answers": {"test_queries": len(pools["test"]), "with_answers": len(pools["test"].answers)},
    }
    return irds.finish(config, dataset, splits, pools, dict.fromkeys(pools, corpus), facts)


def needs(config: Tier1Config, dataset: Dataset) -> Needs:
    """What the dataset needs, without fetching anything."""
    ids = split_ids(config)
    queries = ids if "train" not in ids else {"train": TRAIN, "validation": None, "test": TEST}
    unpacked = dpr.unpacked_bytes(ids.values())
    return irds.needs_of(dataset.name, config, [dpr.wikipedia()], source_files(config), queries, unpacked)


def split_ids(config: Tier1Config) -> dict[str, str]:
    """The splits that a run uses, by their names in ir_datasets."""
    return {"train": TRAIN, "test": TEST} if trained_methods(config) else {"test": TEST}


def source_files(config: Tier1Config) -> list[Published]:
    """All files that a run uses."""
    passages = dpr.wikipedia()
    files = [] if passages.stored(config) else [passages.file]
    return files + [dpr.questions_file(each) for each in split_ids(config).values()]
