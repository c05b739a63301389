"""Plans the cost of millions of passages (GPU hours, disk, memory, search) from measurements on a small corpus.

    python -m bench.plan                        # the plan from bench/plan.json, as Markdown
    python -m bench.plan --write                # into docs/larger_corpora.md, between its marks
    python -m bench.encoding && python -m bench.search && python -m bench.plan --refresh --write
    python -m bench.plan --recall QUERIES.npy PASSAGES.npy       # recall of indexes against exact search, by size

`bench/plan.json` holds the measurements and, separately, the assumptions about GPUs, each with its source. `--refresh`
takes the measurements again from bench/results. The encoder of the plan is BERT-base, the default model's shape. Work
is counted in floating-point operations (`bench.flops`), so the measured rate of one encoder applies to another.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench.common import RESULTS, ROOT
from bench.flops import encoder_flops, matmul_flops
from maw.storage.files import write_json, write_text

INPUT, PAGE = ROOT / "bench" / "plan.json", ROOT / "docs" / "larger_corpora.md"
START, END = "<!-- bench.plan -->", "<!-- /bench.plan -->"
PQ_POINTS = 39 * 256  # with fewer to train on, codes fit the passages themselves and seem better than they are
BERT_BASE = SimpleNamespace(hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
RESULTS_READ = ("encoding_peak", "search")
HOUR, GIGA, TERA = 3600, 1e9, 1e12
QUERIES, PROCESSES = 1000, 8
WIDTH = 119


@dataclass(frozen=True)
class Corpus:
    """A corpus to plan for.

    Attributes:
        name: for people.
        passages: how many.
        like: whose mean number of tokens it has.
        text_bytes: of a passage.
    """

    name: str
    passages: int
    like: str
    text_bytes: int


CORPORA = (
    Corpus("MS MARCO", 8_841_823, "MS MARCO", 363),
    Corpus("Wikipedia (DPR)", 21_015_324, "Wikipedia", 620),
    Corpus("a web crawl", 1_000_000_000, "Wikipedia", 620),
)


def encoding_rows(inputs: Mapping[str, Any], corpora: Sequence[Corpus] = CORPORA) -> list[list[Any]]:
    """By corpus: name, passages, operations, hours on the measured processor, hours on each GPU."""
    measured, assumed = inputs["measured"], inputs["assumed"]
    rows = []
    for corpus in corpora:
        tokens = measured["tokens"][corpus.like]
        operations = corpus.passages * encoder_flops([round(tokens)], BERT_BASE)
        gpu = operations * assumed["padding"]["value"] / assumed["share_of_peak"]["value"] / HOUR / TERA
        hours = [gpu / each["half_tflops"] for each in assumed["gpus"].values()]
        cpu = operations / measured["encoding"]["flops_per_second"] / HOUR
        rows.append([corpus.name, corpus.passages, operations, cpu, *hours])
    return rows


def storage_rows(inputs: Mapping[str, Any], corpora: Sequence[Corpus] = CORPORA) -> list[list[Any]]:
    """By corpus: name, and bytes of text, of embeddings in float32 and in float16, and of what one of eight processes
    holds of them in float32 while it encodes; then how many GPUs hold all of them in float16."""
    rows = []
    for corpus in corpora:
        single = corpus.passages * BERT_BASE.hidden_size * 4
        holds = [max(1, -(-single // 2 // (0.9 * each["gigabytes"] * GIGA))) for each in _gpus(inputs)]
        text = corpus.passages * corpus.text_bytes
        rows.append([corpus.name, text, single, single // 2, single // PROCESSES, *map(int, holds)])
    return rows


def search_rows(inputs: Mapping[str, Any], corpora: Sequence[Corpus] = CORPORA) -> list[list[Any]]:
    """By corpus: name, and seconds of exact search for 1,000 queries on the processor, and on each GPU.

    A GPU reads float16 embeddings from the host's memory in blocks, and multiplies in float32.
    """
    known, assumed = inputs["measured"]["search"], inputs["assumed"]
    share, link = assumed["search_share_of_peak"]["value"], assumed["host_to_gpu_gigabytes_per_second"]["value"]
    rows = []
    for corpus in corpora:
        work = matmul_flops(QUERIES, BERT_BASE.hidden_size, corpus.passages)
        base = matmul_flops(known["queries"], known["size"], known["passages"])
        copy = corpus.passages * BERT_BASE.hidden_size * 2 / (link * GIGA)
        seconds = [max(copy, work / (share * each["single_tflops"] * TERA)) for each in _gpus(inputs)]
        rows.append([corpus.name, known["seconds"] * work / base, *seconds])
    return rows


def _gpus(inputs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(inputs["assumed"]["gpus"].values())


def plan_text(inputs: Mapping[str, Any]) -> str:
    """The plan as Markdown: each table, with what was measured and what is assumed."""
    measured, assumed, names = inputs["measured"], inputs["assumed"], list(inputs["assumed"]["gpus"])
    sources = {name: entry["source"] for name, entry in assumed.items() if name != "gpus"}
    gpus = "; ".join(
        f"{name} {each['half_tflops']:g} TFLOP/s in half and {each['single_tflops']:g} in single precision, "
        f"{each['gigabytes']} GB" for name, each in assumed["gpus"].items()
    )  # fmt: skip
    encoding = [[n, f"{p:,}", f"{w:.1e}", *(_number(h) for h in hours)] for n, p, w, *hours in encoding_rows(inputs)]
    storage = [[name, *map(_size, sizes[:4]), *sizes[4:]] for name, *sizes in storage_rows(inputs)]
    search = [[n, *(_number(each) for each in seconds)] for n, *seconds in search_rows(inputs)]
    lines = [
        f"Measured: {measured['source']}. Encoding {measured['encoding']['flops_per_second'] / GIGA:.0f} GFLOP/s "
        f"({measured['encoding']['model']}, {measured['encoding']['precision']}, real tokens); exact search "
        f"{measured['search']['seconds']:g} s for {measured['search']['queries']:,} queries in "
        f"{measured['search']['passages']:,} passages with {measured['search']['size']} dimensions.",
        "",
        f"Assumed: a GPU reaches {assumed['share_of_peak']['value']:g} of its peak in encoding "
        f"({sources['share_of_peak']}) and {assumed['search_share_of_peak']['value']:g} in search "
        f"({sources['search_share_of_peak']}); {assumed['padding']['value']:g} {sources['padding']}; "
        f"{assumed['host_to_gpu_gigabytes_per_second']['value']:g} GB/s from host to GPU "
        f"({sources['host_to_gpu_gigabytes_per_second']}). Dense peaks from NVIDIA's data sheets: {gpus}.",
        "",
        "Hours to encode all passages once with a BERT-base encoder. Two cores are extrapolated from the measured "
        "rate; one GPU follows from the assumptions:",
        "",
        _table(["corpus", "passages", "operations", "2 cores", *names], encoding),
        "",
        f"Bytes on disk, bytes in the memory of one of {PROCESSES} processes while it encodes its share, and the "
        "number of GPUs whose memory holds all embeddings in float16:",
        "",
        _table(["corpus", "text", "float32", "float16", "memory", *names], storage),
        "",
        f"Seconds of exact search for {QUERIES:,} queries. Two cores are extrapolated from the measured time; for one "
        "GPU it is the longer time of copying float16 blocks from the host and multiplying in float32:",
        "",
        _table(["corpus", "2 cores", *names], search),
    ]
    return "\n".join(line if line.startswith("|") else textwrap.fill(line, WIDTH) for line in lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _size(value: float) -> str:
    return f"{value / TERA:.1f} TB" if value >= TERA else f"{value / GIGA:.1f} GB"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def written(page: str, plan: str) -> str:
    """The page with the plan between its marks.

    Raises:
        ValueError: the marks are not there.
    """
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the page has no {START} and {END} to put the plan between")
    return f"{before}{START}\n{plan}\n{END}{after}"


def refreshed(inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The inputs, updated from the current results of `bench.encoding` and `bench.search` with `--full`."""
    found = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in RESULTS_READ}
    if short := [name for name, each in found.items() if each.get("shortened")]:
        raise SystemExit(f"{', '.join(short)}: measured without --full; run it again with --full before --refresh")
    peak = next(row for row in found["encoding_peak"]["rows"] if row["operations"] == "encoding, real tokens")
    exact = next(row for row in found["search"]["rows"] if row["search"] == "exact")
    machine = found["encoding_peak"]["machine"]
    taken = ", ".join(f"{name} {each['measured_at'][:10]}" for name, each in found.items())
    measured = dict(inputs["measured"])
    place = f"{machine['processor']}, {machine['threads']} threads ({taken})"
    measured["source"] = f"{place}; tokens: {measured['tokens_source']}"
    measured["encoding"] = measured["encoding"] | {
        "flops_per_second": peak["GFLOP/s"] * GIGA, "share_of_peak": peak["share of peak"]
    }  # fmt: skip
    measured["search"] = measured["search"] | {"seconds": round(exact["median s"], 3)}
    return {**inputs, "measured": measured}


# --------------------------------------------------------------------------------------------------------- recall


def recall_rows(queries: np.ndarray, passages: np.ndarray, k: int = 10) -> list[list[Any]]:
    """Recall of indexes against the exact best k, and bytes of a passage, at several sizes of the corpus.

    The k of an index are those it ranks first by its own scores, or, with "re-ranked", the best by exact scores of
    five times as many.
    """
    import faiss

    rows = []
    for size in (len(passages) // 8, len(passages) // 4, len(passages) // 2, len(passages)):
        part = np.ascontiguousarray(passages[np.linspace(0, len(passages) - 1, size).astype(int)], dtype=np.float32)
        exact = np.argsort(-(queries @ part.T), 1, kind="stable")[:, :k]
        lists = max(1, round(4 * np.sqrt(size)))
        for name, factory, probes in (
            ("ivf, 1/16 of the lists", f"IVF{lists},Flat", lists // 16),
            ("ivf, 1/4 of the lists", f"IVF{lists},Flat", lists // 4),
            ("float16", "SQfp16", 0),
            ("8 bits", "SQ8", 0),
            ("product quantizer, 96 bytes", "PQ96x8", 0),
        ):
            if factory.startswith("PQ") and size < PQ_POINTS:
                continue
            index = faiss.index_factory(part.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            index.train(part)
            index.add(part)
            if probes:
                index.nprobe = max(1, probes)
            proposed = index.search(queries, 5 * k)[1]
            rows.append(
                [size, name, _overlap(proposed[:, :k], exact), _overlap(_again(queries, part, proposed, k), exact)]
            )
    return rows


def _again(queries: np.ndarray, passages: np.ndarray, proposed: np.ndarray, k: int) -> np.ndarray:
    """The best k of the proposed passages, by exact scores."""
    best = []
    for query, rows in zip(queries, proposed, strict=True):
        rows = rows[rows >= 0]
        best.append(np.resize(rows[np.argsort(-(passages[rows] @ query), kind="stable")][:k], k))
    return np.array(best)


def _overlap(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([np.isin(right, left).mean() for left, right in zip(found, exact, strict=True)]))


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=INPUT, help="measurements and assumptions")
    parser.add_argument("--write", action="store_true", help="put the plan into docs/larger_corpora.md")
    parser.add_argument("--refresh", action="store_true", help="take the measurements from bench/results first")
    parser.add_argument("--recall", nargs=2, type=Path, metavar=("QUERIES", "PASSAGES"), help="arrays of embeddings")
    words = parser.parse_args(argv)
    if words.recall:
        queries, passages = (np.load(path).astype(np.float32) for path in words.recall)
        rows = [
            [f"{n:,}", name, *(f"{each:.3f}" for each in found)] for n, name, *found in recall_rows(queries, passages)
        ]
        print(_table(["passages", "index", "recall@10", "re-ranked"], rows))  # noqa: T201 - this is a script's output
        return
    inputs = json.loads(words.input.read_text(encoding="utf-8"))
    if words.refresh:
        inputs = refreshed(inputs, RESULTS)
        write_json(words.input, inputs)
    plan = plan_text(inputs)
    if words.write:
        write_text(PAGE, written(PAGE.read_text(encoding="utf-8"), plan))
    print(plan)  # noqa: T201


if __name__ == "__main__":
    main()
