"""What every projector has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import nn

from unic_core.tokens import Features, TokenKind, Tokens

# {teacher: {token kind: width of the teacher's tokens}}
Targets = Mapping[str, Mapping[TokenKind, int]]


class Projectors(nn.Module, ABC):
    """All teachers' projectors. The direct children are the parts that the cost table shows."""

    def __init__(self, targets: Targets) -> None:
        super().__init__()
        self.targets = {teacher: dict(widths) for teacher, widths in targets.items()}

    @abstractmethod
    def forward(self, blocks: Sequence[Tokens]) -> Features:
        """Predict the standardized tokens of every teacher, of the kinds in `targets`, from the student's blocks.

        blocks: one entry per block of the student, cls [B, D] and patch [B, N, D].
        Returns {teacher: {cls: [B, D_t], patch: [B, N, D_t]}}, in autocast's dtype if there is one.
        """


def part_name(teacher: str) -> str:
    """A module name for a teacher: never an attribute's name, and without the dot that modules may not have."""
    return "to-" + teacher.replace(".", "/")


def init_linear(module: nn.Module, std: float) -> None:
    """Truncated-normal weights and zero biases for every linear map inside `module`."""
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            nn.init.trunc_normal_(linear.weight, std=std)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
