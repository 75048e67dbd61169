"""Sources that are arrays or libraries: IDX files (MNIST and its relatives), torchvision, scikit-learn's digits."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import logging
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unic_core.data.listing import Source, SourceSplit, content_hash, identity, numbered_classes
from unic_core.data.pixels import Pixels
from unic_core.data.subset import Indices, stratified
from unic_core.errors import UnicError
from unic_core.storage import open_store

log = logging.getLogger(__name__)

_IDX_IMAGES = re.compile(r"^(?P<prefix>.+)-images[-.]idx3-ubyte(?P<gz>\.gz)?$")
_DIGITS_TEST_SHARE = 1 / 3
_TEST_SHARE = 0.3  # of torchvision sets that come without a split, as in the transfer protocol's EuroSAT
# values of `split=` that make up a data set; classes with `train=` need no entry
_TORCHVISION_SPLITS = {
    "Country211": ("train", "valid", "test"),
    "DTD": ("train", "val", "test"),
    "FGVCAircraft": ("train", "val", "trainval", "test"),
    "Flowers102": ("train", "val", "test"),
    "Food101": ("train", "test"),
    "GTSRB": ("train", "test"),
    "Imagenette": ("train", "val"),
    "ImageNet": ("train", "val"),
    "OxfordIIITPet": ("trainval", "test"),
    "PCAM": ("train", "val", "test"),
    "RenderedSST2": ("train", "val", "test"),
    "StanfordCars": ("train", "test"),
    "STL10": ("train", "test", "unlabeled"),
    "SVHN": ("train", "test"),
}


# ---------------------------------------------------------------- IDX


def idx_source(place: str) -> Source:
    """A folder of MNIST-style files: `train-images-idx3-ubyte[.gz]` with `train-labels-idx1-ubyte[.gz]`, `t10k-...`."""
    store = open_store(place)
    names = [name for name in store.list() if "/" not in name]
    found = [match for name in names if (match := _IDX_IMAGES.match(name))]
    if not found:
        raise UnicError(f"no *-images-idx3-ubyte or *-images-idx3-ubyte.gz at {place}; point `idx:` at their folder")
    splits: dict[str, SourceSplit] = {}
    hashes = []
    for match in found:
        prefix = match["prefix"]
        split = "test" if re.search(r"t10k|test", prefix) else "train"
        if split in splits:
            raise UnicError(f"{place} holds several sets of idx files for {split}; give each set its own folder")
        wanted = match[0].replace("-images", "-labels").replace("idx3", "idx1").removesuffix(".gz")
        labels_name = next((name for name in names if name.removesuffix(".gz") == wanted), None)
        image_file = store.get(match[0])
        images = _parse_idx(image_file, 3, f"{place}/{match[0]}")
        hashes += [split, hashlib.sha256(image_file).hexdigest()]
        labels = np.full(len(images), -1, dtype=np.int64)
        if labels_name is not None:
            label_file = store.get(labels_name)
            hashes.append(hashlib.sha256(label_file).hexdigest())
            labels = _parse_idx(label_file, 1, f"{place}/{labels_name}").astype(np.int64)
            if len(labels) != len(images):
                raise UnicError(
                    f"{place}/{labels_name} has {len(labels)} labels for {len(images)} images; get both again"
                )
        keys = [f"{prefix}-{i:06d}" for i in range(len(images))]
        splits[split] = SourceSplit(keys, labels, images, identity)
    classes = numbered_classes(np.concatenate([split.labels for split in splits.values()]))
    return Source(splits, classes, content_hash(hashes))


def _parse_idx(data: bytes, dimensions: int, where: str) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes, gzipped or not."""
    try:
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UnicError(f"{where} is a damaged gzip file ({error}); get it again") from None
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes((0, 0, 8, dimensions)):
        raise UnicError(f"{where} is no IDX file of bytes with {dimensions} dimensions; get it again")
    shape = np.frombuffer(data, dtype=">u4", count=dimensions, offset=4).astype(np.int64)
    if len(data) - header != int(shape.prod()):
        raise UnicError(f"{where} holds {len(data) - header} bytes instead of {int(shape.prod())}; get it again")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


# ---------------------------------------------------------------- scikit-learn


def digits_source(place: str) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; a fixed third of every class is the test split."""
    if place != "digits":
        raise UnicError(f"unknown data set sklearn:{place}; the only one is sklearn:digits")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    splits = {}
    for split, chosen in zip(("train", "test"), stratified(labels, _DIGITS_TEST_SHARE, seed=0), strict=True):
        keys = [f"digit-{i:04d}" for i in chosen]
        splits[split] = SourceSplit(keys, labels[chosen], images[chosen], identity)
    return Source(splits, numbered_classes(labels), content_hash(["digits", images.tobytes(), labels.tobytes()]))


# ---------------------------------------------------------------- torchvision


def torchvision_source(place: str) -> Source:
    """`<ClassName>[:root]` of torchvision.datasets, downloaded to root where it is not there yet.

    Files on disk are taken as they are, arrays as pixels. Sets without a split of their own get a fixed test
    split of 30 % of every class.
    """
    import torchvision.datasets

    name, _, root = place.partition(":")
    factory = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(factory) or not issubclass(factory, torchvision.datasets.VisionDataset):
        raise UnicError(f"torchvision has no data set {name!r}; write the class's name, as in torchvision:FashionMNIST")
    where = Path(root).expanduser() if root else _default_root()
    parameters = inspect.signature(factory).parameters
    if "train" in parameters:
        variants: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
    elif name in _TORCHVISION_SPLITS:
        variants = {split: {"split": split} for split in _TORCHVISION_SPLITS[name]}
    else:
        variants = {"all": {}}
    data = {split: _construct(factory, where, arguments) for split, arguments in variants.items()}
    try:
        parts = {split: _split_of(split, dataset) for split, dataset in data.items()}
    except (TypeError, ValueError):
        raise UnicError(
            f"torchvision:{name} has no whole numbers as labels; choose a classification data set"
        ) from None
    content = content_hash([name, *(h for _, h in parts.values())])
    splits = {split: part for split, (part, _) in parts.items()}
    if "all" in splits:
        splits = _with_test(splits["all"])
    names = getattr(next(iter(data.values())), "classes", None)
    labels = np.concatenate([split.labels for split in splits.values()])
    classes = tuple(str(c) for c in names) if names else numbered_classes(labels)
    return Source(splits, classes, content)


def _default_root() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "unic" / "torchvision"


def _construct(factory: Any, root: Path, arguments: dict[str, Any]) -> Any:
    name = factory.__name__
    parameters = inspect.signature(factory).parameters
    if "root" in parameters:
        arguments = {"root": str(root), **arguments}
    try:
        root.mkdir(parents=True, exist_ok=True)
        try:
            return factory(**arguments)  # what is there needs no network
        except (RuntimeError, FileNotFoundError):
            if "download" not in parameters:
                raise
        log.warning("torchvision:%s is not in %s; torchvision downloads it now", name, root)
        return factory(**arguments, download=True)
    except TypeError as error:
        raise UnicError(f"torchvision:{name} can't be used as a set of labeled images ({error})") from None
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnicError(
            f"torchvision:{name} is not in {root} and could not be downloaded ({reason}); "
            "on a machine without a network put its files there, or use a folder:, idx: or wds: source"
        ) from None


def _split_of(split: str, data: Any) -> tuple[SourceSplit, str]:
    """The split and a hash of its content."""
    labels = _labels_of(data)
    keys = [f"{split}-{i:06d}" for i in range(len(labels))]
    files = _files_of(data)
    if files is not None:
        names = [f"{path.name}\t{path.stat().st_size}" for path in files]
        split_keys = [path.name for path in files]
        return SourceSplit(split_keys, labels, files, Path.read_bytes), content_hash([labels.tobytes(), *names])
    raw = getattr(data, "data", None)
    pixels = np.asarray(raw) if raw is not None and len(raw) == len(labels) else None
    content = content_hash([labels.tobytes(), b"" if pixels is None else np.ascontiguousarray(pixels).tobytes()])
    return SourceSplit(keys, labels, _Pixels(data), identity), content


def _files_of(data: Any) -> list[Path] | None:
    """Paths of the images where the data set keeps a list of them."""
    for attribute in ("_image_files", "_images", "samples", "_samples"):
        rows = getattr(data, attribute, None)
        if isinstance(rows, list) and rows and len(rows) == len(data):
            paths = [Path(row[0] if isinstance(row, tuple) else row) for row in rows]
            if all(path.is_file() for path in paths):
                return paths
    return None


def _labels_of(data: Any) -> Indices:
    for attribute in ("targets", "labels", "_labels", "y"):
        values = getattr(data, attribute, None)
        if values is not None and len(values) == len(data):
            return np.asarray(values).astype(np.int64)
    for attribute in ("samples", "_samples"):
        rows = getattr(data, attribute, None)
        if isinstance(rows, list) and len(rows) == len(data):
            return np.array([row[1] for row in rows], dtype=np.int64)
    return np.array([int(data[i][1]) for i in range(len(data))], dtype=np.int64)


class _Pixels(Sequence[Pixels]):
    """The images of a torchvision data set as arrays, made when they are asked for."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: Any) -> Any:
        image = self._data[index][0]
        return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))


def _with_test(everything: SourceSplit) -> dict[str, SourceSplit]:
    splits = {}
    for name, chosen in zip(("train", "test"), stratified(everything.labels, _TEST_SHARE, seed=0), strict=True):
        splits[name] = everything.part(chosen.tolist())
    return splits
