"""Several processes give the results of one: embeddings, rankings, every training step, and metrics."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import random_texts, write_model
from processes import ARMS, JOBS, launch, results

from maw.errors import MAWError
from maw.runtime import distributed
from maw.search.exact import top_k
from maw.search.sharded import divide
from maw.training.sharded_batch import owners

QUICK_ARMS = ["lora", "peft_pissa", "full", "maw"]
NO_GRADIENT = "key.bias"  # a softmax does not see it, and Adam makes steps of the rounding of its gradient
SEARCHES = {
    "ties": (20, 700, 40, 128),
    "cut": (5, 130, 130, 64),
    "few": (3, 3, 10, 64),
    "many": (40, 2000, 1, 256),
    "deep": (20, 3000, 500, 128),
}
"""Queries, passages, k and block of each search; see `processes.search`."""


def settings(folder, arms):
    """What the jobs need; batches of 5 divide unevenly, and the last of an epoch has 4."""
    documents = list(dict.fromkeys(random_texts(60, seed=1)))[:40]
    queries = [" ".join(each.split()[:4]) + " file" for each in documents[:24]]
    data = {
        "queries": queries,
        "docs": documents,
        "qrels": {i: {i: 1} for i in range(24)},
        "negatives": {i: [30 + i % 7] for i in range(0, 24, 2)},
    }
    config = {
        "model": str(write_model(folder / "model")),
        "datasets": ["pystdlib"],
        "depth_dim": 4,
        "num_epochs": 4,
        "patience": 0,
        "batch_size": 5,
        "num_negatives": 1,
        "eval_batch_size": 16,
        "grpo_group_size": 3,
        "top_k": 20,
        "permutations": 200,
        "learning_rate": 2e-3,
        "device": "cpu",
        "precision": "float32",
    }
    places = {"cache_dir": str(folder / "cache"), "log_dir": str(folder / "logs")}
    texts = random_texts(37, seed=4)
    return {"data": data, "config": config | places, "arms": arms, "searches": SEARCHES, "texts": texts}


def written(folder, found):
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(found))
    return folder


@pytest.fixture(scope="module")
def two(forks, tmp_path_factory):
    """The settings, what one process gives, and what each of two does."""
    return compared(forks, tmp_path_factory.mktemp("two"), 2, QUICK_ARMS)


def compared(forks, folder, count, arms):
    found = settings(folder, arms)
    together = written(
        folder / "together", found | {"config": found["config"] | {"cache_dir": str(folder / "cache2")}}
    )
    done = launch(forks, count, "encoding,search,train,random", together)
    assert done.returncode == 0, done.stderr
    alone = {job: json.loads(json.dumps(JOBS[job](found, folder))) for job in ("encoding", "search", "train")}
    return found, alone, {job: results(together, job, count) for job in (*alone, "random")}


def check_training(alone, together):
    for arm, one in alone["train"].items():
        assert len(one["losses"]) >= 20, arm
        for many in together["train"]:
            got = many[arm]
            np.testing.assert_allclose(got["losses"], one["losses"], atol=1e-5, rtol=0, err_msg=arm)
            for name, values in one["per_query"].items():
                np.testing.assert_allclose(got["per_query"][name], values, atol=1e-4, err_msg=f"{arm} {name}")
            for record, expected in zip(got["history"], one["history"]):
                assert record == pytest.approx(expected, abs=1e-4), arm
            state, expected = ({n: v for n, v in each["state"].items() if NO_GRADIENT not in n} for each in (got, one))
            assert state == pytest.approx(expected, abs=1e-3), arm
        first, *others = (many[arm] for many in together["train"])
        for other in others:  # to the last bit: they would else drift apart
            assert other["state"] == first["state"] and other["losses"] == first["losses"], arm
            assert other["per_query"] == first["per_query"], arm


def check_encoding(alone, together):
    for many in together["encoding"]:
        for name, one in alone["encoding"].items():
            np.testing.assert_allclose(many[name]["embeddings"], one["embeddings"], atol=2e-6, err_msg=name)
            assert many[name]["depth_share"] == one["depth_share"]
            assert many[name]["from_cache"] == (name == "baseline second")
            assert many[name] == together["encoding"][0][name]


def test_every_step_of_two_processes_is_that_of_one(two):
    _, alone, together = two
    check_training(alone, together)


def test_two_processes_encode_what_one_encodes(two):
    _, alone, together = two
    check_encoding(alone, together)


def test_each_process_has_its_random_numbers_back(two):
    first, second = two[2]["random"]
    assert first["drawn"] == first["again"] != second["drawn"] == second["again"]


def test_two_processes_rank_as_one_does_ties_included(two):
    _, alone, together = two
    for many in together["search"]:
        assert many == alone["search"]
    for name, (queries, passages, k, _) in SEARCHES.items():
        scores = np.array(alone["search"][name]["scores"])
        assert scores.shape == (queries, min(k, passages))
        if name in ("ties", "many"):
            assert k == 1 or (scores[:, :-1] == scores[:, 1:]).any(), "there are ties to decide"


# ----------------------------------------------------------------------------------------------------- the parts of it


def test_texts_are_divided_evenly_in_every_part():
    random = np.random.default_rng(0)
    for parts in ([7], [5, 9], [3, 0], [1, 1], [32, 32]):
        lengths = random.integers(1, 200, sum(parts))
        for count in (1, 2, 3, 4, 8):
            owner = owners(lengths, parts, count)
            assert set(owner) <= set(range(count))
            start = 0
            for size in parts:
                of_part = np.bincount(owner[start : start + size], minlength=count)
                assert of_part.max() - of_part.min() <= 1
                start += size
    tokens = np.bincount(owners(lengths, [32, 32], 4), weights=lengths)
    assert tokens.max() < 1.2 * tokens.mean()


@pytest.mark.parametrize("count", [2, 4, 8])
def test_two_four_or_eight_processes_have_equally_many_blocks(count):
    for passages in (200_000, 1_000_000, 8_841_823):
        size, parts = divide(passages, 16_384, count)
        assert len({-(-(part.stop - part.start) // size) for part in parts}) == 1 and 16_384 * 0.75 < size <= 16_384


@pytest.mark.parametrize(("passages", "block", "count"), [(1000, 128, 3), (65, 16384, 2), (3, 64, 4), (10_000, 64, 7)])
def test_the_parts_of_a_corpus_are_whole_blocks(passages, block, count):
    size, parts = divide(passages, block, count)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])] and parts[-1].stop == passages
    assert all(part.start % size == 0 or part.start == passages for part in parts)
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= size + passages % size


def test_with_one_process_nothing_is_done():
    ran = []
    with distributed.session() as place, distributed.main_first():
        assert place == distributed.ProcessInfo() == distributed.this_process() and distributed.is_main()
        assert not distributed.is_distributed() and distributed.any_process(True, False) == [True, False]
        values = torch.arange(3)
        assert distributed.gathered(values)[0] is values and distributed.all_reduce_sum_(values) is values
        distributed.main_only(ran.append)(1)
        distributed.barrier()
    assert ran == [1] and not torch.distributed.is_initialized() and distributed.end_process(3) == 3


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "0"}, {"RANK": "x", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, {"RANK": "2", "MASTER_ADDR": "a"}],
)
def test_a_launcher_that_says_half_of_it_is_refused(monkeypatch, environment):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MAWError, match="torchrun"):
        distributed.launched()
    assert distributed.rank_said() == 0


def test_shared_search_with_one_process_is_the_search(two):
    found = two[1]["search"]["ties"]
    random = np.random.default_rng(0)
    documents = random.integers(-2, 3, size=(700, 8)).astype(np.float32)
    asked = torch.from_numpy(random.integers(-2, 3, size=(20, 8)).astype(np.float32))
    scores, rows = top_k(asked, documents, 40, random.permutation(700))
    assert rows.tolist() == found["rows"] and scores.tolist() == found["scores"]


@pytest.mark.faults
@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_arm_with_more_processes(forks, tmp_path, count):
    _, alone, together = compared(forks, tmp_path, count, list(ARMS))
    check_training(alone, together)
    check_encoding(alone, together)
    assert all(many == alone["search"] for many in together["search"])
