"""The few collectives the method needs; without a process group each is the single-process case."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from unic_core.errors import UnicError

T = TypeVar("T")


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _grouped() else 0


def all_sum(tensor: Tensor) -> Tensor:
    """Elementwise sum over all processes as a new tensor, without gradient."""
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    if _grouped():
        dist.all_reduce(total)
    return total


def all_gather_stack(tensor: Tensor) -> Tensor:
    """The tensors [...] of all processes, stacked in order of rank: [W, ...], without gradient.

    Shapes and dtypes must agree between the processes.
    """
    own = tensor.detach().contiguous()
    if not _grouped():
        return own[None].clone()
    gathered = own.new_empty((world_size(), *own.shape))
    dist.all_gather_into_tensor(gathered.view(-1), own.view(-1))
    return gathered


def broadcast(tensor: Tensor) -> Tensor:
    """The tensor of rank 0 in every process, as a new tensor."""
    own = tensor.detach().clone(memory_format=torch.contiguous_format)
    if _grouped():
        dist.broadcast(own, src=0)
    return own


def agree_max(value: int) -> int:
    """The largest of the processes' values, agreed on over the CPU: the group needs a backend for CPU tensors."""
    if world_size() == 1:
        return value
    agreed = torch.tensor(value)
    dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return int(agreed)


def together(action: Callable[[], T]) -> T:
    """The result of `action` in this process, once all have theirs: where one fails, all fail, and nobody waits.

    Raises:
        UnicError: it failed in another process. What it raised in this one goes on.
    """
    try:
        result, error = action(), None
    except Exception as caught:
        result, error = None, caught
    if agree_max(int(error is not None)):
        raise error or UnicError("another process could not go on; look for its message")
    return cast(T, result)
