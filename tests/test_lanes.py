"""Batches beside one another give what batches one by one give."""

from __future__ import annotations

import threading

import pytest
import torch
from conftest import random_texts

from maw import lanes as module
from maw.chunks import LengthChunks
from maw.cpu import _packs, packed_weights
from maw.encoding import encode
from maw.lanes import count_lanes, in_lanes
from maw.retriever import BaselineRetriever, MAWRetriever

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_and_from_several_threads(two_threads):
    met = threading.Barrier(2, timeout=10)

    def work(item):
        met.wait()  # passes only if two items are at work at once
        return item * item, threading.get_ident()

    results = list(in_lanes(work, range(6), 2))
    assert [value for value, _ in results] == [0, 1, 4, 9, 16, 25]
    assert {thread for _, thread in results}.isdisjoint({threading.get_ident()})
    assert torch.get_num_threads() == 2


def test_one_lane_is_the_caller_itself():
    assert list(in_lanes(lambda _: threading.get_ident(), range(2), 1)) == [threading.get_ident()] * 2
    assert list(in_lanes(abs, [], 2)) == []


def test_errors_are_passed_on_and_the_number_of_threads_comes_back(two_threads):
    with pytest.raises(ZeroDivisionError):
        list(in_lanes(lambda item: 1 // item, [1, 0, 1, 1, 1], 2))
    assert torch.get_num_threads() == 2


def test_items_are_taken_as_they_are_needed(two_threads):
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    running = in_lanes(abs, items(), 2)
    next(running)
    assert len(taken) <= 4
    running.close()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_lanes_are_in_the_callers_mode(two_threads, mode):
    with mode():
        (made,) = in_lanes(lambda item: torch.zeros(1, requires_grad=True) + item, [1], 2)
    assert not made.requires_grad
    assert made.is_inference() == (mode is torch.inference_mode)


def test_lanes_see_the_callers_packed_weights(two_threads, monkeypatch):
    monkeypatch.setattr("maw.cpu._PACKABLE", True)
    with torch.no_grad(), packed_weights():
        mine = _packs.get()
        assert all(each is mine for each in in_lanes(lambda _: _packs.get(), range(3), 2))


def test_lanes_are_for_bfloat16_without_gradient_on_a_processor(two_threads):
    with torch.no_grad():
        assert count_lanes(CPU, torch.bfloat16) == 2
        assert count_lanes(CPU, torch.float32) == 1
        assert count_lanes(torch.device("cuda"), torch.bfloat16) == 1
    assert count_lanes(CPU, torch.bfloat16) == 1


@pytest.mark.parametrize("kind", [BaselineRetriever, MAWRetriever])
def test_embeddings_are_those_of_one_lane(tiny_settings, monkeypatch, two_threads, kind):
    model = kind(tiny_settings(precision="bfloat16"))
    texts = random_texts(60, seed=1, longest=30)
    found = []
    for lanes in (1, 2):
        monkeypatch.setattr("maw.encoding.count_lanes", lambda *_, lanes=lanes: lanes)
        found.append(encode(model.encoder, model.source(texts, "document"), batch_size=4).embeddings)
    assert (found[0] == found[1]).all()


def test_groups_are_those_of_one_lane_and_training_may_use_them(tiny_settings, monkeypatch, two_threads):
    model = MAWRetriever(tiny_settings(precision="bfloat16"))
    inputs = model.source(random_texts(12, seed=2, longest=30), "document").batch(range(12))
    keys = torch.arange(12 * 3).view(12, 3)
    found = []
    for lanes in (1, 2):
        monkeypatch.setattr("maw.chunks.count_lanes", lambda *_, lanes=lanes: lanes)
        with torch.no_grad():
            found.append(LengthChunks(model.encoder, tokens=100)(inputs, "group", keys=keys))
    assert torch.equal(found[0]["embedding"], found[1]["embedding"])
    assert all(torch.equal(*pair) for pair in zip(found[0]["depths"], found[1]["depths"]))
    monkeypatch.undo()
    trained = LengthChunks(model.encoder)(inputs, "group", depths=found[1]["depths"])
    trained["embedding"].sum().backward()


def test_there_are_never_more_lanes_than_python_can_serve(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    with torch.no_grad():
        assert count_lanes(CPU, torch.bfloat16) == module.MOST_LANES
