"""The first process of a pod that is one node of a Ray cluster: `python -m workflows.launch.node -- DRIVER COMMAND`.

Pod 0 is the head: it starts Ray's control store, then the driver, and ends as the driver ends. Every other pod
joins the head, and joins again when the head was replaced. SIGTERM announces a drain before anything is killed.

Exit codes: the driver's own; 3 when there is no head or no memory, which no restart mends; 128 + signal when a
restart will do, as the operators understand it.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from workflows.console import show_logs
from workflows.processes import end_descendants
from workflows.termination import last_words

log = logging.getLogger("workflows.launch.node")  # as `python -m` its own name would be __main__

HEAD_PORT, NODE_PORT, OBJECT_PORT, ENVIRONMENT_PORT, AGENT_GRPC_PORT, AGENT_PORT, METRICS_PORT = range(6379, 6386)
WORKER_PORTS = range(10100, 11000)

DRAIN_S = 25.0
HOPELESS = 3
STOPPED = 128 + signal.SIGTERM
TICK_S = 1.0
LOOK_S = 5.0  # between two looks at the head's address: a replaced pod answers at another one, and the old is silent
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Node:
    """What this node is told by its environment."""

    index: int
    head: str
    """Host name of pod 0."""
    ip: str
    cpus: int
    store_bytes: int = 200 * 2**20
    head_patience_s: float = 900
    drain_s: float = DRAIN_S
    """Announced to Ray at SIGTERM: the time to save a checkpoint."""
    kill_s: float = 45
    """After SIGTERM, what is still there is killed: later than announced, or the announcement would be in vain."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Node:
        """UNIC_HEAD, POD_IP and UNIC_NODE_CPUS are required; UNIC_NODE_INDEX is 0 by default."""
        optional = {
            name: kind(environment[variable])
            for name, variable, kind in (
                ("store_bytes", "UNIC_STORE_BYTES", int),
                ("head_patience_s", "UNIC_HEAD_PATIENCE_S", float),
                ("drain_s", "UNIC_DRAIN_S", float),
                ("kill_s", "UNIC_KILL_S", float),
            )
            if environment.get(variable)
        }
        return cls(
            index=int(environment.get("UNIC_NODE_INDEX", "0")),
            head=environment["UNIC_HEAD"],
            ip=environment["POD_IP"],
            cpus=int(environment["UNIC_NODE_CPUS"]),
            **optional,  # type: ignore[arg-type]
        )

    @property
    def start_command(self) -> list[str]:
        """`ray start` in the foreground with every port fixed, so that policies can name them."""
        return [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            *(f"--node-ip-address={self.ip}", f"--num-cpus={self.cpus}", f"--object-store-memory={self.store_bytes}"),
            *(f"--node-manager-port={NODE_PORT}", f"--object-manager-port={OBJECT_PORT}"),
            *(f"--runtime-env-agent-port={ENVIRONMENT_PORT}", f"--metrics-export-port={METRICS_PORT}"),
            *(f"--dashboard-agent-grpc-port={AGENT_GRPC_PORT}", f"--dashboard-agent-listen-port={AGENT_PORT}"),
            *(f"--min-worker-port={WORKER_PORTS.start}", f"--max-worker-port={WORKER_PORTS.stop - 1}"),
        ]


class Supervisor:
    """Runs the children of one node and notices SIGTERM."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.stopping = False
        self._own: list[subprocess.Popen[bytes]] = []
        # orphans of Ray come to this process, so that it can end and bury them, also when it is not the pod's first
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.signal(signal.SIGTERM, self._stop)

    def head(self, driver: Sequence[str]) -> int:
        """Ray's head and the driver; returns the exit code of the pod."""
        node = self.node
        options = [f"--port={HEAD_PORT}", "--dashboard-host=127.0.0.1"]
        ray = self._spawn([*node.start_command, "--head", *options])
        while not _answers(node.ip, HEAD_PORT):
            if self.stopping:
                return self._leave(STOPPED)
            if ray.poll() is not None:
                return self._leave(HOPELESS, "Ray's head did not start; see the log above")
            self._tick()
        kills = _memory_kills()
        process = self._spawn(driver, RAY_ADDRESS=f"{node.ip}:{HEAD_PORT}")
        while process.poll() is None and ray.poll() is None and not self.stopping:
            self._tick()
        if process.poll() is None and self.stopping:
            self._drain(node.ip, node.drain_s, gone=lambda: process.poll() is not None or ray.poll() is not None)
        if process.poll() is None:
            process.terminate()
            return self._leave(STOPPED, "" if self.stopping else "Ray's head ended; the pod is replaced")
        if process.returncode == -signal.SIGKILL and _memory_kills() > kills:
            return self._leave(HOPELESS, "the driver ran out of memory; raise --memory, or lower training.batch")
        code = process.returncode
        return self._leave(STOPPED if self.stopping else code if code >= 0 else 128 - code)

    def worker(self) -> int:
        """Join the head, again and again; returns the exit code of the pod."""
        last = time.monotonic()
        log.info("waiting for the head at %s", self.node.head)
        while not self.stopping:
            address = _resolve(self.node.head)
            if address and _answers(address, HEAD_PORT):
                log.info("joining the head at %s", address)
                self._join(address)
                last = time.monotonic()
            elif time.monotonic() - last > self.node.head_patience_s:
                reason = f"no head at {self.node.head} for {self.node.head_patience_s:.0f} s; see why pod 0 is gone"
                return self._leave(HOPELESS, reason)
            self._tick()
        return self._leave(STOPPED)

    def _join(self, address: str) -> None:
        """One membership in the cluster of the head at `address`; returns when it is over."""
        ray = self._spawn([*self.node.start_command, f"--address={address}:{HEAD_PORT}"])
        looked = time.monotonic()
        while ray.poll() is None and not self.stopping:
            self._tick()
            if time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                now = _resolve(self.node.head)
                if now and now != address:
                    log.info("the head moved from %s to %s", address, now)
                    break
        if self.stopping:
            self._drain(address, self.node.kill_s, gone=lambda: ray.poll() is not None)
        end_descendants(grace_s=0)
        ray.wait()

    def _drain(self, head: str, seconds: float, gone: Callable[[], bool]) -> None:
        """Announce that the node leaves, and wait: a drained node goes by itself when its training worker has saved."""
        node = self.node
        if not _answers(head, HEAD_PORT):  # the job is over, or the head is gone: nobody is there to be told
            return
        deadline = time.monotonic() + seconds
        log.info("stopping: the node leaves in %.0f s", node.drain_s)
        address = f"{head}:{HEAD_PORT}"
        announcement = self._spawn(
            [sys.executable, "-m", "workflows.launch.drain", address, node.ip, str(node.drain_s)]
        )
        while time.monotonic() < deadline and not gone():
            if announcement.poll() not in {None, 0}:
                log.info("the cluster does not answer; leaving at once")
                return
            self._tick()

    def _leave(self, code: int, reason: str = "") -> int:
        if reason:
            log.error("%s", reason)
            last_words(reason)
        end_descendants(grace_s=3)
        return code

    def _spawn(self, command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(command, env=os.environ | environment)
        self._own.append(child)
        return child

    def _tick(self) -> None:
        """Wait a little; bury the orphans that ended, which nobody else waits for."""
        time.sleep(TICK_S)
        own = {child.pid for child in self._own}
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
                if process.pid not in own and process.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(process.pid, os.WNOHANG)

    def _stop(self, *_: object) -> None:
        self.stopping = True


def _resolve(host: str) -> str | None:
    """The address of a host; None while it has none."""
    try:
        return socket.gethostbyname(host)
    except OSError:
        return None


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def _memory_kills() -> int:
    """How often the kernel has killed a process of this container for want of memory."""
    for path in ("memory.events", "memory/memory.oom_control"):  # cgroup v2, v1
        with contextlib.suppress(OSError, ValueError):
            return int(dict(line.split() for line in Path("/sys/fs/cgroup", path).read_text().splitlines())["oom_kill"])
    return 0


def main(arguments: Sequence[str]) -> int:
    """Be the node that the environment describes."""
    show_logs(prefix="[node] ")
    node = Node.from_environment(os.environ)
    supervisor = Supervisor(node)
    return supervisor.worker() if node.index else supervisor.head(arguments)


if __name__ == "__main__":
    command = sys.argv[sys.argv.index("--") + 1 :]
    sys.exit(main(command))
