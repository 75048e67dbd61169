"""Features are computed once, survive the disk unchanged, and damaged files are not believed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unic_core.errors import UnicError
from unic_core.evals.features import extract
from unic_core.evals.store import FeatureKey, FeatureStore
from unic_core.tokens import Tokens

KEY = FeatureKey("ab" * 32, "0123456789abcdef", "test", 8, "both", "fp32")
LABELS = torch.arange(7)


def tokens(images: Tensor) -> Tokens:
    return Tokens(images.mean((2, 3)), images.flatten(2).transpose(1, 2))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for n in (4, 3):
        images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
        yield images, torch.zeros(n)


def test_stored_features_are_those_of_extract(tmp_path: Path) -> None:
    store = FeatureStore(str(tmp_path / "root"), tmp_path / "cache")
    assert store.load(KEY, LABELS) is None
    written = store.compute(KEY, LABELS, tokens, batches(), "cpu")
    assert torch.equal(written.x, extract(tokens, batches(), "both").x)
    read = FeatureStore(str(tmp_path / "root"), tmp_path / "cache").load(KEY, LABELS)
    assert read is not None
    assert torch.equal(read.x, written.x)
    assert torch.equal(read.y, LABELS)
    assert [path.name for path in (tmp_path / "root").rglob("*") if path.is_file()] == [Path(KEY.name).name]


@pytest.mark.parametrize(
    "change", [{"sha256": "cd" * 32}, {"split": "train"}, {"pixels": 16}, {"token": "cls"}, {"precision": "bf16"}]
)
def test_anything_that_features_depend_on_is_in_the_key(change: dict[str, object], tmp_path: Path) -> None:
    store = FeatureStore(str(tmp_path), tmp_path / "cache")
    store.compute(KEY, LABELS, tokens, batches(), "cpu")
    assert store.load(replace(KEY, **change), LABELS) is None  # type: ignore[arg-type]


def test_a_damaged_file_is_not_used(tmp_path: Path) -> None:
    store = FeatureStore(str(tmp_path), tmp_path / "cache")
    store.compute(KEY, LABELS, tokens, batches(), "cpu")
    path = tmp_path / KEY.name
    path.write_bytes(path.read_bytes()[:-8])
    assert store.load(KEY, LABELS) is None
    assert store.load(KEY, LABELS[:3]) is None


def test_an_interrupted_extraction_leaves_nothing(tmp_path: Path) -> None:
    store = FeatureStore(str(tmp_path), tmp_path / "cache")
    with pytest.raises(UnicError, match="7 images were read where 9 are expected"):
        store.compute(KEY, torch.arange(9), tokens, batches(), "cpu")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
