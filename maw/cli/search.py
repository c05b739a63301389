"""The command `search`: searches a run's passages with its trained models.

    python tier_1.py search logs/tier1 "parse a date" --method maw
    python tier_1.py search logs/tier1 "parse a date" --method zero_shot,maw --k 5       # side by side

It also shows the depths that MAW picked for the query and the passages. Where the words are a test query that is a
passage too, that passage is left out as in the run (`maw.data.self_passages`). The first search with a method encodes
the whole corpus; later ones read the embeddings from the cache folder, by the hash of the model's weights.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from maw.config.methods import find_method
from maw.config.tier1_config import Tier1Config
from maw.data.collection import RetrievalData
from maw.data.corpus import Corpus
from maw.data.self_passages import same_texts
from maw.encoding.embedding_cache import Embedder
from maw.errors import ConfigError
from maw.experiment.past_run import PastRun
from maw.models.encode import encode, in_memory
from maw.models.encoder import MAWWithGRPOEncoder
from maw.models.retriever import BaselineRetriever
from maw.models.tokenized import ListTexts
from maw.report.text.format import WIDTH, as_table, clean
from maw.search.exact import top_k
from maw.search.left_out import leaving_out


@dataclass(frozen=True)
class Hit:
    """One passage of a ranking: its row in the corpus, score, and depth as `depth_of` shows it ("" without MAW)."""

    row: int
    score: float
    depth: str


@dataclass(frozen=True)
class Found:
    """The ranking of one method for a query, and the query's depth."""

    method: str
    depth: str
    hits: list[Hit]


class _KeptEmbedder(Embedder):
    """An embedder that caches the embeddings of trained models too, since later searches use the same weights."""

    @property
    def _fixed(self) -> bool:
        layers = getattr(self.model.encoder, "maw_attention", ())
        outside = self.model.method is not None and self.model.method.origin is not None
        return not outside and not any(each.router.needs_text_keys for each in layers)  # their seed is not in the key

    def _place(self, temporary: Path, shape: tuple[int, ...], form: np.dtype) -> np.ndarray:
        """Caches the embeddings (N, C), but not the depth shares (N, M, D)."""
        return super()._place(temporary, shape, form) if len(shape) == 2 else in_memory(shape)


def main(words: argparse.Namespace) -> int:
    """The command `search`, see `maw.cli.commands`."""
    if not words.query.strip():
        raise ConfigError(["search: the query is empty; write some words"])
    run = PastRun.open(words.run_dir, words.dataset, words.moved)
    methods = run.methods if words.method is None else [name for name in words.method.split(",") if name]
    if not methods:
        raise ConfigError([f"search: --method names no method; the run has {', '.join(run.methods)}"])
    code = {method: words.method_file if "method" in run.record(method) else None for method in methods}
    run.check_training(words.seed, words.fold)
    data = run.test()
    corpus, left_out = data.corpus, own_row(data, words.query)
    if left_out >= 0:
        name = clean(corpus.id_of([left_out])[0])
        sys.stderr.write(f"the words are those of the test query {name}; its own passage is left out, as in the run\n")
    sys.stderr.write(f"{run.name}: {len(corpus):,} passages; the first search with a method encodes all of them\n")
    found = []
    for method in methods:
        model = run.model(method, words.seed, words.fold, run.config.precision, code[method])
        found.append(search(model, method, run.config, corpus, words.query, words.k, left_out))
    sys.stdout.write(show_found(found, corpus, words.query) + "\n")
    return 0


def own_row(data: RetrievalData, query: str) -> int:
    """The row of the passage that the test query with this text leaves out; -1 if there is none."""
    rows = data.left_out_rows()
    alike = same_texts([query], zip(data.query_ids, [""] * len(data), data.queries, strict=True))
    return -1 if rows is None else max((int(rows[place]) for _, place in alike), default=-1)


def search(
    model: BaselineRetriever, method: str, config: Tier1Config, corpus: Corpus, query: str, k: int, left_out: int = -1
) -> Found:
    """Ranks the k best passages for one query, with cached embeddings if there are any.

    Args:
        method: names the result.
        left_out: row of a passage that is not ranked; -1 for none.
    """
    embedder = _KeptEmbedder(model, config, model.device)
    documents = embedder.encode(corpus, "document", f"{method}: passages")
    asked = encode(model.encoder, model.source([query], "query"), batch_size=1, device=model.device)
    vectors, ties = torch.from_numpy(asked.embeddings), corpus.tie_order()
    scores, rows = leaving_out(
        lambda size: top_k(vectors, documents.embeddings, size, ties),
        k,
        np.array([left_out]) if left_out >= 0 else None,
    )
    rows = [row for row in rows[0].tolist() if row >= 0]
    depths = [""] * len(rows)
    if isinstance(model.encoder, MAWWithGRPOEncoder):
        texts = model.source(ListTexts(corpus.take(rows)), "document")
        read = encode(model.encoder, texts, batch_size=config.eval_batch_size, device=model.device)
        assert read.depth_share is not None
        depths = [depth_of(each) for each in read.depth_share]
    own = "" if asked.depth_share is None else depth_of(asked.depth_share[0])
    hits = [Hit(row, float(score), depth) for row, score, depth in zip(rows, scores[0], depths, strict=False)]
    return Found(method, own, hits)


def depth_of(share_MD: np.ndarray) -> str:
    """The depth of a text per MAW layer, with its share if tokens, heads or a mixture use several depths."""
    best = share_MD.argmax(-1)
    shares = share_MD[np.arange(len(best)), best]
    return "/".join(f"{d}" if s > 0.9995 else f"{d} ({s:.0%})" for d, s in zip(best, shares, strict=True))


def show_found(found: Sequence[Found], corpus: Corpus, query: str) -> str:
    """The rankings as text: one list, or for several methods a table and then the passages."""
    lines = [f'"{clean(query)}"']
    lines += [f"{find_method(each.method).label}: the query takes depth {each.depth}" for each in found if each.depth]
    ids = {hit.row: clean(corpus.id_of([hit.row])[0]) for each in found for hit in each.hits}
    texts = {row: clean(corpus.take([row])[0]) for row in ids}
    if len(found) == 1:
        for rank, hit in enumerate(found[0].hits, start=1):
            depth = f"  depth {hit.depth}" if hit.depth else ""
            lines += ["", f"{rank:>3}  {hit.score:.4f}  {ids[hit.row]}{depth}", *_passage(texts[hit.row])]
        return "\n".join(lines)
    header = ["", *(find_method(each.method).label for each in found)]
    rows = []
    for index in range(max(len(each.hits) for each in found)):
        rows.append([f"{index + 1:>3}", *(_cell(each.hits[index], ids) for each in found)])
    lines += ["", as_table(header, rows)]
    for row, text in texts.items():
        lines += ["", ids[row], *_passage(text)]
    return "\n".join(lines)


def _cell(hit: Hit, ids: dict[int, str]) -> str:
    name = ids[hit.row]
    short = name if len(name) <= 24 else f"{name[:10]}..{name[-12:]}"
    return f"{short} {hit.score:.4f}" + (f" depth {hit.depth}" if hit.depth else "")


def _passage(text: str) -> list[str]:
    short = textwrap.shorten(text, 2 * (WIDTH - 5), placeholder=" ...") or "(no text)"
    return textwrap.wrap(short, WIDTH, initial_indent="     ", subsequent_indent="     ")
