"""Every width gets an orthogonal matrix; the widths of real backbones get a flat one."""

from __future__ import annotations

import pytest
import torch

from unic_core.hadamard import hadamard


@pytest.mark.parametrize("n", [*range(1, 41), 48, 84, 100, 192])
def test_is_orthogonal(n: int) -> None:
    matrix = hadamard(n)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)
    assert matrix.square().max() <= 2 / n + 1e-12


@pytest.mark.parametrize("n", [1, 2, 4, 12, 20, 28, 36, 44, 60, 112, 192, 320, 384, 768, 1024, 1152, 1280, 1408])
def test_entries_of_common_widths_are_flat(n: int) -> None:
    matrix = hadamard(n)
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, n**-0.5), rtol=0, atol=1e-15)
    gram = matrix.float() @ matrix.float().T
    torch.testing.assert_close(gram, torch.eye(n), rtol=0, atol=1e-5)
