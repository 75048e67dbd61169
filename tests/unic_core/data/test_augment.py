from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tests.unic_core.data.conftest import picture
from unic_core.config import AugmentConfig, JitterConfig
from unic_core.data.augment import DeviceAugment, adjust_hue, blur, color_jitter, gaussian_kernel
from unic_core.draw import Draw

ROUNDING = 1 / 255
OFF = JitterConfig(brightness=0, contrast=0, saturation=0, hue=0, p=0)
NOTHING = AugmentConfig(jitter=OFF, grayscale=0, blur=0, solarize=0)


def images(count: int, size: int = 32) -> Tensor:
    """uint8 [count, 3, size, size]: smooth colors with some noise, as photographs have."""
    generator = torch.Generator().manual_seed(4)
    base = torch.stack([torch.from_numpy(np.array(picture(i, size, size))).permute(2, 0, 1) for i in range(count)])
    contrast = torch.rand(count, 3, 1, 1, generator=generator) * 1.5 + 0.3
    noise = torch.randn(base.shape, generator=generator) * 10
    return ((base - 128.0) * contrast + 128 + noise).clamp(0, 255).to(torch.uint8)


def draw(count: int, epoch: int = 0) -> Draw:
    return Draw(3, epoch, torch.arange(count))


def only(**changes: object) -> DeviceAugment:
    return DeviceAugment(NOTHING.model_copy(update=changes))


def test_nothing_asked_is_only_a_conversion() -> None:
    x = images(4)
    assert torch.equal(DeviceAugment(NOTHING)(x, draw(4)), x.float() / 255)


def test_grayscale_is_torchvisions() -> None:
    x = images(4)
    expected = F.rgb_to_grayscale(x.float() / 255, num_output_channels=3)
    assert (only(grayscale=1.0)(x, draw(4)) - expected).abs().max() < 1e-5


def test_solarize_is_torchvisions() -> None:
    x = images(4)
    assert torch.equal(only(solarize=1.0)(x, draw(4)), F.solarize(x.float() / 255, 0.5))


@given(st.lists(st.floats(0.1, 5.0), min_size=3, max_size=3), st.sampled_from([3, 9, 11]))
def test_blur_is_torchvisions(sigmas: list[float], size: int) -> None:
    x = images(3).float() / 255
    blurred = blur(x, gaussian_kernel(torch.tensor(sigmas), size))
    for i, sigma in enumerate(sigmas):
        assert (blurred[i] - F.gaussian_blur(x[i], [size, size], [sigma, sigma])).abs().max() < 1e-5


@given(st.lists(st.floats(-0.5, 0.5), min_size=4, max_size=4))
def test_hue_is_torchvisions(shifts: list[float]) -> None:
    x = images(4).float() / 255
    turned = adjust_hue(x, torch.tensor(shifts))
    for i, shift in enumerate(shifts):
        assert (turned[i] - F.adjust_hue(x[i], shift)).abs().max() < 1e-4


def test_hue_leaves_grays_alone() -> None:
    gray = torch.linspace(0, 1, 64).view(1, 1, 8, 8).expand(2, 3, 8, 8)
    assert torch.equal(adjust_hue(gray, torch.tensor([0.3, -0.2])), gray)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_blends_are_torchvisions(name: str) -> None:
    x = images(16)
    alone = JitterConfig(**{"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "p": 1.0, name: 0.7})
    result = color_jitter(x.float() / 255, alone, draw(16))
    column = ("brightness", "contrast", "saturation").index(name)
    factors = 0.3 + 1.4 * draw(16).uniform("jitter", 4)[:, column]
    adjust = getattr(F, f"adjust_{name}")
    for i, factor in enumerate(factors.tolist()):
        assert (result[i] - adjust(x[i].float() / 255, factor)).abs().max() < 1e-5
        assert (result[i] - adjust(x[i], factor) / 255).abs().max() < 2 * ROUNDING


def test_the_order_of_operations_is_applied_per_image() -> None:
    """Each image equals torchvision's operations in the order that the draw says."""
    count, config = 64, JitterConfig(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=1.0)
    x = images(count).float() / 255
    result = color_jitter(x, config, draw(count))
    uniform = draw(count).uniform("jitter", 4)
    blends = draw(count).uniform("jitter_order", 3).argsort(dim=1).tolist()
    places = (draw(count).uniform("jitter_hue_place")[:, 0] * 4).long().tolist()
    orders = set()
    for i in range(count):
        order = [*blends[i][: places[i]], 3, *blends[i][places[i] :]]
        orders.add(tuple(order))
        expected = x[i]
        for operation in order:
            value = uniform[i, operation].item()
            if operation == 0:
                expected = F.adjust_brightness(expected, 0.6 + 0.8 * value)
            elif operation == 1:
                expected = F.adjust_contrast(expected, 0.6 + 0.8 * value)
            elif operation == 2:
                expected = F.adjust_saturation(expected, 0.8 + 0.4 * value)
            else:
                expected = F.adjust_hue(expected, 0.2 * value - 0.1)
        assert (result[i] - expected).abs().max() < 1e-4
    assert len(orders) > 20, "24 orders occur"


def test_probabilities_are_met() -> None:
    count = 4000
    x = images(1, size=10).expand(count, -1, -1, -1)
    plain = x.float() / 255
    config = AugmentConfig()
    for name, p, changes in (
        ("jitter", 0.8, {"jitter": config.jitter}),
        ("grayscale", 0.2, {"grayscale": 0.2}),
        ("blur", 0.2, {"blur": 0.2}),
        ("solarize", 0.2, {"solarize": 0.2}),
    ):
        difference = (only(**changes)(x, draw(count)) - plain).abs().flatten(1).amax(1)
        changed = (difference > 1e-4).float().mean().item()
        assert abs(changed - p) < 0.03, name


def test_batches_have_the_statistics_of_torchvision() -> None:
    """Moments and quantiles per channel of 600 images against torchvision's transforms, one image at a time."""
    count = 600
    x = images(count)
    reference = v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.GaussianBlur(9, (0.1, 5.0))], p=0.2),
            v2.RandomSolarize(0.5, p=0.2),
        ]
    )
    torch.manual_seed(7)
    theirs = torch.stack([reference(image) for image in x])
    again = torch.stack([reference(image) for image in x])
    ours = DeviceAugment(AugmentConfig())(x, draw(count))
    assert ours.min() >= 0
    assert ours.max() <= 1

    def statistics(batch: Tensor) -> Tensor:
        per_image = batch.flatten(2)
        saturation = batch.amax(1) - batch.amin(1)
        gradient = (batch[..., 1:] - batch[..., :-1]).abs().mean((1, 2, 3))
        rows = [per_image.mean(2).mean(0), per_image.std(2).mean(0), per_image.mean(2).std(0)]
        channels = batch.transpose(0, 1).flatten(1)
        rows += [channels[:, ::7].quantile(q, dim=1) for q in (0.05, 0.25, 0.5, 0.75, 0.95)]
        rows += [torch.stack([saturation.mean(), saturation.std(), gradient.mean()])]
        return torch.cat(rows)

    noise = (statistics(again) - statistics(theirs)).abs().max()
    assert noise < 0.03, "the comparison itself is sharp"
    assert (statistics(ours) - statistics(theirs)).abs().max() < 0.03


@settings(max_examples=20)
@given(st.permutations(list(range(8))), st.integers(0, 5))
def test_an_image_is_augmented_alike_in_every_batch(order: list[int], epoch: int) -> None:
    x, augment = images(8), DeviceAugment(AugmentConfig())
    whole = augment(x, draw(8, epoch))
    rows = torch.tensor(order)
    assert torch.equal(augment(x[rows], Draw(3, epoch, rows)), whole[rows])


def test_epochs_differ() -> None:
    x, augment = images(8), DeviceAugment(AugmentConfig())
    assert not torch.equal(augment(x, draw(8, 0)), augment(x, draw(8, 1)))


def test_empty_batches_pass() -> None:
    empty = torch.empty(0, 3, 16, 16, dtype=torch.uint8)
    assert DeviceAugment(AugmentConfig())(empty, draw(0)).shape == (0, 3, 16, 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_never_waits_for_the_device() -> None:
    x, augment = images(8).cuda(), DeviceAugment(AugmentConfig())
    on_device = draw(8).to("cuda")
    expected = augment(images(8), draw(8))
    augment(x, on_device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = augment(x, on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (result.cpu() - expected).abs().max() < 1e-4
