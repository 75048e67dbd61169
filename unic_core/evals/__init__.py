"""How good frozen features are: logistic regression and k nearest neighbors, with intervals."""

from __future__ import annotations

from unic_core.evals.features import FeatureSet, extract
from unic_core.evals.probe import FittedProbe, ProbeScore, fit_probe, run_probe
from unic_core.evals.results import ResultRow

__all__ = ["FeatureSet", "FittedProbe", "ProbeScore", "ResultRow", "extract", "fit_probe", "run_probe"]
