"""What all parts of the config share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


def label_of(dataset: str) -> str:
    """What a data set is called in results and files: its name, or the last two parts of its URI."""
    return "-".join(dataset.rstrip("/").split("/")[-2:])


class Frozen(BaseModel):
    """Unknown keys, wrong types and numbers that are not finite are refused; nothing changes after validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
