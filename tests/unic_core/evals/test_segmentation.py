"""Linear segmentation: the score against a naive count, windows, views, and a head that learns what it can learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.unic_core.evals.scenes import color_model, color_scenes
from unic_core.config import SegmentationConfig
from unic_core.data.dataset import ShardedDataset
from unic_core.data.pairs import Pair
from unic_core.data.targets import IGNORE
from unic_core.errors import UnicError
from unic_core.evals.dense import FeatureMap, poly
from unic_core.evals.segmentation import (
    CROPS,
    NUMBERS,
    LinearHead,
    View,
    count_pixels,
    distort,
    evaluate_segmentation,
    mean_iou,
    pixel_loss,
    segment,
    slide,
    starts,
)

SMALL = SegmentationConfig(
    dataset="x", steps=80, batch=4, lr=0.05, warmup=10, short_side=32, long_side=128, crop=32, stride=21
)


# ---------------------------------------------------------------- score


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_mean_iou_is_that_of_sets_of_pixels(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(3):
        target = rng.integers(0, classes, (5, 7))
        target[rng.random((5, 7)) < 0.3] = IGNORE
        images.append((rng.integers(0, classes, (5, 7)), target))
    counts = sum(count_pixels(torch.tensor(p), torch.tensor(t), classes) for p, t in images)
    assert isinstance(counts, Tensor)
    naive = []
    for k in range(classes):
        ours = {(i, y, x) for i, (p, t) in enumerate(images) for y, x in np.argwhere((p == k) & (t != IGNORE))}
        theirs = {(i, y, x) for i, (_, t) in enumerate(images) for y, x in np.argwhere(t == k)}
        if ours | theirs:
            naive.append(len(ours & theirs) / len(ours | theirs))
    assert mean_iou(counts)[0] == pytest.approx(np.mean(naive) if naive else float("nan"), nan_ok=True)


def test_a_class_that_never_occurs_does_not_count() -> None:
    target = torch.tensor([[0, 0, 1]])
    miou, iou = mean_iou(count_pixels(target, target, 3))
    assert miou == 1
    assert bool(iou[2].isnan())


# ---------------------------------------------------------------- training


def test_the_loss_is_a_mean_over_all_pixels_where_unscored_ones_count_as_zero() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    target = torch.randint(0, 3, (2, 4, 4))
    target[0] = IGNORE
    logs = logits.detach()[1].log_softmax(0)
    expected = sum(-float(logs[int(target[1, y, x]), y, x]) for y in range(4) for x in range(4)) / (2 * 16)
    assert float(pixel_loss(logits.detach(), target)) == pytest.approx(expected)
    pixel_loss(logits, target).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad[0].any()


def test_the_loss_has_the_gradient_of_its_values() -> None:
    logits = torch.randn(1, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[[0, 1, 2, IGNORE, 1, 0]] * 4])
    assert torch.autograd.gradcheck(lambda x: pixel_loss(x, target), logits)


def test_the_head_is_batch_norm_and_a_linear_map_of_every_patch() -> None:
    head, x = LinearHead(5, 3), torch.randn(4, 5, 2, 3)
    normed = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    expected = F.linear(normed.movedim(1, -1), head.classify.weight[:, :, 0, 0], head.classify.bias).movedim(-1, 1)
    torch.testing.assert_close(head(FeatureMap(x, torch.zeros(4, 5))), expected)


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    factor = poly(100, 10)
    assert factor(0) == pytest.approx(1e-6)
    assert factor(5) == pytest.approx(0.95 * 0.5, rel=1e-5)
    assert factor(10) == pytest.approx(0.9)
    assert [factor(s) for s in (50, 100)] == [0.5, 0.0]
    assert poly(10, 0)(0) == 1.0


@given(st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=NUMBERS, max_size=NUMBERS))
def test_a_view_is_a_crop_whose_mask_fits_its_image(uniform: list[float]) -> None:
    mask = torch.zeros(30, 50, dtype=torch.int64)
    mask[:, 25:] = 1
    image = (mask * 200).to(torch.uint8).expand(3, -1, -1)
    view = View(SMALL)(Pair(image, mask), [*uniform[: 2 + 2 * CROPS], *[0.9] * 9])  # colors as they are
    assert view.image.shape == (3, 32, 32)
    assert view.target.shape == (32, 32)
    assert set(view.target.unique().tolist()) <= {0, 1, IGNORE}
    scored = view.target != IGNORE
    bright = view.image[0] > 100
    # bilinear and nearest may differ at the one edge, by a pixel of the enlarged image
    assert int((bright != (view.target == 1))[scored].sum()) <= 2 * 32


def test_crops_with_one_large_class_are_drawn_again() -> None:
    mask = torch.zeros(32, 100, dtype=torch.int64)
    mask[:, 84:] = 1
    pair = Pair(torch.zeros(3, 32, 100, dtype=torch.uint8), mask)
    uniform = [1 / 3, *[0.0, 0.0] * 4, *[0.0, 0.999] * 6, 0.9, *[0.9] * 9]  # full size; the fifth crop is half and half
    assert View(SMALL)(pair, uniform).target.float().mean() == 0.5
    assert View(SMALL.model_copy(update={"largest_class": 0.4}))(pair, uniform).target.float().mean() == 0.5
    assert View(SMALL)(pair, [1 / 3, *[0.0, 0.0] * 10, 0.9, *[0.9] * 9]).target.max() == 0


def test_colors_are_distorted_as_much_as_said() -> None:
    image = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    still = [0.9] * 9
    assert distort(image, still).equal(image)
    assert distort(image, [0.1, 1.0, *still[2:]])[0, 0, 0] == 132
    assert distort(image, [*still[:2], 0.1, 0.25, *still[4:]])[0, 0, 0] == 75
    red = torch.tensor([200, 0, 0], dtype=torch.uint8).view(3, 1, 1)
    assert distort(red, [*still[:6], 0.1, 1.0, 0.9])[1, 0, 0] == 120  # hue + 36 degrees: towards yellow
    assert distort(red, [*still[:4], 0.1, 0.0, *still[6:]])[1, 0, 0] > 0  # half the saturation


# ---------------------------------------------------------------- test


@given(st.integers(1, 200), st.integers(1, 50), st.data())
def test_windows_cover_a_side_and_stay_inside(side: int, size: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, size))
    seen = set()
    for start in starts(side, size, stride):
        assert start >= 0
        assert start + size <= side or start == 0
        seen |= set(range(start, min(start + size, side)))
    assert seen == set(range(side))


def test_one_window_over_the_whole_image_is_the_whole_image() -> None:
    model, head = color_model(), LinearHead(3, 4).eval()
    image = torch.randint(0, 256, (3, 32, 24), dtype=torch.uint8)
    whole = F.interpolate(head(model(image[None])), size=(32, 24), mode="bilinear")[0]
    torch.testing.assert_close(slide(model, head, image, 32, 21), whole)
    torch.testing.assert_close(slide(model, head, image, 64, 10), whole)


def test_overlapping_windows_are_averaged() -> None:
    model, head = color_model(), LinearHead(3, 2).eval()
    image = torch.randint(0, 256, (3, 8, 24), dtype=torch.uint8)
    parts = [
        F.interpolate(head(model(image[None, :, :, x : x + 16])), size=(8, 16), mode="bilinear")[0] for x in (0, 8)
    ]
    total = slide(model, head, image, 16, 8)
    torch.testing.assert_close(total[:, :, :8], parts[0][:, :, :8])
    torch.testing.assert_close(total[:, :, 8:16], (parts[0][:, :, 8:] + parts[1][:, :, :8]) / 2)


def test_several_test_scales_average_probabilities() -> None:
    model, head = color_model(), LinearHead(3, 2).eval()
    image = torch.randint(0, 256, (3, 32, 40), dtype=torch.uint8)
    one = segment(model, head, image, SMALL)
    assert one.shape == (32, 40)
    twice = segment(model, head, image, SMALL.model_copy(update={"test_scales": (1.0, 1.0)}))
    assert one.equal(twice)
    larger = SMALL.model_copy(update={"test_scales": (1.0, 1.5)})
    assert segment(model, head, image, larger).shape == (32, 40)


# ---------------------------------------------------------------- the whole


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardedDataset, ShardedDataset]:
    uri = color_scenes(tmp_path_factory.mktemp("scenes"), "mask")
    return ShardedDataset(uri, "train"), ShardedDataset(uri, "test")


def test_a_head_learns_what_the_features_tell(scenes: tuple[ShardedDataset, ShardedDataset]) -> None:
    still = SMALL.model_copy(update={"steps": 150})
    score = evaluate_segmentation(color_model(), *scenes, still, seed=0, workers=0)
    assert (score.metric, score.n_train, score.n_test) == ("miou", 12, 6)
    assert score.value > 0.7  # patches of 8 pixels at edges are all that is wrong
    assert score.low <= score.value <= score.high
    assert score.value == pytest.approx(np.mean([v for k, v in score.details.items() if k.startswith("iou/")]))
    blind = evaluate_segmentation(color_model(blind=True), *scenes, still, seed=0, workers=0)
    assert blind.value < 0.3


def test_the_same_seed_gives_the_same_score(scenes: tuple[ShardedDataset, ShardedDataset]) -> None:
    short = SMALL.model_copy(update={"steps": 5})
    values = [evaluate_segmentation(color_model(), *scenes, short, seed, workers).value
              for seed, workers in ((0, 0), (0, 2), (1, 0))]  # fmt: skip
    assert values[0] == values[1] != values[2]


def test_sets_without_masks_are_refused(scenes: tuple[ShardedDataset, ShardedDataset], tmp_path: Path) -> None:
    other = ShardedDataset(color_scenes(tmp_path, "depth"), "train")
    with pytest.raises(UnicError, match="has no masks"):
        evaluate_segmentation(color_model(), other, scenes[1], SMALL, 0, 0)


def test_a_head_that_diverges_says_so(scenes: tuple[ShardedDataset, ShardedDataset]) -> None:
    wild = SMALL.model_copy(update={"lr": 1e30, "warmup": 0, "steps": 20})
    with pytest.raises(UnicError, match="the head on colors diverged"):
        evaluate_segmentation(color_model(), *scenes, wild, 0, 0)
