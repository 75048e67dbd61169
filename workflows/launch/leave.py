"""What a pod of KubeRay does before it is stopped: `python -m workflows.launch.leave SECONDS`, its preStop hook.

The pod's first process is Ray's own and ignores SIGTERM: without this, a drained pod would neither save a checkpoint
nor end before the last second of its grace period. Where nothing is being trained, Ray ends at once.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import psutil

ANNOUNCE_S = 10.0  # Ray's client may hang when the head is gone
END_S = 5


def leave(address: str, node_ip: str, seconds: float) -> None:
    """Announce that the node goes, give its training worker `seconds` to save, end Ray's processes in this container.

    Args:
        address: of Ray's control store. node_ip: by which Ray knows this node.
    """
    deadline = time.monotonic() + seconds
    if trains() and _announced(address, node_ip, seconds):
        while time.monotonic() < deadline and trains():
            time.sleep(1)
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "stop", f"--grace-period={END_S}"], check=False)


def trains() -> bool:
    """Whether a training worker is among the processes of this container."""
    titles = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    return any(title.startswith("ray::RayTrainWorker") for title in titles)


def _announced(address: str, node_ip: str, seconds: float) -> bool:
    command = [sys.executable, "-m", "workflows.launch.drain", address, node_ip, str(seconds)]
    try:
        return subprocess.run(command, timeout=ANNOUNCE_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


if __name__ == "__main__":
    leave(os.environ["RAY_ADDRESS"], socket.gethostbyname(socket.gethostname()), float(sys.argv[1]))
