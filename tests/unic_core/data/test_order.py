from __future__ import annotations

import time
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unic_core.data.order import epoch_order, locate

SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=4)


@given(SIZES, st.integers(0, 2**31 - 1), st.integers(0, 999), st.integers(1, 40), st.integers(1, 20))
def test_an_epoch_is_a_permutation(sizes: list[int], seed: int, epoch: int, chunk: int, window: int) -> None:
    order = epoch_order(sizes, [1.0] * len(sizes), seed, epoch, chunk, window)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(sum(sizes)))


@given(SIZES, st.data(), st.integers(0, 9))
def test_weights_are_passes(sizes: list[int], data: st.DataObject, epoch: int) -> None:
    weights = [data.draw(st.floats(0.01, 3.5)) for _ in sizes]
    order = epoch_order(sizes, weights, 0, epoch, chunk=8)
    assert len(set(order.tolist())) == len(order), "repeated passes have numbers of their own"
    numbers, indices = locate(order, sizes)
    for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        times = Counter(indices[numbers == number].tolist())
        whole = int(weight)
        assert all(0 <= index < size for index in times)
        assert all(times[index] in (whole, whole + 1) for index in range(size))
        assert sum(times.values()) == whole * size + round((weight - whole) * size)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = epoch_order([1000], [1.0], 1, 2)
    assert np.array_equal(first, epoch_order([1000], [1.0], 1, 2))
    assert not np.array_equal(first, epoch_order([1000], [1.0], 1, 3))
    assert not np.array_equal(first, epoch_order([1000], [1.0], 2, 2))


def test_the_fraction_changes_between_epochs() -> None:
    seen = {n for epoch in range(20) for n in epoch_order([1000], [0.3], 0, epoch).tolist()}
    assert len(seen) > 900


def test_chunks_stay_inside_their_window_and_are_spread_over_the_epoch() -> None:
    chunk, window, n = 32, 16, 32 * 1600
    order = epoch_order([n], [1.0], 0, 0, chunk, window)
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    windows = place // (chunk * window)
    assert (windows.reshape(-1, chunk) == windows.reshape(-1, chunk)[:, :1]).all()
    correlation = np.corrcoef(order, np.arange(n))[0, 1]
    assert abs(correlation) < 0.1
    within = order[: chunk * window] // chunk
    assert (within[1:] != within[:-1]).mean() > 0.8, "chunks of a window are mixed"


def test_imagenet_takes_less_than_a_second() -> None:
    start = time.process_time()
    epoch_order([1_281_167], [1.0], 22, 7)
    assert time.process_time() - start < 1.0


@given(SIZES)
def test_locate_inverts_the_numbering(sizes: list[int]) -> None:
    numbers, indices = locate(np.arange(2 * sum(sizes)), sizes)
    expected = [(d, i) for d, size in enumerate(sizes) for i in range(size)] * 2
    assert list(zip(numbers.tolist(), indices.tolist(), strict=True)) == expected
