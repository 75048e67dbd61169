from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unic_core.data.subset import balanced, shuffled, stratified

LABELS = st.lists(st.integers(-1, 5), min_size=1, max_size=200).map(lambda rows: np.array(rows, dtype=np.int64))


@given(LABELS, st.integers(1, 250), st.integers(0, 9))
def test_balanced_takes_classes_equally_as_far_as_they_go(labels: np.ndarray, count: int, seed: int) -> None:
    chosen = balanced(labels, count, seed)
    assert len(chosen) == min(count, len(labels))
    assert (np.diff(chosen) > 0).all()
    classes = np.unique(labels)
    taken = np.array([(labels[chosen] == c).sum() for c in classes])
    there = np.array([(labels == c).sum() for c in classes])
    assert all(t == n or t >= taken.max() - 1 for t, n in zip(taken, there, strict=True))
    assert np.array_equal(chosen, balanced(labels, count, seed))


@given(LABELS, st.floats(0, 1), st.integers(0, 9))
def test_stratified_holds_out_the_share_of_every_class(labels: np.ndarray, share: float, seed: int) -> None:
    rest, held_out = stratified(labels, share, seed)
    assert sorted([*rest, *held_out]) == list(range(len(labels)))
    for c in np.unique(labels):
        assert (labels[held_out] == c).sum() == np.rint((labels == c).sum() * share)


def test_shuffled_is_a_fixed_permutation() -> None:
    assert sorted(shuffled(100, 3)) == list(range(100))
    assert np.array_equal(shuffled(100, 3), shuffled(100, 3))
    assert not np.array_equal(shuffled(100, 3), shuffled(100, 4))
