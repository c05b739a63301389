"""Searches a run's collection with the models that it trained, from the shell.

    python tier_1.py search logs/tier1 "parse a date" --method maw
    python tier_1.py search logs/tier1 "parse a date" --method zero_shot,maw --k 5       # side by side

Of the passages and of the query it says which depth MAW took. The first search with a method encodes the whole corpus;
the embeddings are kept in the cache folder, by the hash of the model's weights, for those that follow.
"""

from __future__ import annotations

import argparse
import logging
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from maw.config.methods import find_method
from maw.config.tier1_config import Tier1Config
from maw.data.corpus import Corpus
from maw.encoding.embedding_cache import Embedder
from maw.errors import ConfigError
from maw.experiment.past_run import PastRun
from maw.models.encode import encode, in_memory
from maw.models.encoder import MAWWithGRPOEncoder
from maw.models.retriever import BaselineRetriever
from maw.models.tokenized import ListTexts
from maw.report.text.format import WIDTH, as_table, clean
from maw.search.exact import top_k

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        row: in the corpus.
        score: as the model compares.
        depth: the passage's, as `depth_of` says it; "" without MAW.
    """

    row: int
    score: float
    depth: str


@dataclass(frozen=True)
class Found:
    """What one method finds for a query: its own depth, and the passages, best first."""

    method: str
    depth: str
    hits: list[Hit]


class _KeptEmbedder(Embedder):
    """An embedder that keeps trained models' embeddings too: here the same weights are asked again."""

    @property
    def _fixed(self) -> bool:
        layers = getattr(self.model.encoder, "maw_attention", ())
        return not any(each.router.needs_text_keys for each in layers)  # an entry is not found by its seed

    def _place(self, temporary: Path, shape: tuple[int, ...], form: np.dtype) -> np.ndarray:
        """A file for the embeddings, (N, C); how often a text took which depth, (N, M, D), is not kept."""
        return super()._place(temporary, shape, form) if len(shape) == 2 else in_memory(shape)


def main(words: argparse.Namespace) -> int:
    """The command `search`, see `maw.cli.commands`."""
    if not words.query.strip():
        raise ConfigError(["search: the query is empty; write some words"])
    run = PastRun.open(words.run_dir, words.dataset)
    methods = run.methods if words.method is None else [name for name in words.method.split(",") if name]
    if not methods:
        raise ConfigError([f"search: --method names no method; it compared {', '.join(run.methods)}"])
    for method in methods:
        run.record(method)  # says now, not after minutes of encoding, that there is no such method
    run.check_training(words.seed, words.fold)
    corpus = run.corpus()
    sys.stderr.write(f"{run.name}: {len(corpus):,} passages; a method's first search encodes them all\n")
    found = []
    for method in methods:
        model = run.model(method, words.seed, words.fold, precision=run.config.precision)
        found.append(search(model, method, run.config, corpus, words.query, words.k))
    sys.stdout.write(show_found(found, corpus, words.query) + "\n")
    return 0


def search(model: BaselineRetriever, method: str, config: Tier1Config, corpus: Corpus, query: str, k: int) -> Found:
    """The k best passages for one query.

    Args:
        model: on the device that computes.
        method: its name, for the result.
        config: its batch size and cache folder are used.
        corpus: the passages; their embeddings come from the cache if they are there.
    """
    embedder = _KeptEmbedder(model, config, model.device)
    documents = embedder.encode(corpus, "document", f"{method}: passages")
    asked = encode(model.encoder, model.source([query], "query"), batch_size=1, device=model.device)
    scores, rows = top_k(torch.from_numpy(asked.embeddings), documents.embeddings, k, corpus.tie_order())
    rows = rows[0].tolist()
    depths = [""] * len(rows)
    if isinstance(model.encoder, MAWWithGRPOEncoder):
        texts = model.source(ListTexts(corpus.take(rows)), "document")
        read = encode(model.encoder, texts, batch_size=config.eval_batch_size, device=model.device)
        assert read.depth_share is not None
        depths = [depth_of(each) for each in read.depth_share]
    own = "" if asked.depth_share is None else depth_of(asked.depth_share[0])
    hits = [Hit(row, float(score), depth) for row, score, depth in zip(rows, scores[0], depths, strict=True)]
    return Found(method, own, hits)


def depth_of(share_MD: np.ndarray) -> str:
    """The depth of a text in each MAW layer, with its share where tokens, heads or mixing divide a text.

    Args:
        share_MD: how often the text took each depth, by layer.
    """
    best = share_MD.argmax(-1)
    shares = share_MD[np.arange(len(best)), best]
    return "/".join(f"{d}" if s > 0.9995 else f"{d} ({s:.0%})" for d, s in zip(best, shares, strict=True))


def show_found(found: Sequence[Found], corpus: Corpus, query: str) -> str:
    """What the methods found as text: one list, or for several methods a table and then the passages."""
    lines = [f'"{clean(query)}"']
    lines += [f"{find_method(each.method).label}: the query takes depth {each.depth}" for each in found if each.depth]
    ids = {hit.row: clean(corpus.id_of([hit.row])[0]) for each in found for hit in each.hits}
    texts = {row: clean(corpus.take([row])[0]) for row in ids}
    if len(found) == 1:
        for place, hit in enumerate(found[0].hits, start=1):
            depth = f"  depth {hit.depth}" if hit.depth else ""
            lines += ["", f"{place:>3}  {hit.score:.4f}  {ids[hit.row]}{depth}", *_passage(texts[hit.row])]
        return "\n".join(lines)
    header = ["", *(find_method(each.method).label for each in found)]
    rows = []
    for place in range(max(len(each.hits) for each in found)):
        rows.append([f"{place + 1:>3}", *(_cell(each.hits[place], ids) for each in found)])
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
