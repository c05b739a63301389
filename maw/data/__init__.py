"""Datasets: from a name on the command line to a `Collection` whose splits are drawn and checked.

    python tier_1.py --datasets pystdlib
    python tier_1.py --datasets beir:path/to/folder

A dataset is one small module with a loader; `LOADERS` is the list of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from maw.config import Tier1Config
from maw.data import beir, pystdlib
from maw.data.collection import Collection, RetrievalData, as_retrieval_data
from maw.data.corpus import Corpus
from maw.data.leakage import check_disjoint
from maw.data.near_duplicates import leakage_facts
from maw.data.needs import Needs
from maw.errors import DataError
from maw.rules import show, suggestion

__all__ = [
    "Collection",
    "Corpus",
    "RetrievalData",
    "as_retrieval_data",
    "dataset_names",
    "load_collection",
    "needs_of",
]

LOADERS: dict[str, Callable[[Tier1Config], Collection]] = {"pystdlib": pystdlib.load}
BEIR_PREFIX = "beir:"


def dataset_names() -> tuple[str, ...]:
    """The names that `load_collection` takes; "beir:DIR" stands for any folder in BEIR layout."""
    return (*LOADERS, f"{BEIR_PREFIX}DIR")


def load_collection(name: str, config: Tier1Config) -> Collection:
    """Loads a dataset, draws the samples of `config`, and checks that no query stands in two splits.

    Queries that are nearly those of another split are allowed, and counted in the facts.

    Args:
        name: one of `dataset_names()`.
        config: sample sizes, seed, methods and cache folder are used.

    Raises:
        DataError: no such dataset, malformed files, or queries shared between splits; one line.
    """
    if name.startswith(BEIR_PREFIX):
        collection = beir.load(name.removeprefix(BEIR_PREFIX), config)
    elif name in LOADERS:
        collection = LOADERS[name](config)
    else:
        raise DataError(
            f"there is no dataset {show(name)}{suggestion(name, LOADERS)}; "
            f"this version has {' and '.join(dataset_names())}, a folder in BEIR layout"
        )
    splits = (collection.train, collection.validation, collection.test)
    check_disjoint(*splits, collection=collection.name)
    return replace(collection, facts=collection.facts | {"leakage": leakage_facts(*splits)})


def needs_of(name: str, config: Tier1Config) -> Needs:
    """What a dataset needs before it is loaded; nothing, where it lies on this machine or nothing is known."""
    return Needs(dataset=name)
