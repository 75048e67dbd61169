from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from unic_core.teachers.folding import fold_batch_norms


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch norms as after training: nothing is 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                assert tensor is not None
                tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
            for tensor in (module.bias, module.running_mean):
                assert tensor is not None
                tensor.data = torch.randn(tensor.shape, generator=generator) * 0.1
    return model.eval()


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet10t", "mobilenetv3_small_050"])
def test_folding_changes_the_norms_and_not_the_features(name: str) -> None:
    model = with_statistics(timm.create_model(name, num_classes=0))
    images = torch.randn(2, 3, 64, 64)
    folded = fold_batch_norms(model, images)
    left, had = (sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (folded, model))
    assert left < had / 2  # a stem may keep its last convolution and its norm in different modules
    with torch.no_grad():
        before, after = model.forward_features(images), folded.forward_features(images)
    assert torch.allclose(before, after, rtol=0, atol=1e-4 * float(before.abs().max()))


class Misleading(nn.Module):
    """The norm stands behind the convolution, but runs before it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.convolution(self.norm(x))
        return y


def test_a_network_that_folding_would_change_is_left_alone() -> None:
    model = with_statistics(Misleading())
    assert fold_batch_norms(model, torch.randn(2, 3, 8, 8)) is model


def test_a_network_without_batch_norms_is_left_alone() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0).eval()
    assert fold_batch_norms(model, torch.randn(1, 3, 32, 32)) is model
