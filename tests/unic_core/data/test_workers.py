"""Processes that load data: whose mistake it was."""

from __future__ import annotations

import pytest
from torch.utils.data import Dataset

from unic_core.data.workers import in_workers


class Mistaken(Dataset[int]):
    """Cannot load anything."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> int:
        raise self._error


@pytest.mark.parametrize(
    ("error", "workers"),
    [(RuntimeError("bad shape"), 1), (EOFError("half a file"), 1), (OSError("no space left"), 0)],
)
def test_a_mistake_of_the_data_set_is_not_called_a_killed_worker(error: Exception, workers: int) -> None:
    with pytest.raises(type(error), match=str(error)):
        next(in_workers(Mistaken(error), workers))
