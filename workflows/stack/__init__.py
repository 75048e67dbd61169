"""The embedded stack: a real S3 server and a real MLflow server on this machine, for laptops, demos and tests.

They run as processes of their own below one directory, which holds their data, logs, record and credentials.
Servers named by AWS_ENDPOINT_URL_S3 or MLFLOW_TRACKING_URI are used instead of own ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from unic_core.errors import UnicError
from workflows.stack import processes, services
from workflows.stack.processes import HOST

__all__ = ["Server", "Stack", "start", "status", "stop"]

RECORD = "stack.json"
CREDENTIALS = "credentials.json"
MLFLOW_BUCKET = "mlflow"
_S3_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_MLFLOW_VARIABLES = ("MLFLOW_TRACKING_URI",)
_PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


@dataclass(frozen=True)
class Server:
    """One part of the stack: a process of ours, or a server elsewhere (`pid` is None)."""

    endpoint: str
    pid: int | None = None
    started: float = 0.0
    ports: dict[str, int] = field(default_factory=dict)
    uses: str = ""  # the S3 endpoint MLflow was started with

    @property
    def external(self) -> bool:
        return self.pid is None

    @property
    def state(self) -> Literal["external", "running", "stopped"]:
        if self.pid is None:
            return "external"
        return "running" if processes.find(self.pid, self.started) else "stopped"


@dataclass(frozen=True)
class Stack:
    """Where the two servers are, and the keys of the S3 server."""

    directory: Path
    s3: Server
    mlflow: Server
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """The variables that make every client, here and in child processes, use this stack."""
        found = {"AWS_ENDPOINT_URL_S3": self.s3.endpoint, "MLFLOW_TRACKING_URI": self.mlflow.endpoint}
        return found | ({} if self.s3.external else _keys(self.access_key, self.secret_key)) | _no_proxy()

    def stop(self) -> int:
        """End the processes of this stack; returns how many there were."""
        return stop(self.directory)


def start(
    directory: Path,
    buckets: Sequence[str] = ("unic", MLFLOW_BUCKET),
    s3_port: int | None = None,
    mlflow_port: int | None = None,
    timeout: float = 120.0,
) -> Stack:
    """Bring the stack in `directory` up, or find it running; returns when both servers answer.

    Args:
        directory: holds everything the stack writes; made when it is missing.
        buckets: made on our S3 server when they are missing, MLflow's beside them.
        s3_port, mlflow_port: fixed ports; by default those of the last start, or free ones.
        timeout: seconds for each server to answer.

    Raises:
        UnicError: a port is in use, a program is missing, a server does not come up, an external one does not
            answer. Whatever this call had started is ended again, also when it is interrupted.
    """
    directory = _absolute(directory)
    with _locked(directory):
        record = _read_record(directory)
        running = [server.pid for server in record.values() if server.state == "running"]
        _end_strays(directory, running)
        keys = _credentials(directory)
        try:
            s3 = _start_s3(directory, record, keys, [*buckets, MLFLOW_BUCKET], s3_port, timeout)
            mlflow = _start_mlflow(directory, record | {"s3": s3}, keys, mlflow_port, timeout)
        except BaseException:
            _end_strays(directory, running)
            _remove_sockets(directory)
            raise
    return Stack(directory, s3, mlflow, *keys)


def status(directory: Path) -> Stack | None:
    """The stack that was last started in `directory`, with the present state of its servers; None if there is none."""
    directory = _absolute(directory)
    record = _read_record(directory)
    if not {"s3", "mlflow"} <= record.keys():
        return None
    return Stack(directory, record["s3"], record["mlflow"], *_credentials(directory))


def stop(directory: Path, grace: float = 10.0) -> int:
    """End every process of the stack in `directory`; returns how many there were. Data and logs stay.

    External servers are left alone. `grace` is the time in seconds between SIGTERM and SIGKILL.
    """
    directory = _absolute(directory)
    if not directory.is_dir():
        return 0
    with _locked(directory):
        ended = _end_strays(directory, [], grace)
        _remove_sockets(directory)
    return ended


def _start_s3(
    directory: Path,
    record: dict[str, Server],
    keys: tuple[str, str],
    buckets: Sequence[str],
    port: int | None,
    timeout: float,
) -> Server:
    old = record.get("s3")
    external = _external("S3", _S3_VARIABLES, old)
    if external:
        return _save(directory, "s3", external)
    log, data = directory / "s3.log", directory / "s3"
    data.mkdir(exist_ok=True)
    if old and old.state == "running":
        _same_port(port, old, "S3")
        server, process = old, psutil.Process(old.pid)
    else:
        ports = services.seaweed_ports(port, old.ports if old else {})
        environment = services.server_environment(_keys(*keys))
        process = processes.spawn(services.seaweed_command(data, ports), environment, directory, data, log)
        server = Server(f"http://{HOST}:{ports['s3.port']}", process.pid, processes.started(process), ports)
        _save(directory, "s3", server)
    processes.wait_until(
        lambda: services.make_buckets(server.endpoint, keys, buckets), process, "SeaweedFS", log, timeout
    )
    return server


def _start_mlflow(
    directory: Path, record: dict[str, Server], keys: tuple[str, str], port: int | None, timeout: float
) -> Server:
    old, s3 = record.get("mlflow"), record["s3"]
    external = _external("MLflow", _MLFLOW_VARIABLES, old)
    if external:
        return _save(directory, "mlflow", external)
    log, data = directory / "mlflow.log", directory / "mlflow"
    data.mkdir(exist_ok=True)
    if old and old.state == "running" and old.uses != s3.endpoint:
        _end_strays(directory, [s3.pid])
    if old and old.state == "running":
        _same_port(port, old, "MLflow")
        server, process = old, psutil.Process(old.pid)
    else:
        number = _mlflow_port(port, old)
        # a bucket of somebody else's S3 server is not ours to fill with artifacts
        artifacts = str(data / "artifacts") if s3.external else f"s3://{MLFLOW_BUCKET}/artifacts"
        client = {} if s3.external else {**_keys(*keys), "MLFLOW_S3_ENDPOINT_URL": s3.endpoint, **_no_proxy()}
        environment = services.server_environment(client)
        command = services.mlflow_command(number, data / "mlflow.db", artifacts)
        process = processes.spawn(command, environment, directory, data, log)
        endpoint = f"http://{HOST}:{number}"
        server = Server(endpoint, process.pid, processes.started(process), {"http": number}, uses=s3.endpoint)
        _save(directory, "mlflow", server)
    processes.wait_until(lambda: processes.answers(f"{server.endpoint}/health") == 200, process, "MLflow", log, timeout)
    return server


def _mlflow_port(wanted: int | None, old: Server | None) -> int:
    if wanted is not None:
        return services.require_free(wanted, "MLflow")
    if old and old.ports and processes.is_free(old.ports["http"]):
        return old.ports["http"]
    return processes.free_ports(1)[0]


def _same_port(wanted: int | None, server: Server, name: str) -> None:
    if wanted is not None and not server.endpoint.endswith(f":{wanted}"):
        raise UnicError(f"{name} of this stack already runs at {server.endpoint}; stop the stack to move it")


def _external(name: str, variables: Sequence[str], old: Server | None) -> Server | None:
    """The server that the environment names, unless that is our own of the last start."""
    variable = next((key for key in variables if os.environ.get(key)), None)
    if variable is None:
        return None
    endpoint = os.environ[variable].rstrip("/")
    if old and not old.external and old.endpoint == endpoint:
        return None
    if endpoint.startswith("http") and processes.answers(endpoint) is None:
        raise UnicError(
            f"{name} at {endpoint} does not answer; start it, or unset {variable} to get a server of our own"
        )
    return Server(endpoint)


def _end_strays(directory: Path, keep: Sequence[int | None], grace: float = 10.0) -> int:
    """End all processes of the stack but those of the servers in `keep`; returns how many there were."""
    ended = 0
    while found := [p for p in processes.members(directory) if processes.session(p) not in keep]:
        processes.end(found, grace)
        ended += len(found)
    return ended


def _remove_sockets(directory: Path) -> None:
    for server in _read_record(directory).values():
        if server.state == "stopped":
            services.remove_sockets(server.ports.values())


def _keys(access_key: str, secret_key: str) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key, "AWS_DEFAULT_REGION": services.REGION}
    # a token of another account in the environment would be sent along with these keys
    return keys | ({"AWS_SESSION_TOKEN": ""} if os.environ.get("AWS_SESSION_TOKEN") else {})


def _no_proxy() -> dict[str, str]:
    """Loopback is reached directly also where a proxy is set."""
    if not any(os.environ.get(key) for key in _PROXIES):
        return {}
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if HOST not in hosts.split(","):
        hosts = ",".join(filter(None, [hosts, HOST, "localhost"]))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def _absolute(directory: Path) -> Path:
    return directory.expanduser().absolute()


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One start or stop at a time."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "lock").open("w")
    except OSError as error:
        raise UnicError(f"cannot write to {directory}: {error.strerror}; choose another directory") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_record(directory: Path) -> dict[str, Server]:
    path = directory / RECORD
    try:
        return {name: Server(**server) for name, server in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        raise UnicError(f"{path} is damaged; delete it and start the stack again") from None


def _save(directory: Path, name: str, server: Server) -> Server:
    record = _read_record(directory) | {name: server}
    text = json.dumps({key: asdict(value) for key, value in record.items()}, indent=1)
    processes.private_write(directory / RECORD, text)
    return server


def _credentials(directory: Path) -> tuple[str, str]:
    """The S3 server's keys: made once, kept in a file that only its owner can read."""
    path = directory / CREDENTIALS
    try:
        keys = json.loads(path.read_text())
        return str(keys["access_key"]), str(keys["secret_key"])
    except FileNotFoundError:
        made = {"access_key": secrets.token_hex(10).upper(), "secret_key": secrets.token_urlsafe(30)}
        processes.private_write(path, json.dumps(made))
        return made["access_key"], made["secret_key"]
    except (ValueError, KeyError, TypeError):
        raise UnicError(f"{path} is damaged; delete the directory {directory} and start again") from None
