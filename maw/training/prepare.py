"""What training reads of a collection: its queries, their hard negatives, and the passages of both."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from maw.config.tier1_config import Tier1Config
from maw.data.collection import Collection
from maw.data.corpus_sampling import cut_to, judged_rows, many
from maw.encoding.activation_cache import ActivationStore
from maw.models.retriever import BaselineRetriever
from maw.runtime.run_log import warn_of_data
from maw.training.hard_negatives import mine_negatives

logger = logging.getLogger(__name__)


def prepare_training(
    collection: Collection,
    config: Tier1Config,
    retriever: BaselineRetriever | None = None,
    activations: ActivationStore | None = None,
) -> Collection:
    """Chooses the negatives of the training split, then cuts its corpus to the passages that training reads.

    A corpus that another split searches, too, stays whole, since the splits then share activations.

    Args:
        collection: its training split may have a corpus of any size.
        retriever: the pretrained one, for the source "dense".
    """
    train, facts = mine_negatives(collection.train, config, retriever, activations)
    whole, corpora = len(train.corpus), dict(collection.facts.get("corpora", {}))
    if train.corpus.fingerprint not in (collection.test.corpus.fingerprint, collection.validation.corpus.fingerprint):
        used = train.corpus.rows_of([passage for chosen in train.negatives.values() for passage in chosen])
        train = replace(train, corpus=cut_to(train.corpus, np.concatenate([judged_rows(train), used]), config))
        cut = f"cut to the {len(train.corpus):,} of {whole:,} passages that training reads"
        corpora["train"] = {"passages": cut}
    warnings = list(collection.facts.get("warnings", ()))
    found = []
    nothing = facts.get("queries_without_bm25", 0)
    nothing = nothing if many(nothing, len(train)) else 0  # of a few, the second warning says enough
    if nothing:
        text = f"BM25 finds nothing for {nothing} of {len(train)} training queries"
        found.append(f"{text}; all their negatives are drawn from the corpus by hash, and none is hard")
    without = facts.get("queries_without_a_hard_one", 0) - nothing
    if without:
        drawn = facts["drawn_from_the_corpus"] > nothing * config.num_negatives
        against = "passages drawn from the corpus and" if drawn else "only"
        found.append(
            f"{without} of {len(train)} training queries have no usable hard negative: their negatives are "
            f"{against} the other passages of their batches; a larger --negative-margin may keep some"
        )
    for text in found:
        warnings.append(f"{collection.name}: {text}")
        warn_of_data(logger, warnings[-1])
    facts = collection.facts | {"corpora": corpora, "hard_negatives": facts, "warnings": warnings}
    return replace(collection, train=train, facts=facts)
