"""Metrics on their way to a server that may be slow or away: written to a file now, sent in the background.

A call costs one write to a local file. What is sent is remembered in a second file, so that a process that takes
over the same spool (a restarted worker) sends what its predecessor could not.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 2.0
BATCH = 900  # MLflow takes 1000 metrics in one request


class Point(NamedTuple):
    """One value of one metric; `timestamp` in ms since 1970."""

    key: str
    value: float
    timestamp: int
    step: int


class RejectedError(Exception):
    """The server refuses these points for good: sending them again is pointless."""


class Spool:
    """An append-only file of points and a daemon thread that sends them in order.

    Args:
        path: the file; the number of bytes that were sent lies beside it in `<path>.sent`.
        send: sends at most `BATCH` points; RejectedError drops them, any other exception means "later".
        interval: seconds between two rounds of sending.

    One process writes to a spool at a time; any of its threads may.
    """

    def __init__(self, path: Path, send: Callable[[Sequence[Point]], None], interval: float = INTERVAL_SECONDS) -> None:
        self.path = path
        self._send = send
        self._interval = interval
        self._sent_path = path.with_name(path.name + ".sent")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._sent = self._read_sent()
        if self._torn():
            self._file.write(b"\n")  # a killed process left half a line
        self._complained = False
        self._wake, self._closing, self._progress = threading.Event(), False, threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"spool {path.name}", daemon=True)
        self._thread.start()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of one step. Never waits for the server, never raises for a full disk."""
        line = json.dumps({"step": step, "time": int(time.time() * 1000), "values": dict(values)})
        try:
            self._file.write(line.encode() + b"\n")
        except OSError as error:
            if not self._complained:
                log.warning("cannot write metrics to %s (%s); they are lost until it works", self.path, error.strerror)
            self._complained = True

    @property
    def pending(self) -> int:
        """Bytes that are not sent yet."""
        return os.fstat(self._file.fileno()).st_size - self._sent

    def unsent(self) -> bytes:
        """The lines that the server has not taken yet, for a spool elsewhere to adopt."""
        with self.path.open("rb") as file:
            file.seek(self._sent)
            return file.read()

    def adopt(self, lines: bytes) -> None:
        """Append what another spool of the same run could not send. Points that arrive twice are stored once."""
        if lines:
            self._file.write(lines if lines.endswith(b"\n") else lines + b"\n")

    def flush(self, timeout: float) -> bool:
        """Send now; True when everything written before this call arrived within `timeout` seconds."""
        target, deadline = os.fstat(self._file.fileno()).st_size, time.monotonic() + timeout
        with self._progress:
            while self._sent < target:
                left = deadline - time.monotonic()
                if left <= 0 or not self._thread.is_alive():
                    return False
                self._wake.set()
                self._progress.wait(min(left, 0.5))
        return True

    def close(self, timeout: float = 30.0) -> bool:
        """Flush and end the thread. What could not be sent stays in the file, for the next spool on it."""
        done = self.flush(timeout)
        self._closing = True
        self._wake.set()
        self._thread.join(timeout=1.0)  # a request on its way is not waited for: the file keeps its points
        if not done:
            log.warning("%d bytes of metrics were not sent; they wait in %s", self.pending, self.path)
        return done

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._interval)
            self._wake.clear()
            try:
                while not self._closing and self._send_batch():
                    pass
            except Exception as error:  # an outage: the file remembers, the next round tries again
                log.debug("metrics of %s wait: %s", self.path.name, error)
                time.sleep(min(self._interval, 0.5))

    def _send_batch(self) -> bool:
        """Send the next points; False when none are left. Raises when the server is away."""
        points, end = self._next_points()
        if end == self._sent:
            return False
        try:
            if points:
                self._send(points)
        except RejectedError:
            for point in points:  # one bad point must not take its neighbors with it
                try:
                    self._send([point])
                except RejectedError as error:
                    log.warning("the server refuses metric %s of step %d: %s", point.key, point.step, error)
        self._remember(end)
        return True

    def _next_points(self) -> tuple[list[Point], int]:
        """Points of the next whole lines, at most a batch unless a single line has more, and the offset behind them."""
        points: list[Point] = []
        end = self._sent
        with self.path.open("rb") as file:
            file.seek(end)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                found = _parse(line)
                if points and len(points) + len(found) > BATCH:
                    break
                points += found
                end += len(line)
        return points, end

    def _remember(self, offset: int) -> None:
        part = self._sent_path.with_suffix(".part")
        part.write_text(str(offset))
        os.replace(part, self._sent_path)
        with self._progress:
            self._sent = offset
            self._progress.notify_all()

    def _read_sent(self) -> int:
        """The remembered offset. Points sent twice are no harm: the server stores an equal point once."""
        try:
            return min(int(self._sent_path.read_text()), self.path.stat().st_size)
        except (FileNotFoundError, ValueError):
            return 0

    def _torn(self) -> bool:
        size = self.path.stat().st_size
        if size == 0:
            return False
        with self.path.open("rb") as file:
            file.seek(size - 1)
            return file.read(1) != b"\n"


def _parse(line: bytes) -> list[Point]:
    try:
        data = json.loads(line)
        return [Point(key, float(value), data["time"], data["step"]) for key, value in data["values"].items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # half a line of a killed process
