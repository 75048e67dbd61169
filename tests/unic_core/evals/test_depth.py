"""Linear depth: bins, losses and measures against their formulas, views, and a head that learns what it can learn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.unic_core.evals.scenes import color_model, color_scenes
from unic_core.config import DepthConfig
from unic_core.data.dataset import ShardedDataset
from unic_core.data.pairs import Pair
from unic_core.errors import UnicError
from unic_core.evals.dense import FeatureMap
from unic_core.evals.depth import (
    MEASURES,
    NUMBERS,
    SOFT_START,
    BinHead,
    View,
    depth_loss,
    evaluate_depth,
    gradient_loss,
    measure,
    predict_depth,
    recolor,
    sig_loss,
)

SMALL = DepthConfig(
    dataset="x", steps=250, batch=4, lr=0.3, crop=(32, 40), border=None, test_area=None, bins=16, largest=5.0
)
LATE = SOFT_START


# ---------------------------------------------------------------- head


def test_the_head_is_the_published_one() -> None:
    """Tokens with the cls token beside each are enlarged by 4, then weighed; we weigh first, which is the same."""
    head = BinHead(5 + 3, SMALL)
    torch.nn.init.normal_(head.weigh.weight)
    patch, cls = torch.randn(2, 5, 3, 4), torch.randn(2, 3)
    tokens = torch.cat([patch, cls[:, :, None, None].expand(2, 3, 3, 4)], 1)
    large = F.interpolate(tokens, scale_factor=4, mode="bilinear", align_corners=False)
    weights = head.weigh(large).relu() + 0.1
    bins = torch.linspace(1e-3, 5.0, 16)
    expected = (weights * bins.view(1, 16, 1, 1)).sum(1) / weights.sum(1)
    torch.testing.assert_close(head(FeatureMap(patch, cls)), expected)


def test_without_evidence_all_bins_weigh_the_same() -> None:
    head = BinHead(4, SMALL)
    torch.nn.init.zeros_(head.weigh.weight)
    depth = head(FeatureMap(torch.randn(1, 2, 1, 1), torch.randn(1, 2))).detach()
    assert float(depth.mean()) == pytest.approx((5.0 + 1e-3) / 2)


# ---------------------------------------------------------------- losses


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=20))
def test_sig_loss_is_its_formula(values: list[float]) -> None:
    expected = math.sqrt(max(np.var(values, ddof=1) + 0.15 * np.mean(values) ** 2, 1e-12))
    assert float(sig_loss(torch.tensor(values, dtype=torch.float64), LATE)) == pytest.approx(expected)
    soft = math.sqrt(max(0.15 * np.mean(values) ** 2, 1e-12))
    assert float(sig_loss(torch.tensor(values, dtype=torch.float64), LATE - 1)) == pytest.approx(soft)


def test_a_wrong_scale_costs_less_than_a_wrong_shape() -> None:
    shift, shape = torch.full((100,), 0.5), torch.tensor([0.5, -0.5] * 50)
    assert float(sig_loss(shift, LATE)) < float(sig_loss(shape, LATE))
    assert float(gradient_loss(shift.view(1, 10, 10), torch.ones(1, 10, 10, dtype=torch.bool))) == 0


def test_gradient_loss_is_the_sum_of_slopes_between_known_pixels() -> None:
    rng = np.random.default_rng(0)
    d, known = rng.normal(size=(2, 14, 15)), rng.random((2, 14, 15)) < 0.8
    expected = 0.0
    for step in (1, 2, 4, 6):
        e, m = d[:, ::step, ::step], known[:, ::step, ::step]
        total = 0.0
        for b, y, x in np.argwhere(m):
            if y + 2 < m.shape[1] and m[b, y + 2, x]:
                total += abs(e[b, y, x] - e[b, y + 2, x])
            if x + 2 < m.shape[2] and m[b, y, x + 2]:
                total += abs(e[b, y, x] - e[b, y, x + 2])
        expected += total / m.sum()
    assert float(gradient_loss(torch.tensor(d), torch.tensor(known))) == pytest.approx(expected)


def test_the_loss_has_the_gradient_of_its_values_and_ignores_unknown_depths() -> None:
    target = torch.rand(2, 8, 8, dtype=torch.float64) * 4 + 0.5
    target[0, :4] = 0
    target[1, :, 6:] = 9  # beyond the largest
    predicted = torch.rand(2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: depth_loss(x + 1, target, 5.0, LATE), predicted)
    changed = target.clone()
    changed[1, :, 6:] = 7
    value = float(depth_loss(predicted.detach() + 1, target, 5.0, LATE))
    assert value == float(depth_loss(predicted.detach() + 1, changed, 5.0, LATE))


def test_a_batch_without_any_depth_costs_nothing() -> None:
    predicted = torch.ones(1, 2, 2, requires_grad=True)
    loss = depth_loss(predicted, torch.zeros(1, 4, 4), 5.0, LATE)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert predicted.grad is not None
    assert not predicted.grad.any()


def test_a_perfect_prediction_has_a_finite_gradient() -> None:
    predicted = torch.full((1, 4, 4), 2.0, requires_grad=True)
    depth_loss(predicted, torch.full((1, 4, 4), 2.0), 5.0, 0).backward()  # type: ignore[no-untyped-call]
    assert predicted.grad is not None
    assert bool(predicted.grad.isfinite().all())


# ---------------------------------------------------------------- measures


def test_measures_are_their_formulas_on_the_scored_area() -> None:
    rng = np.random.default_rng(0)
    p, t = rng.uniform(0.5, 4, (10, 12)), rng.uniform(0.5, 4, (10, 12))
    t[2, 3], t[4, 5] = 0, 6  # unknown, too far
    config = SMALL.model_copy(update={"test_area": (1, 9, 2, 10)})
    found = measure(torch.tensor(p), torch.tensor(t), config)
    assert found is not None
    p, t = p[1:9, 2:10], t[1:9, 2:10]
    p, t = p[(t > 0) & (t < 5)], t[(t > 0) & (t < 5)]
    g = np.log(p) - np.log(t)
    ratio = np.maximum(p / t, t / p)
    expected = {
        "rmse": np.sqrt(np.mean((p - t) ** 2)),
        "abs_rel": np.mean(np.abs(p - t) / t),
        "sq_rel": np.mean((p - t) ** 2 / t),
        "log10": np.mean(np.abs(np.log10(p / t))),
        "rmse_log": np.sqrt(np.mean(g**2)),
        "silog": 100 * np.std(g),
        **{f"delta{i}": np.mean(ratio < 1.25**i) for i in (1, 2, 3)},
    }
    assert dict(zip(MEASURES, found.tolist(), strict=True)) == pytest.approx(expected)
    assert measure(torch.tensor(p), torch.zeros(len(p)), SMALL) is None


# ---------------------------------------------------------------- views and predictions


@given(st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=NUMBERS, max_size=NUMBERS))
def test_a_view_keeps_depths_at_their_pixels(uniform: list[float]) -> None:
    depth = torch.ones(40, 50)
    depth[:, 25:] = 2
    image = ((depth - 1) * 200).to(torch.uint8).expand(3, -1, -1)
    view = View(SMALL)(Pair(image, depth), uniform)
    assert view.image.shape == (3, 32, 40)
    assert view.target.shape == (32, 40)
    assert set(view.target.unique().tolist()) <= {0.0, 1.0, 2.0}
    known = view.target > 0  # rotation brings unknown pixels in
    bright = view.image[0] > 100
    assert int((bright != (view.target == 2))[known].sum()) <= 32


def test_the_border_of_the_raw_images_is_not_seen() -> None:
    image = torch.full((3, 480, 640), 255, dtype=torch.uint8)
    image[:, 45:472, 43:608] = 0
    depth = torch.ones(480, 640)
    view = View(DepthConfig(dataset="nyu"))(Pair(image, depth), [0.9] * NUMBERS)
    assert view.image.shape == (3, 416, 544)
    assert int(view.image.max()) == 0


def test_colors_change_within_their_ranges() -> None:
    image = torch.full((3, 2, 2), 128, dtype=torch.uint8)
    assert recolor(image, [0.5] * 5).equal(image)
    assert recolor(image, [0.5, 1.0, 0.5, 0.5, 0.5])[0, 0, 0] == 160
    assert recolor(image, [0.5, 0.5, 1.0, 0.5, 0.0])[:, 0, 0].tolist() == [141, 128, 115]


def test_a_mirrored_image_gets_the_mirrored_depth() -> None:
    model, head = color_model(), BinHead(6, SMALL).eval()
    torch.nn.init.normal_(head.weigh.weight)
    image = torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8)
    found, mirrored = (predict_depth(model, head, x, SMALL) for x in (image, image.flip(-1)))
    assert found.shape == (40, 48)
    torch.testing.assert_close(found, mirrored.flip(-1))


# ---------------------------------------------------------------- the whole


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardedDataset, ShardedDataset]:
    uri = color_scenes(tmp_path_factory.mktemp("scenes"), "depth")
    return ShardedDataset(uri, "train"), ShardedDataset(uri, "test")


def test_a_head_learns_what_the_features_tell(scenes: tuple[ShardedDataset, ShardedDataset]) -> None:
    score = evaluate_depth(color_model(), *scenes, SMALL, seed=0, workers=0)
    blind = evaluate_depth(color_model(blind=True), *scenes, SMALL, seed=0, workers=0)
    assert (score.metric, score.n_train, score.n_test) == ("rmse", 12, 6)
    assert score.low <= score.value <= score.high
    assert score.value < 0.75 * blind.value
    assert score.details["delta1"] > blind.details["delta1"]
    assert score.details["abs_rel"] < blind.details["abs_rel"]


def test_sets_without_depths_are_refused(scenes: tuple[ShardedDataset, ShardedDataset], tmp_path: Path) -> None:
    other = ShardedDataset(color_scenes(tmp_path, "mask"), "train")
    with pytest.raises(UnicError, match="has no depths"):
        evaluate_depth(color_model(), other, scenes[1], SMALL, 0, 0)
    near = SMALL.model_copy(update={"largest": 0.5, "steps": 2})
    with pytest.raises(UnicError, match="no test image"):
        evaluate_depth(color_model(), *scenes, near, 0, 0)
