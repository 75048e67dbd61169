"""Weighted kNN at four values of k against the bare search: one matrix product and one top-k of the same blocks."""

from __future__ import annotations

import argparse
import resource

import torch
import torch.nn.functional as F

from benchmarks.timing import compare, show
from unic_core.evals.knn import SIMILARITIES, classify_knn

KS = (10, 20, 100, 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--train", type=int, default=60_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, options.width, generator=generator).to(device) for n in (options.train, options.test))
    labels = torch.randint(0, 1000, (options.train,), generator=generator).to(device)
    normed, queries = F.normalize(train, dim=1), F.normalize(test, dim=1)
    rows = max(1, SIMILARITIES // options.train)

    def product() -> None:
        for block in queries.split(rows):
            block @ normed.T

    def search() -> None:
        for block in queries.split(rows):
            (block @ normed.T).topk(max(KS), dim=1)

    def votes() -> None:
        classify_knn(train, labels, test, KS, 0.07, 1000)

    title = f"kNN, {options.test:,} x {options.train:,} x {options.width}, k = {', '.join(map(str, KS))}"
    candidates = {"matrix product alone": product, "product and top-k": search, "classify_knn": votes}
    seconds = compare(candidates, rounds=options.rounds, warmup=1)
    gflops = 2e-9 * options.test * options.train * options.width
    print("  " + ", ".join(f"{name}: {gflops / value:,.0f} GFLOP/s" for name, value in seconds.items()))
    print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
    show(title, seconds, options.test)


if __name__ == "__main__":
    main()
