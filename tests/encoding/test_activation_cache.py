"""Stored activations: their owner, when storing stops, and that nothing stays on the disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from conftest import random_texts

from maw.encoding.activation_cache import ActivationStore
from maw.errors import MAWError
from maw.models.retriever import BaselineRetriever
from maw.models.tokenized import TextSource

CPU = torch.device("cpu")


@pytest.fixture
def model(tiny_settings):
    return BaselineRetriever(tiny_settings())


def test_texts_read_in_another_way_have_activations_of_their_own(model, tmp_path):
    texts = random_texts(5, seed=4)
    ways = [{}, {"prefix": "file "}, {"max_length": 5}]
    with ActivationStore(tmp_path, 1.0) as store:
        for _ in range(2):  # computed, then read back
            for way in ways:
                source = TextSource(texts, model.tokenizer, **{"max_length": 64} | way)
                got = store.source(source, model.encoder, CPU).batch([3, 0])
                expected = model.encoder(source.batch([3, 0]), "prefix")
                real = got["attention_mask"].bool()
                torch.testing.assert_close(got["hidden"][real], expected[real], atol=1e-5, rtol=0)


def test_nothing_has_a_name_on_the_disk(model, tmp_path):
    """So that nothing is left behind, however the process ends."""
    with ActivationStore(tmp_path, 1.0) as store:
        source = store.source(model.source(random_texts(5), "query"), model.encoder, CPU)
        source.batch([0, 1, 2])
        assert (source.part[:3] > 0).all()
        assert not list(tmp_path.iterdir())


def test_once_full_a_text_passes_only_where_it_is_read(model, tmp_path):
    passes = []
    handle = model.encoder.register_forward_pre_hook(lambda _, args: passes.append(len(args[0]["input_ids"])))
    with ActivationStore(tmp_path, 8e-6) as store:  # room for 125 tokens
        source = store.source(model.source(random_texts(40, seed=3), "query"), model.encoder, CPU)
        for start in range(0, 40, 4):
            was_full = store.full
            passes.clear()
            source.batch(range(start, start + 4))
            assert not was_full or sum(passes) == 4
        assert store.full and (source.part > 0).any()
    handle.remove()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(model, tmp_path, monkeypatch):
    with ActivationStore(tmp_path, 1.0) as store:
        full = Path("/dev/full").open("r+b", buffering=1 << 20)  # noqa: SIM115 - the store closes it
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: full)
        source = store.source(model.source(random_texts(5), "query"), model.encoder, CPU)
        with pytest.raises(MAWError, match=r"No space left.*--prefix-cache-gb"):
            source.batch([0, 1])


def test_a_folder_that_cannot_be_written_to_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MAWError, match="cannot write activations"):
        ActivationStore(tmp_path / "file" / "activations", 1.0)
