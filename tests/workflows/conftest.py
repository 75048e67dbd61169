"""A real S3 server and a real MLflow server for the tests of this directory."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from workflows import stack as stacks
from workflows.stack import processes, services

_SETTINGS = ("AWS_", "MLFLOW_", "KFP_", "UNIC_")


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No setting of the machine's S3 or MLflow reaches the test."""
    for key in list(os.environ):
        if key.startswith(_SETTINGS):
            monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("UNIC_SPOOL", str(tmp_path / "spool"))
    return monkeypatch


class S3:
    """A SeaweedFS of its own, which tests may end and start again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keys = ("testkey", "testsecret123")
        self.ports = services.seaweed_ports(None, {})
        self.endpoint = f"http://127.0.0.1:{self.ports['s3.port']}"
        (directory / "data").mkdir()

    def start(self) -> None:
        environment = services.server_environment(
            {"AWS_ACCESS_KEY_ID": self.keys[0], "AWS_SECRET_ACCESS_KEY": self.keys[1]}
        )
        command = services.seaweed_command(self.directory / "data", self.ports)
        log = self.directory / "s3.log"
        self.process = processes.spawn(command, environment, self.directory, self.directory, log)
        ready = lambda: services.make_buckets(self.endpoint, self.keys, ["unic"])  # noqa: E731
        processes.wait_until(ready, self.process, "SeaweedFS", log, 60)

    def use(self, environment: pytest.MonkeyPatch) -> None:
        environment.setenv("AWS_ENDPOINT_URL_S3", self.endpoint)
        environment.setenv("AWS_ACCESS_KEY_ID", self.keys[0])
        environment.setenv("AWS_SECRET_ACCESS_KEY", self.keys[1])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        processes.end(processes.members(self.directory), 10)
        services.remove_sockets(self.ports.values())


@pytest.fixture
def own_s3(tmp_path: Path) -> Iterator[S3]:
    """A server for one test alone, not started yet."""
    server = S3(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def absent_s3(clean_environment: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment leads to an S3 server that is away."""
    with socket.socket() as taken:  # bound, but deaf
        taken.bind(("127.0.0.1", 0))
        clean_environment.setenv("AWS_ACCESS_KEY_ID", "any")
        clean_environment.setenv("AWS_SECRET_ACCESS_KEY", "any")
        clean_environment.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{taken.getsockname()[1]}")
        yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    server = S3(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def s3(s3_server: S3, clean_environment: pytest.MonkeyPatch) -> S3:
    """The S3 server, with the environment that clients need; its bucket is `unic`."""
    s3_server.use(clean_environment)
    return s3_server


@pytest.fixture(scope="session")
def session_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stacks.Stack]:
    directory = tmp_path_factory.mktemp("stack")
    with pytest.MonkeyPatch.context() as patch:
        for key in [key for key in os.environ if key.startswith(("AWS_", "MLFLOW_TRACKING"))]:
            patch.delenv(key)
        try:
            yield stacks.start(directory)
        finally:
            stacks.stop(directory)


@pytest.fixture
def stack(session_stack: stacks.Stack, clean_environment: pytest.MonkeyPatch) -> stacks.Stack:
    """The embedded stack, with the environment that clients need. Takes seconds to start: mark its tests slow."""
    present = stacks.status(session_stack.directory)  # an earlier test may have killed a server and started it again
    assert present is not None
    for key, value in present.environment().items():
        clean_environment.setenv(key, value)
    return present
