"""Datasets: from a name on the command line to a `Collection` whose splits are drawn and checked.

    python tier_1.py --datasets msmarco,nq,hotpotqa,triviaqa
    python tier_1.py --datasets pystdlib
    python tier_1.py --datasets beir:path/to/folder

`maw.data.dataset_table` lists the datasets. `needs_of` says what one needs beforehand.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from maw.config.methods import trained_methods
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
from maw.data.self_passages import leave_out_of, with_counts
from maw.errors import DataError, show, suggestion
from maw.runtime.run_log import warn_of_data

logger = logging.getLogger(__name__)

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
    "load_splits",
    "needs_of",
]


def load_collection(name: str, config: Tier1Config) -> Collection:
    """Loads a dataset, draws its queries, checks that none stands in two splits, and draws the passages to search.

    Each query leaves out the passage that `config.self_passages` says.

    Queries that are nearly those of another split are allowed, and counted in the facts.

    Args:
        name: of `maw.data.dataset_table`, or "beir:DIR" for a folder in BEIR layout.
        config: sample and corpus sizes, distractors, seed, methods and cache folder are used.

    Returns:
        Its training, validation and test splits, and the facts that reports say of them.

    Raises:
        DataError: no such dataset, malformed files, or queries shared between splits; one line.
    """
    collection = _with_warnings(load_splits(name, config))
    splits = (collection.train, collection.validation, collection.test)
    facts = collection.facts | {"leakage": leakage_facts(*splits)}
    return with_counts(sample_corpora(leave_out_of(replace(collection, facts=facts), config), config))


def load_folds(name: str, config: Tier1Config) -> Folds:
    """As `load_collection`, with the drawn queries of all splits divided anew into `config.folds` folds.

    Raises:
        DataError: as `load_collection`, and for splits that cannot be pooled; one line.
    """
    return make_folds(_with_warnings(load_splits(name, config)), config)


def _with_warnings(collection: Collection) -> Collection:
    for warning in collection.facts.get("warnings", ()):
        warn_of_data(logger, warning)
    return collection


def load_splits(name: str, config: Tier1Config) -> Collection:
    """A dataset whose queries are drawn, none of them in two splits, over its whole corpora.

    Its warnings are in its facts, and are not logged.

    Raises:
        DataError: as `load_collection`.
    """
    _check_name(name)
    if name.startswith(BEIR):
        collection = beir.load(name.removeprefix(BEIR), config)
    else:
        collection = DATASETS[name].module.load(config, DATASETS[name])
    check_disjoint(collection.train, collection.validation, collection.test, collection=collection.name)
    wanted = config.negative_source == "given" and config.num_negatives and trained_methods(config)
    if wanted and not any(collection.train.negatives.values()):
        text = "negative_source given: the data has no negatives; use auto, bm25, dense or none"
        raise DataError(f"{collection.name}: {text}")
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
