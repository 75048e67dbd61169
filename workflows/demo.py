"""`make demo`: the whole chain on this machine, on real parts and real images."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from unic_core.config import RunConfig, dump_config, load_config
from unic_core.storage import open_store
from workflows import stack
from workflows.console import say
from workflows.demo_data import find_fashion_mnist
from workflows.local_pipeline import run_pipeline
from workflows.request import read_request
from workflows.steps import run_uri

_QUICK = (
    "name=fashion-demo-quick",
    "student.image_size=48",
    "teachers.0.image_size=48",
    "teachers.1.image_size=48",
    "training.steps=40",
    "training.checkpoint_every=20",
    "optimizer.warmup=10",
    "datasets.0.limit={train: 5120}",
    "datasets.1.limit={train: 1000, test: 1000}",
    *(f"datasets.{i}.limit={{test: 300}}" for i in range(2, 6)),
    "evaluation.c_values=[1e-3, 1e-1, 1e1, 1e3]",
)


def demo_config(images: Path, quick: bool, overrides: tuple[str, ...] = ()) -> RunConfig:
    """The demo's recipe with `images` (a folder of Fashion-MNIST files) as its source."""
    recipe = load_config("fashion_demo")
    sources = [
        f"datasets.{i}.source=idx:{images}" for i, d in enumerate(recipe.datasets) if d.source.startswith("idx:")
    ]
    precision = f"precision={'bf16' if _has_bf16() else 'fp32'}"
    fitting = [f"training.{precision}", f"evaluation.{precision}"]
    return load_config("fashion_demo", [*sources, *fitting, *(_QUICK if quick else ()), *overrides])


def _has_bf16() -> bool:
    """Does this CPU multiply bf16 matrices in hardware? Without that, bf16 is slower than fp32."""
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and "amx_bf16" in flags.read_text()


def run_demo(quick: bool, directory: Path, overrides: tuple[str, ...] = ()) -> Path:
    """Start the stack, run the pipeline, fetch the report; returns the path of the report.

    A second call continues: prepared data, checkpoints and results are found where the first one left them.
    """
    begin = time.monotonic()
    with ThreadPoolExecutor(1) as pool:  # the servers start while the images are fetched
        search = pool.submit(find_fashion_mnist, directory / "data")
        running = stack.start(directory / "stack")
    try:
        config = demo_config(search.result(), quick, overrides)
        os.environ.update(running.environment())
        path = directory / f"{config.name}.yaml"
        path.write_text(dump_config(config))
        root = "s3://unic"
        run_pipeline(read_request({"recipe": str(path), "storage_root": root, "distill_launcher": "local"}))
        target = directory / "report" / config.name
        store = open_store(run_uri(config, root)).child("report")
        for key in store.list():
            store.download(key, target / key)
    finally:
        running.stop()
    minutes = (time.monotonic() - begin) / 60
    say((target / "report.md").read_text())
    say(f"done in {minutes:.1f} minutes; report: {target / 'index.html'}")
    say(f"to look at the runs in MLflow: unic stack up --directory {directory / 'stack'}")
    return target / "index.html"
