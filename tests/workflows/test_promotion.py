"""A student becomes champion by the interval of the difference, image by image where both reports have rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unic_core.config import load_config
from unic_core.evals.difference import pack_hits
from unic_core.evals.results import ResultRow, dump_rows
from workflows import tracking
from workflows.tracking.server import client


def measured(hits: int, fingerprint: str) -> ResultRow:
    top1 = hits / 1000
    return ResultRow(
        model="student", role="student", dataset="x", protocol="logreg", top1=top1, ci_low=top1 - 0.025,
        ci_high=top1 + 0.025, mean_class_accuracy=top1, n_test=1000, dataset_fingerprint=fingerprint,
        test_split="test", hits=pack_hits(torch.arange(1000) < hits),
    )  # fmt: skip


def test_champions_are_compared_image_by_image(tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.chdir(tmp_path)  # a database below it
    base = load_config("smoke")

    def report(run: str, hits: int, fingerprint: str = "f") -> str:
        config = base.model_copy(update={"name": run})
        parent = tracking.parent_run(config)
        directory = tmp_path / run
        directory.mkdir()
        (directory / "model.safetensors").write_bytes(run.encode())
        tracking.log_student(parent, directory, config)
        row = measured(hits, fingerprint)
        metrics = {"probe/x/top1": hits / 1000, "probe/mean_top1": hits / 1000, "probe/mean_top1_error": 0.013}
        tracking.log_report(config, parent, {"rows.json": dump_rows([row]).encode()}, metrics)
        return tracking.promote(config, parent)

    def champion() -> int:
        return int(client().get_model_version_by_alias(base.tracking.registered_model, "champion").version)

    assert "first champion" in report("first", 700)
    said = report("by-chance", 702)
    assert "not promoted: its mean top-1 of 0.7020 does not beat the 0.7000 of champion version 1 beyond chance" in said
    assert "they differ by +0.0020 (95 % interval +0.0000 to " in said
    assert "other images of x" in report("elsewhere", 900, fingerprint="g")
    assert champion() == 1
    said = report("better", 710)  # ten images more, none lost: far inside the two intervals, and yet not chance
    assert "new champion: its mean top-1 of 0.7100 beats version 1 by +0.0100" in said
    assert "image by image" in said
    assert champion() == 4
