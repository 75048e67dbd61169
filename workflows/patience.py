"""Waiting for a service that is away: every stage may be repeated, so it is simply tried again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from unic_core.errors import OutageError

logger = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE_S = 5.0


def patiently(stage: Callable[[], T], patience: float) -> T:
    """Do a stage; while a service is away, try again for `patience` seconds. Every stage may be repeated."""
    down_since: float | None = None
    while True:
        begin = time.monotonic()
        try:
            return stage()
        except OutageError as error:
            now = time.monotonic()
            if down_since is None or now - begin > patience:  # first failure, or the first after a good while
                down_since = now
            if now - down_since >= patience:
                raise
            logger.info("%s; trying again", str(error).partition(";")[0])
            time.sleep(PAUSE_S)
