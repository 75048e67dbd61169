"""Objects below `s3://bucket/prefix` as a `unic_core.storage.Store`."""

from __future__ import annotations

import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from boto3.s3.transfer import TransferConfig
from botocore import exceptions as aws

from unic_core.errors import UnicError
from workflows.storage.connection import (
    Connection,
    SizeError,
    code,
    connection,
    is_throttled,
    is_transient,
    no_bucket,
    translate,
)

T = TypeVar("T")
log = logging.getLogger(__name__)

PATIENCE_SECONDS = 300.0
DELETE_BATCH = 1000  # the most keys that one DeleteObjects request may name
PART_BYTES = 64 * 2**20
TRANSFER = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=8)


class S3Store:
    """Objects below `s3://bucket/prefix`. Can be pickled; holds no credentials.

    An endpoint that has never answered is reported after some 15 s. One that answered before and then fails
    is given `patience` seconds to come back, with growing pauses: a short outage does not end a long run.
    """

    def __init__(self, uri: str, patience: float = PATIENCE_SECONDS) -> None:
        self.bucket, self.prefix = split(uri)
        self.uri = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self.patience = patience

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""
        end = "" if length is None else start + length - 1
        part = {} if start == 0 and length is None else {"Range": f"bytes={start}-{end}"}

        def read(client: Any) -> bytes:
            try:
                answer = client.get_object(Bucket=self.bucket, Key=self.prefix + key, **part)
            except aws.ClientError as error:
                if code(error) == "InvalidRange":  # starts behind the end: nothing there, as in a file
                    return b""
                raise
            return bytes(answer["Body"].read())

        return self._call(read, key)

    def put(self, key: str, data: bytes) -> None:
        self._call(lambda client: client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=data), key)

    def upload(self, source: Path, key: str) -> None:
        def send(client: Any) -> None:
            with source.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                client.upload_fileobj(file, self.bucket, self.prefix + key, Config=TRANSFER)
            stored = client.head_object(Bucket=self.bucket, Key=self.prefix + key)["ContentLength"]
            if stored != size:
                raise SizeError(f"{stored} of {size} bytes arrived")

        self._call(send, key)

    def download(self, key: str, target: Path) -> None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".part-", dir=target.parent)
        except OSError as error:
            raise _cannot_write(target, error) from error
        os.close(handle)

        def fetch(client: Any) -> None:
            with open(name, "wb") as file:
                client.download_fileobj(self.bucket, self.prefix + key, file, Config=TRANSFER)

        try:
            self._call(fetch, key)
            os.replace(name, target)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _cannot_write(target, error) from error
        finally:
            Path(name).unlink(missing_ok=True)

    def list(self, prefix: str = "") -> dict[str, int]:
        def pages(client: Any) -> dict[str, int]:
            paginator = client.get_paginator("list_objects_v2")
            found = paginator.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            return {item["Key"]: item["Size"] for page in found for item in page.get("Contents", ())}

        sizes = self._call(pages, prefix)
        return {key.removeprefix(self.prefix): sizes[key] for key in sorted(sizes) if not key.endswith("/")}

    def exists(self, key: str) -> bool:
        try:
            self._call(lambda client: client.head_object(Bucket=self.bucket, Key=self.prefix + key), key)
        except FileNotFoundError:
            return False
        return True

    def delete(self, keys: Iterable[str]) -> None:
        names = [{"Key": self.prefix + key} for key in keys]
        for first in range(0, len(names), DELETE_BATCH):
            self._delete_batch(names[first : first + DELETE_BATCH])

    def sweep(self) -> int:
        def abort(client: Any) -> int:
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self.prefix)
            uploads = [upload for page in pages for upload in page.get("Uploads", ())]
            for upload in uploads:
                client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            return len(uploads)

        return self._call(abort, "")

    def child(self, prefix: str) -> S3Store:
        return S3Store(f"{self.uri}/{prefix}", self.patience)

    def __repr__(self) -> str:
        return f"S3Store({self.uri!r})"

    def _delete_batch(self, names: Sequence[dict[str, str]]) -> None:
        def remove(client: Any) -> Any:
            return client.delete_objects(Bucket=self.bucket, Delete={"Objects": list(names), "Quiet": True})

        for failed in self._call(remove, "").get("Errors", ()):
            raise UnicError(
                f"cannot delete s3://{self.bucket}/{failed.get('Key')} ({failed.get('Code')}); "
                "allow these credentials to delete there"
            )

    def _call(self, action: Callable[[Any], T], key: str) -> T:
        """Run `action(client)`, again while the endpoint is only briefly away; errors become sentences."""
        where = f"s3://{self.bucket}/{self.prefix}{key}"
        try:
            server = connection()
        except (aws.BotoCoreError, ValueError) as error:
            raise translate(error, where, "") from error
        deadline, pause = time.monotonic() + self.patience, 0.5
        while True:
            try:
                result = action(server.client)
            except (aws.BotoCoreError, aws.ClientError, SizeError) as error:
                again = is_transient(error) and (server.answered or is_throttled(error))
                if not again or time.monotonic() > deadline:
                    raise self._explain(error, where, server) from error
                log.warning("%s: %s; trying again", where, error)
                time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                pause = min(2 * pause, 30.0)
            else:
                server.has_answered()
                return result

    def _explain(self, error: Exception, where: str, server: Connection) -> Exception:
        missing = isinstance(error, aws.ClientError) and code(error)
        if missing == "404":  # a HEAD answer has no body: ask whether the bucket or the key is missing
            try:
                server.client.head_bucket(Bucket=self.bucket)
            except aws.ClientError as answer:
                missing = "NoSuchBucket" if code(answer) == "404" else missing
            except aws.BotoCoreError as other:
                return translate(other, where, server.endpoint)
        if missing == "NoSuchBucket":
            return no_bucket(self.bucket, server.endpoint)
        return translate(error, where, server.endpoint)


def split(uri: str) -> tuple[str, str]:
    """Bucket and prefix ("" or ending in "/") of an s3:// URI; UnicError for anything else."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    if not uri.startswith("s3://") or not bucket or "//" in uri.removeprefix("s3://"):
        raise UnicError(f"{uri!r} is no place on S3; write it as s3://bucket/prefix")
    return bucket, f"{prefix}/" if prefix else ""


def _cannot_write(target: Path, error: OSError) -> UnicError:
    return UnicError(f"cannot write {target}: {error.strerror}; free some space or choose another place")
