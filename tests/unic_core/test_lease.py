from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from unic_core import lease
from unic_core.errors import UnicError
from unic_core.storage import LocalStore

BEAT = 0.2


def nothing() -> None:
    raise AssertionError("the lease was not lost")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


def write(store: LocalStore, **changes: str | int) -> None:
    own = lease._identity(str(changes.get("job", "")))
    store.put(lease.KEY, json.dumps({**own, "beat": 0, **changes}).encode())


def test_a_second_start_is_refused_while_the_first_lives(store: LocalStore) -> None:
    with lease.hold(store, "run", str, nothing, BEAT):
        refused = pytest.raises(UnicError, match=r"run run is being trained by process \d+ on .*; wait for it, stop it")
        with refused, lease.hold(store, "run", str, nothing, BEAT):
            pass
        assert store.exists(lease.KEY)
    assert not store.exists(lease.KEY)
    with lease.hold(store, "run", str, nothing, BEAT):
        pass


def test_a_lease_that_nobody_renews_is_taken_over(store: LocalStore) -> None:
    write(store, machine="another", host="gone")
    lines: list[str] = []
    with lease.hold(store, "run", lines.append, nothing, BEAT):
        assert json.loads(store.get(lease.KEY))["host"] != "gone"
    assert "leased to process" in lines[0]


def test_a_killed_process_of_this_machine_is_taken_over_at_once(store: LocalStore) -> None:
    code = (
        "import sys, time; from unic_core import lease; from unic_core.storage import LocalStore\n"
        "with lease.hold(LocalStore(sys.argv[1]), 'run', str, str):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, store.uri], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    child.kill()
    child.wait(10)
    assert store.exists(lease.KEY)
    lines: list[str] = []
    with lease.hold(store, "run", lines.append, nothing):
        pass
    assert lines == []


def test_attempts_of_one_job_take_over_from_each_other_and_the_old_one_notices(store: LocalStore) -> None:
    lost = threading.Event()
    with lease.hold(store, "run", str, lost.set, BEAT, job="cluster/run"):
        with lease.hold(store, "run", str, nothing, BEAT, job="cluster/run"):
            assert lost.wait(30)
        assert not store.exists(lease.KEY)


def test_a_damaged_lease_is_none(store: LocalStore) -> None:
    store.put(lease.KEY, b"{")
    with lease.hold(store, "run", str, nothing, BEAT):
        pass
