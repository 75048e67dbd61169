"""`S3Store` behind a proxy that misbehaves: nothing is lost, and nothing arrives damaged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults import FaultProxy
from workflows.storage import S3Store

if TYPE_CHECKING:
    from tests.workflows.conftest import S3

DATA = os.urandom(300_000)


@pytest.fixture
def proxy(s3: S3, clean_environment: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(s3.endpoint) as proxy:
        clean_environment.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        yield proxy


@pytest.fixture
def store(proxy: FaultProxy, tmp_path: Path) -> S3Store:
    """Signed for the proxy's address; the endpoint has answered once, so that outages are waited out."""
    store = S3Store(f"s3://unic/{tmp_path.name}", patience=60)
    store.put("there", DATA)
    return store


def test_signed_requests_pass_through_the_proxy(store: S3Store, proxy: FaultProxy, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)
    store.upload(tmp_path / "source", "a b/copy+1.bin")
    assert store.list("a") == {"a b/copy+1.bin": len(DATA)}
    assert store.get("a b/copy+1.bin", 1000, 500) == DATA[1000:1500]
    store.delete(["a b/copy+1.bin"])
    assert not store.exists("a b/copy+1.bin")
    assert {method for method, _ in proxy.requests} >= {"PUT", "GET", "HEAD", "POST"}


@pytest.mark.parametrize("fault", ["slow_down", "cut", "refuse"])
def test_reads_and_writes_outlast_faults(fault: str, store: S3Store, proxy: FaultProxy, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)
    if fault == "slow_down":
        proxy.slow_down(count=5)
    elif fault == "cut":
        proxy.cut(after=100_000, count=3)
    else:
        proxy.refuse()
        proxy.heal()  # the client's pooled connections are dead
    store.upload(tmp_path / "source", "copy")
    assert store.get("copy") == DATA
    if fault == "cut":
        proxy.cut(after=100_000, count=3)
    store.download("there", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == DATA
    assert proxy.hits == {"slow_down": 5, "cut": 6, "refuse": 0}[fault]
