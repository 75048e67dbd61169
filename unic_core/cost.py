"""Parameters and arithmetic of every part of a run, known before the first step.

Nothing is computed: forward passes run on the meta device, with shapes only. One multiply-add is two FLOPs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from unic_core.projectors import Projectors
from unic_core.storage import Store
from unic_core.student import Student

_FILE = "cost.json"
_TRAINED = 3  # forward plus backward of a trained part: gradients of the weights and of the inputs cost a forward each


class CostRow(NamedTuple):
    """One part of the run: parameters, how many of them are trained, and 10^9 FLOPs per image.

    `gflops_step` is the share in a training step: the forward pass, and the backward pass where there is one.
    """

    part: str
    parameters: int
    trainable: int
    gflops_forward: float
    gflops_step: float


def cost_table(student: Student, projectors: Projectors, teachers: Mapping[str, nn.Module]) -> list[CostRow]:
    """Rows for the student, each part of the projectors, each teacher, and the whole step (last).

    teachers: {name: module whose forward takes images [B, 3, S, S] in [0, 1], S the student's image size}.
    """
    images = torch.zeros(1, 3, student.image_size, student.image_size, device="meta")
    tokens, flops = _trace(student, images)
    rows = [_row("student", [student], flops["Global"], _TRAINED)]
    _, flops = _trace(projectors, tokens)
    root = type(projectors).__name__
    for name, part in projectors.named_children():
        # the counter reports modules that are called; containers such as ModuleList are the sum of theirs
        prefix = f"{root}.{name}"
        count = flops.get(prefix) or sum(v for k, v in flops.items() if k.rpartition(".")[0] == prefix)
        rows.append(_row(f"projectors: {name}", [part], count, _TRAINED))
    for name, teacher in teachers.items():
        _, flops = _trace(teacher, images)
        rows.append(_row(f"teacher: {name}", [teacher], flops["Global"], 1))
    total = CostRow(
        "training step",
        sum(row.parameters for row in rows),
        sum(row.trainable for row in rows),
        sum(row.gflops_forward for row in rows),
        sum(row.gflops_step for row in rows),
    )
    return [*rows, total]


def render_cost(rows: Sequence[CostRow]) -> str:
    """The rows as an aligned plain-text table, with each part's share of the step."""
    step = rows[-1].gflops_step or 1.0
    header = ("part", "parameters", "trained", "GFLOPs forward", "GFLOPs step", "share")
    lines = [
        header,
        *(
            (
                row.part,
                f"{row.parameters:,}",
                f"{row.trainable:,}",
                f"{row.gflops_forward:,.3f}",
                f"{row.gflops_step:,.3f}",
                f"{row.gflops_step / step:.1%}",
            )
            for row in rows
        ),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def store_cost(rows: Sequence[CostRow], store: Store) -> None:
    """Keep the rows beside a run's checkpoints, for its report."""
    store.put(_FILE, json.dumps([row._asdict() for row in rows], indent=1).encode())


def read_cost(store: Store) -> list[CostRow]:
    """The rows that `store_cost` kept; empty for a run without them."""
    try:
        return [CostRow(**row) for row in json.loads(store.get(_FILE))]
    except FileNotFoundError:
        return []


def _row(part: str, modules: Sequence[nn.Module], flops: int, passes: int) -> CostRow:
    parameters = [p for module in modules for p in module.parameters()]
    return CostRow(
        part,
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        flops / 1e9,
        passes * flops / 1e9,
    )


def _trace(module: nn.Module, argument: Any) -> tuple[Any, dict[str, int]]:
    """The output for one argument, on the meta device, and the FLOPs by module name ("Global": all)."""
    tensors: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), _evaluating(module), counter:
        output = functional_call(module, shapes, (argument,))
    return output, {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode again after."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training
