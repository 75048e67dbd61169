"""Batch norms of a frozen network, folded into the convolutions before them: the same function, fewer passes.

For y = gamma * (W x + b - mu) / sqrt(var + eps) + beta the factor goes into W and the rest into the bias.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)

_TOLERANCE = 1e-3  # largest difference allowed, as a share of the largest feature


@torch.no_grad()
def fold_batch_norms(model: Any, images: Tensor) -> Any:
    """A copy of `model` without the batch norms that directly follow a convolution.

    Which norm follows which convolution is read off the order of a module's children, which a network may ignore in
    its forward pass. So both versions are compared on `images` [B, 3, H, W] (normalized, float32), and where they
    differ the model is returned as it is.
    """
    folded = copy.deepcopy(model)
    pairs = list(_pairs(folded))
    if not pairs:
        return model
    for parent, name, convolution, norm in pairs:
        _fold(convolution, norm)
        setattr(parent, name, getattr(norm, "act", nn.Identity()))  # timm's norms carry the activation
    before, after = model.forward_features(images), folded.forward_features(images)
    if not torch.allclose(before, after, rtol=0, atol=_TOLERANCE * float(before.abs().max())):
        _log.info("the batch norms of %s are kept: folded they would change the features", type(model).__name__)
        return model
    return folded


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Conv2d, nn.BatchNorm2d]]:
    """(parent, name of the norm, convolution, norm) for every norm that comes right after a convolution."""
    for parent in model.modules():
        children = list(parent.named_children())
        for (_, first), (name, second) in pairwise(children):
            if (
                isinstance(first, nn.Conv2d)
                and isinstance(second, nn.BatchNorm2d)
                and second.track_running_stats
                and first.out_channels == second.num_features
            ):
                yield parent, name, first, second


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None  # noqa: S101 (it tracks statistics)
    assert norm.running_var is not None  # noqa: S101
    gamma = norm.weight if norm.affine else torch.ones_like(norm.running_mean)
    beta = norm.bias if norm.affine else torch.zeros_like(norm.running_mean)
    factor = gamma / (norm.running_var + norm.eps).sqrt()
    bias = convolution.bias if convolution.bias is not None else torch.zeros_like(norm.running_mean)
    convolution.weight = nn.Parameter(convolution.weight * factor.view(-1, 1, 1, 1), requires_grad=False)
    convolution.bias = nn.Parameter((bias - norm.running_mean) * factor + beta, requires_grad=False)
