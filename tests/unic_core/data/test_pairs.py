"""Random pairs for training a dense head: what is drawn depends on seed, pass and image alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unic_core.evals.scenes import color_scenes
from unic_core.data.dataset import ShardedDataset
from unic_core.data.pairs import Pair, crop, flip, pad, place, train_pairs
from unic_core.errors import UnicError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    return ShardedDataset(color_scenes(tmp_path_factory.mktemp("scenes"), "mask"), "train")


def drawn(dataset: ShardedDataset, batch: int, steps: int, seed: int = 0, workers: int = 0) -> list[Pair]:
    """Views that are one pixel of the image and the random number that was drawn for it."""

    def view(pair: Pair, uniform: list[float]) -> Pair:
        return Pair(pair.image[:, :1, :1], torch.tensor([uniform[0], float(pair.target.float().mean())]))

    return list(train_pairs(dataset, view, 1, batch, steps, seed, workers))


def test_every_pass_sees_every_image_once_in_a_new_order(scenes: ShardedDataset) -> None:
    means = torch.cat([pair.target[:, 1] for pair in drawn(scenes, 4, 6)])
    first, second = means[:12], means[12:]
    assert first.sort().values.equal(second.sort().values)
    assert not first.equal(second)


def test_batch_size_and_workers_change_nothing_of_what_is_drawn(scenes: ShardedDataset) -> None:
    whole = torch.cat([pair.target for pair in drawn(scenes, 4, 6)])
    assert whole.equal(torch.cat([pair.target for pair in drawn(scenes, 2, 12)]))
    assert whole.equal(torch.cat([pair.target for pair in drawn(scenes, 4, 6, workers=2)]))
    assert not whole.equal(torch.cat([pair.target for pair in drawn(scenes, 4, 6, seed=1)]))


def test_padding_cropping_and_mirroring_move_image_and_target_together() -> None:
    target = torch.arange(12).view(3, 4)
    pair = Pair(target.to(torch.uint8).expand(3, -1, -1), target)
    color = torch.tensor([7, 8, 9], dtype=torch.uint8)
    padded = pad(pair, 5, 4, color, 255)
    assert padded.target[3:].eq(255).all()
    assert padded.image[:, 4, 0].tolist() == [7, 8, 9]
    assert padded.target[:3].equal(target)
    assert pad(pair, 2, 2, color, 0) is pair
    for moved in (flip(pair), crop(pair, 1, 1, 2, 2)):
        assert moved.image[0].equal(moved.target.to(torch.uint8))
    assert crop(pair, 1, 1, 2, 2).target.tolist() == [[5, 6], [9, 10]]


def test_places_are_spread_evenly() -> None:
    assert [place(u, 3) for u in (0.0, 0.24, 0.26, 0.51, 0.99)] == [0, 0, 1, 2, 3]
    assert place(0.9, 0) == 0


def test_a_missing_shard_is_a_sentence(tmp_path: Path) -> None:
    uri = color_scenes(tmp_path, "mask")
    (Path(uri) / "train-00000.tar").unlink()
    with pytest.raises(UnicError, match=r"train-00000\.tar is missing"):
        drawn(ShardedDataset(uri, "train"), 2, 1)
