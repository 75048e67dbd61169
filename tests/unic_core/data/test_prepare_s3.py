"""Preparing from S3 to S3, through a real server: the shards are those of the same images on a disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import FaultProxy
from tests.unic_core.data.official_trees import TREES
from tests.workflows.conftest import S3, clean_environment, own_s3, s3, s3_server
from unic_core.config import DatasetConfig
from unic_core.data import prepare, webdataset
from unic_core.data.prepare import prepare_dataset
from unic_core.storage import LocalStore, open_store

__all__ = ["clean_environment", "own_s3", "s3", "s3_server"]  # fixtures

MakeFolder = Callable[..., Path]


def config(source: str, **changes: object) -> DatasetConfig:
    return DatasetConfig(**{"name": "pets", "source": source, "shard_bytes": 20_000, "max_broken": 1, **changes})


def shards(uri: str) -> dict[str, bytes]:
    store = open_store(uri)
    return {key: store.get(key) for key in store.list() if key.endswith((".tar", ".npy"))}


def upload(folder: Path, uri: str) -> str:
    source, target = LocalStore(str(folder)), open_store(uri)
    for key in source.list():
        target.upload(folder / key, key)
    return uri


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_on_s3(
    workers: int, s3: S3, make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "_WORTH_A_PROCESS", 1)
    root = make_folder({"train/cat": 30, "val/cat": 5})
    (root / "train" / "cat" / "007.jpg").write_bytes(b"broken")
    source = upload(root, f"s3://unic/{tmp_path.name}/images")
    uri = prepare_dataset(config(f"folder:{source}"), f"s3://unic/{tmp_path.name}/{workers}", workers=workers)
    assert shards(uri) == shards(prepare_dataset(config(f"folder:{root}"), str(tmp_path)))
    assert [key for key in open_store(uri).list() if key.startswith("unfinished")] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aircraft", "cars196", "sun397"])
def test_an_official_copy_on_s3(name: str, s3: S3, tmp_path: Path) -> None:
    TREES[name][1](tmp_path / "copy")
    source = upload(tmp_path / "copy", f"s3://unic/{tmp_path.name}/copy")
    uri = prepare_dataset(config(f"official:{name}:{source}"), f"s3://unic/{tmp_path.name}/out")
    assert shards(uri) == shards(prepare_dataset(config(f"official:{name}:{tmp_path / 'copy'}"), str(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_webdataset_shards_on_s3(
    workers: int, s3: S3, make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that lie across the pieces in which tars are fetched included."""
    monkeypatch.setattr(prepare, "_WORTH_A_PROCESS", 1)
    monkeypatch.setattr(webdataset, "_PIECE_BYTES", 4096)
    first = prepare_dataset(config(f"folder:{make_folder({'train/cat': 30, 'train/dog': 9})}"), str(tmp_path))
    source = upload(Path(first), f"s3://unic/{tmp_path.name}/tars")
    uri = prepare_dataset(config(f"wds:{source}"), f"s3://unic/{tmp_path.name}/{workers}", workers=workers)
    assert shards(uri) == shards(prepare_dataset(config(f"wds:{first}"), str(tmp_path / "again")))


@pytest.mark.slow
def test_an_outage_is_waited_out(
    s3: S3, clean_environment: pytest.MonkeyPatch, make_folder: MakeFolder, tmp_path: Path
) -> None:
    root = make_folder({"cat": 60})
    source = upload(root, f"s3://unic/{tmp_path.name}/images")
    with FaultProxy(s3.endpoint) as proxy:
        clean_environment.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        uris: list[str] = []

        def work() -> None:
            uris.append(prepare_dataset(config(f"folder:{source}"), f"s3://unic/{tmp_path.name}/out", halfway, 1))

        def halfway(done: int, total: int | None) -> None:
            if done == 30:
                proxy.slow_down()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        proxy.wait_for_hits(4)
        assert uris == []
        proxy.heal()
        thread.join(120)
        assert shards(uris[0]) == shards(prepare_dataset(config(f"folder:{root}"), str(tmp_path)))
