from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.unic_core.data.conftest import encoded, picture
from unic_core.config import DatasetConfig
from unic_core.data import parallel
from unic_core.data.dataset import ShardedDataset
from unic_core.data.decode import decode
from unic_core.data.parallel import Count, by_processes, in_order
from unic_core.data.prepare import prepare_dataset
from unic_core.errors import UnicError

MakeFolder = Callable[..., Path]


def config(root: Path, **changes: object) -> DatasetConfig:
    return DatasetConfig(**{"name": "pets", "source": f"folder:{root}", "shard_bytes": 8_000, **changes})


def contents(uri: str) -> dict[str, bytes]:
    return {path.relative_to(uri).as_posix(): path.read_bytes() for path in Path(uri).rglob("*") if path.is_file()}


def test_shards_are_plain_webdataset_with_an_index(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"train/cat": 12, "train/dog": 12, "val/dog": 2})
    seen: list[tuple[int, int | None]] = []
    uri = prepare_dataset(
        config(root, license="CC0"), str(tmp_path / "out"), lambda done, total: seen.append((done, total))
    )
    info = json.loads((Path(uri) / "dataset.json").read_text())
    assert (info["name"], info["license"], info["classes"]) == ("pets", "CC0", ["cat", "dog"])
    assert uri.endswith(f"datasets/pets/{info['fingerprint']}")
    assert info["splits"]["train"]["count"] == 24
    assert len(info["splits"]["train"]["shards"]) > 1
    assert seen[-1] == (26, 26)
    originals = sorted(path.read_bytes() for path in (root / "train").rglob("*.jpg"))
    stored = []
    for shard in info["splits"]["train"]["shards"]:
        data = (Path(uri) / f"{shard['name']}.tar").read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        rows = np.load(Path(uri) / f"{shard['name']}.npy")
        assert rows.shape == (shard["count"], 4)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = tar.getmembers()
            assert {(m.mtime, m.uid, m.gid) for m in members} == {(0, 0, 0)}
            images = [m for m in members if m.name.endswith(".jpg")]
            labels = [int(tar.extractfile(m).read()) for m in members if m.name.endswith(".cls")]  # type: ignore[union-attr]
            assert [(m.offset_data, m.size) for m in images] == [tuple(row[:2]) for row in rows]
            assert labels == rows[:, 2].tolist()
        images_of_shard = [data[offset : offset + length] for offset, length, *_ in rows]
        assert [zlib.crc32(image) for image in images_of_shard] == rows[:, 3].tolist()
        stored += images_of_shard
    assert sorted(stored) == originals, "encoded images stay byte-identical"
    assert sorted(p.name for p in Path(uri).iterdir() if p.is_dir()) == [], "no record of the work is left"


def test_preparing_again_changes_nothing_and_bytes_are_reproducible(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"cat": 10, "dog": 10})
    uri = prepare_dataset(config(root), str(tmp_path / "one"))
    times = {path: path.stat().st_mtime_ns for path in Path(uri).iterdir()}
    assert prepare_dataset(config(root), str(tmp_path / "one")) == uri
    assert times == {path: path.stat().st_mtime_ns for path in Path(uri).iterdir()}
    assert contents(prepare_dataset(config(root), str(tmp_path / "two"))) == contents(uri)


def test_the_fingerprint_follows_content_and_settings(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"cat": 4})
    out = str(tmp_path / "out")
    uris = {
        prepare_dataset(config(root, **changes), out)
        for changes in ({}, {"limit": {"train": 2}}, {"corruption": "blur"}, {"short_side": 20}, {"splits": ("train",)})
    }
    assert len(uris) == 5
    before = prepare_dataset(config(root), out)
    assert prepare_dataset(config(root, license="MIT", max_broken=3), out) == before
    assert ShardedDataset(before, "train").license == "MIT"
    (root / "cat" / "new.jpg").write_bytes(encoded(picture(77)))
    assert prepare_dataset(config(root), out) != before


def test_limits_are_balanced_and_splits_are_filtered(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"train/cat": 15, "train/dog": 5, "val/cat": 5})
    uri = prepare_dataset(config(root, splits=("train",), limit={"train": 8}), str(tmp_path))
    assert np.bincount(ShardedDataset(uri, "train").labels).tolist() == [4, 4]
    with pytest.raises(UnicError, match="no split 'val'; it has train"):
        ShardedDataset(uri, "val")
    with pytest.raises(UnicError, match="no split 'dev'; it has train, val"):
        prepare_dataset(config(root, splits=("dev",)), str(tmp_path))


def test_classes_are_mixed(make_folder: MakeFolder, tmp_path: Path) -> None:
    uri = prepare_dataset(config(make_folder({"cat": 40, "dog": 40})), str(tmp_path))
    labels = ShardedDataset(uri, "train").labels
    assert 10 <= labels[:40].sum() <= 30


def test_broken_images_are_counted_named_and_skipped(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"cat": 10})
    whole = (root / "cat" / "000.jpg").read_bytes()
    (root / "cat" / "001.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "cat" / "002.jpg").write_bytes(b"not an image")
    uri = prepare_dataset(config(root, max_broken=2), str(tmp_path / "out"))
    info = json.loads((Path(uri) / "dataset.json").read_text())
    assert {row["key"] for row in info["splits"]["train"]["skipped"]} == {"cat/001.jpg", "cat/002.jpg"}
    assert all(row["reason"] for row in info["splits"]["train"]["skipped"])
    assert len(ShardedDataset(uri, "train")) == info["splits"]["train"]["count"] == 8
    (root / "cat" / "003.jpg").write_bytes(b"")
    with pytest.raises(
        UnicError, match=r"more unreadable images than max_broken = 2: cat/00\d.jpg \(.*raise max_broken"
    ):
        prepare_dataset(config(root, max_broken=2), str(tmp_path / "out"))
    assert len(list((tmp_path / "out").rglob("dataset.json"))) == 1


def test_every_kind_of_file_is_kept_readable(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    image = picture(3)
    gray16 = Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 257)
    kinds = {
        "gray.jpg": encoded(image.convert("L")),
        "cmyk.jpg": encoded(image.convert("CMYK")),
        "palette.png": encoded(image.quantize(16), "PNG"),
        "deep.png": encoded(gray16, "PNG"),
        "lying.jpg": encoded(image, "PNG"),
        "old.bmp": encoded(image, "BMP"),
    }
    for name, data in kinds.items():
        (folder / name).write_bytes(data)
    dataset = ShardedDataset(prepare_dataset(config(folder), str(tmp_path)), "train")
    stored = {dataset.key(i).partition("_")[2]: dataset.read(i) for i in range(len(dataset))}
    for name, data in kinds.items():
        read = stored[name.partition(".")[0]]
        assert decode(read).shape == (3, 40, 48)
        if name == "old.bmp":
            assert read.startswith(b"\x89PNG")
            assert np.array_equal(decode(read), decode(data))
        else:
            assert read == data


@pytest.mark.parametrize("corruption", ["rotation", "blur", "noise", "contrast"])
def test_corruptions_are_fixed_and_visible(corruption: str, tmp_path: Path) -> None:
    plain = DatasetConfig(name="digits", source="sklearn:digits", limit={"test": 12}, splits=("test",))
    changed = plain.model_copy(update={"corruption": corruption})
    a = ShardedDataset(prepare_dataset(plain, str(tmp_path)), "test")
    b = ShardedDataset(prepare_dataset(changed, str(tmp_path)), "test")
    c = ShardedDataset(prepare_dataset(changed, str(tmp_path / "again")), "test")
    assert np.array_equal(a.labels, b.labels)
    assert [a.key(i) for i in range(12)] == [b.key(i) for i in range(12)]
    pairs = [(decode(a.read(i)).float(), decode(b.read(i)).float()) for i in range(12)]
    assert all(x.shape == y.shape and 2 < (x - y).abs().mean() < 80 for x, y in pairs)
    assert all(b.read(i) == c.read(i) for i in range(12))


def test_short_side(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"cat": 2})
    (root / "cat" / "exact.jpg").write_bytes(encoded(picture(9, 20, 31)))
    dataset = ShardedDataset(prepare_dataset(config(root, short_side=20), str(tmp_path)), "train")
    shapes = {dataset.key(i).partition("_")[2]: tuple(decode(dataset.read(i)).shape) for i in range(3)}
    assert shapes == {"000": (3, 20, 24), "001": (3, 20, 24), "exact": (3, 20, 31)}
    exact = next(i for i in range(3) if "exact" in dataset.key(i))
    assert dataset.read(exact) == (root / "cat" / "exact.jpg").read_bytes()


class _Stop(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 9, 25])
def test_an_interrupted_preparation_is_continued(after: int, make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"train/cat": 20, "val/cat": 10})
    (root / "train" / "cat" / "005.jpg").write_bytes(b"broken")

    def stop(done: int, total: int | None) -> None:
        if done == after:
            raise _Stop

    out = str(tmp_path / "out")
    with pytest.raises(_Stop):
        prepare_dataset(config(root, max_broken=1), out, stop)
    assert not list(Path(out).rglob("dataset.json"))
    finished = {path: path.stat().st_mtime_ns for path in Path(out).rglob("*.tar")}
    uri = prepare_dataset(config(root, max_broken=1), out)
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    whole = prepare_dataset(config(root, max_broken=1), str(tmp_path / "whole"))
    assert contents(uri) == contents(whole)


@pytest.mark.slow
def test_a_killed_preparation_is_continued(make_folder: MakeFolder, tmp_path: Path) -> None:
    root, out = make_folder({"cat": 60}), tmp_path / "out"
    code = (
        "import sys, time\nfrom unic_core.config import DatasetConfig\n"
        "from unic_core.data.prepare import prepare_dataset\n"
        "config = DatasetConfig(name='pets', source='folder:' + sys.argv[1], shard_bytes=8000)\n"
        "prepare_dataset(config, sys.argv[2], lambda done, total: time.sleep(0.05))\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code, str(root), str(out)], env=environment)
    deadline = time.monotonic() + 60
    while not list(out.rglob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(out.rglob("dataset.json"))
    uri = prepare_dataset(config(root), str(out))
    assert contents(uri) == contents(prepare_dataset(config(root), str(tmp_path / "whole")))


@pytest.mark.slow
def test_processes_and_kills_change_no_byte(make_folder: MakeFolder, tmp_path: Path) -> None:
    """Three processes, killed with the parent again and again, write what one process writes; none outlives it."""
    root, out = make_folder({"train/cat": 150, "val/cat": 50}), tmp_path / "out"
    (root / "train" / "cat" / "007.jpg").write_bytes(b"broken")
    code = (
        "import sys\nfrom unic_core.config import DatasetConfig\nfrom unic_core.data import prepare\n"
        "prepare._WORTH_A_PROCESS = 1\n"
        "config = DatasetConfig(name='pets', source='folder:' + sys.argv[1], shard_bytes=8000, max_broken=1)\n"
        "print(prepare.prepare_dataset(config, sys.argv[2], workers=3))\n"
    )
    command = [sys.executable, "-c", code, str(root), str(out)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    seen: set[Path] = set()
    for _ in range(2):
        process = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + 120
        while set(out.rglob("*-*.json")) <= seen and time.monotonic() < deadline:
            time.sleep(0.005)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        assert not psutil.wait_procs(children, timeout=20)[1], "a process outlived its parent"
        seen = set(out.rglob("*-*.json"))
        assert seen
        assert not list(out.rglob("dataset.json")), "killed before the end"
    times = {path: path.stat().st_mtime_ns for path in _recorded(seen)}
    uri = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert times == {path: path.stat().st_mtime_ns for path in times}, "finished shards are not made again"
    whole = prepare_dataset(config(root, max_broken=1), str(tmp_path / "whole"), workers=1)
    assert contents(uri) == contents(whole)


def _recorded(records: set[Path]) -> list[Path]:
    tars = [path.parent.parent / f"{path.stem}.tar" for path in records]
    assert all(path.exists() for path in tars)
    return tars


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_set_of_finished_shards_is_continued(data: st.DataObject, make_folder: MakeFolder, tmp_path: Path) -> None:
    """Whatever an interruption leaves (records without shards, shards without records, damage), the bytes are those."""
    place = tmp_path / str(len(list(tmp_path.iterdir())))
    count = data.draw(st.integers(3, 20))
    root = make_folder({"train/cat": count, "val/cat": 4}, f"{place.name}/images")
    shard_bytes = data.draw(st.integers(1, 20_000))
    for broken in data.draw(st.sets(st.integers(0, count - 1), max_size=2)):
        (root / "train" / "cat" / f"{broken:03d}.jpg").write_bytes(b"broken")
    changes = {"shard_bytes": shard_bytes, "max_broken": 2, "short_side": data.draw(st.sampled_from([None, 20]))}

    after = data.draw(st.integers(1, count + 5))

    def stop(done: int, total: int | None) -> None:
        if done >= after:
            raise _Stop

    whole = contents(prepare_dataset(config(root, **changes), str(place / "whole")))
    with contextlib.suppress(_Stop):
        prepare_dataset(config(root, **changes), str(place / "out"), stop)
    left = sorted(path for path in (place / "out").rglob("*") if path.is_file() and path.name != "plan.json")
    if not list((place / "out").rglob("dataset.json")):
        for path in data.draw(st.sets(st.sampled_from(left), max_size=3)) if left else ():
            path.unlink()
    assert contents(prepare_dataset(config(root, **changes), str(place / "out"))) == whole


def test_a_killed_process_is_one_sentence(make_folder: MakeFolder, tmp_path: Path) -> None:
    def shoot(task: int, count: Count) -> int:
        return task

    with pytest.raises(UnicError, match="was killed, most likely for lack of memory; use fewer workers"):
        list(by_processes(_die, [1, 2, 3], processes=2, tick=lambda done: None))
    assert list(by_processes(shoot, [1, 2, 3], processes=1, tick=lambda done: None)) == [1, 2, 3]


def _die(task: int, count: Count) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return task


def test_no_more_processes_than_a_container_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(parallel, "_CGROUP", limit)
    cpus = len(os.sched_getaffinity(0))
    for text, expected in (("50000 100000", 1), ("max 100000", cpus), ("10000000 100000", cpus)):
        limit.write_text(text)
        assert parallel.usable_cpus() == expected
    limit.unlink()
    assert parallel.usable_cpus() == cpus


@pytest.mark.slow
def test_a_full_disk_is_one_sentence(make_folder: MakeFolder, tmp_path: Path) -> None:
    """A file size limit makes the shard's write fail like a full disk does."""
    root, out = make_folder({"cat": 40}), tmp_path / "out"
    code = (
        "import resource, signal, sys\nfrom unic_core.config import DatasetConfig\n"
        "from unic_core.data.prepare import prepare_dataset\nfrom unic_core.errors import UnicError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try:\n    prepare_dataset(DatasetConfig(name='pets', source='folder:' + sys.argv[1]), sys.argv[2])\n"
        "except UnicError as error:\n    print(error)\n"
    )
    arguments = [sys.executable, "-c", code, str(root), str(out)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.startswith("cannot write a shard in ")
    assert "free some space" in result.stdout
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["plan.json"]


def test_in_order_keeps_order_and_passes_errors_on() -> None:
    def square(x: int) -> int:
        time.sleep(0.001 * (x % 3))
        if x == 50:
            raise UnicError("fifty")
        return x * x

    assert list(in_order(square, range(40), threads=4)) == [x * x for x in range(40)]
    with pytest.raises(UnicError, match="fifty"):
        list(in_order(square, range(60), threads=4))
