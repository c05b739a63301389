"""A first look in bfloat16: its bound against float64, and results that are those without it, to the last bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from maw.errors import MAWError
from maw.search import candidates, look, rounding
from maw.search import exact as search
from maw.search.exact import top_k
from maw.search.look import FirstLook, exact_shapes, reaching_marks, score_pairs
from maw.search.rounding import RoundedBlock, largest_error, marks, rounded

QUERIES, PASSAGES, SIZE, BLOCK, TOP = 40, 8000, 64, 1024, 20
needs_exact_shapes = pytest.mark.skipif(
    not exact_shapes(QUERIES, BLOCK, SIZE), reason="products of few queries have other bits here"
)


def numbers(kind: str, seed: int, count: int, size: int = SIZE) -> np.ndarray:
    """Embeddings, float32 (count, size), of one kind of difficulty."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((count, size))
    centres = np.random.default_rng(99).standard_normal((5, size))
    if kind == "clustered":
        values = centres[random.integers(0, 5, count)] + 0.2 * values
    elif kind == "copies":
        values = values[random.integers(0, max(1, count // 3), count)]
    elif kind == "near ties":
        values[: count // 2] = centres[0] * (1 + 1e-6 * values[: count // 2])
    elif kind == "lengths":
        values *= np.exp(random.standard_normal((count, 1)))
    elif kind == "whole":
        values = random.integers(-2, 3, (count, size))
    elif kind == "one side":  # all scores far from zero, and of one sign with the queries of this kind
        values = np.abs(values)
    elif kind == "sparse":
        values *= random.random((count, size)) < 0.1
        values[:: count // 4] = 0
    elif kind == "halfway":  # as far from a number of bfloat16 as can be, all on one side
        values = np.exp2(random.integers(-1, 2, (count, size))) * (1 + 2.0**-8 - 2.0**-22)
    elif kind != "normal":
        values *= float(kind)
    return values.astype(np.float32)


KINDS = ["normal", "clustered", "copies", "near ties", "lengths", "whole", "one side", "sparse", "halfway"]
SCALES = ["1e15", "1e-12", "1e-19", "1e-30"]


@pytest.fixture
def looks(monkeypatch):
    """What came of each first look of a tile, in order."""
    seen = []

    def add(self, *words, real=FirstLook.add):
        seen.append(real(self, *words))
        return seen[-1]

    monkeypatch.setattr(FirstLook, "add", add)
    return seen


def block_of(values: torch.Tensor) -> RoundedBlock:
    each = rounded(values)
    return RoundedBlock(each.values, float(each.length.amax()), float(each.distance.amax()))


def both(queries: np.ndarray, passages: np.ndarray, k: int = TOP, **options: int) -> bool:
    """Whether results with and without a first look have the same bits."""
    ties = np.random.default_rng(5).permutation(len(passages))
    with_look, without = (
        top_k(torch.from_numpy(queries), passages, k, ties, scan=scan, **{"block": BLOCK} | options)
        for scan in ("bfloat16", "float32")
    )
    return torch.equal(with_look[0], without[0]) and torch.equal(with_look[1], without[1])


# ----------------------------------------------------------------------------------------------------------- results


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("queries", ["normal", "one side", "whole"])
@pytest.mark.parametrize("passages", KINDS + SCALES)
def test_results_are_those_without_a_look(passages, queries, seed):
    assert both(numbers(queries, seed, QUERIES), numbers(passages, seed + 50, PASSAGES))


@pytest.mark.parametrize("seed", range(25))
def test_shapes_and_kinds_drawn_at_random(seed):
    random = np.random.default_rng(seed)
    count, passages, size, k = (int(random.integers(1, top)) for top in (60, 4000, 90, 120))
    first, second = random.choice(KINDS + SCALES, 2)
    data = numbers(first, seed, count, size), numbers(second, seed + 1, max(passages, 4), size)
    assert both(*data, k, block=int(random.integers(64, 1500)))


@needs_exact_shapes
@pytest.mark.parametrize("kind", ["normal", "clustered", "lengths", "halfway"])
def test_the_look_is_used(kind, looks):
    assert both(numbers("normal", 0, QUERIES), numbers(kind, 1, 16 * BLOCK))
    assert sum(looks) >= 8


@needs_exact_shapes
def test_negative_scores_too(looks):
    passages = numbers("one side", 1, PASSAGES)
    assert both(-numbers("one side", 0, QUERIES), passages)
    assert top_k(-numbers("one side", 0, QUERIES), passages, TOP, np.arange(PASSAGES))[0].amax() < 0
    assert any(looks)


@needs_exact_shapes
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads, looks):
    queries, passages = numbers("normal", 0, 70), numbers("normal", 1, PASSAGES)
    expected = top_k(queries, passages, TOP, np.arange(PASSAGES), block=BLOCK, scan="float32")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = top_k(queries, passages, TOP, np.arange(PASSAGES), block=BLOCK, scan="bfloat16")
    finally:
        torch.set_num_threads(before)
    assert any(looks) and torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def misleading() -> tuple[np.ndarray, np.ndarray]:
    """One passage is best, but it and the queries are rounded down, and in bfloat16 the second best seems better."""
    query = np.full(60, 1 + 2.0**-8 - 2.0**-22)  # rounded: 1
    passages = np.ones((PASSAGES, 60))
    passages[:, 0] = -(np.arange(PASSAGES) % 64) / 8
    passages[10, 0] = 1 + 28 / 128  # scores 60.454, in bfloat16 60.25
    passages[4321] = query * (1 - 2.0**-16)  # scores 60.468, in bfloat16 60
    return query[None].repeat(QUERIES, 0).astype(np.float32), passages.astype(np.float32)


@needs_exact_shapes
def test_an_error_in_the_bound_would_be_seen(monkeypatch, looks):
    monkeypatch.setattr(look, "_MOST_PAIRS", 1.0)
    queries, passages = misleading()
    assert both(queries, passages, 1) and any(looks)
    monkeypatch.setattr(look, "largest_error", lambda *words: largest_error(*words) / 4)
    assert not both(queries, passages, 1)


# -------------------------------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1, 7, 64, 384])
@pytest.mark.parametrize("kind", KINDS + SCALES)
def test_the_bound_holds_in_float64_and_the_mark_as_computed(kind, size, seed):
    queries, passages = (torch.from_numpy(numbers(kind, 2 * seed + i, n, size)) for i, n in enumerate((16, 512)))
    sides, block = rounded(queries), block_of(passages)
    error_R = largest_error(sides, block)
    exact = queries.double() @ passages.double().T
    rounded_exact = sides.values.double() @ block.values.double().T
    assert ((exact - rounded_exact).abs() <= error_R[:, None]).all()
    scores, looked = queries @ passages.T, sides.values @ block.values.T
    for column in range(0, 512, 37):  # if such a score were the floor, it would still be found
        floor_R = scores[:, column]
        assert (looked[:, column].float() >= marks(floor_R, error_R)).all()
        reached = torch.zeros_like(scores, dtype=torch.bool)
        reached.view(-1)[reaching_marks(looked, marks(floor_R, error_R))] = True
        assert reached[scores >= floor_R[:, None]].all()


def test_the_bound_is_nearly_reached():
    values = torch.from_numpy(numbers("halfway", 0, 16) * 0 + np.float32(1 + 2.0**-8 - 2.0**-22))
    error_R = largest_error(rounded(values), block_of(values))
    missed = (values.double() @ values.double().T - SIZE).amax(1)
    assert (missed > 0.97 * error_R).all() and (missed <= error_R).all()


def test_lengths_and_distances_are_no_less_than_the_real_ones():
    for kind in KINDS + SCALES:
        values = torch.from_numpy(numbers(kind, 3, 300))
        each = rounded(values)
        assert (each.length >= values.double().norm(dim=1)).all()
        assert (each.distance >= (values.double() - each.values.double()).norm(dim=1)).all()
        assert torch.equal(each.values, values.bfloat16())


def test_there_is_no_bound_beyond_float32():
    for kind in ("1e25", "3e38"):
        huge = numbers("normal", 0, 16).clip(-1, 1) * np.float32(kind)
        assert not largest_error(rounded(torch.from_numpy(huge)), block_of(torch.ones(4, SIZE))).isfinite().any()


def test_marks_are_rounded_down_to_bfloat16():
    floor = torch.tensor([1.0, 1.00390625, 1.5, -1.0, -1.00390625, 0.0, 1e-39, -torch.inf])
    mark = marks(floor, torch.zeros(8, dtype=torch.float64))
    assert torch.equal(mark.bfloat16().float(), mark)
    assert (mark <= floor).all()
    inner = mark[:5]
    step = torch.where(inner < 0, 2.0**-6, 2.0**-7)
    assert (floor[:5] - inner <= step).all()
    assert mark[5] <= 0 and mark[6] <= 0 and mark[7] == -torch.inf


def test_zero_of_either_sign_reaches_zero():
    scores = torch.tensor([[0.0, -0.0, -1.0, 1.0]], dtype=torch.bfloat16)
    assert reaching_marks(scores, torch.zeros(1)).tolist() == [0, 1, 3]


@pytest.mark.parametrize("seed", range(5))
def test_marks_of_any_sign_are_compared_as_numbers(seed):
    scores = torch.from_numpy(numbers("normal", seed, 70)).bfloat16()
    for mark in (scores[:, 3].float(), (scores[:, 3].abs() + 0.01).float(), -scores[:, 3].float().abs()):
        expected = (scores.float() >= mark[:, None]).flatten().nonzero()[:, 0]
        assert torch.equal(reaching_marks(scores, mark), expected)


def test_too_many_are_not_all_looked_for():
    scores = torch.ones(200, 50)
    assert len(candidates.reaching(scores, torch.zeros(200))) == 200 * 50
    assert 100 < len(candidates.reaching(scores, torch.zeros(200), 100)) < 200 * 50


# ------------------------------------------------------------------------------------------------------- scoring again


@needs_exact_shapes
@pytest.mark.parametrize("share", [0.001, 0.03, 0.5])
@pytest.mark.parametrize(("rows", "columns", "size"), [(16, 192, 7), (40, 1024, 64), (72, 2048, 100), (24, 4096, 384)])
def test_pairs_have_the_bits_of_the_whole_product(rows, columns, size, share):
    queries, passages = (torch.from_numpy(numbers("normal", i, n, size)) for i, n in enumerate((rows, columns)))
    seen = columns - 60  # a last block is padded
    whole = (queries @ passages.T)[:, :seen]
    pairs = (torch.rand(rows, seen, generator=torch.Generator().manual_seed(0)) < share).flatten().nonzero()[:, 0]
    shapes = exact_shapes(rows, columns, size)
    for own in [shapes, *({group: widths} for group, widths in shapes.items())]:
        assert torch.equal(score_pairs(queries, passages, pairs, seen, own), whole.reshape(-1)[pairs])


def test_no_pairs():
    none = torch.empty(0, dtype=torch.int64)
    assert score_pairs(torch.ones(16, 3), torch.ones(64, 3), none, 64, {16: (128,)}).shape == (0,)


def test_shapes_whose_bits_differ_are_refused(monkeypatch):
    def equal(left, right, real=torch.equal):
        return real(left, right) and left.shape[0] >= 8 and left.shape[1] >= 512

    exact_shapes.cache_clear()
    monkeypatch.setattr(torch, "equal", equal)
    shapes = exact_shapes(16, 640, 8)
    exact_shapes.cache_clear()
    assert set(shapes) <= {8, 16} and all(min(widths) >= 512 for widths in shapes.values())


def test_where_no_shape_is_exact_nothing_is_looked_at(monkeypatch, looks):
    monkeypatch.setattr(search, "exact_shapes", lambda *shape: {})
    assert both(numbers("normal", 0, QUERIES), numbers("normal", 1, PASSAGES)) and not looks


@needs_exact_shapes
def test_other_bits_would_be_seen(monkeypatch, looks):
    def nearly(*words, real=score_pairs):
        scores = real(*words)
        return scores + scores.abs() * 2.0**-24

    monkeypatch.setattr(look, "score_pairs", nearly)
    assert not both(numbers("normal", 0, QUERIES), numbers("normal", 1, PASSAGES)) and any(looks)


# ------------------------------------------------------------------------------------------------------------- limits


@pytest.fixture
def products(monkeypatch):
    """The tiles that were multiplied in bfloat16."""
    seen = []

    def scores(self, worker, tile, real=FirstLook._scores):
        seen.append(tile)
        return real(self, worker, tile)

    monkeypatch.setattr(FirstLook, "_scores", scores)
    return seen


@needs_exact_shapes
def test_where_most_scores_nearly_tie_looks_become_rare(products, looks):
    near = (1 + 1e-4 * numbers("normal", seed, count) for seed, count in enumerate((QUERIES, 40 * 256)))
    assert both(*near, block=256)
    assert not any(looks)
    assert products and len(products) <= 1 + 4  # the sample, and blocks 1, 5, 12 and 25 of 40


@needs_exact_shapes
def test_a_sample_in_bfloat16_promises_no_more_than_there_is(monkeypatch):
    searches = []

    def best_keys(*words, real=search.best_keys):
        searches.append(words)
        return real(*words)

    monkeypatch.setattr(search, "best_keys", best_keys)
    centres = np.random.default_rng(2).standard_normal((50, SIZE))
    tight = [numbers("normal", seed, count) * 0.01 for seed, count in enumerate((QUERIES, 20_000))]
    tight = [(each + np.resize(centres, each.shape)).astype(np.float32) for each in tight]
    for data in [tight, (tight[0], numbers("normal", 1, 20_000)), (tight[0], numbers("one side", 1, 20_000))]:
        searches.clear()
        top_k(*data, 200, np.arange(20_000), block=BLOCK, scan="bfloat16")
        assert len(searches) == 1


def memory_of(passages: int, monkeypatch) -> list[int]:
    kept = []

    def keep(self, *words, real=FirstLook.__init__):
        real(self, *words)
        kept.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(FirstLook, "__init__", keep)
        assert both(numbers("normal", 0, QUERIES), numbers("normal", 1, passages))
    return sorted(each.numel() for each in kept[-1].memory.values())


@needs_exact_shapes
def test_memory_is_one_block_and_one_tile(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        few, many = (memory_of(count * BLOCK, monkeypatch) for count in (4, 16))
    finally:
        torch.set_num_threads(before)
    assert few == many == sorted([QUERIES * BLOCK, BLOCK * SIZE])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_embedding_that_is_not_finite_is_named(value):
    queries, passages = numbers("normal", 0, QUERIES), numbers("normal", 1, PASSAGES)
    passages[4711, 3] = value
    with pytest.raises(MAWError, match=r"passage row 4711\b"):
        top_k(queries, passages, TOP, np.arange(PASSAGES), block=BLOCK, scan="bfloat16")
    queries[21, 3] = value
    with pytest.raises(MAWError, match=r"query row 21\b"):
        top_k(queries, passages, TOP, np.arange(PASSAGES), block=BLOCK, scan="bfloat16")


def test_a_score_beyond_float32_is_named():
    queries, passages = numbers("normal", 0, QUERIES), numbers("normal", 1, PASSAGES)
    queries[21], passages[4711] = 1e19, 1e19
    with pytest.raises(MAWError, match="query row 21 and passage row 4711 is beyond float32"):
        top_k(queries, passages, TOP, np.arange(PASSAGES), block=BLOCK, scan="bfloat16")


def test_large_embeddings_of_finite_scores_are_ranked():
    queries, passages = numbers("normal", 0, QUERIES), numbers("normal", 1, PASSAGES)
    passages[::7] *= np.float32(1e30)
    assert both(queries * np.float32(1e-30), passages)
    assert both(queries * np.float32(3e37), passages * np.float32(1e-35))


# ------------------------------------------------------------------------------------------------------- when it looks


@pytest.mark.parametrize(
    ("speed", "queries", "passages", "looked"),
    [(5.0, 128, 4096, True), (1.0, 128, 4096, False), (5.0, 127, 4096, False), (5.0, 128, 512, False)],
)
def test_by_itself_it_looks_where_that_pays(speed, queries, passages, looked, monkeypatch, looks):
    monkeypatch.setattr(search, "bfloat16_speed", lambda device: speed)
    top_k(numbers("normal", 0, queries, 128), numbers("normal", 1, passages, 128), 5, np.arange(passages), block=256)
    assert bool(looks) == (looked and bool(exact_shapes(queries, 256, 128)))


@pytest.mark.parametrize(
    ("left", "right"), [(np.float16, np.float32), (np.float32, np.float16), (np.float64, np.float32)]
)
def test_only_float32_is_looked_at(left, right, looks):
    queries, passages = numbers("normal", 0, QUERIES).astype(left), numbers("normal", 1, PASSAGES).astype(right)
    top_k(queries, passages, TOP, np.arange(PASSAGES), block=BLOCK, scan="bfloat16")
    assert not looks


def test_on_other_devices_it_does_not_look():
    elsewhere = torch.empty(2, 3, device="meta")
    assert not search._can_look(elsewhere, torch.empty(5, 3)) and not search._can_look(
        np.empty((2, 3), np.float32), elsewhere
    )
    assert search._can_look(torch.empty(2, 3), np.empty((5, 3), np.float32))


def test_an_unknown_scan_is_refused():
    with pytest.raises(ValueError, match="scan must be one of auto, float32, bfloat16, not 'int8'"):
        top_k(torch.zeros(2, 3), torch.zeros(5, 3), 1, np.arange(5), scan="int8")


def test_the_unit_of_the_bound_is_twice_that_of_float32():
    assert rounding.UNIT == torch.finfo(torch.float32).eps and math.log2(rounding.SMALLEST) == -126
