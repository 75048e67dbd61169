"""Is one result better than another beyond chance? Intervals of differences between rows."""

from __future__ import annotations

import base64
import binascii
import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unic_core.evals.bootstrap import RESAMPLES
from unic_core.evals.results import ResultRow

Verdict = Literal["better", "even", "worse"]
_LEVEL = 0.95
_SEED = 0  # of the resamples: the same rows always give the same interval


class Difference(NamedTuple):
    """`value` in [-1, 1] with its 95 % interval; `paired`: over the same test images, image by image."""

    value: float
    low: float
    high: float
    paired: bool

    @property
    def verdict(self) -> Verdict:
        """`even` when the interval holds 0."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "even"


def pack_hits(correct: Tensor) -> str:
    """Which test images were right as text: eight images a byte, base64.

    correct: [n] bool in the order of the data set, or [S, n] with one line per seed.
    """
    return base64.b64encode(np.packbits(correct.cpu().numpy().astype(bool), axis=-1).tobytes()).decode()


def unpack_hits(row: ResultRow) -> NDArray[np.float64] | None:
    """[n_test]: the share of seeds that had each image right, 0 or 1 for a single seed.

    None where the row has no hits, or has others than those its top-1 is made of.
    """
    if row.top1 is None or not row.hits or not row.n_test:
        return None
    try:
        packed = np.frombuffer(base64.b64decode(row.hits, validate=True), np.uint8)
    except binascii.Error:
        return None
    line = math.ceil(row.n_test / 8)
    if len(packed) == 0 or len(packed) % line:
        return None
    hits = np.unpackbits(packed.reshape(-1, line), axis=-1, count=row.n_test).astype(np.float64).mean(0)
    return hits if math.isclose(float(hits.mean()), row.top1, abs_tol=1e-9) else None


def difference(one: ResultRow | None, other: ResultRow | None) -> Difference | None:
    """Top-1 of `one` minus that of `other`; None where either was not measured.

    Both measured on the same images, and known image by image: paired bootstrap. Images that both get right, or both
    wrong, cancel, so that it is narrower. Otherwise the two intervals are combined as those of independent
    measurements (Newcombe 1998, method 10: `d - sqrt((p1 - l1)^2 + (u2 - p2)^2)`), which is too wide rather than too
    narrow where the images are the same.
    """
    if one is None or other is None or one.top1 is None or other.top1 is None:
        return None
    value = one.top1 - other.top1
    if same_images(one, other):
        own, theirs = unpack_hits(one), unpack_hits(other)
        if own is not None and theirs is not None:
            return Difference(value, *_paired(own, theirs), True)
    (l1, u1), (l2, u2) = _interval(one), _interval(other)
    low = value - math.hypot(one.top1 - l1, u2 - other.top1)
    high = value + math.hypot(u1 - one.top1, other.top1 - l2)
    return Difference(value, low, high, False)


def same_images(one: ResultRow, other: ResultRow) -> bool:
    """Whether both rows are known to be about the same test images."""
    known = bool(one.dataset_fingerprint) and one.n_test > 0
    about = [(row.dataset_fingerprint, row.test_split, row.n_test) for row in (one, other)]
    return known and about[0] == about[1]


def other_images(one: ResultRow, other: ResultRow) -> bool:
    """Whether both rows are known to be about different test images."""
    known = all(row.dataset_fingerprint and row.n_test > 0 for row in (one, other))
    return known and not same_images(one, other)


def mean_difference(differences: Sequence[Difference]) -> Difference | None:
    """Mean over data sets, whose images are independent of each other; None over no data sets."""
    k = len(differences)
    if k == 0:
        return None
    value = sum(d.value for d in differences) / k
    low = value - math.sqrt(sum((d.value - d.low) ** 2 for d in differences)) / k
    high = value + math.sqrt(sum((d.high - d.value) ** 2 for d in differences)) / k
    return Difference(value, low, high, all(d.paired for d in differences))


def _paired(own: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile bootstrap over images. Few values occur, so resamples are drawn as their multinomial counts."""
    values, counts = np.unique(np.round(own - theirs, 9), return_counts=True)
    return _resampled(tuple(values.tolist()), tuple(counts.tolist()))


@functools.lru_cache(maxsize=1024)  # a report asks for the same pair several times
def _resampled(values: tuple[float, ...], counts: tuple[int, ...]) -> tuple[float, float]:
    """Interval of the mean of `values` that occurred `counts` times each."""
    n = sum(counts)
    drawn = np.random.default_rng(_SEED).multinomial(n, np.array(counts) / n, RESAMPLES)
    low, high = np.quantile(drawn @ np.array(values) / n, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def _interval(row: ResultRow) -> tuple[float, float]:
    """The row's interval, stretched to hold its value."""
    top1 = row.top1 or 0.0
    return min(top1, row.ci_low if row.ci_low is not None else top1), max(
        top1, row.ci_high if row.ci_high is not None else top1
    )
