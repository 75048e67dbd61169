"""Waiting for a job while showing its driver's log, through replaced pods and broken connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Protocol

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from unic_core.errors import OutageError
from workflows.launch.config import Status

Say = Callable[[str], None]

PAUSE_S = 2.0
SILENCE_S = 15.0  # without a line for so long, the job itself is looked at
PATIENCE_S = 300.0  # how long the API server may be away


class Followed(Protocol):
    """What following needs of a cluster's jobs; `ClusterJobs` says what each returns."""

    def status(self, name: str) -> Status: ...

    def driver(self, name: str) -> dict[str, Any] | None: ...

    def open_log(self, pod: str, since_s: int | None, silence_s: float, follow: bool) -> Any: ...


def wait(jobs: Followed, name: str, say: Say, note: Say) -> Status:
    """Return when the job has ended.

    Args:
        say: gets the lines of the driver's log.
        note: gets what else is worth a line: why the job waits.
    """
    told: tuple[str, ...] = ()
    away = ""
    log, since = DriverLog(jobs, name), time.monotonic()
    while True:
        try:
            status = jobs.status(name)
            if status.reasons != told and not status.finished:
                for reason in status.reasons:
                    note(f"{name}: {reason}")
                told = status.reasons
            for line in log.lines(follow=not status.finished):
                say(line)
            if status.finished:
                return status
            since, away = time.monotonic(), ""
        except OutageError as error:
            if time.monotonic() - since > PATIENCE_S:
                raise
            if str(error) != away:  # once, not every two seconds
                away = str(error)
                note(f"{name}: {away}")
        time.sleep(PAUSE_S)


class DriverLog:
    """The lines of the driver, each once, whichever pod it runs in."""

    def __init__(self, jobs: Followed, name: str) -> None:
        self.jobs, self.name = jobs, name
        self._pod = ""
        self._last = ""  # timestamp of the last line of this pod

    def lines(self, follow: bool = True) -> Iterator[str]:
        """New lines until the container ends, the connection breaks or nothing is said for a while."""
        pod = self.jobs.driver(self.name)
        if pod is None:
            return
        uid = pod["metadata"]["uid"]
        if uid != self._pod:
            self._pod, self._last = uid, ""
        since = None
        if self._last:
            then = datetime.fromisoformat(self._last[:19] + "+00:00")
            since = max(1, int((datetime.now(UTC) - then).total_seconds()) + 2)
        try:
            stream = self.jobs.open_log(pod["metadata"]["name"], since, SILENCE_S, follow)
            try:
                yield from self._new(stream)
            finally:
                stream.release_conn()
        except (HTTPError, OSError, ApiException):  # silence, a lost connection or pod: the next call goes on from here
            return

    def _new(self, stream: Iterator[bytes]) -> Iterator[str]:
        rest = b""
        for chunk in stream:
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                stamp, _, text = line.decode(errors="replace").partition(" ")
                if stamp > self._last:
                    self._last = stamp
                    yield text
