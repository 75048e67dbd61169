"""The ladder of projectors as fused products against one small MLP per teacher, block and token kind (section 1.2)."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from benchmarks.timing import compare, show
from unic_core.config import LadderConfig
from unic_core.projectors import build_projectors
from unic_core.tokens import TOKEN_KINDS, Tokens


class Plain(nn.Module):
    """The definition, term by term: sum over blocks of MLPs."""

    def __init__(self, teachers: int, width: int, depth: int, hidden: int, hidden_last: int) -> None:
        super().__init__()
        sizes = [hidden] * (depth - 1) + [hidden_last]
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Linear(width, h), nn.GELU(), nn.Linear(h, width)) for h in sizes)
            for _ in range(teachers * len(TOKEN_KINDS))
        )

    def forward(self, blocks: list[Tokens]) -> list[Tensor]:
        kinds = [kind for kind in TOKEN_KINDS for _ in range(len(self.heads) // len(TOKEN_KINDS))]
        return [
            torch.stack([mlp(tokens.of(kind)) for mlp, tokens in zip(head, blocks, strict=True)]).sum(0)
            for kind, head in zip(kinds, self.heads, strict=True)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--teachers", type=int, default=4)
    parser.add_argument("--patches", type=int, default=64)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width, depth = options.width, options.depth
    targets = {f"t{i}": dict.fromkeys(TOKEN_KINDS, width) for i in range(options.teachers)}
    config = LadderConfig(hidden=width, hidden_last=4 * width)
    fused = build_projectors(config, targets, width, depth, has_blocks=True).to(device)
    plain = Plain(options.teachers, width, depth, width, 4 * width).to(device)
    shape = (options.batch, options.patches, width)
    blocks = [Tokens(torch.randn(shape[0], width, device=device), torch.randn(shape, device=device))] * depth

    def run_fused() -> None:
        sum(value.sum() for kinds in fused(blocks).values() for value in kinds.values()).backward()

    def run_plain() -> None:
        sum(value.sum() for value in plain(blocks)).backward()

    title = f"ladder, {options.teachers} teachers, {depth} blocks of width {width}, forward and backward"
    show(title, compare({"one MLP each": run_plain, "fused": run_fused}), options.batch)


if __name__ == "__main__":
    main()
