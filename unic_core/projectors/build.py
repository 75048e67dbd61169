"""From the config to the projectors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from unic_core.config import LadderConfig, LinearNormConfig, MLPConfig, ProjectorConfig
from unic_core.errors import UnicError
from unic_core.projectors.base import Projectors, Targets, part_name
from unic_core.projectors.ladder import Ladder
from unic_core.projectors.transformer import TransformerProjectors
from unic_core.tokens import TOKEN_KINDS, TokenKind


def build_projectors(config: ProjectorConfig, targets: Targets, width: int, depth: int, has_blocks: bool) -> Projectors:
    """Projectors from a student of `width` and `depth` blocks to `targets` ({teacher: {kind: width}}).

    Raises UnicError where the config does not fit the student.
    """
    if isinstance(config, LadderConfig):
        hidden = _ladder_hidden(config, depth, has_blocks)
        return Ladder(
            targets, width, hidden, pre_norm=config.pre_norm, mid_norm=config.mid_norm, init_std=config.init_std
        )
    last = depth - 1
    if isinstance(config, MLPConfig):
        return Ladder(
            targets,
            width,
            {last: config.hidden},
            pre_norm=config.pre_norm,
            mid_norm=config.mid_norm,
            init_std=config.init_std,
        )
    if isinstance(config, LinearNormConfig):
        return Ladder(targets, width, {last: config.hidden}, mid_norm=True, bias=False, init_std=config.init_std)
    if width % config.heads:
        raise UnicError(
            f"projector.heads {config.heads} does not divide the student's width {width}: choose a divisor of it"
        )
    return TransformerProjectors(targets, width, config.heads, config.mlp_ratio, config.init_std)


def saved_widths(state: Mapping[str, Tensor], teacher: str) -> dict[TokenKind, int]:
    """{kind: width} of one teacher's tokens, as a state dict of any of our projectors predicts them."""
    widths: dict[TokenKind, int] = {}
    for kind in TOKEN_KINDS:
        last = re.compile(rf"{kind}\.(second\.)?{re.escape(part_name(teacher))}\.weight")
        for key in filter(last.fullmatch, state):
            widths[kind] = len(state[key])
    return widths


def _ladder_hidden(config: LadderConfig, depth: int, has_blocks: bool) -> dict[int, int]:
    """{block number: hidden size} of a ladder."""
    if not has_blocks:
        raise UnicError(
            "projector 'ladder' needs a student with blocks (a ViT), and this backbone has only a final feature map: "
            "use projector.kind mlp, linear_norm or transformer"
        )
    last = depth - 1
    numbers = tuple(range(depth)) if config.blocks is None else config.blocks
    if len(set(numbers)) != len(numbers) or not all(0 <= number < depth for number in numbers):
        raise UnicError(
            f"projector.blocks {list(numbers)} must be different block numbers from 0 to {last}, "
            f"as the student has {depth} blocks"
        )
    if last not in numbers:
        raise UnicError(
            f"projector.blocks {list(numbers)} lacks the student's last block {last}, "
            "which would then never be trained although evaluation uses it: add it"
        )
    return {number: config.hidden_last if number == last else config.hidden for number in numbers}
