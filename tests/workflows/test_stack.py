"""The embedded stack: real processes that come up, are found again and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from unic_core.errors import UnicError
from workflows import stack as stacks
from workflows.stack import processes, services
from workflows.storage import S3Store

if TYPE_CHECKING:
    from tests.workflows.conftest import S3

pytestmark = pytest.mark.usefixtures("clean_environment")
STARTER = "import sys, pathlib; from workflows import stack; stack.start(pathlib.Path(sys.argv[1]))"


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.mark.slow
def test_up_again_down_and_up(tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "stack"
    try:
        first = stacks.start(directory)
        assert (first.s3.state, first.mlflow.state) == ("running", "running")
        assert stacks.status(directory) == first
        assert stacks.start(directory, buckets=("unic", "another")) == first  # found, not started twice
        for name in ("credentials.json", "stack.json"):
            assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600
        assert first.secret_key not in repr(first)
        assert first.secret_key not in " ".join(a for p in processes.members(directory) for a in p.cmdline())
        for key, value in first.environment().items():
            clean_environment.setenv(key, value)
        S3Store("s3://another").put("kept", b"data")
        loopback = {
            c.laddr.ip for p in processes.members(directory) for c in p.net_connections() if c.status == "LISTEN"
        }
        assert loopback == {"127.0.0.1"}

        members = processes.members(directory)
        assert stacks.stop(directory) == len(members)
        assert not any(process.is_running() for process in members)
        assert not processes.members(directory)
        assert all(processes.is_free(port) for port in (*first.s3.ports.values(), *first.mlflow.ports.values()))
        after = stacks.status(directory)
        assert after is not None
        assert (after.s3.state, after.mlflow.state) == ("stopped", "stopped")
        assert stacks.stop(directory) == 0

        again = stacks.start(directory)  # although the environment names the old endpoints: they are our own
        assert again.environment() == first.environment()
        assert S3Store("s3://another").get("kept") == b"data"
    finally:
        stacks.stop(directory)
    assert not processes.members(directory)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_start_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)], stderr=subprocess.DEVNULL)
    wait_for((tmp_path / "mlflow.log").exists)
    assert processes.members(tmp_path)
    starter.send_signal(number)
    assert starter.wait(60) != 0
    if number != signal.SIGINT:  # a killed starter cannot clean up: `stop` does
        stacks.stop(tmp_path)
    assert not processes.members(tmp_path)


@pytest.mark.slow
def test_server_that_does_not_come_up(tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_text("this is no database " * 100)
    with pytest.raises(UnicError, match=r"MLflow ended while starting; the end of .*mlflow\.log says:\n.+"):
        stacks.start(tmp_path)
    assert not processes.members(tmp_path)
    assert stacks.status(tmp_path).s3.state == "stopped"  # type: ignore[union-attr]


def test_a_process_that_ends_or_sleeps_is_reported_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for code, match in (
        ("print('broken pipe dream'); raise SystemExit(1)", "ended"),
        ("import time; print('zzz', flush=True); time.sleep(60)", "answer within 2 s"),
    ):
        process = processes.spawn([sys.executable, "-c", code], os.environ, tmp_path, tmp_path, log)
        with pytest.raises(UnicError, match=rf"server .*{match}[\s\S]*(dream|zzz)"):
            processes.wait_until(lambda: False, process, "server", log, 2.0)
        processes.end(processes.members(tmp_path), 5)
    assert not processes.members(tmp_path)


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
    )
    process = processes.spawn([sys.executable, "-c", code], os.environ, tmp_path, tmp_path, tmp_path / "log")
    wait_for((tmp_path / "log").read_text)
    assert len(processes.members(tmp_path)) == 2
    assert os.getsid(process.pid) == process.pid
    assert stacks.stop(tmp_path, grace=0.5) == 2  # found although no record was written
    assert not psutil.pid_exists(process.pid)


def test_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UnicError, match=f"port {port} on 127.0.0.1 is in use, S3 cannot have it"):
            stacks.start(tmp_path, s3_port=port)
        with pytest.raises(UnicError, match=f"port {port} on 127.0.0.1 is in use, MLflow cannot have it"):
            stacks.start(tmp_path, mlflow_port=port)
    assert not processes.members(tmp_path)


def test_ports_of_the_last_start_are_kept_while_free() -> None:
    ports = services.seaweed_ports(None, {})
    assert len(set(ports.values())) == len(ports)
    assert services.seaweed_ports(None, ports) == ports
    with socket.create_server(("127.0.0.1", ports["filer.port"])):
        assert services.seaweed_ports(None, ports)["filer.port"] != ports["filer.port"]


def test_servers_of_the_environment_are_used(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    directory = tmp_path / "stack"
    found = stacks.start(directory)
    assert (found.s3.state, found.mlflow.state) == ("external", "external")
    assert found.environment() == {
        "AWS_ENDPOINT_URL_S3": s3.endpoint,
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    assert not processes.members(directory)
    assert stacks.stop(directory) == 0
    assert S3Store("s3://unic").list("nothing") == {}  # still there


def test_external_server_that_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{processes.free_ports(1)[0]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(UnicError, match=f"S3 at {endpoint} does not answer; start it, or unset AWS_ENDPOINT_URL_S3"):
        stacks.start(tmp_path)


def test_recycled_process_id_is_not_ours(tmp_path: Path) -> None:
    own = psutil.Process()
    assert processes.find(own.pid, processes.started(own)) == own
    assert processes.find(own.pid, processes.started(own) - 100) is None
    record = {name: {"endpoint": "http://127.0.0.1:1", "pid": own.pid, "started": 1.0} for name in ("s3", "mlflow")}
    (tmp_path / "stack.json").write_text(json.dumps(record))
    found = stacks.status(tmp_path)
    assert found is not None
    assert found.s3.state == "stopped"
    assert stacks.stop(tmp_path) == 0  # this test survives


def test_damaged_and_missing_records(tmp_path: Path) -> None:
    assert stacks.status(tmp_path) is None
    assert stacks.stop(tmp_path / "nothing") == 0
    (tmp_path / "stack.json").write_text("{")
    with pytest.raises(UnicError, match=r"stack\.json is damaged; delete it"):
        stacks.start(tmp_path)


def test_loopback_goes_through_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = stacks.Server("http://127.0.0.1:1", pid=1)
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another account")
    environment = stacks.Stack(tmp_path, server, server, "a", "b").environment()
    assert environment["no_proxy"] == environment["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    assert environment["AWS_SESSION_TOKEN"] == ""
