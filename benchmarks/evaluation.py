"""How long an evaluation takes when its features are stored: the demo's two small sets with four models.

The first run takes the features of student, random student and both teachers. The second finds them and computes every
result again; the third finds the results as well.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.features_of import fashion_source
from unic_core.config import RunConfig, load_config
from unic_core.data.prepare import prepare_dataset
from unic_core.export import save_student
from unic_core.provenance import versions
from unic_core.storage import join, open_store
from unic_core.student import Student
from workflows.evaluation import evaluate_group

SETS = ("digits", "fashion-mnist")


def demo_config() -> RunConfig:
    """The demo, with the data sets and probes of `SETS` alone."""
    recipe = load_config("fashion_demo")
    small = [dataset for dataset in recipe.datasets if dataset.name in SETS]
    datasets = [d.model_copy(update={"source": fashion_source()}) if d.name == "fashion-mnist" else d for d in small]
    probes = tuple(probe for probe in recipe.evaluation.probes if probe.dataset in SETS)
    evaluation = recipe.evaluation.model_copy(update={"probes": probes})
    return recipe.model_copy(update={"datasets": tuple(datasets), "evaluation": evaluation})


def seconds_of(config: RunConfig, root: str, name: str, datasets: dict[str, str], run: str) -> float:
    """One evaluation, which must give every result."""
    begin = time.perf_counter()
    rows = evaluate_group(config, root, name, datasets, run, lambda _: None)
    seconds = time.perf_counter() - begin
    if errors := [row.error for row in rows if row.error]:
        raise RuntimeError(errors[0])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="second and third runs; the fastest count")
    options = parser.parse_args()
    config, records = demo_config(), []
    with tempfile.TemporaryDirectory(prefix="unic-benchmark-") as root:
        datasets = {dataset.name: prepare_dataset(dataset, root) for dataset in config.datasets}
        run = join(root, "runs", "student")
        save_student(Student(config.student), config, open_store(run).child("student"), [], license="MIT")
        for name in SETS:
            arguments = (config, root, name, datasets, run)
            first, second, third = seconds_of(*arguments), [], []
            for _ in range(options.rounds):
                for row in Path(root, "cache", "rows").iterdir():
                    row.unlink()
                second.append(seconds_of(*arguments))
                third.append(seconds_of(*arguments))
            found = {"features": first, "results": min(second), "nothing": min(third)}
            print(f"{name}: " + ", ".join(f"{seconds:.1f} s to compute {what}" for what, seconds in found.items()))
            records.append({"name": name, **found})
    device = {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    print(json.dumps({"benchmark": "evaluation", "sets": records, **device, "versions": versions()}))


if __name__ == "__main__":
    main()
