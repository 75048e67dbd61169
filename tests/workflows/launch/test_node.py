"""A pod's first process without a cluster around it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from workflows.launch.node import Node

WORKER = {"UNIC_HEAD": "no-such-head.invalid", "POD_IP": "127.0.0.1", "UNIC_NODE_CPUS": "1", "UNIC_NODE_INDEX": "1"}


def start(directory: Path, **changes: str) -> subprocess.Popen[str]:
    environment = os.environ | WORKER | {"UNIC_TERMINATION_LOG": str(directory / "last-words")} | changes
    command = [sys.executable, "-m", "workflows.launch.node", "--", "true"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_head_that_never_comes_ends_the_node_with_a_sentence(tmp_path: Path) -> None:
    node = start(tmp_path, UNIC_HEAD_PATIENCE_S="1")
    _, log = node.communicate(timeout=120)
    assert node.returncode == 3  # the operators take it as final
    words = (tmp_path / "last-words").read_text()
    assert words == "no head at no-such-head.invalid for 1 s; see why pod 0 is gone"
    assert words in log


def test_sigterm_ends_a_waiting_node_with_a_code_that_means_replace_me(tmp_path: Path) -> None:
    node = start(tmp_path, UNIC_HEAD_PATIENCE_S="600", PYTHONUNBUFFERED="1")
    assert node.stderr is not None
    assert "waiting for the head" in node.stderr.readline()
    node.send_signal(signal.SIGTERM)
    node.communicate(timeout=60)
    assert node.returncode == 128 + signal.SIGTERM
    assert not (tmp_path / "last-words").exists()


def test_node_reads_its_environment() -> None:
    node = Node.from_environment(WORKER | {"UNIC_DRAIN_S": "5", "UNIC_STORE_BYTES": "80000000"})
    assert (node.index, node.cpus, node.drain_s, node.store_bytes) == (1, 1, 5.0, 80_000_000)
    assert node.kill_s > node.drain_s
    command = node.start_command
    assert "--num-cpus=1" in command
    assert "--object-store-memory=80000000" in command
