"""One S3 client per process, and its errors as sentences."""

from __future__ import annotations

import os
import threading
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.loaders
import botocore.session
from botocore import exceptions as aws
from botocore.config import Config

from unic_core.errors import OutageError, UnicError

CONNECT_SECONDS = 5
READ_SECONDS = 60
AMAZON = (".amazonaws.com", ".amazonaws.com.cn")

_NO_CREDENTIALS = (
    aws.NoCredentialsError,
    aws.PartialCredentialsError,
    aws.CredentialRetrievalError,
    aws.TokenRetrievalError,
    aws.ProfileNotFound,
)
_NETWORK = (
    aws.ConnectionError,
    aws.HTTPClientError,
    aws.ResponseStreamingError,
    aws.IncompleteReadError,
)
_WRONG_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"}
_THROTTLED = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"}


_descriptions = botocore.loaders.create_loader()  # of services: read once, also by what is forked later


class SizeError(Exception):
    """What lies on the server has not the size of what was sent."""


class Connection:
    """A boto3 client, and whether its endpoint has ever answered this process."""

    def __init__(self) -> None:
        style = (botocore.session.Session().get_scoped_config().get("s3") or {}).get("addressing_style")
        self.client = _connect(style or "auto")
        # bucket.<host> rarely resolves for an own endpoint: the path names the bucket, unless a profile says how
        if style is None and not is_amazon(self.client.meta.endpoint_url):
            self.client = _connect("path")
        self.endpoint: str = self.client.meta.endpoint_url

    @property
    def answered(self) -> bool:
        """Whether the endpoint has answered this process, its parent before a fork, or who asked for trust in it."""
        return _trusted or self.endpoint in _answered

    def has_answered(self) -> None:
        _answered.add(self.endpoint)


def _connect(style: Any) -> Any:
    """A client that gives up on a silent endpoint after two attempts, about 11 s."""
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": 2},
        max_pool_connections=16,
        s3={"addressing_style": style},
    )
    core = botocore.session.get_session()
    core.register_component("data_loader", _descriptions)
    session = boto3.Session(botocore_session=core)
    return session.client("s3", region_name=session.region_name or "us-east-1", config=config)


_trusted = False


def trust_endpoint() -> None:
    """Be patient with the endpoint from the first request on: the process that started this one has used it.

    Otherwise an endpoint that never answered is taken for a mistake of the user, and reported soon.
    """
    global _trusted  # noqa: PLW0603
    _trusted = True


_answered: set[str] = set()
_connections: dict[tuple[tuple[str, str], ...], Connection] = {}
_lock = threading.Lock()


def _forget_connections() -> None:
    """A forked process must not share sockets, or a lock that was held, with its parent."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _connections.clear()


os.register_at_fork(after_in_child=_forget_connections)


def connection() -> Connection:
    """The connection of this process for the AWS settings now in its environment."""
    settings = tuple(sorted((key, value) for key, value in os.environ.items() if key.startswith("AWS_")))
    with _lock:
        if settings not in _connections:
            _connections[settings] = Connection()
        return _connections[settings]


def is_amazon(endpoint: str) -> bool:
    return str(urlsplit(endpoint).hostname).endswith(AMAZON)


def code(error: aws.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: aws.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_throttled(error: Exception) -> bool:
    return isinstance(error, aws.ClientError) and code(error) in _THROTTLED


def is_transient(error: Exception) -> bool:
    """Whether the same request may well succeed a little later."""
    if isinstance(error, aws.ClientError):
        return _status(error) >= 500 or is_throttled(error) or code(error) == "RequestTimeout"
    return isinstance(error, (*_NETWORK, SizeError))


def no_bucket(bucket: str, endpoint: str) -> UnicError:
    return UnicError(
        f"the bucket {bucket!r} does not exist on {endpoint}; correct its name, "
        f"or create it with: aws s3 mb s3://{bucket}"
    )


def translate(error: Exception, where: str, endpoint: str) -> Exception:
    """The error as one sentence that says what to do; FileNotFoundError for a key that is not there."""
    if isinstance(error, aws.ClientError):
        return _translate_answer(error, where, endpoint)
    if isinstance(error, _NO_CREDENTIALS):
        return UnicError(
            f"no usable credentials for {where} ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "a profile or a role"
        )
    if isinstance(error, _NETWORK):
        reason = type(error).__name__.removesuffix("Error")
        return OutageError(f"S3 at {endpoint} cannot be reached ({reason}); start it or correct AWS_ENDPOINT_URL_S3")
    if isinstance(error, aws.ParamValidationError):
        return UnicError(
            f"{where} is no place on S3; a bucket's name is 3 to 63 lower-case letters, digits, '-' and '.'"
        )
    return UnicError(f"cannot use {where}: {error}; check the AWS settings of this environment")


def _translate_answer(error: aws.ClientError, where: str, endpoint: str) -> Exception:
    reason = code(error)
    if reason in {"NoSuchKey", "404"}:
        return FileNotFoundError(where)
    if reason in _WRONG_CREDENTIALS:
        return UnicError(
            f"{endpoint} does not accept the credentials in use ({reason}); correct AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    if _status(error) in {401, 403}:
        return UnicError(
            f"{endpoint} refuses access to {where} ({reason}); correct AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or allow these credentials to use it"
        )
    message = error.response.get("Error", {}).get("Message") or "no reason given"
    kind = OutageError if _status(error) >= 500 else UnicError
    return kind(f"{endpoint} failed on {where} ({reason}: {message}); look into the server's log")
