"""One measured number with everything needed to trust it, as a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unic_core.errors import UnicError

Role = Literal["student", "teacher", "random"]
Protocol = Literal["logreg", "sgd", "knn", "segmentation", "depth", "zeroshot"]
TASKS: tuple[Protocol, ...] = ("segmentation", "depth", "zeroshot")  # beside the probes, with metrics of their own
Metric = Literal["top1", "miou", "rmse"]
Group = Literal["transfer", "shift"]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


class ResultRow(BaseModel):
    """One model on one data set under one protocol: either measured values or an error, never both.

    Accuracies are shares in [0, 1] of the test images, mIoU a share, RMSE in meters; the interval is a 95 % bootstrap
    over test images. `score` is the value of `metric`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1, description="display name")
    role: Role
    dataset: str = Field(min_length=1)
    group: Group = "transfer"
    protocol: Protocol
    top1: Share | None = None
    ci_low: NonNegative | None = None
    ci_high: NonNegative | None = None
    mean_class_accuracy: Share | None = None
    metric: Metric = Field("top1", description="what `value` is; of top1 the value is `top1`")
    value: NonNegative | None = None
    details: dict[str, float] = Field({}, description="further measures of the same predictions")
    n_train: int = Field(0, ge=0)
    n_test: int = Field(0, ge=0)
    hyper: dict[str, float] = Field({}, description="chosen hyper-parameters, and what they were chosen by")
    seconds: float = Field(0.0, ge=0, description="for classifier and scoring, without the features")
    sha256: str = Field("", description="of the model's weights")
    dataset_fingerprint: str = ""
    test_split: str = ""
    hits: str = Field("", description="which test images were right, see unic_core.evals.difference")
    versions: dict[str, str] = {}
    error: str | None = None

    @model_validator(mode="after")
    def _measured_or_failed(self) -> Self:
        needed = ("ci_low", "ci_high") + (("top1", "mean_class_accuracy") if self.metric == "top1" else ("value",))
        if self.error is None and any(getattr(self, name) is None for name in needed):
            raise ValueError(f"a row without error needs {', '.join(needed)}")
        values = (self.top1, self.value, self.ci_low, self.ci_high, self.mean_class_accuracy)
        if self.error is not None and any(value is not None for value in values):
            raise ValueError("a row with an error carries no accuracies")
        if self.metric != "rmse" and any(value is not None and value > 1 for value in values):
            raise ValueError(f"{self.metric} and its interval are shares, at most 1")
        return self

    @property
    def score(self) -> float | None:
        """The measured value of `metric`; None of a row with an error."""
        return self.top1 if self.metric == "top1" else self.value


def format_score(metric: Metric, score: float | None) -> str:
    """A score with its unit, as people read it: 83.2 % or 0.573 m."""
    if score is None:
        return "failed"
    return f"{score:.3f} m" if metric == "rmse" else f"{100 * score:.1f} %"


def dump_rows(rows: Iterable[ResultRow]) -> str:
    """Rows as a JSON array, one row per line."""
    return "[\n" + ",\n".join(row.model_dump_json() for row in rows) + "\n]\n"


def load_rows(text: str | bytes, where: str) -> list[ResultRow]:
    """Rows of a JSON array; UnicError names `where` and the first thing that is wrong."""
    try:
        return [ResultRow.model_validate(item) for item in json.loads(text)]
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "a row"
        raise UnicError(f"{where} holds no result rows: {key}: {first['msg']}; evaluate again") from None
    except (ValueError, TypeError):
        raise UnicError(f"{where} is not a JSON array of result rows; evaluate again") from None
