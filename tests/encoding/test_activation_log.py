"""A resumed store holds the activations of the interrupted one, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import random_texts

from maw.encoding.activation_cache import ActivationSource, ActivationStore
from maw.models.retriever import BaselineRetriever
from maw.models.tokenized import ListTexts
from maw.runtime import console, signals

TEXTS = {"query": random_texts(40, seed=3, longest=30), "document": random_texts(90, seed=4, longest=40)}


@pytest.fixture(autouse=True)
def batches_matter(monkeypatch):
    """As on a GPU, a text's activations depend on what it is computed with; by more than rounding, to be sure."""
    real = ActivationSource._compute

    def compute(self, inputs):
        found = real(self, inputs)
        return found | {"hidden": found["hidden"] + 1e-3 * float(inputs["attention_mask"].sum())}

    monkeypatch.setattr(ActivationSource, "_compute", compute)


@pytest.fixture
def model(tiny_settings):
    return BaselineRetriever(tiny_settings())


def ask(store, model, requests):
    """Reads rows of queries and documents in the order given; what each request got."""
    found = []
    for kind, rows in requests:
        source = store.source(model.source(ListTexts(TEXTS[kind]), kind), model.encoder, torch.device("cpu"))
        found.append(source.batch(np.array(rows))["hidden"])
    return found


def requests(seed):
    random = np.random.default_rng(seed)
    kinds = random.choice(list(TEXTS), 9)
    return [(kind, random.choice(len(TEXTS[kind]), random.integers(1, 30), replace=False)) for kind in kinds]


@pytest.mark.parametrize("limit_gb", [1.0, 6e-5], ids=["all stored", "room for some"])
@pytest.mark.parametrize("seed", range(4))
def test_what_was_stored_is_stored_again_alike(model, tmp_path, limit_gb, seed):
    asked = requests(seed)
    with ActivationStore(tmp_path, limit_gb) as whole:
        expected = ask(whole, model, asked)
        assert whole.full is (limit_gb < 1)
        for stop in (0, 3, 6, 9):
            with ActivationStore(tmp_path, limit_gb) as before, ActivationStore(tmp_path, limit_gb) as after:
                ask(before, model, asked[:stop])
                after.resume(*before.activation_log.content())
                got = ask(after, model, asked[stop:])
                assert all(torch.equal(a, b) for a, b in zip(got, expected[stop:], strict=True))
                again = ActivationStore(tmp_path, limit_gb)
                again.resume(*after.activation_log.content())
                got = ask(again, model, asked[stop:])
                assert all(torch.equal(a, b) for a, b in zip(got, expected[stop:], strict=True))
                assert [(f.source, f.stored) for f in again.activation_log.fills] == [
                    (f.source, f.stored) for f in whole.activation_log.fills
                ]
                again.close()


def test_no_more_is_stored_again_where_progress_bars_are_off(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "maw.encoding.activation_cache.encoding_tokens", lambda precision: 64
    )  # many batches a request
    rows = np.arange(len(TEXTS["document"]))
    with ActivationStore(tmp_path, 6e-5) as before, ActivationStore(tmp_path, 6e-5) as after:
        expected = ask(before, model, [("document", rows)])
        after.resume(*before.activation_log.content())
        with console.configured(quiet=True):
            assert torch.equal(ask(after, model, [("document", rows)])[0], expected[0])
        (stored,) = ({*np.flatnonzero(each.part > 0)} for each in before._sources.values())
        (again,) = ({*np.flatnonzero(each.part > 0)} for each in after._sources.values())
        assert again == stored and 0 < len(stored) < len(rows)


def test_a_run_that_goes_on_says_so_where_memory_had_run_out(model, tmp_path, caplog):
    """Its batches were smaller then, and will not be when they are computed again."""

    def check(module, words):
        if short and words[0]["attention_mask"].numel() > 64:
            raise MemoryError

    model.encoder.register_forward_pre_hook(check)
    for short in (False, True):
        caplog.clear()
        with ActivationStore(tmp_path, 1.0) as before, ActivationStore(tmp_path, 1.0) as after:
            ask(before, model, [("document", np.arange(80))])
            content = before.activation_log.content()
            short = False
            after.resume(*content)
            ask(after, model, [("document", np.arange(80)), ("query", np.arange(5))])
            assert after.activation_log.content()[0]["cut"] is before.activation_log.cut is content[0]["cut"]
            assert ("memory ran out" in caplog.text) is before.activation_log.cut
    assert before.activation_log.cut


def test_without_the_journal_it_is_not_alike(model, tmp_path):
    """Planted: the journal is needed, or the test above shows nothing."""
    alike = []
    for asked in map(requests, range(4)):
        with ActivationStore(tmp_path, 1.0) as whole, ActivationStore(tmp_path, 1.0) as after:
            expected, got = ask(whole, model, asked)[3:], ask(after, model, asked[3:])
            alike += [torch.equal(a, b) for a, b in zip(got, expected, strict=True)]
    assert not all(alike)


def test_a_request_that_was_interrupted_is_made_again_as_a_whole(model, tmp_path, monkeypatch):
    rows = np.arange(80)
    monkeypatch.setattr(
        "maw.encoding.activation_cache.encoding_tokens", lambda precision: 64
    )  # many batches a request
    with ActivationStore(tmp_path, 1.0) as whole, ActivationStore(tmp_path, 1.0) as before:
        (expected,) = ask(whole, model, [("document", rows)])
        source = before.source(model.source(ListTexts(TEXTS["document"]), "document"), model.encoder, "cpu")
        source.use(model.encoder, torch.device("cpu"))
        real, calls = source._compute, []

        def interrupted(inputs):
            calls.append(inputs)
            if len(calls) == 3:
                raise signals.Stopped(15)
            return real(inputs)

        monkeypatch.setattr(source, "_compute", interrupted)
        with pytest.raises(signals.Stopped):
            source.batch(rows)
        assert before.free_bytes < whole.free_bytes + sum(each.numel() for each in expected) * 4
        with ActivationStore(tmp_path, 1.0) as after:
            after.resume(*before.activation_log.content())
            assert torch.equal(ask(after, model, [("document", rows)])[0], expected)
            assert after.free_bytes == whole.free_bytes
