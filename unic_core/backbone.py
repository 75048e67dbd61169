"""What student and teachers ask of a timm model: its blocks, its stride, its arguments, other position embeddings."""

from __future__ import annotations

import inspect
from functools import lru_cache
from types import MethodType
from typing import Any, cast

import timm
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from unic_core.errors import UnicError

_OFFSET = 0.1  # pixels of the position grid, as in the published model


def is_vit(encoder: Any) -> bool:
    """Is a timm model a stack of blocks of constant width?"""
    return isinstance(encoder, VisionTransformer | Eva | Beit)


def token_stride(encoder: Any, who: str) -> int:
    """Pixels per side of a timm model's patch, or of a cell of its final feature map; UnicError where it is unknown."""
    patch = getattr(getattr(encoder, "patch_embed", None), "patch_size", None)
    if is_vit(encoder) and patch is not None:
        return int(patch[0])
    stages = getattr(encoder, "feature_info", None)
    if not stages:
        raise UnicError(f"{who} does not say how large its patches are, which dense tasks need; choose another model")
    return int(stages[-1]["reduction"])


@lru_cache
def known_arguments(model: str) -> frozenset[str]:
    """The names of all arguments that the constructor of a timm model takes."""
    with torch.device("meta"):
        cls = type(timm.create_model(model, num_classes=0))
    constructors = [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]
    return frozenset(name for constructor in constructors for name in inspect.signature(constructor).parameters)


def resize_position_embedding(table: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int) -> Tensor:
    """Position embeddings [1, prefix + h * w, D] for another grid, as the published model resizes them.

    Bicubic without antialiasing in float32, by the scale factor (new + 0.1) / old, which also shifts the
    sampling points: not what timm does (by size, antialiased). Prefix embeddings are kept.
    """
    if new == old:
        return table
    grid = table[:, prefix:].reshape(1, *old, -1).permute(0, 3, 1, 2).float()
    scale = [(n + _OFFSET) / o for n, o in zip(new, old, strict=True)]
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    return torch.cat([table[:, :prefix], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def use_offset(encoder: Any, model: str) -> None:
    """Resize position embeddings as the published model does, from now on; UnicError where there are none."""
    learned = type(encoder) is VisionTransformer and encoder.pos_embed is not None
    if not learned:
        raise UnicError(
            f"student.position_embedding 'offset' needs a plain ViT with learned position embeddings, "
            f"which {model} is not: set it to 'timm'"
        )
    encoder._pos_embed = MethodType(_embed_with_offset, encoder)


def _embed_with_offset(encoder: Any, patches: Tensor) -> Tensor:
    """Prefix tokens and resized position embeddings around the patches [B, h, w, D] -> [B, P + h * w, D]."""
    batch, height, width, _ = patches.shape
    overlap = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
    position = resize_position_embedding(
        encoder.pos_embed, tuple(encoder.patch_embed.grid_size), (height, width), overlap
    )
    prefix = [t.expand(batch, -1, -1) for t in (encoder.cls_token, encoder.reg_token) if t is not None]
    patches = patches.flatten(1, 2)
    if encoder.no_embed_class:
        tokens = torch.cat([*prefix, patches + position], dim=1)
    else:
        tokens = torch.cat([*prefix, patches], dim=1) + position
    return cast(Tensor, encoder.pos_drop(tokens))
