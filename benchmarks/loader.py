"""Images per second of the training loader from S3, against a local disk, the webdataset package and Ray Data.

All of them decode the same JPEGs, crop and flip them to 224 pixels in uint8 and hand over batches of 128, with two
worker processes. The S3 server runs on the same machine and takes its share of the processors.

Beside images/s there are images per CPU-second of all processes involved, server included: where decoding keeps all
processors busy, the two tell the same, and the second one is not disturbed by other work on the machine.
"""

from __future__ import annotations

import argparse
import importlib
import io
import itertools
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import psutil
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from unic_core.config import AugmentConfig, DataConfig, DatasetConfig, MixConfig
from unic_core.data.dataset import ShardedDataset
from unic_core.data.decode import decode
from unic_core.data.geometry import ATTEMPTS, Geometry, crop_and_flip
from unic_core.data.loader import TrainLoader
from unic_core.data.order import epoch_order
from unic_core.data.prepare import prepare_dataset
from unic_core.provenance import versions
from unic_core.storage import LocalStore, open_store
from workflows.stack import processes, services

BATCH, PIXELS, WORKERS = 128, 224, 2
SHARD_BYTES = 7 * 2**20
LATER = 2  # epochs after the first that are timed together
BUCKET = "unic"
IMAGENET = 1_281_167

Rates = dict[str, float]  # "first" and "later" by the clock, "first_cpu" and "later_cpu" by processor time
Batches = Callable[[], Iterator[Any]]


# ---------------------------------------------------------------- images and server


def make_images(folder: Path, count: int) -> None:
    """Crops of two photographs, short side 256 pixels, quality 90: about 27 KB each."""
    folder.mkdir()
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    random = np.random.default_rng(0)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        height = int(random.integers(180, photograph.height))
        width = min(photograph.width, int(height * random.uniform(1.0, 1.5)))
        left, top = (
            int(random.integers(0, limit + 1)) for limit in (photograph.width - width, photograph.height - height)
        )
        crop = photograph.crop((left, top, left + width, top + height))
        scale = 256 / min(width, height)
        crop = crop.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        crop.save(folder / f"{number:05d}.jpg", quality=90)


@contextmanager
def s3_server(directory: Path) -> Iterator[str]:
    """A SeaweedFS of its own, named by this process's environment."""
    directory.mkdir()
    ports, keys = services.seaweed_ports(None, {}), ("benchmark", "benchmark-secret")
    endpoint = f"http://{processes.HOST}:{ports['s3.port']}"
    credentials = {"AWS_ACCESS_KEY_ID": keys[0], "AWS_SECRET_ACCESS_KEY": keys[1]}
    command, log = services.seaweed_command(directory, ports), directory / "s3.log"
    server = processes.spawn(command, services.server_environment(credentials), directory, directory, log)
    try:
        processes.wait_until(lambda: services.make_buckets(endpoint, keys, [BUCKET]), server, "SeaweedFS", log, 60)
        os.environ.update({**credentials, "AWS_ENDPOINT_URL_S3": endpoint, "AWS_REGION": services.REGION})
        yield endpoint
    finally:
        processes.end(processes.members(directory), 10)
        services.remove_sockets(ports.values())


# ---------------------------------------------------------------- candidates


def ours(uri: str, cache: Path | None, cache_bytes: int = 2**40) -> Iterator[Any]:
    config = DataConfig(train=(MixConfig(dataset="images"),), workers=WORKERS)
    dataset = ShardedDataset(uri, "train", cache, cache_bytes)
    return iter(TrainLoader([dataset], config, PIXELS, seed=0, batch=BATCH))


def view(data: bytes) -> Tensor:
    """The same work for the others: decode, random resized crop, flip."""
    *crop, flip = torch.rand(4 * ATTEMPTS + 1).tolist()
    return crop_and_flip(decode(data), PIXELS, AugmentConfig(), Geometry(crop, flip))


def webdataset(urls: list[str]) -> Iterator[Any]:
    import webdataset as wds

    def stack(images: list[tuple[Tensor]]) -> Tensor:
        return torch.stack([image for (image,) in images])

    importlib.import_module("webdataset.gopen").gopen_schemes["s3"] = open_s3  # its own calls a command line
    pipeline = wds.WebDataset(urls, shardshuffle=len(urls), resampled=False, empty_check=False)
    pipeline = pipeline.repeat().shuffle(512).to_tuple("jpg").map_tuple(view).batched(BATCH, collation_fn=stack)
    return iter(wds.WebLoader(pipeline, num_workers=WORKERS, batch_size=None, prefetch_factor=4))


def open_s3(url: str, *_: object, **__: object) -> io.BufferedIOBase:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    body: io.BufferedIOBase = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"]
    return body


def ray_data(paths: list[str], filesystem: Any) -> Iterator[Any]:
    import ray

    def views(batch: dict[str, Any]) -> dict[str, Any]:
        return {"image": np.stack([view(data).numpy() for data in batch["data"]])}

    def endless() -> Iterator[Any]:
        first = True
        while True:
            these = paths if first else paths * LATER
            dataset = ray.data.read_parquet(these, filesystem=filesystem)
            yield from dataset.map_batches(views, batch_size=BATCH).iter_torch_batches(batch_size=BATCH)
            first = False

    return endless()


def parquet(dataset: ShardedDataset, shards: int) -> Iterator[bytes]:
    """The same images in the format that Ray Data reads fastest."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    for part in np.array_split(np.arange(len(dataset)), shards):
        table = pa.table({"data": [dataset.read(index) for index in part.tolist()]})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=64, compression="none")
        yield buffer.getvalue()


@contextmanager
def ray_cluster(endpoint: str) -> Iterator[Any]:
    """Ray on this machine; gives the file system for its readers."""
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"})
    import ray
    from pyarrow import fs

    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield fs.S3FileSystem(endpoint_override=endpoint.removeprefix("http://"), scheme="http", region=services.REGION)
    finally:
        ray.shutdown()


# ---------------------------------------------------------------- measuring


def cpu_seconds() -> float:
    """Processor time of this process and all that descend from it: workers, the S3 server, Ray."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.Error):
            total += sum(process.cpu_times()[:2])
    return total


def rates(start: Batches, images: int) -> Rates:
    """Images per second of the first epoch, start included, and of the later ones."""
    steps, result = images // BATCH, {}
    clock, cpu = time.perf_counter(), cpu_seconds()
    batches = start()
    for name, count in (("first", steps), ("later", LATER * steps)):
        for _ in itertools.islice(batches, count):
            pass
        now, used = time.perf_counter(), cpu_seconds()
        result[name], result[f"{name}_cpu"] = count * BATCH / (now - clock), count * BATCH / (used - cpu)
        clock, cpu = now, used
    if hasattr(batches, "close"):
        batches.close()
    return result


def measure(
    candidates: Mapping[str, Callable[[int], Batches]], images: int, rounds: int
) -> dict[str, dict[str, Rates]]:
    """Median rates, and medians of the ratios within a round."""
    measured: dict[str, list[Rates]] = {name: [] for name in candidates}
    for turn in range(rounds):
        for name, candidate in candidates.items():
            measured[name].append(rates(candidate(turn), images))
            numbers = "".join(f" {value:8.0f}" for value in measured[name][-1].values())
            print(f"  round {turn + 1}: {name:<28}{numbers}", flush=True)
    reference = measured["S3, cache"]
    ratios = {
        name: [{key: r[key] / v[key] for key in r} for r, v in zip(reference, values, strict=True)]
        for name, values in measured.items()
    }
    return {
        "images_per_second": {name: _medians(values) for name, values in measured.items()},
        "ratio_of_s3_with_cache": {name: _medians(values) for name, values in ratios.items()},
    }


def _medians(values: list[Rates]) -> Rates:
    return {key: statistics.median(value[key] for value in values) for key in values[0]}


def order_seconds() -> float:
    """Median time to order the images of ImageNet-1k for an epoch."""
    seconds = []
    for epoch in range(5):
        begin = time.perf_counter()
        epoch_order([IMAGENET], [1.0], 0, epoch)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-ray", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unic-benchmark-")))
        endpoint = stack.enter_context(s3_server(place / "s3"))
        make_images(place / "images", options.images)
        config = DatasetConfig(name="images", source=f"folder:{place}/images", shard_bytes=SHARD_BYTES)
        local = LocalStore(prepare_dataset(config, str(place)))
        remote = f"s3://{BUCKET}/images"
        target, tars = open_store(remote), [key for key in local.list() if key.endswith(".tar")]
        for key in local.list():
            target.upload(local.root / key, key)
        candidates: dict[str, Callable[[int], Batches]] = {
            "local disk": lambda turn: lambda: ours(str(local.root), None),
            "S3, cache": lambda turn: lambda: ours(remote, place / f"cache-{turn}"),
            "S3, no cache": lambda turn: lambda: ours(remote, None, 0),
            "webdataset, local disk": lambda turn: lambda: webdataset([str(local.root / key) for key in tars]),
            "webdataset, S3": lambda turn: lambda: webdataset([f"{remote}/{key}" for key in tars]),
        }
        if not options.no_ray:
            filesystem = stack.enter_context(ray_cluster(endpoint))
            paths = [f"{BUCKET}/parquet/{number:05d}.parquet" for number in range(len(tars))]
            for path, data in zip(paths, parquet(ShardedDataset(str(local.root), "train"), len(tars)), strict=True):
                open_store(f"s3://{BUCKET}").put(path.removeprefix(f"{BUCKET}/"), data)
            candidates["Ray Data, S3"] = lambda turn: lambda: ray_data(paths, filesystem)
        result = measure(candidates, options.images, options.rounds)
        dataset = ShardedDataset(remote, "train")
        index = dataset.index_bytes / len(dataset)
        mean = sum(local.list()[key] for key in tars) / options.images
    order = order_seconds()
    print(f"\nimages/s, {options.images} JPEGs of {mean / 1000:.0f} KB in {len(tars)} shards, {WORKERS} workers")
    print(f"{'':<28} {'first epoch':>16} {'later':>16}   S3 with cache is better by (first, later, per CPU-second)")
    for name, rate in result["images_per_second"].items():
        ratio = result["ratio_of_s3_with_cache"][name]
        shown = [f"{rate[key]:7.0f} ({rate[key + '_cpu']:5.0f})" for key in ("first", "later")]
        better = [f"{ratio[key]:6.2f}x ({ratio[key + '_cpu']:4.2f}x)" for key in ("first", "later")]
        print(f"  {name:<26} {shown[0]:>16} {shown[1]:>16}   {better[0]}  {better[1]}")
    print("in parentheses: per CPU-second of all processes")
    print(f"order of {IMAGENET:,} samples: {order:.2f} s; index: {index:.0f} bytes per sample")
    about = {"images": options.images, "rounds": options.rounds, "workers": WORKERS, "cpus": os.cpu_count()}
    print(json.dumps({"benchmark": "loader", **about, **result, "order_seconds": order, "index_bytes_per_sample": index,
                      "versions": versions()}))  # fmt: skip


if __name__ == "__main__":
    main()
