"""Counter-based randomness: exact values, distribution, and independence of the batch."""

from __future__ import annotations

import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unic_core.draw import Draw

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def _reference(seed: int, epoch: int, sample: int, purpose: str, index: int) -> float:
    key = 0
    for part in (seed, epoch, zlib.crc32(purpose.encode())):
        key = _mix((key + (part + 1) * GOLDEN) & MASK)
    row = _mix((key + sample * GOLDEN) & MASK)
    return (_mix((row + (index + 1) * GOLDEN) & MASK) >> 40) / 2**24


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 10_000),
    samples=st.lists(st.integers(0, 2**40), min_size=1, max_size=5),
    purpose=st.sampled_from(["dropping", "drop_path", "blur"]),
)
def test_numbers_are_those_of_unsigned_splitmix64(seed: int, epoch: int, samples: list[int], purpose: str) -> None:
    numbers = Draw(seed, epoch, torch.tensor(samples)).uniform(purpose, 3)
    expected = [[_reference(seed, epoch, sample, purpose, index) for index in range(3)] for sample in samples]
    assert numbers.tolist() == expected


@settings(max_examples=30, deadline=None)
@given(
    samples=st.lists(st.integers(0, 10**9), min_size=2, max_size=20),
    cut=st.integers(0, 20),
    n=st.integers(1, 5),
    more=st.integers(0, 5),
)
def test_a_sample_s_numbers_do_not_depend_on_its_batch(samples: list[int], cut: int, n: int, more: int) -> None:
    tensor = torch.tensor(samples)
    whole = Draw(1, 2, tensor).uniform("x", n)
    parts = [Draw(1, 2, part).uniform("x", n) for part in (tensor[:cut], tensor[cut:])]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(Draw(1, 2, tensor.flip(0)).uniform("x", n).flip(0), whole)
    assert torch.equal(Draw(1, 2, tensor).uniform("x", n + more)[:, :n], whole)


def test_shape_type_and_range() -> None:
    numbers = Draw(0, 0, torch.arange(10_000, dtype=torch.int32)).uniform("x", 4)
    assert numbers.shape == (10_000, 4)
    assert numbers.dtype == torch.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert Draw(0, 0, torch.arange(0)).uniform("x", 4).shape == (0, 4)


def test_numbers_are_uniform_and_uncorrelated() -> None:
    samples = torch.arange(50_000)
    base = Draw(22, 0, samples).uniform("x", 2)
    histogram = torch.histc(base, bins=20, min=0, max=1) / base.numel()
    deviation = (0.05 * 0.95 / base.numel()) ** 0.5
    torch.testing.assert_close(histogram, torch.full((20,), 0.05), rtol=0, atol=5 * deviation)
    others = [
        Draw(22, 0, samples).uniform("y", 1),
        Draw(22, 1, samples).uniform("x", 1),
        Draw(23, 0, samples).uniform("x", 1),
        Draw(22, 0, samples + 1).uniform("x", 1),
    ]
    correlation = torch.corrcoef(torch.cat([base, *others], dim=1).T.double())
    # five standard deviations of the correlation of independent samples
    torch.testing.assert_close(correlation, torch.eye(6, dtype=torch.float64), rtol=0, atol=5 / 50_000**0.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_another_device_draws_the_same() -> None:
    draw = Draw(3, 4, torch.arange(100))
    moved = draw.to("cuda")
    assert moved.samples.is_cuda
    assert torch.equal(moved.uniform("x", 3).cpu(), draw.uniform("x", 3))
