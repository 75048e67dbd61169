"""One transformer block per teacher on the last block's tokens, then a linear map per token kind (DUNE, CVPR 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import Block
from torch import nn

from unic_core.projectors.base import Projectors, Targets, init_linear, part_name
from unic_core.tokens import Features, Tokens


class TransformerProjectors(Projectors):
    """A pre-norm block of the student's width over [cls; patches], shared by both kinds of a teacher."""

    def __init__(
        self, targets: Targets, width: int, heads: int, mlp_ratio: float = 4.0, init_std: float = 0.02
    ) -> None:
        super().__init__(targets)
        self.blocks = nn.ModuleDict()
        self.cls = nn.ModuleDict()
        self.patch = nn.ModuleDict()
        for teacher, widths in self.targets.items():
            name = part_name(teacher)
            self.blocks[name] = Block(width, heads, mlp_ratio, qkv_bias=True)
            for kind, out in widths.items():
                getattr(self, kind)[name] = nn.Linear(width, out)
        init_linear(self, init_std)

    def forward(self, blocks: Sequence[Tokens]) -> Features:
        """See Projectors.forward."""
        last = blocks[-1]
        sequence = torch.cat([last.cls[:, None], last.patch], dim=1)
        features: Features = {}
        for teacher, widths in self.targets.items():
            name = part_name(teacher)
            x = self.blocks[name](sequence)
            tokens = Tokens(x[:, 0], x[:, 1:])
            features[teacher] = {kind: getattr(self, kind)[name](tokens.of(kind)) for kind in widths}
        return features
