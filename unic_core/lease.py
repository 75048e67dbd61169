"""One driver per run: a lease on the run's store that its holder renews and others respect.

No clocks are compared, because those of two machines may differ: who finds a lease of somebody else watches whether
it is renewed. A lease that is not renewed in time belongs to a dead process and is taken over.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unic_core.errors import UnicError
from unic_core.storage import Store

log = logging.getLogger(__name__)

KEY = "LEASE.json"
BEAT_SECONDS = 10.0
MISSED_BEATS = 3  # so many without a renewal, and the holder is taken for dead


@contextmanager
def hold(
    store: Store,
    name: str,
    say: Callable[[str], None],
    lost: Callable[[], None],
    beat: float = BEAT_SECONDS,
    job: str | None = None,
) -> Iterator[None]:
    """Hold the lease of the run `name` at `store` inside the block.

    Args:
        say: told when the lease of a process that may be dead is watched, which takes up to three beats.
        lost: called in a thread when another process has taken the lease over.
        beat: seconds between renewals.
        job: the same text in all attempts of one job (default: UNIC_JOB): they take over from each other at once.

    Raises:
        UnicError: another process trains this run.
    """
    own = _identity(job or os.environ.get("UNIC_JOB") or "")
    holder = _read(store)
    if holder is not None and not _is_over(holder, own):
        patience = MISSED_BEATS * beat
        say(f"run {name} is leased to {_who(holder)}; waiting up to {patience:.0f} s to see whether that lives")
        _watch(store, name, holder, beat)
    _write(store, own, 0)
    done = threading.Event()
    keeper = threading.Thread(target=_renew, args=(store, own, beat, done, lost), name="lease", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join(timeout=beat)
        _release(store, own)


def _renew(store: Store, own: dict[str, str], beat: float, done: threading.Event, lost: Callable[[], None]) -> None:
    count = 0
    while not done.wait(beat):
        count += 1
        try:
            holder = _read(store)
            if holder is not None and holder["id"] != own["id"]:
                log.warning("the lease was taken over by %s", _who(holder))
                lost()
                return
            _write(store, own, count)
        except UnicError as error:  # an outage: nobody else can read the lease either
            log.warning("the lease could not be renewed: %s", error)


def _watch(store: Store, name: str, holder: dict[str, Any], beat: float) -> None:
    """Return when nobody renews the lease for some beats."""
    pause = threading.Event()
    for _ in range(2 * MISSED_BEATS):
        pause.wait(beat / 2)
        now = _read(store)
        if now is None:
            return
        if (now["id"], now["beat"]) != (holder["id"], holder["beat"]):
            raise UnicError(f"run {name} is being trained by {_who(now)}; wait for it, stop it, or choose another name")


def _is_over(holder: dict[str, Any], own: dict[str, str]) -> bool:
    """Whether the holder is an earlier attempt of our job, or a process of this machine that is gone."""
    if own["job"] and holder["job"] == own["job"]:
        return True
    return holder["machine"] == own["machine"] and not _alive(int(holder["pid"]))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _identity(job: str) -> dict[str, str]:
    return {
        "id": uuid.uuid4().hex,
        "job": job,
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": str(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _machine() -> str:
    """A name for this boot of this machine as seen by its process ids: containers share a boot, not process ids."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    try:
        return f"{boot.read_text().strip()}/{os.readlink(space)}"
    except OSError:
        return socket.gethostname()


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"


def _read(store: Store) -> dict[str, Any] | None:
    try:
        holder: dict[str, Any] = json.loads(store.get(KEY))
        return holder if {"id", "job", "host", "machine", "pid", "since", "beat"} <= holder.keys() else None
    except (FileNotFoundError, ValueError):
        return None


def _write(store: Store, own: dict[str, str], beat: int) -> None:
    store.put(KEY, json.dumps({**own, "beat": beat}).encode())


def _release(store: Store, own: dict[str, str]) -> None:
    try:
        holder = _read(store)
        if holder is not None and holder["id"] == own["id"]:
            store.delete([KEY])
    except UnicError as error:
        log.warning("the lease could not be given back: %s", error)
