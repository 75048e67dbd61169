"""MLflow: one parent run per pipeline run, a child per stage, the student in the model registry.

A server that is away when a run starts is reported; one that goes away later costs neither a training step nor a
metric (`workflows.spool`).
"""

from __future__ import annotations

from workflows.tracking.kubeflow import kubeflow_url
from workflows.tracking.registry import Student, log_report, log_student, promote
from workflows.tracking.runs import Run, attach, child_run, finish_parent, parent_run, reuse
from workflows.tracking.server import (
    check_reachable,
    compare_url,
    read_artifact,
    run_name,
    run_url,
    tracking_uri,
)

__all__ = [
    "Run",
    "Student",
    "attach",
    "check_reachable",
    "child_run",
    "compare_url",
    "finish_parent",
    "kubeflow_url",
    "log_report",
    "log_student",
    "parent_run",
    "promote",
    "read_artifact",
    "reuse",
    "run_name",
    "run_url",
    "tracking_uri",
]
