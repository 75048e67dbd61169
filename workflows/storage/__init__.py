"""Where runs and data sets lie: S3 as a `unic_core.storage.Store`, and a file system for Ray.

Endpoint, region and credentials come from the standard AWS chain alone: AWS_ENDPOINT_URL_S3, profiles, roles.
"""

from __future__ import annotations

from typing import Any

from workflows.storage.connection import trust_endpoint
from workflows.storage.store import S3Store

__all__ = ["S3Store", "ray_filesystem", "trust_endpoint"]


def ray_filesystem(uri: str) -> tuple[Any, str]:
    """A picklable pyarrow file system and the path in it, as `ray.train.RunConfig` wants them.

    Raises:
        UnicError: `uri` is neither a path nor an s3:// URI.
    """
    from workflows.storage.filesystem import filesystem

    return filesystem(uri)
