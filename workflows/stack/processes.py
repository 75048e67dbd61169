"""Servers as child processes that outlive their starter: free ports, start, find again, end without leftovers."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from unic_core.errors import UnicError

HOST = "127.0.0.1"
MARK = "UNIC_STACK"  # set to the stack's directory in the environment of every process of it
PORTS = range(20000, 30000)  # below the ports that systems hand out to outgoing connections
TAIL_LINES = 8


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port of a closed connection is free
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_ports(count: int, offset: int = 0) -> list[int]:
    """Different ports nobody listens on; with `offset`, port + offset is free as well."""
    shuffled = random.sample(PORTS, len(PORTS))
    found: list[int] = []
    for port in shuffled:
        if is_free(port) and (not offset or is_free(port + offset)):
            found.append(port)
            if len(found) == count:
                return found
    raise UnicError(f"no {count} free ports between {PORTS.start} and {PORTS.stop}; end some servers and try again")


def spawn(
    command: Sequence[str], environment: Mapping[str, str], stack: Path, directory: Path, log: Path
) -> psutil.Process:
    """Start `command` in `directory` as part of `stack`.

    It gets a session of its own, so that neither Ctrl-C nor the end of this process reaches it.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(
            list(command),
            env={**environment, MARK: str(stack)},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    child.returncode = 0  # it is meant to outlive this object, which would warn about that
    return psutil.Process(child.pid)


def started(process: psutil.Process) -> float:
    """Seconds from the start of the machine to that of the process; a clock that is set right does not change it."""
    return float(psutil.Process(process.pid).create_time() - psutil.boot_time())


def find(pid: int, started_at: float) -> psutil.Process | None:
    """The living process with this id and start (as `started` tells it)."""
    try:
        process = psutil.Process(pid)
        # the two clock readings behind `started` may lie a second apart
        same = abs(started(process) - started_at) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if same else None


def members(directory: Path) -> list[psutil.Process]:
    """All processes of the stack in `directory`, those whose record was never written included."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(directory):
                found.append(process)
    return found


def session(process: psutil.Process) -> int | None:
    """Id of the process that leads the session of `process`; None when it is gone."""
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def end(processes: Sequence[psutil.Process], grace: float) -> None:
    """SIGTERM to all and, after `grace` seconds, SIGKILL to those that are left; returns when they are gone."""
    for signal_number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal_number)
        _, alive = psutil.wait_procs(processes, timeout=seconds)
        if not alive:
            return
        processes = alive
    raise UnicError(f"process {processes[0].pid} cannot be ended; look at it with: ps -p {processes[0].pid}")


def wait_until(ready: Callable[[], bool], process: psutil.Process, name: str, log: Path, timeout: float) -> None:
    """Until `ready()`; UnicError with the end of the log when the process dies or needs longer than `timeout` s."""
    deadline = time.monotonic() + timeout
    started_at = started(process)
    while not ready():
        if find(process.pid, started_at) is None:
            with contextlib.suppress(psutil.Error, ChildProcessError):
                process.wait(timeout=1)
            raise UnicError(f"{name} ended while starting; the end of {log} says:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise UnicError(f"{name} did not answer within {timeout:.0f} s; the end of {log} says:\n{_tail(log)}")
        time.sleep(0.2)


def answers(url: str, timeout: float = 5.0) -> int | None:
    """HTTP status of a GET that goes through no proxy; None when nothing answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):
        return None


def private_write(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    part = path.with_name(f".part-{path.name}-{os.getpid()}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(part, path)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-TAIL_LINES:]) or "(nothing)"
