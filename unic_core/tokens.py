"""What flows between student, projectors and teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:  # the config needs the names alone, and reading a config should not load torch
    from torch import Tensor

TokenKind = Literal["cls", "patch"]
TOKEN_KINDS: tuple[TokenKind, ...] = ("cls", "patch")

# {teacher: {token kind: tensor}}; `cls` is [B, D] and `patch` is [B, N, D], D being the teacher's width.
Features: TypeAlias = "dict[str, dict[TokenKind, Tensor]]"


class Tokens(NamedTuple):
    """The tokens of one block (or of one backbone): `cls` [B, D], `patch` [B, N, D]."""

    cls: Tensor
    patch: Tensor

    def of(self, kind: TokenKind) -> Tensor:
        """The tensor of one token kind."""
        return self.cls if kind == "cls" else self.patch
