"""Exact search against a numpy sort of all scores, especially for equal scores."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from maw.errors import MAWError
from maw.search import exact as search
from maw.search.exact import top_k
from maw.search.sort_keys import NOTHING, pack, scores_of, ties_of


def reference(queries: np.ndarray, passages: np.ndarray, k: int, ties: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorts everything: float32 score descending, then tie order ascending."""
    scores = (queries.astype(np.float64) @ passages.astype(np.float64).T).astype(np.float32)
    rows = np.stack([np.lexsort((ties, -row)) for row in scores])[:, :k]
    return np.take_along_axis(scores, rows, 1), rows


def whole_numbers(seed: int, queries: int, passages: int, size: int, largest: int) -> tuple[np.ndarray, ...]:
    """Embeddings of small whole numbers: their products are exact, and most scores tie."""
    random = np.random.default_rng(seed)
    return (
        random.integers(-largest, largest + 1, (queries, size)).astype(np.float32),
        random.integers(-largest, largest + 1, (passages, size)).astype(np.float32),
        random.permutation(passages),
    )


def is_exact(queries: np.ndarray, passages: np.ndarray, k: int, ties: np.ndarray, **options: int) -> bool:
    """Whether scores and rows are those of the reference, to the last bit, and of the types that are promised."""
    expected_scores, expected_rows = reference(queries, passages, k, ties)
    scores, rows = top_k(torch.from_numpy(queries), passages, k, ties, **options)
    types = (scores.dtype, rows.dtype) == (torch.float32, torch.int64)
    return types and np.array_equal(rows.numpy(), expected_rows) and np.array_equal(scores.numpy(), expected_scores)


@pytest.mark.parametrize("largest", [0, 1, 3, 50])
@pytest.mark.parametrize("k", [1, 2, 7, 63, 64, 65, 200])
@pytest.mark.parametrize("block", [1, 64, 100, 1000])
def test_ties_at_every_cut_and_across_blocks(largest, k, block):
    assert is_exact(*_with_k(whole_numbers(k + block, 13, 331, 3, largest), k), block=block)


def _with_k(data, k):
    queries, passages, ties = data
    return queries, passages, k, ties


@pytest.mark.parametrize("seed", range(30))
def test_random_shapes(seed):
    random = np.random.default_rng(seed)
    queries, passages, size, k = (int(random.integers(1, top)) for top in (40, 700, 6, 300))
    data = whole_numbers(seed, queries, passages, size, int(random.integers(0, 4)))
    assert is_exact(*_with_k(data, k), block=int(random.integers(1, 300)))


def test_several_tiles_of_queries(monkeypatch):
    monkeypatch.setattr(search, "_QUERIES_PER_TILE", 16)
    monkeypatch.setattr(search, "_ROOM", 3)
    assert is_exact(*_with_k(whole_numbers(3, 75, 500, 4, 1), 20), block=128)


@pytest.mark.parametrize("rising", [True, False])
def test_passages_in_the_order_of_their_scores(rising, monkeypatch):
    """When scores rise every passage reaches the floor, and one block has many times more than a buffer holds."""
    monkeypatch.setattr(search, "_ROOM", 3)
    made = []
    make_room = search.Tile._make_room
    monkeypatch.setattr(search.Tile, "_make_room", lambda *words: made.append(1) or make_room(*words))
    passages = np.repeat(np.arange(1000, dtype=np.float32), 3)[:: 1 if rising else -1, None].copy()
    queries, ties = np.ones((20, 1), dtype=np.float32), np.random.default_rng(2).permutation(3000)
    assert is_exact(queries, passages, 50, ties, block=1500)
    assert bool(made) is rising


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_queries_and_change_nothing(threads):
    random = np.random.default_rng(11)
    queries, passages = (torch.from_numpy(random.standard_normal((n, 384), dtype=np.float32)) for n in (70, 3000))
    expected = top_k(queries, passages, 40, np.arange(3000), block=512)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = top_k(queries, passages, 40, np.arange(3000), block=512)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("threads", [1, 2])
def test_it_may_be_asked_in_any_mode(threads):
    queries, passages, ties = whole_numbers(14, 40, 3000, 5, 2)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            made_there = torch.from_numpy(queries) + 0
            scores, rows = top_k(made_there, passages, 30, ties, block=512)
        learning = torch.from_numpy(queries).requires_grad_()
        again = top_k(learning, passages, 30, ties, block=512)
    finally:
        torch.set_num_threads(before)
    expected_scores, expected_rows = reference(queries, passages, 30, ties)
    np.testing.assert_array_equal(rows.numpy(), expected_rows)
    np.testing.assert_array_equal(scores.numpy(), expected_scores)
    assert torch.equal(again[1], rows) and not again[0].requires_grad


def test_real_numbers():
    random = np.random.default_rng(5)
    queries, passages = (random.standard_normal((n, 32)).astype(np.float32) for n in (20, 2000))
    scores, rows = top_k(torch.from_numpy(queries), passages, 100, np.arange(2000), block=300)
    expected_scores, _ = reference(queries, passages, 100, np.arange(2000))
    np.testing.assert_allclose(scores.numpy(), expected_scores, atol=1e-5)
    exact = np.einsum("qc,qkc->qk", queries, passages[rows.numpy()])
    np.testing.assert_allclose(scores.numpy(), exact, atol=1e-5)
    assert all(len(set(row)) == 100 for row in rows.numpy().tolist())


@pytest.mark.parametrize("queries", [1, 7, 33])
@pytest.mark.parametrize("block", [64, 1000, 16_384])
def test_copies_of_a_passage_score_the_same_wherever_they_stand(queries, block):
    random = np.random.default_rng(7)
    passages = random.standard_normal((3011, 100)).astype(np.float32)
    copies = random.permutation(3011)[:400]
    passages[copies] = 2 * passages[copies[0]]
    ties = random.permutation(3011)
    scores, rows = top_k(torch.from_numpy(passages[copies[:1]].repeat(queries, 0)), passages, 300, ties, block=block)
    assert (scores == scores[:, :1]).all()
    np.testing.assert_array_equal(rows.numpy(), np.tile(copies[ties[copies].argsort()][:300], (queries, 1)))


def test_memory_map_is_only_read(tmp_path):
    queries, passages, ties = whole_numbers(1, 9, 700, 5, 2)
    np.save(tmp_path / "passages.npy", passages)
    mapped = np.load(tmp_path / "passages.npy", mmap_mode="r")
    assert is_exact(queries, mapped, 50, ties, block=128)


def test_half_precision_passages_are_scored_in_float32():
    queries, passages, ties = whole_numbers(2, 5, 300, 8, 3)
    scores, rows = top_k(torch.from_numpy(queries), passages.astype(np.float16), 30, ties)
    np.testing.assert_array_equal(rows.numpy(), reference(queries, passages, 30, ties)[1])
    assert scores.dtype == torch.float32


def test_more_asked_than_there_are():
    assert is_exact(*_with_k(whole_numbers(4, 3, 17, 2, 1), 1000))


def test_nothing_to_search_or_to_ask():
    scores, rows = top_k(torch.ones(3, 4), np.empty((0, 4), dtype=np.float32), 10, np.empty(0, dtype=np.int64))
    assert scores.shape == rows.shape == (3, 0)
    scores, rows = top_k(torch.empty(0, 4), torch.ones(30, 4), 10, np.arange(30))
    assert len(scores) == len(rows) == 0


def test_zeros_of_both_signs_are_equal():
    passages = np.array([[0.0], [-0.0], [0.0], [-0.0], [-1.0]], dtype=np.float32)
    scores, rows = top_k(torch.tensor([[1.0]]), passages, 3, np.array([3, 2, 1, 0, 4]))
    assert rows.tolist() == [[3, 2, 1]]
    assert not torch.signbit(scores).any()


def test_keys_sort_like_scores_and_come_back():
    values = torch.tensor([-3.4e38, -1.5, -1e-45, 0.0, 1e-45, 1e-38, 1.0, 1.0000001, 3.4e38])
    for tie in (0, 5, 2**32 - 1):
        keys = pack(values, torch.full_like(values, tie, dtype=torch.int64))
        assert torch.equal(keys.sort().values, keys)
        assert torch.equal(scores_of(keys), values)
        assert (ties_of(keys) == tie).all() and (keys > NOTHING).all()


def test_a_wrong_tie_order_is_caught():
    queries, passages, ties = whole_numbers(6, 10, 400, 3, 1)
    _, rows = top_k(torch.from_numpy(queries), passages, 50, ties.max() - ties, block=64)
    assert not np.array_equal(rows.numpy(), reference(queries, passages, 50, ties)[1])


def test_if_only_what_beats_the_floor_were_kept_the_wrong_passages_would_make_the_cut(monkeypatch):
    reaching, calls = search.reaching, []

    def careless(scores, floor):
        calls.append(len(scores))
        return reaching(scores, floor if len(calls) == 1 else floor.nextafter(torch.tensor(torch.inf)))

    monkeypatch.setattr(search, "reaching", careless)
    queries, passages, ties = whole_numbers(6, 10, 400, 3, 1)
    scores, rows = top_k(torch.from_numpy(queries), passages, 50, ties, block=128)
    expected_scores, expected_rows = reference(queries, passages, 50, ties)
    np.testing.assert_array_equal(scores.numpy(), expected_scores)
    assert not np.array_equal(rows.numpy(), expected_rows)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_embedding_that_is_not_finite_is_named(value):
    queries, passages, ties = whole_numbers(8, 6, 500, 4, 2)
    broken = queries.copy()
    broken[4, 2] = value
    with pytest.raises(MAWError, match=r"query row 4\b"):
        top_k(torch.from_numpy(broken), passages, 10, ties, block=64)
    passages[311, 0] = value
    with pytest.raises(MAWError, match=r"passage row 311\b"):
        top_k(torch.from_numpy(queries), passages, 10, ties, block=64)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_score_beyond_float32_is_named(sign):
    queries = torch.tensor([[1.0], [sign * 1e30]])
    passages = torch.ones(100, 1)
    passages[70] = 1e30
    with pytest.raises(MAWError, match="query row 1 and passage row 70 is beyond float32"):
        top_k(queries, passages, 5, np.arange(100), block=64)


def test_large_finite_scores_pass():
    scores, rows = top_k(torch.tensor([[1e19]]), torch.tensor([[1e19], [2e19]]), 1, np.arange(2))
    assert rows.tolist() == [[1]] and scores[0, 0] == np.float32(2e38)


def test_faster_arithmetic_allowed_for_training_is_not_used_and_is_left_allowed():
    queries, passages = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), torch.eye(64)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores, rows = top_k(queries, passages, 64, np.arange(64))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(scores, queries.gather(1, rows))


@pytest.mark.parametrize(
    ("queries", "passages", "k", "ties", "block"),
    [
        ((2, 3), (5, 4), 1, range(5), 8),
        ((2, 3), (5, 3), 0, range(5), 8),
        ((2, 3), (5, 3), 1, range(4), 8),
        ((2, 3), (5, 3), 1, range(-1, 4), 8),
        ((2, 3), (5, 3), 1, range(5), 0),
        ((3,), (5, 3), 1, range(5), 8),
    ],
)
def test_arguments_that_do_not_fit(queries, passages, k, ties, block):
    with pytest.raises(ValueError, match="must"):
        top_k(torch.zeros(queries), torch.zeros(passages), k, np.array(ties), block=block)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees():
    queries, passages, ties = whole_numbers(9, 50, 3000, 6, 2)
    scores, rows = top_k(torch.from_numpy(queries).cuda(), passages, 100, ties, block=500)
    expected_scores, expected_rows = reference(queries, passages, 100, ties)
    np.testing.assert_array_equal(rows.numpy(), expected_rows)
    np.testing.assert_array_equal(scores.numpy(), expected_scores)


@pytest.mark.parametrize("columns", [11, 512, 700, 4095, 4096])
@pytest.mark.parametrize("k", [1, 10, 100, 600])
def test_at_least_k_scores_reach_the_first_floor_and_few_more(columns, k):
    scores = torch.randn(64, columns, generator=torch.Generator().manual_seed(0))
    scores[:, 1::2] = scores[:, ::2][:, : columns // 2]  # equal ones
    if k < columns:
        reach = (scores >= search.floor(scores, k)[:, None]).sum(1)
        assert (reach >= k).all() and reach.float().mean() <= 2.5 * k + 2


def test_the_first_floor_takes_a_fraction_of_the_scores_memory():
    scores = torch.randn(512, 4096, generator=torch.Generator().manual_seed(0))
    tracemalloc.start()
    try:
        found = search.floor(scores, 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found <= scores.topk(10).values[:, -1]).all()
    assert peak < scores.nbytes / 4, "the maxima of groups of eight, and a number of Python's for each row"
