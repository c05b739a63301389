"""Compares encoding with sentence-transformers on the same weights, and with the processor's peak.

    python -m bench.encoding            # 300 documents
    python -m bench.encoding --full     # 2,000

Both sides turn the same real texts into arrays in memory: functions and first paragraphs of docstrings of Python's own
library. Times include tokenising but not loading. The model is all-MiniLM-L6-v2. Both sides run with their default
settings (this project: precision auto, batches by a budget of tokens; sentence-transformers: float32, batches of 32),
then both in float32 and both in bfloat16. nDCG@10 is that of the same queries over the same passages, ranked by each
side's embeddings.

The peak is the best rate of matrix products in the same number format: two large square products and one of the
model's own shape, timed in turns with the encoding. The operations of an encoding run are those of its matrix
products, counted for real tokens, and also with padding.

These costs keep encoding below the peak, by torch's profiler over 800 documents on one thread in bfloat16. On a
processor with AMX, encoding reached 26% of the peak, since matrix products are very fast there. Linear maps took 38%
of the time and fused attention 31%, most of it not for products (exponentials, and packing of heads only 32 wide).
GELU took 11%, norms 6%, sums 5%. So PyTorch's own operations cannot reach 65% of the peak there.

All that follows is of an AMD EPYC with AVX-512 and bfloat16 units, without AMX. In float32 linear maps take 81% of the
time, fused attention 12% and GELU 3% (150 documents, one thread). For the shapes of the model the product with packed
weights, which this project uses, computes 100 to 109 GFLOP/s, and PyTorch's default, which sentence-transformers uses,
86 to 95. oneDNN without packing computes 96 to 105, packing by MKL 90 to 96, OpenBLAS 94 to 102. So no other product
is faster, and what is left is to compute less: the layers of the pretrained model leave padding out wherever tokens do
not meet (`maw.models.unpadding`). The embeddings have the same bits. 400 documents take 1.05 times as long with
padding and 400 queries 1.40 times (in bfloat16 1.13 and 1.39). In bfloat16 fused attention took 33% of the time (400
documents, two threads); two products and a softmax, which `maw.models.cpu_kernels` computes for as many texts at once
as fit the caches, take 62% of that. They round scores to bfloat16. The embeddings are as far from those in float32 as
with fused attention (.0004 on average, root mean square), and nDCG@10 differs by .001. On a processor with AMX this
has not been measured.

How many times as fast as sentence-transformers this project was, on two cores:

| | float32 | bfloat16 | default settings of both |
| --- | --- | --- | --- |
| 2,000 documents, five rounds | 1.32 | 1.37 | 2.34 |
| 300 documents, three rounds, in three runs | 1.36 to 1.40 | 1.33 to 1.42 | 2.43 |
| the same, held to AVX2 | 1.27 | | |
| the same, before padding was left out (float32) or attention was two products (bfloat16) | 1.26 | 1.28 | |
| on a processor with AMX, before both | 1.19 | 1.30 | 3.92 |

Encoding reached 70% of the peak with 2,000 documents and 65% to 68% with 300. In float32 plain products are no faster
in attention than the fused kernel.

These were measured on 320 documents, and are not built, because they do not pay:

- torch.compile: takes 2% to 3% less time than the same model without it, and compiles for 43 seconds (float32) or 13.
  This project's layers take 21% less in float32 and 17% less in bfloat16, by their own kernels.
- int8 products (`torch.ao.quantization`, dynamic) in all layers: as fast as bfloat16, 1.56 times as fast as float32.
  nDCG@10 over 2,000 passages falls from .610 to .599. In the five frozen layers alone, with one scale for each
  channel, they are slower than bfloat16 and 1.32 or 1.38 times as fast as float32; nDCG@10 becomes .611 or .601, by
  PyTorch's engine for them (x86 or onednn). So a result would depend on the processor by more than .002.
- GELU inside the product takes 1% less, one product for query, key and value less than 1% in bfloat16.
- Threads pinned to cores (OMP_PROC_BIND): 1% less, within the noise. Heads padded from 32 to 64: fused attention takes
  1.6 times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.common import alternate, claim, median, quick_parser, ratio, report, results_folder
from bench.flops import encoder_flops, matmul_flops
from bench.peer import precision_of, sentence_transformer, settings, texts_of_python
from maw.data.collection import RetrievalData
from maw.data.hash_sampling import draw
from maw.evaluation.metrics import compute_metrics
from maw.models.encode import encode
from maw.models.retriever import BaselineRetriever
from maw.runtime.precision import name_of

FULL = {"texts": 2000, "ranked": 100_000, "rounds": 5}
SHORT = {"texts": 300, "ranked": 500, "rounds": 3}
QUICK = {"texts": 24, "ranked": 60, "rounds": 1}
SQUARES = (2048, 4096)
MODEL_SHAPE = (2048, 384, 1536)
REPEATS = 200
"""Products of the model's own shape in one timing: one alone is over in less than a millisecond."""
TARGETS = {"default": ">= 2.5", "float32": ">= 1.4", "bfloat16": ">= 1.4"}
LARGEST_DIFFERENCE = "<= 0.002"
PEAK_SHARE = ">= 0.65"
PEER = "sentence-transformers"


@dataclass(frozen=True)
class Side:
    """One way of encoding: `run(texts, kind)` gives embeddings (N, C)."""

    name: str
    precision: str
    run: Callable[[list[str], str], np.ndarray]


def our_side(precision: str) -> tuple[Side, BaselineRetriever]:
    """This project's way."""
    config = settings(precision=precision)
    retriever = BaselineRetriever(config)

    def run(texts: list[str], kind: str) -> np.ndarray:
        source = retriever.source(texts, kind)
        return encode(retriever.encoder, source, batch_size=config.eval_batch_size).embeddings

    return Side("this project", name_of(retriever.precision), run), retriever


def their_side(retriever: BaselineRetriever, precision: str | None) -> Side:
    """The way of sentence-transformers, all settings but the number format its defaults."""
    peer = sentence_transformer(retriever.spec.folder, precision)
    assert peer.max_seq_length == retriever.spec.max_document_length == retriever.spec.max_query_length

    def run(texts: list[str], kind: str) -> np.ndarray:
        return np.asarray(peer.encode(texts, show_progress_bar=False), dtype=np.float32)

    return Side(PEER, precision_of(peer), run)


def make_sides() -> tuple[dict[str, Side], dict[str, tuple[str, str]], BaselineRetriever]:
    """The sides by label, the pairs that are compared, and the default retriever."""
    default, retriever = our_side("auto")
    sides = {f"ours {default.precision}": default}
    for precision in ("float32", "bfloat16"):
        if precision != default.precision:
            sides[f"ours {precision}"] = our_side(precision)[0]
        sides[f"theirs {precision}"] = their_side(retriever, precision)
    theirs = their_side(retriever, None)
    sides.setdefault(f"theirs {theirs.precision}", theirs)
    pairs = {"default": (f"ours {default.precision}", f"theirs {theirs.precision}")}
    pairs |= {precision: (f"ours {precision}", f"theirs {precision}") for precision in ("float32", "bfloat16")}
    return sides, pairs, retriever


def ndcg(side: Side, data: RetrievalData, passages: Sequence[int]) -> float:
    """nDCG@10 of a split's queries over these rows of its corpus, ranked by one side's embeddings."""
    ids = np.array(data.corpus.id_of(passages))
    there = set(ids.tolist())
    kept = [q for q in data.query_ids if any(d in there for d, grade in data.qrels[q].items() if grade >= 1)]
    texts = dict(zip(data.query_ids, data.queries, strict=True))
    scores = side.run([texts[q] for q in kept], "query") @ side.run(data.corpus.take(passages), "document").T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :100]
    run = [list(ids[row]) for row in best]
    qrels = {q: data.qrels[q] for q in kept}
    return float(compute_metrics(kept, run, np.take_along_axis(scores, best, 1), qrels)["ndcg_cut_10"])


def measure_speed(folder: Path, work: dict[str, int], shortened: bool) -> None:
    """Times every side on documents and on queries."""
    sides, pairs, retriever = make_sides()
    data = texts_of_python().test
    passages = range(min(work["ranked"], len(data.corpus)))
    scores = {label: ndcg(side, data, passages) for label, side in sides.items()}
    rows, times = [], {}
    for kind, texts in texts_by_kind(data, work["texts"]).items():
        tokens = int(token_counts(retriever, texts, kind).sum())
        seconds = alternate({label: partial(side.run, texts, kind) for label, side in sides.items()}, work["rounds"])
        times[kind] = seconds
        for label, side in sides.items():
            taken = median(seconds[label])
            rates = [len(texts) / taken, tokens / taken]
            rows.append([kind, side.name, side.precision, len(texts), tokens, taken, *rates, scores[label]])
    report(
        "encoding",
        ["texts", "side", "precision", "count", "tokens", "seconds", "texts/s", "tokens/s", "nDCG@10"],
        rows,
        folder,
        speed_claims(times, scores, pairs),
        shortened=shortened,
    )


def speed_claims(
    times: dict[str, dict[str, list[float]]], scores: dict[str, float], pairs: dict[str, tuple[str, str]]
) -> list[dict[str, Any]]:
    """Claims about documents; queries, which are short and few, are in the rows alone."""
    claims = []
    for name, (ours, theirs) in pairs.items():
        settings_ = "both with default settings" if name == "default" else f"both in {name}"
        speedup = ratio(times["document"], theirs, ours)
        claims.append(claim(f"encoding documents, times as fast, {settings_}", PEER, speedup, TARGETS[name]))
    for name, (ours, theirs) in pairs.items():
        settings_ = "default settings" if name == "default" else name
        difference = abs(scores[ours] - scores[theirs])
        claims.append(claim(f"nDCG@10, difference, {settings_}", PEER, difference, LARGEST_DIFFERENCE))
    return claims


def texts_by_kind(data: RetrievalData, count: int) -> dict[str, list[str]]:
    """Documents and queries, drawn by seed."""
    ids = draw(data.corpus.id_of(range(len(data.corpus))), count, 42, "bench")
    return {"document": data.corpus.take(data.corpus.rows_of(ids)), "query": data.queries[:count]}


def token_counts(retriever: BaselineRetriever, texts: list[str], kind: str) -> np.ndarray:
    """Number of tokens of each text, special tokens included, (N,)."""
    source = retriever.source(texts, kind)
    tokens = retriever.tokenizer([source.prefix + t for t in texts], truncation=True, max_length=source.max_length)
    return np.array([len(each) for each in tokens["input_ids"]])


def measure_peak_share(folder: Path, work: dict[str, int], shortened: bool) -> None:
    """Times encoding in turns with matrix products of its number format."""
    side, retriever = our_side("auto")
    texts = texts_by_kind(texts_of_python().test, work["texts"])["document"]
    quick = work is QUICK
    squares = (256,) if quick else SQUARES
    shapes = {f"{size}^3": (size, size, size) for size in squares} | {"model": MODEL_SHAPE}
    calls = dict.fromkeys(shapes, 1) | {"model": 2 if quick else REPEATS}
    sides = {name: product(shape, retriever.precision, calls[name]) for name, shape in shapes.items()}
    seconds = alternate({"encode": partial(side.run, texts, "document")} | sides, work["rounds"])
    rates = {
        name: [calls[name] * matmul_flops(*shape) / taken for taken in seconds[name]] for name, shape in shapes.items()
    }
    peak = [max(each) for each in zip(*rates.values(), strict=True)]
    rows = [[f"product {shapes[name]}", median(rate) / 1e9, share(rate, peak)] for name, rate in rates.items()]
    counted = operations(retriever, texts)
    shares = {}
    for name, flops in counted.items():
        rate = [flops / taken for taken in seconds["encode"]]
        shares[name] = share(rate, peak)
        rows.append([f"encoding, {name}", median(rate) / 1e9, shares[name]])
    wanted = claim(
        "encoding documents, share of the peak rate of matrix products, real tokens",
        f"torch, {side.precision}",
        shares["real tokens"],
        PEAK_SHARE,
    )
    header = ["operations", "GFLOP/s", "share of peak"]
    report("encoding_peak", header, rows, folder, [wanted], shortened=shortened)


def share(rate: Sequence[float], peak: Sequence[float]) -> float:
    """A rate as a share of the peak: the median of the rounds."""
    return float(np.median(np.divide(rate, peak)))


def product(shape: tuple[int, int, int], dtype: torch.dtype, calls: int) -> Callable[[], None]:
    """A call that multiplies matrices of this shape so many times."""
    rows, inner, columns = shape
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    out = torch.empty(rows, columns, dtype=dtype)

    def run() -> None:
        with torch.inference_mode():
            for _ in range(calls):
                torch.mm(left, right, out=out)

    return run


def operations(retriever: BaselineRetriever, texts: list[str]) -> dict[str, int]:
    """Operations of encoding documents, by what is counted."""
    shape, padded = retriever.encoder.backbone.config, []

    def note(_: Any, inputs: tuple[Any, ...]) -> None:
        batch, length = inputs[0]["attention_mask"].shape
        padded.extend([length] * batch)

    handle = retriever.encoder.register_forward_pre_hook(note)
    encode(retriever.encoder, retriever.source(texts, "document"), batch_size=retriever.config.eval_batch_size)
    handle.remove()
    real = token_counts(retriever, texts, "document")
    return {
        "real tokens": encoder_flops(real, shape),
        "real tokens, linear maps alone": encoder_flops(real, shape, attention=False),
        "padding included": encoder_flops(padded, shape),
    }


def main() -> None:
    """Measures speed, then the share of the peak."""
    arguments = quick_parser(__doc__).parse_args()
    work = QUICK if arguments.quick else FULL if arguments.full else SHORT
    for measure in (measure_speed, measure_peak_share):
        measure(results_folder(arguments.quick), work, not arguments.full)


if __name__ == "__main__":
    main()
