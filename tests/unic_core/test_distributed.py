"""Collectives: the single-process case, and real gloo groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import start_processes

from unic_core.distributed import all_gather_stack, all_sum, broadcast, rank, together, world_size
from unic_core.errors import UnicError


def test_one_process_needs_no_group() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert (world_size(), rank()) == (1, 0)
    assert torch.equal(all_sum(x), x)
    assert torch.equal(broadcast(x), x)
    assert torch.equal(all_gather_stack(x), x[None])


def test_what_fails_alone_fails_as_it_is() -> None:
    assert together(lambda: 3) == 3
    with pytest.raises(ValueError, match="mine"):
        together(_fail)


def test_results_are_new_tensors_without_gradient() -> None:
    x = torch.ones(3, requires_grad=True)
    for result in (all_sum(x), broadcast(x), all_gather_stack(x)):
        assert not result.requires_grad
        result.zero_()
    assert torch.equal(x, torch.ones(3))


def _check_collectives(number: int, world: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=world)
    assert (world_size(), rank()) == (world, number)
    own = torch.full((2, 3), float(number), dtype=torch.float64).T  # not contiguous
    total = all_sum(own)
    assert torch.equal(total, torch.full((3, 2), sum(range(world)), dtype=torch.float64))
    stack = all_gather_stack(own)
    assert stack.shape == (world, 3, 2)
    assert torch.equal(stack[:, 0, 0], torch.arange(world, dtype=torch.float64))
    assert torch.equal(all_gather_stack(torch.tensor(number)), torch.arange(world))
    assert torch.equal(broadcast(own), torch.zeros(3, 2, dtype=torch.float64))
    assert torch.equal(own, torch.full((3, 2), float(number), dtype=torch.float64))
    assert together(lambda: number) == number
    with pytest.raises(ValueError, match="mine") if number == 1 else pytest.raises(UnicError, match="another process"):
        together(lambda: _fail() if number == 1 else None)
    dist.destroy_process_group()


def _fail() -> None:
    raise ValueError("mine")


def test_three_processes(tmp_path: Path) -> None:
    # a clean server imports torch once and forks the processes
    mp.get_context("forkserver").set_forkserver_preload(["pytest", "hypothesis", "unic_core.standardize"])
    args = (3, str(tmp_path / "store"))
    start_processes(_check_collectives, args, nprocs=3, start_method="forkserver")  # type: ignore[no-untyped-call]
