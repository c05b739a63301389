"""HotpotQA as BEIR has it: questions whose answer needs two passages, over the introductions of Wikipedia articles.

    python tier_1.py --datasets hotpotqa

Train, validation and test are `beir/hotpotqa/train`, `/dev` and `/test` (85,000, 5,447 and 7,405 queries) over
5,233,329 passages with titles. Each query has two relevant passages; others that would serve as well are not judged.

Source: Yang et al., HotpotQA, arXiv:1809.09600; Thakur et al., BEIR, arXiv:2104.08663.
"""

from __future__ import annotations

from maw.config.methods import trained_methods
from maw.config.tier1_config import Tier1Config
from maw.data.collection import Collection
from maw.data.dataset_table import Dataset
from maw.data.datasets import irds
from maw.data.download.corpus_source import Source, beir_source
from maw.data.download.needs import Needs
from maw.data.download.published import Published, published, require

ID = "beir/hotpotqa"


def load(config: Tier1Config, dataset: Dataset) -> Collection:
    """The collection; train and validation are left empty where no method trains.

    Raises:
        DataError: a source is missing, or not as published; one line.
    """
    file = source_file(config)
    require([file], config, dataset.name)
    corpus = corpus_source().corpus(config)
    texts = {query.query_id: query.text for query in irds.read_queries(ID, file, config)}
    splits = {
        split: irds.judged_in_beir(identifier, irds.qrels_path(identifier, file, config), texts)
        for split, identifier in split_ids(config).items()
    }
    pools, facts = irds.separate(splits, config)
    facts = {
        "source": split_ids(config),
        "corpus_rule": "all passages of BEIR's HotpotQA, for every split",
        **facts,
        "labels": "two passages a query are judged, both relevant",
    }
    return irds.finish(config, dataset, splits, pools, dict.fromkeys(pools, corpus), facts)


def needs(config: Tier1Config, dataset: Dataset) -> Needs:
    """What the dataset needs, without fetching anything."""
    return irds.needs_of(dataset.name, config, [corpus_source()], [source_file(config)], split_ids(config))


def split_ids(config: Tier1Config) -> dict[str, str]:
    """The splits that a run uses, by their names in ir_datasets."""
    splits = {"train": "train", "validation": "dev", "test": "test"} if trained_methods(config) else {"test": "test"}
    return {split: f"{ID}/{each}" for split, each in splits.items()}


def source_file(config: Tier1Config) -> Published:
    """The zip archive, or the files unpacked from it if the corpus is already stored."""
    names = [each.rsplit("/", 1)[-1] for each in split_ids(config).values()]
    unpacked = ["hotpotqa/queries.json", *(f"hotpotqa/{name}.qrels" for name in names)]
    return published("beir", "hotpotqa", *(unpacked if corpus_source().stored(config) else []))


def corpus_source() -> Source:
    """The passages, from the archive's corpus.jsonl."""
    return beir_source("hotpotqa", mean_characters=290)
