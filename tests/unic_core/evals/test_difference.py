"""Intervals of differences: against resampling image by image, their coverage, and when they may be paired."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unic_core.evals.bootstrap import bootstrap_accuracy
from unic_core.evals.difference import Difference, difference, mean_difference, other_images, pack_hits, unpack_hits
from unic_core.evals.results import ResultRow


def row(correct: NDArray[np.bool_], fingerprint: str = "f", split: str = "test", hits: bool = True) -> ResultRow:
    tensor = torch.from_numpy(correct)
    low, high = bootstrap_accuracy(tensor, seed=0)
    top1 = float(tensor.double().mean())
    return ResultRow(
        model="m", role="teacher", dataset="d", protocol="logreg", top1=top1, ci_low=low, ci_high=high,
        mean_class_accuracy=top1, n_test=len(correct), dataset_fingerprint=fingerprint, test_split=split,
        hits=pack_hits(tensor) if hits else "",
    )  # fmt: skip


def pair(n: int, only_one: float, only_other: float, seed: int = 0) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two models that agree on most images."""
    kind = np.random.default_rng(seed).choice(4, n, p=[only_one, only_other, 0.6, 0.4 - only_one - only_other])
    return np.isin(kind, [0, 2]), np.isin(kind, [1, 2])


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_hits_survive_their_text(values: list[bool]) -> None:
    correct = np.array(values)
    found = unpack_hits(row(correct))
    assert found is not None
    assert found.tolist() == values


def test_paired_interval_equals_the_bootstrap_over_images_and_is_narrower() -> None:
    one, other = pair(1000, 0.05, 0.02)
    found = difference(row(one), row(other))
    assert found is not None
    assert found.paired
    chosen = np.random.default_rng(1).integers(0, 1000, (10_000, 1000))
    means = one[chosen].mean(1) - other[chosen].mean(1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.002)
    apart = difference(row(one), row(other, hits=False))
    assert apart is not None
    assert not apart.paired
    assert apart.value == found.value
    assert apart.high - apart.low > 2 * (found.high - found.low)
    assert (found.verdict, apart.verdict) == ("better", "even")


def test_several_seeds_are_averaged_image_by_image() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.random((3, 500)) < 0.8, rng.random((2, 500)) < 0.7
    rows = []
    for correct in (one, other):
        top1 = float(correct.mean())
        hits = pack_hits(torch.from_numpy(correct))
        rows.append(row(correct[0]).model_copy(update={"top1": top1, "ci_low": 0.0, "ci_high": 1.0, "hits": hits}))
    shares = unpack_hits(rows[0])
    assert shares is not None
    assert np.allclose(shares, one.mean(0))
    found = difference(rows[0], rows[1])
    assert found is not None
    assert found.paired
    chosen = rng.integers(0, 500, (10_000, 500))
    means = (one.mean(0) - other.mean(0))[chosen].mean(1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.003)


def test_both_intervals_cover_the_truth_in_about_95_of_100_cases() -> None:
    paired = apart = 0
    for seed in range(200):
        one, other = pair(400, 0.10, 0.05, seed)
        a, b = row(one), row(other)
        found = difference(a, b)
        assert found is not None
        paired += found.low <= 0.05 <= found.high
        _, stranger = pair(400, 0.10, 0.05, seed + 1000)
        found = difference(a, row(stranger, "g"))
        assert found is not None
        assert not found.paired
        apart += found.low <= 0.05 <= found.high
    assert 180 <= paired <= 199
    assert 180 <= apart <= 199


@given(n=st.integers(2, 300), seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_a_difference_lies_in_its_interval_and_turns_around(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = row(rng.random(n) < 0.7), row(rng.random(n) < 0.4)
    for one, other in ((a, b), (a, b.model_copy(update={"hits": ""}))):
        there, back = difference(one, other), difference(other, one)
        assert there is not None
        assert back is not None
        assert there.low <= there.value <= there.high
        assert there.value == -back.value
        turned = {"better": "worse", "worse": "better", "even": "even"}
        assert back.verdict == turned[there.verdict] or min(abs(there.low), abs(there.high)) < 0.02


def test_only_rows_about_the_same_images_are_paired() -> None:
    one, other = pair(80, 0.2, 0.1)
    a = row(one)
    for b in (
        row(other, fingerprint="g"),
        row(other, split="val"),
        row(other, hits=False),
        row(other).model_copy(update={"hits": "!"}),
        row(other).model_copy(update={"hits": pack_hits(torch.from_numpy(~other))}),  # of another top-1
        row(other).model_copy(update={"hits": pack_hits(torch.from_numpy(other[:40]))}),
    ):
        found = difference(a, b)
        assert found is not None
        assert not found.paired
    assert other_images(a, row(other, fingerprint="g"))
    assert not other_images(a, row(other))
    assert not other_images(a, row(other, fingerprint=""))


def test_what_was_not_measured_has_no_difference() -> None:
    failed = ResultRow(model="m", role="teacher", dataset="d", protocol="logreg", error="broken")
    assert difference(failed, row(np.array([True]))) is None
    assert difference(row(np.array([True])), None) is None
    assert mean_difference([]) is None


def test_a_mean_over_sets_is_narrower_than_its_parts() -> None:
    parts = [Difference(0.02, 0.0, 0.04, True), Difference(0.04, 0.02, 0.06, False)] * 2
    mean = mean_difference(parts)
    assert mean is not None
    assert mean.value == pytest.approx(0.03)
    assert (mean.low, mean.high) == pytest.approx((0.02, 0.04))  # 0.02 / sqrt(4)
    assert mean.verdict == "better"
    assert not mean.paired
