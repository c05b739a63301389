"""The table of datasets: everything that the rest of the program knows about each, without loading any.

Command line, loading, plan and reports read this table, so a new dataset is one more row here, and its module.
A dataset's module is imported only when the dataset is loaded.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from maw.config.paths import BEIR, absolute, beir_parts

_MINILM = ("packaged:all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")


@dataclass(frozen=True)
class Dataset:
    """One dataset that `--datasets` knows by name."""

    name: str
    """What `--datasets` takes."""
    title: str
    """What reports call it."""
    module_name: str
    """Has `load(config, dataset)` and, where its files come from elsewhere, `needs(config, dataset)`."""
    results: str = ""
    """What its results are called, where that is not its name."""
    relevance_level: int | None = None
    """Grade from which a passage of its test split is relevant in the binary metrics; None: the configuration's."""
    no_folds: str = ""
    """Why its queries cannot be divided anew into folds; empty where they can."""
    source: str = ""
    """The dataset that its training queries and passages come from, if not its own: msmarco for TREC DL."""
    folder_names: tuple[str, ...] = ()
    """Names of folders in BEIR layout that hold its data. A suffix is allowed, as in nq_dev."""
    training_data_of: tuple[str, ...] = ()
    """Models whose cards name it, or its source, as training data: their results on it are not zero-shot."""

    @property
    def collection_name(self) -> str:
        """What its results are called."""
        return self.results or self.name

    @property
    def module(self) -> ModuleType:
        """The module that loads it, imported on first use."""
        return importlib.import_module(self.module_name)


_GRADED = "it is tested on graded judgements in depth, and trained on one judged passage a query"

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="msmarco",
            title="MS MARCO passage ranking",
            module_name="maw.data.datasets.msmarco",
            folder_names=("msmarco", "trec_dl"),
            training_data_of=(*_MINILM, "facebook/contriever-msmarco"),
        ),
        Dataset(
            name="nq",
            title="Natural Questions (BEIR)",
            module_name="maw.data.datasets.nq",
            results="beir_nq",
            no_folds="its training questions have DPR's passages and judgements, its test questions BEIR's",
            folder_names=("nq",),
            training_data_of=_MINILM,
        ),
        Dataset(
            name="hotpotqa",
            title="HotpotQA (BEIR)",
            module_name="maw.data.datasets.hotpotqa",
            results="beir_hotpotqa",
            folder_names=("hotpotqa",),
        ),
        Dataset(
            name="triviaqa",
            title="TriviaQA (DPR)",
            module_name="maw.data.datasets.triviaqa",
            no_folds="its training questions have hard negatives of DPR's choice, its test questions have none",
            folder_names=("triviaqa",),
            training_data_of=_MINILM,
        ),
        Dataset(
            name="trec_dl_2019",
            title="TREC Deep Learning 2019",
            module_name="maw.data.datasets.msmarco",
            relevance_level=2,
            no_folds=_GRADED,
            source="msmarco",
        ),
        Dataset(
            name="trec_dl_2020",
            title="TREC Deep Learning 2020",
            module_name="maw.data.datasets.msmarco",
            relevance_level=2,
            no_folds=_GRADED,
            source="msmarco",
        ),
        Dataset(
            name="pystdlib",
            title="Python standard library",
            module_name="maw.data.datasets.pystdlib",
            training_data_of=_MINILM,
        ),
    )
}


def results_name(name: str) -> str:
    """What the results of a dataset are called."""
    if not name.startswith(BEIR):
        return DATASETS[name].collection_name if name in DATASETS else name
    folder, judgements = beir_parts(name.removeprefix(BEIR))
    return "_".join(["beir", Path(absolute(folder)).name, *([judgements] if judgements else [])])


def source_of(collection: str) -> str:
    """The dataset of the table whose data a collection has, recognised by its name; the name itself if there is none.

    TREC DL judges passages of MS MARCO. A folder in BEIR layout is recognised with or without the name of its test
    judgements: beir_nq, beir_msmarco_dl19.
    """
    for dataset in DATASETS.values():
        folders = tuple(f"beir_{name}_" for name in dataset.folder_names)
        if collection == dataset.collection_name or f"{collection}_".startswith(folders):
            return dataset.source or dataset.name
    return collection
