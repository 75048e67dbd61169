from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.unic_core.data.conftest import encoded, picture
from unic_core.data.listing import Source
from unic_core.data.sources import open_source
from unic_core.errors import UnicError

MakeFolder = Callable[..., Path]


def opened(source: str, tmp_path: Path) -> Source:
    return open_source(source)


# ---------------------------------------------------------------- folder


@pytest.mark.parametrize(
    ("counts", "splits", "classes"),
    [
        ({"train/cat": 2, "train/dog": 1, "val/dog": 2}, {"train": [0, 0, 1], "val": [1, 1]}, ("cat", "dog")),
        ({"one/cat": 1, "two/dog": 1}, {"one": [0], "two": [1]}, ("cat", "dog")),
        ({"cat": 1, "dog": 2}, {"train": [0, 1, 1]}, ("cat", "dog")),
        ({"cat": 1, "dog/small": 2}, {"train": [0, 1, 1]}, ("cat", "dog")),
        ({"train": 2, "test": 1}, {"train": [-1, -1], "test": [-1]}, ()),
        ({"": 3}, {"train": [-1, -1, -1]}, ()),
    ],
    ids=["split/class", "own split names", "class", "class with subfolders", "split without labels", "flat"],
)
def test_folder_layouts(
    counts: dict[str, int],
    splits: dict[str, list[int]],
    classes: tuple[str, ...],
    make_folder: MakeFolder,
    tmp_path: Path,
) -> None:
    source = opened(f"folder:{make_folder(counts)}", tmp_path)
    assert {name: split.labels.tolist() for name, split in source.splits.items()} == splits
    assert source.classes == classes
    for split in source.splits.values():
        assert all(split.load(i)[:2] == b"\xff\xd8" for i in range(len(split.keys)))


def test_folder_ignores_other_and_hidden_files(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"train/cat": 1})
    (root / "README.txt").write_text("hello")
    (root / "train" / "cat" / "._000.jpg").write_text("of a file system")
    assert opened(f"folder:{root}", tmp_path).splits["train"].keys == ["train/cat/000.jpg"]


def test_folder_content_decides_the_hash(make_folder: MakeFolder, tmp_path: Path) -> None:
    a, b = make_folder({"cat": 2}, "a"), make_folder({"cat": 2}, "b")
    before = opened(f"folder:{a}", tmp_path).content
    assert before == opened(f"folder:{b}", tmp_path).content, "the place is no content"
    (b / "cat" / "000.jpg").rename(b / "cat" / "007.jpg")
    assert before != opened(f"folder:{b}", tmp_path).content
    data = bytearray((a / "cat" / "000.jpg").read_bytes())
    data[-10] ^= 1
    (a / "cat" / "000.jpg").write_bytes(data)
    assert before != opened(f"folder:{a}", tmp_path).content, "same names and sizes"


@pytest.mark.parametrize("place", ["missing", "empty"])
def test_folder_without_images(place: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnicError, match=f"no images at .*{place}"):
        opened(f"folder:{tmp_path / place}", tmp_path)


def test_images_beside_class_folders_are_refused(make_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(UnicError, match=r"beside its class folders, for example 000.jpg"):
        opened(f"folder:{make_folder({'': 1, 'cat': 1})}", tmp_path)


# ---------------------------------------------------------------- list


@pytest.mark.parametrize(
    ("lines", "labels", "classes"),
    [
        (["cat/000.jpg,1", "dog/000.jpg,0"], [1, 0], ("0", "1")),
        (["cat/000.jpg\tcat", "dog/000.jpg\tdog"], [0, 1], ("cat", "dog")),
        (["cat/000.jpg", "", "dog/000.jpg"], [-1, -1], ()),
        (["cat/000.jpg,-1", "dog/000.jpg,2"], [-1, 2], ("0", "1", "2")),
    ],
    ids=["numbers", "names", "no labels", "some labels"],
)
def test_list_lines(
    lines: list[str], labels: list[int], classes: tuple[str, ...], make_folder: MakeFolder, tmp_path: Path
) -> None:
    root = make_folder({"cat": 1, "dog": 1})
    (root / "list.txt").write_text("\n".join(lines))
    source = opened(f"list:{root}/list.txt", tmp_path)
    assert source.splits["train"].labels.tolist() == labels
    assert source.classes == classes
    assert source.splits["train"].load(1) == (root / "dog" / "000.jpg").read_bytes()


def test_list_paths_may_be_absolute_and_contain_commas(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a, b": 1})
    (tmp_path / "val.csv").write_text(f"{root}/a, b/000.jpg\nimages/a, b/000.jpg,3\n")
    source = opened(f"list:{tmp_path}/val.csv", tmp_path)
    assert source.splits["val"].labels.tolist() == [-1, 3]


def test_list_mistakes(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"cat": 1})
    (root / "list.txt").write_text("cat/000.jpg\ncat/404.jpg\n")
    (root / "empty.txt").write_text("\n")
    for name, message in (("list", r"names cat/404.jpg"), ("empty", "the list is empty"), ("no", "no list file")):
        with pytest.raises(UnicError, match=message):
            opened(f"list:{root}/{name}.txt", tmp_path)


# ---------------------------------------------------------------- WebDataset


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_webdataset_shards(tmp_path: Path) -> None:
    images = [encoded(picture(i)) for i in range(4)]
    folder = tmp_path / "wds"
    write_tar(folder / "imagenet-train-000.tar", {"a/0.cls": b"3", "a/0.jpg": images[0], "a/0.json": b"{}"})
    write_tar(folder / "imagenet-train-001.tar", {"a/1.jpg": images[1], "a/1.json": json.dumps({"label": 1}).encode()})
    write_tar(folder / "imagenet-val-000.tar", {"0.jpg": images[2], "0.txt": b"a caption", "1.jpg": images[3]})
    source = opened(f"wds:{folder}", tmp_path)
    assert {name: split.labels.tolist() for name, split in source.splits.items()} == {"train": [3, 1], "val": [-1, -1]}
    assert [source.splits["train"].load(i) for i in range(2)] == images[:2]
    assert [source.splits["val"].load(i) for i in range(2)] == images[2:]
    assert source.splits["train"].keys[1] == "imagenet-train-001.tar:a/1"
    for pattern, count in (
        ("*train*.tar", 2),
        ("imagenet-train-{000..001}.tar", 2),
        ("imagenet-{train,val}-000.tar", 3),
    ):
        assert sum(len(s.keys) for s in opened(f"wds:{folder}/{pattern}", tmp_path).splits.values()) == count
    one = opened(f"wds:{folder}/imagenet-val-000.tar", tmp_path)
    assert list(one.splits) == ["val"]


def test_webdataset_mistakes(tmp_path: Path) -> None:
    write_tar(tmp_path / "text" / "0.tar", {"a.txt": b"no image"})
    write_tar(tmp_path / "label" / "0.tar", {"a.jpg": b"x", "a.json": b"{"})
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "0.tar").write_bytes(b"x" * 2000)
    for place, message in (
        ("none", "no shards"),
        ("text", "no images in the shards"),
        ("label", "a.json is not readable"),
        ("bad", "0.tar is not a readable tar"),
    ):
        with pytest.raises(UnicError, match=message):
            opened(f"wds:{tmp_path / place}", tmp_path)


# ---------------------------------------------------------------- arrays


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray, compress: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        data = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
        (folder / (name + ".gz" if compress else name)).write_bytes(gzip.compress(data) if compress else data)


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 7), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files(compress: bool, tmp_path: Path) -> None:
    write_idx(tmp_path / "idx", "train", IMAGES, LABELS, compress)
    write_idx(tmp_path / "idx", "t10k", IMAGES[:2], LABELS[:2], compress)
    source = opened(f"idx:{tmp_path}/idx", tmp_path)
    assert source.classes == ("0", "1", "2")
    assert source.splits["train"].labels.tolist() == LABELS.tolist()
    assert np.array_equal(source.splits["test"].load(1), IMAGES[1])


def test_idx_mistakes(tmp_path: Path) -> None:
    folder = tmp_path / "idx"
    with pytest.raises(UnicError, match=r"no .*idx3-ubyte"):
        opened(f"idx:{folder}", tmp_path)
    write_idx(folder, "train", IMAGES, LABELS[:-1])
    with pytest.raises(UnicError, match="5 labels for 6 images"):
        opened(f"idx:{folder}", tmp_path)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UnicError, match="damaged gzip"):
        opened(f"idx:{folder}", tmp_path)
    path.write_bytes(b"hello")
    with pytest.raises(UnicError, match="no IDX file"):
        opened(f"idx:{folder}", tmp_path)


def test_digits_have_a_fixed_stratified_split(tmp_path: Path) -> None:
    source = opened("sklearn:digits", tmp_path)
    train, test = source.splits["train"], source.splits["test"]
    assert len(train.labels) + len(test.labels) == 1797
    assert not set(train.keys) & set(test.keys)
    share = np.bincount(test.labels) / (np.bincount(train.labels) + np.bincount(test.labels))
    assert np.allclose(share, 1 / 3, atol=0.01)
    image = train.load(0)
    assert image.shape == (8, 8)
    assert image.dtype == np.uint8
    assert opened("sklearn:digits", tmp_path).content == source.content
    with pytest.raises(UnicError, match="sklearn:iris"):
        opened("sklearn:iris", tmp_path)


def test_torchvision_reads_what_is_on_disk(tmp_path: Path) -> None:
    raw = tmp_path / "root" / "MNIST" / "raw"
    write_idx(raw, "train", IMAGES, LABELS, compress=False)
    write_idx(raw, "t10k", IMAGES[:2], LABELS[:2], compress=False)
    source = opened(f"torchvision:MNIST:{tmp_path}/root", tmp_path)
    assert source.splits["train"].labels.tolist() == LABELS.tolist()
    assert np.array_equal(source.splits["test"].load(0), IMAGES[0])
    assert len(source.classes) == 10


def test_torchvision_files_are_taken_as_they_are(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"eurosat/2750/Forest": 10, "eurosat/2750/River": 10})
    source = opened(f"torchvision:EuroSAT:{root}", tmp_path)
    assert source.classes == ("Forest", "River")
    assert np.bincount(source.splits["test"].labels).tolist() == [3, 3]
    assert np.bincount(source.splits["train"].labels).tolist() == [7, 7]
    assert source.splits["train"].load(0)[:2] == b"\xff\xd8"


def test_torchvision_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UnicError, match="no data set 'Nonsense'"):
        opened("torchvision:Nonsense", tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnicError, match="could not be downloaded"):
        opened(f"torchvision:MNIST:{tmp_path}/file", tmp_path)


def test_unknown_source(tmp_path: Path) -> None:
    with pytest.raises(UnicError, match="unknown source 'zip:x'"):
        opened("zip:x", tmp_path)
