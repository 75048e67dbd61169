"""Runs in MLflow and runs of Kubeflow Pipelines: which run of the pipeline this process belongs to, and its page."""

from __future__ import annotations

import os

RUN_ID, UI_URL = "KFP_RUN_ID", "KFP_UI_URL"


def kubeflow_run() -> str | None:
    """Id of the pipeline's run in Kubeflow; None outside of Kubeflow."""
    return os.environ.get(RUN_ID) or None


def kubeflow_url() -> str | None:
    """Kubeflow's page of the run; None outside of Kubeflow, or where KFP_UI_URL does not say where its pages are."""
    run, pages = kubeflow_run(), os.environ.get(UI_URL, "").rstrip("/")
    return f"{pages}/#/runs/details/{run}" if run and pages else None


def kubeflow_tags(parent_id: str) -> dict[str, str]:
    """Tags of every run in MLflow that a run of the pipeline used: its own, and those of steps that were cached.

    `kfp.pipeline_run_id` is that of the last one. `kfp.run.<id>` stays when others come, and names the parent: all
    runs of one pipeline run are found by it.
    """
    run, url = kubeflow_run(), kubeflow_url()
    if run is None:
        return {}
    return {"kfp.pipeline_run_id": run, f"kfp.run.{run}": parent_id} | ({"kfp.pipeline_run_url": url} if url else {})
