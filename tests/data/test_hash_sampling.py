"""Samples by hash: the same on every machine, nested, and independent of order."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from maw.config.tier1_config import Tier1Config
from maw.data.hash_sampling import draw, fraction
from maw.data.splits import Pool, hold_out

IDS = [f"q{i}" for i in range(500)]


def test_a_shuffled_input_gives_the_same_draw_in_the_same_order():
    shuffled = random.Random(1).sample(IDS, len(IDS))
    assert draw(IDS, 50, 42, "train") == draw(shuffled, 50, 42, "train")


@pytest.mark.parametrize("small, large", [(0, 1), (10, 100), (100, 500), (500, 5000)])
def test_a_larger_sample_begins_with_the_smaller(small, large):
    assert draw(IDS, large, 42, "test")[:small] == draw(IDS, small, 42, "test")


def test_asking_for_too_many_gives_all():
    assert sorted(draw(IDS, 10_000, 0, "test")) == sorted(IDS)


def test_seed_and_purpose_change_the_draw():
    draws = {tuple(draw(IDS, 20, seed, purpose)) for seed in (1, 2) for purpose in ("train", "test")}
    assert len(draws) == 4


def test_another_process_draws_the_same():
    program = "from maw.data.hash_sampling import draw; print(*draw([f'q{i}' for i in range(500)], 9, 7, 'test'))"
    for hash_seed in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
        )
        assert run.stdout.split() == draw(IDS, 9, 7, "test")


def test_the_rule_is_fixed():
    assert draw(["a", "b", "c", "d"], 4, 42, "train") == [
        "d",
        "b",
        "a",
        "c",
    ]  # sorted(BLAKE2b-128 of "42\0train\0a"), computed apart


def test_fractions_are_spread_evenly():
    shares = [fraction("split", item) for item in IDS]
    assert all(0 <= share < 1 for share in shares)
    assert 0.2 < sum(share < 0.25 for share in shares) / len(shares) < 0.3


def test_a_question_asked_twice_is_not_both_trained_on_and_held_out():
    """Without a validation file, copies of a held-out question leave the training queries."""
    train = Pool(
        {f"q{i}": f"Question {i // 2}" + "?" * (i % 2) for i in range(60)}, {f"q{i}": {"d": 1} for i in range(60)}
    )
    left, held = hold_out(train, Tier1Config(val_samples=10))
    assert len(held) == 10
    texts = [{text.rstrip("?") for text in pool.queries.values()} for pool in (left, held)]
    assert not texts[0] & texts[1]
    assert len(left) == 60 - sum(train.queries[f"q{i}"].rstrip("?") in texts[1] for i in range(60))
