"""How long training waits for a checkpoint on S3: snapshot and background writer against a write in its place."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from unic_core.checkpoint import CheckpointWriter, Retention, Tensors, snapshot, verify_checkpoint, write_checkpoint
from unic_core.config import IdentityConfig, LadderConfig, OptimizerConfig, StudentConfig
from unic_core.optim import build_optimizer
from unic_core.projectors import build_projectors
from unic_core.provenance import versions
from unic_core.standardize import build_standardizer
from unic_core.storage import open_store
from unic_core.student import Student
from unic_core.task import DistillationModel
from unic_core.tokens import TOKEN_KINDS
from workflows import stack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    student = Student(StudentConfig(model="vit_small_patch16_224"))
    targets = {name: dict.fromkeys(TOKEN_KINDS, 768) for name in ("a", "b", "c", "d")}
    projectors = build_projectors(
        LadderConfig(hidden=384, hidden_last=1536), targets, student.width, student.depth, True
    )
    model = DistillationModel(student, projectors)
    optimizer = build_optimizer(model, OptimizerConfig())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes the moments
    standardizer = build_standardizer(IdentityConfig(), targets)
    size = sum(t.nbytes for part in snapshot(model, optimizer, standardizer).values() for t in part.values())

    with tempfile.TemporaryDirectory() as directory:
        servers = stack.start(Path(directory))
        try:
            os.environ.update(servers.environment())
            stalls, writes, in_place = measure(lambda: snapshot(model, optimizer, standardizer), options.rounds)
        finally:
            servers.stop()
    stall, write, blocking = (statistics.median(values) for values in (stalls, writes, in_place))
    print(f"a checkpoint of {size / 1e9:.2f} GB on S3 (same machine), median of {options.rounds}")
    print(f"  written in place: training waits    {blocking:8.2f} s")
    print(
        f"  in the background: training waits   {stall:8.2f} s   {blocking / stall:6.1f}x less; stored in {write:.1f} s"
    )
    record = {"stall_s": stall, "stored_s": write, "in_place_s": blocking, "bytes": size, "versions": versions()}
    print(json.dumps({"benchmark": "checkpoint", **record}))


def measure(take: Callable[[], Tensors], rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds that `save` took, until it was stored, and of a write in place; the two ways take turns."""
    store = open_store("s3://unic/run")
    writer = CheckpointWriter(store, Retention(last=1))
    stalls, writes, in_place = [], [], []
    for step in range(1, 2 * rounds + 1, 2):
        begin = time.perf_counter()
        write_checkpoint(store, step, take(), {})
        in_place.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        writer.save(step + 1, take(), {})
        stalls.append(time.perf_counter() - begin)
        writer.wait()
        writes.append(time.perf_counter() - begin)
    writer.close()
    assert verify_checkpoint(store, f"checkpoints/step-{2 * rounds:08d}") is None
    return stalls, writes, in_place


if __name__ == "__main__":
    main()
