"""Datasets: from a name on the command line to a `Collection` whose splits are drawn and checked.

    python tier_1.py --datasets msmarco,nq,hotpotqa,triviaqa
    python tier_1.py --datasets pystdlib
    python tier_1.py --datasets beir:path/to/folder

`maw.data.dataset_table` lists the datasets. `needs_of` says what one needs beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from maw.config.paths import BEIR
from maw.config.tier1_config import Tier1Config
from maw.data.collection import Collection, RetrievalData
from maw.data.corpus import Corpus
from maw.data.corpus_sampling import sample_corpora
from maw.data.dataset_table import DATASETS
from maw.data.datasets import beir
from maw.data.download.needs import Needs
from maw.data.download.published import refuse_without_network
from maw.data.folds import Folds, make_folds
from maw.data.from_dicts import as_retrieval_data
from maw.data.leakage import check_disjoint, leakage_facts
from maw.errors import DataError, show, suggestion

__all__ = [
    "Collection",
    "Corpus",
    "Folds",
    "Needs",
    "RetrievalData",
    "as_retrieval_data",
    "check_sources",
    "load_collection",
    "load_folds",
    "needs_of",
]


def load_collection(name: str, config: Tier1Config) -> Collection:
    """Loads a dataset, draws its queries, checks that none stands in two splits, and draws the passages to search.

    Queries that are nearly those of another split are allowed, and counted in the facts.

    Args:
        name: of `maw.data.dataset_table`, or "beir:DIR" for a folder in BEIR layout.
        config: sample and corpus sizes, distractors, seed, methods and cache folder are used.

    Returns:
        Its training, validation and test splits, and the facts that reports say of them.

    Raises:
        DataError: no such dataset, malformed files, or queries shared between splits; one line.
    """
    collection = _loaded(name, config)
    splits = (collection.train, collection.validation, collection.test)
    facts = collection.facts | {"leakage": leakage_facts(*splits)}
    return sample_corpora(replace(collection, facts=facts), config)


def load_folds(name: str, config: Tier1Config) -> Folds:
    """As `load_collection`, with the drawn queries of all splits divided anew into `config.folds` folds.

    Raises:
        DataError: as `load_collection`, and for splits that cannot be pooled; one line.
    """
    return make_folds(_loaded(name, config), config)


def _loaded(name: str, config: Tier1Config) -> Collection:
    """A dataset whose queries are drawn, none of them in two splits, over its whole corpora."""
    _check_name(name)
    if name.startswith(BEIR):
        collection = beir.load(name.removeprefix(BEIR), config)
    else:
        collection = DATASETS[name].module.load(config, DATASETS[name])
    check_disjoint(collection.train, collection.validation, collection.test, collection=collection.name)
    return collection


def needs_of(name: str, config: Tier1Config) -> Needs:
    """What a dataset needs before it is loaded, without fetching or reading any of it.

    pystdlib and BEIR folders are already on this machine, so they need no download. Their number of passages is
    unknown here.

    Raises:
        DataError: no such dataset.
    """
    _check_name(name)
    dataset = DATASETS.get(name)
    if dataset is None or not hasattr(dataset.module, "needs"):
        return Needs(name)
    return dataset.module.needs(config, dataset)


def check_sources(names: Iterable[str], config: Tier1Config) -> None:
    """Makes sure that what datasets need is there or can be fetched, before the first of them is loaded.

    Raises:
        DataError: files are missing and there is no network; names all of them.
    """
    files = dict.fromkeys(file for name in names for file in needs_of(name, config).files if not file.present)
    if files:
        refuse_without_network(list(files), "the datasets")


def _check_name(name: str) -> None:
    if not name.startswith(BEIR) and name not in DATASETS:
        raise DataError(
            f"there is no dataset {show(name)}{suggestion(name, DATASETS)}; "
            f"this version has {', '.join(DATASETS)} and {BEIR}DIR, a folder in BEIR layout"
        )
