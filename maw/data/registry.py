"""Datasets: from a name on the command line to a `Collection` whose splits are drawn and checked.

    python tier_1.py --datasets msmarco,nq,hotpotqa,triviaqa
    python tier_1.py --datasets pystdlib
    python tier_1.py --datasets beir:path/to/folder

A dataset is one small module with a loader; `LOADERS` is the list of them. `needs_of` says what one needs beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from maw.config.tier1_config import Tier1Config
from maw.data.collection import Collection, RetrievalData
from maw.data.corpus import Corpus
from maw.data.corpus_sampling import sample_corpora
from maw.data.datasets import beir, hotpotqa, msmarco, nq, pystdlib, triviaqa
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
    "dataset_names",
    "load_collection",
    "load_folds",
    "needs_of",
]

LOADERS: dict[str, Callable[[Tier1Config], Collection]] = {
    "msmarco": msmarco.load,
    "nq": nq.load,
    "hotpotqa": hotpotqa.load,
    "triviaqa": triviaqa.load,
    "trec_dl_2019": partial(msmarco.load, name="trec_dl_2019"),
    "trec_dl_2020": partial(msmarco.load, name="trec_dl_2020"),
    "pystdlib": pystdlib.load,
}
NEEDS: dict[str, Callable[[Tier1Config], Needs]] = {
    "msmarco": msmarco.needs,
    "nq": nq.needs,
    "hotpotqa": hotpotqa.needs,
    "triviaqa": triviaqa.needs,
    "trec_dl_2019": partial(msmarco.needs, name="trec_dl_2019"),
    "trec_dl_2020": partial(msmarco.needs, name="trec_dl_2020"),
}
BEIR_PREFIX = "beir:"


def dataset_names() -> tuple[str, ...]:
    """The names that `load_collection` takes; "beir:DIR" stands for any folder in BEIR layout."""
    return (*LOADERS, f"{BEIR_PREFIX}DIR")


def load_collection(name: str, config: Tier1Config) -> Collection:
    """Loads a dataset, draws its queries, checks that none stands in two splits, and draws the passages to search.

    Queries that are nearly those of another split are allowed, and counted in the facts.

    Args:
        name: one of `dataset_names()`.
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
    if name.startswith(BEIR_PREFIX):
        collection = beir.load(name.removeprefix(BEIR_PREFIX), config)
    else:
        collection = LOADERS[name](config)
    check_disjoint(collection.train, collection.validation, collection.test, collection=collection.name)
    return collection


def needs_of(name: str, config: Tier1Config) -> Needs:
    """What a dataset needs before it is loaded, without fetching or reading any of it.

    What lies on this machine anyway, pystdlib and folders in BEIR layout, needs nothing; how many passages it has is
    not known beforehand.

    Raises:
        DataError: no such dataset.
    """
    _check_name(name)
    return NEEDS[name](config) if name in NEEDS else Needs(name)


def check_sources(names: Iterable[str], config: Tier1Config) -> None:
    """Makes sure that what datasets need is there or can be fetched, before the first of them is loaded.

    Raises:
        DataError: files are missing and there is no network; names all of them.
    """
    files = dict.fromkeys(file for name in names for file in needs_of(name, config).files if not file.present)
    if files:
        refuse_without_network(list(files), "the datasets")


def _check_name(name: str) -> None:
    if not name.startswith(BEIR_PREFIX) and name not in LOADERS:
        raise DataError(
            f"there is no dataset {show(name)}{suggestion(name, LOADERS)}; "
            f"this version has {', '.join(LOADERS)} and {BEIR_PREFIX}DIR, a folder in BEIR layout"
        )
