"""Builds a dataset's pretrained retriever and checks, before anything is trained, that it tells the texts apart."""

from __future__ import annotations

import logging

import numpy as np
import torch

from maw.config.methods import find_method
from maw.config.tier1_config import Tier1Config
from maw.data.collection import Collection
from maw.models.retriever import BaselineRetriever
from maw.models.tokenizer_check import TEXTS, check_texts
from maw.runtime.profiler import stage, watch

logger = logging.getLogger(__name__)


def checked_retriever(collection: Collection, config: Tier1Config, device: torch.device) -> BaselineRetriever:
    """The pretrained retriever on the device; texts are of the training split if there is one, and no random number is
    drawn.

    Raises:
        ModelError: as `check_texts`, whose warnings are logged.
    """
    with stage("loading model"), torch.random.fork_rng(devices=[]):
        retriever = BaselineRetriever(find_method("zero_shot").configure(config)).to(device)
    split = collection.train if len(collection.train) else collection.test
    rows = np.unique(np.linspace(0, len(split.corpus) - 1, 4 * TEXTS, dtype=np.int64))
    texts = {"query": split.queries[: 4 * TEXTS], "document": split.corpus.take(rows)}
    for warning in check_texts(retriever, texts, collection.name):
        logger.warning(warning)
    watch(retriever.encoder)
    return retriever
