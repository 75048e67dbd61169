"""`S3Store` and the file system for Ray against a real S3 server."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from unic_core.errors import UnicError
from unic_core.storage import LocalStore, Store, open_store, read_uri
from workflows.stack import processes
from workflows.storage import S3Store, ray_filesystem
from workflows.storage import store as implementation
from workflows.storage.connection import connection

if TYPE_CHECKING:
    from tests.workflows.conftest import S3


@pytest.fixture(params=["s3", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Both stores: what holds for one must hold for the other."""
    if request.param == "local":
        return LocalStore(str(tmp_path / "store"))
    request.getfixturevalue("s3")
    return S3Store(f"s3://unic/{tmp_path.name}")


def test_bytes_come_back_whole_and_in_parts(store: Store) -> None:
    data = os.urandom(1000)
    store.put("a/b.bin", data)
    assert store.get("a/b.bin") == data
    assert store.get("a/b.bin", 10, 20) == data[10:30]
    assert store.get("a/b.bin", 990) == data[990:]
    assert store.get("a/b.bin", 990, 100) == data[990:]
    assert store.get("a/b.bin", 2000) == b""
    assert store.get("a/b.bin", 5, 0) == b""
    store.put("a/b.bin", b"")
    assert store.get("a/b.bin") == b""


def test_missing_keys(store: Store, tmp_path: Path) -> None:
    store.put("here", b"x")
    assert store.exists("here")
    assert not store.exists("not/here")
    with pytest.raises(FileNotFoundError):
        store.get("not/here")
    with pytest.raises(FileNotFoundError):
        store.download("not/here", tmp_path / "target")
    assert list(tmp_path.glob(".part-*")) == []
    assert not (tmp_path / "target").exists()
    store.delete(["not/here"])


def test_list_delete_child(store: Store) -> None:
    sizes = {"a/x": 1, "a/y": 2, "ab": 3, "b/c/d": 4}
    for key, size in sizes.items():
        store.put(key, b"." * size)
    assert store.list() == sizes
    assert list(store.list()) == sorted(sizes)
    assert store.list("a") == {"a/x": 1, "a/y": 2, "ab": 3}
    assert store.list("a/") == {"a/x": 1, "a/y": 2}
    assert store.list("nothing") == {}
    child = store.child("b/c")
    assert child.list() == {"d": 4}
    assert child.get("d") == b"...."
    assert open_store(child.uri).list() == {"d": 4}
    assert read_uri(f"{child.uri}/d") == b"...."
    store.delete(["a/x", "ab"])
    assert set(store.list()) == {"a/y", "b/c/d"}


@pytest.mark.slow
def test_lists_and_deletes_go_beyond_one_page(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementation, "DELETE_BATCH", 100)
    store = S3Store(f"s3://unic/{tmp_path.name}")
    client = implementation.connection().client
    for number in range(1050):
        client.put_object(Bucket="unic", Key=f"{tmp_path.name}/{number:04d}", Body=b"")
    assert list(store.list()) == [f"{number:04d}" for number in range(1050)]
    store.delete(store.list())
    assert store.list() == {}


def test_files_go_up_and_down_in_parts(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = implementation.TransferConfig(multipart_threshold=6 * 2**20, multipart_chunksize=5 * 2**20)
    monkeypatch.setattr(implementation, "TRANSFER", small)
    data = os.urandom(17 * 2**20)
    source, target = tmp_path / "source", tmp_path / "down" / "target"
    source.write_bytes(data)
    store = S3Store(f"s3://unic/{tmp_path.name}")
    store.upload(source, "big")
    assert store.list() == {"big": len(data)}
    etag = implementation.connection().client.head_object(Bucket="unic", Key=f"{tmp_path.name}/big")["ETag"]
    assert etag.strip('"').endswith("-4")  # four parts
    store.download("big", target)
    assert target.read_bytes() == data
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_pickled_store_works_and_holds_no_secret(s3: S3, tmp_path: Path) -> None:
    store = S3Store(f"s3://unic/{tmp_path.name}")
    store.put("x", b"1")
    pickled = pickle.dumps(store)
    assert s3.keys[1].encode() not in pickled
    assert pickle.loads(pickled).get("x") == b"1"  # noqa: S301


def test_forked_process_opens_its_own_connection(s3: S3, tmp_path: Path) -> None:
    store = S3Store(f"s3://unic/{tmp_path.name}")
    store.put("x", b"1")
    parents = implementation.connection()
    child = os.fork()
    if child == 0:
        own = implementation.connection()
        fine = own is not parents and own.answered and store.get("x") == b"1"
        os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert store.get("x") == b"1"


def test_missing_bucket_is_not_made(s3: S3) -> None:
    store = S3Store("s3://no-such-bucket/x")
    for action in (
        lambda: store.put("a", b""),
        lambda: store.get("a"),
        store.list,
        lambda: store.exists("a"),
    ):
        with pytest.raises(UnicError, match=r"'no-such-bucket' does not exist .* aws s3 mb s3://no-such-bucket"):
            action()


@pytest.mark.parametrize(
    ("variable", "value"), [("AWS_SECRET_ACCESS_KEY", "wrongsecret"), ("AWS_ACCESS_KEY_ID", "nobody")]
)
def test_wrong_credentials(s3: S3, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    for action in (lambda: S3Store("s3://unic").list(), lambda: S3Store("s3://unic").exists("a")):
        with pytest.raises(UnicError, match="AWS_SECRET_ACCESS_KEY") as caught:
            action()
        assert value not in str(caught.value)


def test_no_credentials(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UnicError, match="no usable credentials for s3://unic"):
        S3Store("s3://unic/a").list()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UnicError, match="nobody"):
        S3Store("s3://unic/a").list()


def test_endpoint_down_is_reported_soon(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{processes.free_ports(1)[0]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    begin = time.monotonic()
    with pytest.raises(UnicError, match=f"{endpoint} cannot be reached"):
        S3Store("s3://unic/a").list()
    assert time.monotonic() - begin < 15


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """Accepts connections and never says anything, not even hello to TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"https://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_silent_endpoint_is_reported_soon(s3: S3, monkeypatch: pytest.MonkeyPatch, silent_endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", silent_endpoint)
    begin = time.monotonic()
    with pytest.raises(UnicError, match="cannot be reached"):
        S3Store("s3://unic/a").exists("x")
    assert time.monotonic() - begin < 15


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "s3://bucket//key", "gs://bucket/key"])
def test_impossible_uris(uri: str) -> None:
    with pytest.raises(UnicError, match="s3://bucket/prefix"):
        S3Store(uri)


def test_impossible_bucket_name(s3: S3) -> None:
    with pytest.raises(UnicError, match="bucket's name"):
        S3Store("s3://Bad_Bucket!/x").list()


def test_upload_survives_an_outage(own_s3: S3, clean_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own_s3.start()
    own_s3.use(clean_environment)
    store = S3Store("s3://unic/run")
    store.put("first", b"1")
    own_s3.kill()
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3 * 2**20))
    upload = threading.Thread(target=store.upload, args=(source, "second"))
    upload.start()
    time.sleep(2.0)
    assert upload.is_alive()
    own_s3.start()
    upload.join(60)
    assert store.get("second") == source.read_bytes()
    own_s3.kill()
    with pytest.raises(UnicError, match="cannot be reached"):
        S3Store("s3://unic/run", patience=1.0).get("first")


def test_full_disk_leaves_nothing_behind(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource
    import signal

    store = S3Store(f"s3://unic/{tmp_path.name}")
    store.put("x", os.urandom(2**20))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes fail instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, old[1]))
    try:
        with pytest.raises(UnicError, match=r"cannot write .*free some space"):
            store.download("x", tmp_path / "down" / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "down").iterdir()) == []


def test_ray_filesystem_on_s3(s3: S3, tmp_path: Path) -> None:
    filesystem, path = ray_filesystem(f"s3://unic/{tmp_path.name}/run")
    assert path == f"unic/{tmp_path.name}/run"
    pickled = pickle.dumps(filesystem)
    assert s3.keys[1].encode() not in pickled
    again = pickle.loads(pickled)  # noqa: S301
    assert again == filesystem
    again.create_dir(path)
    with again.open_output_stream(f"{path}/state.json") as stream:
        stream.write(b"{}")
    with filesystem.open_input_stream(f"{path}/state.json") as stream:
        assert stream.read() == b"{}"
    assert S3Store(f"s3://unic/{tmp_path.name}/run").list() == {"state.json": 2}
    again.delete_dir(path)
    assert S3Store(f"s3://unic/{tmp_path.name}/run").list() == {}


def test_ray_filesystem_elsewhere(tmp_path: Path) -> None:
    filesystem, path = ray_filesystem(str(tmp_path / "run"))
    filesystem.create_dir(path)
    assert (tmp_path / "run").is_dir()
    with pytest.raises(UnicError, match="gs://x/y"):
        ray_filesystem("gs://x/y")


def test_sweeping_ends_uploads_that_were_interrupted(s3: S3, tmp_path: Path) -> None:
    store, other = S3Store(f"s3://unic/{tmp_path.name}/own"), S3Store(f"s3://unic/{tmp_path.name}/other")
    client = connection().client
    for place in (store, other):
        key = f"{place.prefix}checkpoints/step-00000001/student.safetensors"
        upload = client.create_multipart_upload(Bucket="unic", Key=key)["UploadId"]
        client.upload_part(Bucket="unic", Key=key, UploadId=upload, PartNumber=1, Body=b"half")
    store.put("whole", b"data")
    assert store.sweep() == 1
    assert store.sweep() == 0
    assert store.get("whole") == b"data"
    assert other.sweep() == 1  # of others nothing was taken


def test_sweeping_a_directory_removes_half_written_files(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.put("a/whole", b"data")
    (tmp_path / "a" / ".part-xyz").write_bytes(b"half")
    assert store.sweep() == 1
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["whole"]
