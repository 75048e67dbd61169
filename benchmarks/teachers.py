"""Frozen CNN teachers: batch norms as they are and folded, fp32 and bf16."""

from __future__ import annotations

import argparse

import torch

from benchmarks.timing import compare, show
from unic_core.config import TeacherConfig
from unic_core.teachers import load_teacher, resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = TeacherConfig(name="teacher", model=options.model, image_size=options.pixels)
    images = torch.rand(options.batch, 3, options.pixels, options.pixels, device=device)
    candidates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        plain, folded = (load_teacher(config, None, device, dtype, fold=fold) for fold in (False, True))
        candidates[f"{name}, batch norms"] = lambda teacher=plain: teacher(images)
        candidates[f"{name}, folded"] = lambda teacher=folded: teacher(images)
    show(f"teacher {resolve(config).id} at {options.pixels} px, forward", compare(candidates), options.batch)


if __name__ == "__main__":
    main()
