"""Paired timings: the candidates take turns, so that a machine's moods hit all of them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from unic_core.provenance import versions


def compare(candidates: Mapping[str, Callable[[], object]], rounds: int = 7, warmup: int = 2) -> dict[str, float]:
    """Median seconds of each candidate over `rounds` interleaved calls."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + rounds):
        for name, call in candidates.items():
            begin = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(title: str, seconds: Mapping[str, float], images: int) -> None:
    """Print images/s and the ratio to the first candidate, then everything as JSON."""
    first = next(iter(seconds.values()))
    print(title)
    for name, value in seconds.items():
        print(f"  {name:<32} {1000 * value:9.1f} ms  {images / value:9.0f} images/s  {first / value:6.2f}x")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread(s)"
    print(json.dumps({"benchmark": title, "seconds": dict(seconds), "device": device, "versions": versions()}))
