"""Shared by all tests: one thread, no accidental network, a fixed seed."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # weights never come from a hub in a test
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

settings.register_profile("unic", deadline=None)  # how fast a machine is proves nothing
settings.load_profile("unic")

# Without a terminal a test run may have been started with Ctrl-C ignored, which its children would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
