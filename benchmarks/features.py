"""Features of a prepared data set, from the reader to the stored file, against the bare forward pass of the model.

The forward pass has its images in memory already, so that the difference is what reading, decoding, resizing and
storing cost. Processor seconds are those of this process; the reader works in processes of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.features_of import fashion_source
from benchmarks.timing import compare, show
from unic_core.config import DatasetConfig, TeacherConfig
from unic_core.data.dataset import ShardedDataset
from unic_core.data.eval_loader import eval_batches
from unic_core.data.prepare import prepare_dataset
from unic_core.evals.store import FeatureKey, FeatureStore
from unic_core.precision import autocast
from unic_core.teachers import load_teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    config = TeacherConfig(name="teacher", model=options.model, image_size=options.pixels)
    teacher = load_teacher(config, None, device, dtype)
    with tempfile.TemporaryDirectory(prefix="unic-benchmark-") as scratch:
        limit = {"train": options.images}
        source = DatasetConfig(name="images", source=fashion_source(), limit=limit, splits=("train",))
        dataset = ShardedDataset(prepare_dataset(source, scratch), "train")
        labels = torch.from_numpy(dataset.labels.copy())
        images = list(eval_batches(dataset, options.pixels, options.batch))
        store = FeatureStore(f"{scratch}/features", Path(scratch, "cache"))
        key = FeatureKey(teacher.sha256, dataset.fingerprint, "train", options.pixels, "cls", options.precision)
        used = dict.fromkeys(("forward", "extraction"), 0.0)

        def forward() -> None:
            begin = time.process_time()
            with torch.no_grad(), autocast(torch.device(device), options.precision):
                for batch, _ in images:
                    teacher(batch.to(device).float() / 255)
            used["forward"] += time.process_time() - begin

        def extraction() -> None:
            begin = time.process_time()
            batches = eval_batches(dataset, options.pixels, options.batch, options.workers)
            store.compute(key, labels, teacher, batches, device)
            used["extraction"] += time.process_time() - begin

        candidates = {"bare forward pass": forward, "reader, forward, store": extraction}
        seconds = compare(candidates, rounds=options.rounds, warmup=1)
    ratio = used["extraction"] / used["forward"]
    print(f"  processor time of this process: {ratio:.2f} of the forward pass")
    title = f"features, {options.model}, {options.pixels} pixels, {options.precision}, {options.workers} worker(s)"
    show(title, seconds, options.images)


if __name__ == "__main__":
    main()
