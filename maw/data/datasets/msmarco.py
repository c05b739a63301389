"""MS MARCO passage ranking, and TREC Deep Learning 2019 and 2020 over the same passages.

    python tier_1.py --datasets msmarco
    python tier_1.py --datasets trec_dl_2019,trec_dl_2020

- Training: `msmarco-passage/train/judged`, 502,939 queries. Test: `dev/small`, 6,980 queries with about one judged
  passage each, so that relevant passages without a judgement count as errors of the ranking. Since dev is the test,
  validation queries are held out of the training queries.
- TREC DL: the same training and validation; 43 and 54 test queries with many judged passages, graded 0 to 3. nDCG uses
  the grades; for the binary metrics a passage is relevant from grade 2 on, as the track's organisers have it.
- ir_datasets repairs the collection's mixed encoding while it unpacks it. It deletes a
  collection.tsv without irds_version.txt (v2). Such a file is refused here first.

Source: Bajaj et al., MS MARCO, arXiv:1611.09268; Craswell et al., arXiv:2003.07820 and arXiv:2102.07662.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from maw.config.methods import trained_methods
from maw.config.tier1_config import Tier1Config
from maw.data.beir_format import Counts, line_finder
from maw.data.collection import Collection
from maw.data.dataset_table import Dataset
from maw.data.datasets import irds
from maw.data.datasets.irds import Judged
from maw.data.download.corpus_source import Source, read_tsv
from maw.data.download.needs import Needs
from maw.data.download.published import Published, home, ir_datasets, published, require
from maw.data.store import Record, Where
from maw.errors import DataError

GROUP = "msmarco-passage"
TRAIN = f"{GROUP}/train/judged"
TESTS = {"msmarco": "dev/small", "trec_dl_2019": "trec-dl-2019", "trec_dl_2020": "trec-dl-2020"}
UNPACKED_BYTES = 3_060_000_000  # collection.tsv


def load(config: Tier1Config, dataset: Dataset) -> Collection:
    """The collection; train and validation are left empty where no method trains.

    Raises:
        DataError: a source is missing, or not as published; one line.
    """
    name = dataset.name
    files = source_files(config, name)
    require(list(files.values()), config, name)
    corpus = corpus_source().corpus(config)
    splits = {"test": _split(_test_id(name), files["test queries"], files["test qrels"], config)}
    if trained_methods(config):
        splits["train"] = _split(TRAIN, files["train queries"], files["train qrels"], config)
    pools, facts = irds.separate(splits, config)
    facts = {
        "source": {split: each.id for split, each in splits.items()},
        "corpus_rule": "all passages of MS MARCO, for every split",
        **facts,
        "labels": "incomplete: about one passage a query is judged"
        if name == "msmarco"
        else f"graded 0 to 3; relevant from {dataset.relevance_level} on in the binary metrics",
    }
    return irds.finish(config, dataset, splits, pools, dict.fromkeys(pools, corpus), facts)


def needs(config: Tier1Config, dataset: Dataset) -> Needs:
    """What the dataset needs, without fetching anything."""
    queries = {"train": TRAIN, "validation": None} if trained_methods(config) else {}
    files = source_files(config, dataset.name).values()
    queries["test"] = _test_id(dataset.name)
    return irds.needs_of(dataset.name, config, [corpus_source()], files, queries)


def source_files(config: Tier1Config, name: str) -> dict[str, Published]:
    """The files that a run uses, by what they are used for."""
    used = ["dev/small/queries.tsv", "dev/small/qrels"] if name == "msmarco" else []
    if not corpus_source().stored(config):
        used.append("collection.tsv")
    files = {"collection": published(GROUP, "collectionandqueries", *used)} if used else {}
    if name == "msmarco":
        files |= {"test queries": files["collection"], "test qrels": files["collection"]}
    else:
        year = TESTS[name]
        unpacked = [f"{year}/queries.tsv"] if name == "trec_dl_2019" else []
        files["test queries"] = published(GROUP, f"{year}/queries", *unpacked)
        files["test qrels"] = published(GROUP, f"{year}/qrels")
    if trained_methods(config):
        files["train queries"] = published(GROUP, "queries", "train/queries.tsv")
        files["train qrels"] = published(GROUP, "train/qrels")
    return files


def corpus_source() -> Source:
    """The passages, from the collection.tsv that ir_datasets unpacks and repairs."""

    def read() -> tuple[Iterable[Record], Where]:
        refuse_unrepaired(home(GROUP))
        path = Path(ir_datasets().load(GROUP).docs_path())
        return ((identifier, "", text) for identifier, text in read_tsv(path, 2)), line_finder(path)

    unpacked = {home(GROUP) / "collection.tsv": UNPACKED_BYTES}
    return Source(GROUP, published(GROUP, "collectionandqueries"), read, mean_characters=335, unpacked=unpacked)


def refuse_unrepaired(folder: Path) -> None:
    """Refuses a collection.tsv that ir_datasets would delete because it takes it for one of its older versions."""
    collection, marker = folder / "collection.tsv", folder / "irds_version.txt"
    if collection.exists() and not (marker.is_file() and marker.read_bytes() == b"v2"):
        raise DataError(
            f"{collection}: ir_datasets would delete this file, since {marker.name} beside it does not say v2; move "
            "it away and place collectionandqueries.tar.gz there, or, if ir_datasets unpacked it, write v2 without a "
            f"line end into {marker}"
        )


def _test_id(name: str) -> str:
    return f"{GROUP}/{TESTS[name]}" if name == "msmarco" else f"{GROUP}/{TESTS[name]}/judged"


def _split(dataset: str, queries: Published, qrels: Published, config: Tier1Config) -> Judged:
    path = irds.qrels_path(dataset, qrels, config)
    counts = Counts()
    graded, repeated = irds.trec_qrels(path, counts)  # first, since ir_datasets reads them too and names no line
    texts = {query.query_id: query.text for query in irds.read_queries(dataset, queries, config)}
    return irds.judged(dataset, path, texts, graded, counts, repeated)
