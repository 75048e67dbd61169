"""Position embeddings on another grid."""

from __future__ import annotations

import torch

from unic_core.backbone import resize_position_embedding


def test_offset_keeps_prefix_table_type_and_gradient() -> None:
    table = torch.randn(1, 2 + 9, 8, dtype=torch.bfloat16, requires_grad=True)
    assert resize_position_embedding(table, (3, 3), (3, 3), 2) is table
    resized = resize_position_embedding(table, (3, 3), (5, 4), 2)
    assert resized.shape == (1, 22, 8)
    assert resized.dtype == torch.bfloat16
    assert torch.equal(resized[:, :2], table[:, :2])
    torch.autograd.backward(resized.sum())
    assert table.grad is not None
