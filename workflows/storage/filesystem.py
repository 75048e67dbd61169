"""The file system in which Ray Train keeps a run's state: pyarrow's, made fit for outages and pickling."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs as arrow

from unic_core.errors import UnicError
from unic_core.storage import LocalStore
from workflows.storage.connection import CONNECT_SECONDS, READ_SECONDS, connection, is_amazon
from workflows.storage.store import split


def filesystem(uri: str) -> tuple[Any, str]:
    """File system and path of a local path or s3:// URI."""
    if uri.startswith("s3://"):
        bucket, prefix = split(uri)
        return arrow.PyFileSystem(RetryingS3()), f"{bucket}/{prefix}".rstrip("/")
    if "://" in uri and not uri.startswith("file://"):
        raise UnicError(f"Ray cannot store a run at {uri}; use a local path or an s3:// URI")
    return arrow.LocalFileSystem(), LocalStore(uri).uri


class RetryingS3(arrow.FileSystemHandler):  # type: ignore[misc]
    """pyarrow's S3 with patience, and without background writes.

    pyarrow forgets the retry strategy when a file system is pickled, and background writes lose errors. So
    every process builds its own S3FileSystem from its own environment; no credentials are pickled.
    """

    def __init__(self, attempts: int = 20) -> None:
        self.attempts = attempts
        self._fs: Any = None

    @property
    def fs(self) -> Any:
        if self._fs is None:
            meta = connection().client.meta
            endpoint = urlsplit(meta.endpoint_url)
            self._fs = arrow.S3FileSystem(
                region=meta.region_name,
                endpoint_override=None if is_amazon(meta.endpoint_url) else endpoint.netloc,
                scheme=endpoint.scheme,
                connect_timeout=CONNECT_SECONDS,
                request_timeout=READ_SECONDS,
                background_writes=False,
                retry_strategy=arrow.AwsStandardS3RetryStrategy(max_attempts=self.attempts),
            )
        return self._fs

    def __getstate__(self) -> dict[str, int]:
        return {"attempts": self.attempts}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.attempts, self._fs = state["attempts"], None

    def __eq__(self, other: object) -> bool:  # Ray compares file systems
        return isinstance(other, RetryingS3) and self.attempts == other.attempts

    def __hash__(self) -> int:
        return hash((RetryingS3, self.attempts))

    def get_type_name(self) -> str:
        return "s3-retrying"

    def normalize_path(self, path: str) -> str:
        return str(self.fs.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> Any:
        return self.fs.get_file_info(paths)

    def get_file_info_selector(self, selector: Any) -> Any:
        return self.fs.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self.fs.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self.fs.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.fs.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise UnicError("refusing to delete every bucket; name a directory")

    def delete_file(self, path: str) -> None:
        self.fs.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        self.fs.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self.fs.copy_file(src, dest)

    def open_input_stream(self, path: str) -> Any:
        return self.fs.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        return self.fs.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return self.fs.open_output_stream(path, metadata=metadata)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        return self.fs.open_append_stream(path, metadata=metadata)
