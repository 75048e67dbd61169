"""Ladders from plain MLPs, as published checkpoints store them: `layers.<i>.{weight,bias}` per head (section 1.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from unic_core.config import LadderConfig
from unic_core.errors import UnicError
from unic_core.projectors.base import part_name
from unic_core.tokens import TOKEN_KINDS, TokenKind

# (teacher, token kind, block number) of a plain MLP, and its weights by name
HeadKey = tuple[str, TokenKind, int]
Heads = Mapping[HeadKey, Mapping[str, Tensor]]


class _Layer(NamedTuple):
    weight: Tensor
    bias: Tensor


class _MLP(NamedTuple):
    """A plain MLP: x -> second(GELU(mid_norm(first(pre_norm(x)))))."""

    first: _Layer
    second: _Layer
    pre_norm: _Layer | None
    mid_norm: _Layer | None


def ladder_state_from_heads(heads: Heads) -> dict[str, Tensor]:
    """The state dict of the Ladder that equals the sum of plain MLPs.

    heads: {(teacher, kind, block): {"layers.<i>.weight": ..., "layers.<i>.bias": ...}}, numbered as in an
    nn.Sequential(pre-norm?, Linear, mid-norm?, GELU, Linear). Teachers keep the order of their first appearance,
    which must be the order of the Ladder's targets. Raises UnicError if the heads do not form one ladder.
    """
    mlps = _parse(heads)
    blocks = sorted({block for _, _, block in heads})
    state: dict[str, Tensor] = {}
    for kind in TOKEN_KINDS:
        teachers = list(dict.fromkeys(t for t, k, _ in heads if k == kind))
        for block in blocks if teachers else []:
            row = [_get(mlps, (teacher, kind, block)) for teacher in teachers]
            prefix = f"{kind}.first.{block}"
            _put(state, prefix, [mlp.first for mlp in row])
            _put(state, f"{prefix}.pre_norm", [mlp.pre_norm for mlp in row if mlp.pre_norm])
            _put(state, f"{prefix}.mid_norm", [mlp.mid_norm for mlp in row if mlp.mid_norm])
        for teacher in teachers:
            column = [_get(mlps, (teacher, kind, block)).second for block in blocks]
            prefix = f"{kind}.second.{part_name(teacher)}"
            state[f"{prefix}.weight"] = torch.cat([layer.weight for layer in column], dim=1)
            state[f"{prefix}.bias"] = torch.stack([layer.bias for layer in column])
    return state


def ladder_config_from_heads(heads: Heads, depth: int) -> tuple[LadderConfig, dict[str, dict[TokenKind, int]]]:
    """Config and targets of the Ladder that `ladder_state_from_heads(heads)` fits, for a student of `depth` blocks."""
    mlps = _parse(heads)
    last = depth - 1
    blocks = sorted({block for _, _, block in heads})
    targets: dict[str, dict[TokenKind, int]] = {}
    sizes: dict[bool, set[int]] = {False: set(), True: set()}
    for (teacher, kind, block), mlp in mlps.items():
        targets.setdefault(teacher, {})[kind] = len(mlp.second.weight)
        sizes[block == last].add(len(mlp.first.weight))
    if max(len(s) for s in sizes.values()) > 1:
        raise UnicError("the projector heads have several hidden sizes besides the last block's: not a ladder")
    example = next(iter(mlps.values()))
    default = LadderConfig()
    config = LadderConfig(
        blocks=None if blocks == list(range(depth)) else tuple(blocks),
        hidden=next(iter(sizes[False]), default.hidden),
        hidden_last=next(iter(sizes[True]), default.hidden_last),
        pre_norm=example.pre_norm is not None,
        mid_norm=example.mid_norm is not None,
    )
    return config, targets


def _parse(heads: Heads) -> dict[HeadKey, _MLP]:
    """Plain weights to MLPs; all of them must have the same norms."""
    if not heads:
        raise UnicError("the checkpoint has no projector heads")
    mlps = {key: _parse_mlp(key, weights) for key, weights in heads.items()}
    if len({(mlp.pre_norm is None, mlp.mid_norm is None) for mlp in mlps.values()}) > 1:
        raise UnicError("some projector heads have norms that others lack: not one ladder")
    return mlps


def _parse_mlp(key: HeadKey, weights: Mapping[str, Tensor]) -> _MLP:
    """Linear layers have matrices, norms have vectors; the order tells which is which."""
    broken = UnicError(f"projector head {key} is not a two-layer MLP: its weights are {sorted(weights)}")
    try:
        numbers = sorted({int(name.split(".")[1]) for name in weights})
        layers = [_Layer(weights[f"layers.{n}.weight"], weights[f"layers.{n}.bias"]) for n in numbers]
    except (KeyError, IndexError, ValueError) as error:
        raise broken from error
    linear = [i for i, layer in enumerate(layers) if layer.weight.ndim == 2]
    if len(linear) != 2 or linear[0] > 1 or linear[1] - linear[0] > 2 or linear[1] != len(layers) - 1:
        raise broken
    first, second = linear
    return _MLP(
        first=layers[first],
        second=layers[second],
        pre_norm=layers[0] if first == 1 else None,
        mid_norm=layers[first + 1] if second - first == 2 else None,
    )


def _get(mlps: Mapping[HeadKey, _MLP], key: HeadKey) -> _MLP:
    if key not in mlps:
        raise UnicError(f"projector head {key} is missing, although other teachers or kinds have that block")
    return mlps[key]


def _put(state: dict[str, Tensor], prefix: str, layers: list[_Layer]) -> None:
    """Stack layers along their outputs."""
    if layers:
        state[f"{prefix}.weight"] = torch.cat([layer.weight for layer in layers])
        state[f"{prefix}.bias"] = torch.cat([layer.bias for layer in layers])
