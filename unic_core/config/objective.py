"""Targets, loss and balance between teachers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from unic_core.config.base import Fraction, Frozen, NonNegative, Positive
from unic_core.config.models import TokenLoss


class EmaConfig(Frozen):
    """The paper's standardizer: normalize with the old statistics, then update them (section 1.3)."""

    kind: Literal["ema"] = "ema"
    momentum_start: Fraction = Field(1.0, description="share of the new statistics at the first step")
    momentum_end: Fraction = Field(0.001, description="at the last step; a cosine in between")
    eps: float = Field(1e-6, gt=0, description="added to the standard deviation")


class BatchConfig(Frozen):
    """Statistics of the current global batch; their EMA is kept for evaluation (DUNE)."""

    kind: Literal["batch"] = "batch"
    momentum: Fraction = Field(0.01, description="share of the new statistics in the average")
    eps: float = Field(1e-6, gt=0, description="added to the standard deviation")


class FrozenConfig(Frozen):
    """Measure for n steps, then keep (EUPE)."""

    kind: Literal["frozen"] = "frozen"
    steps: Positive = Field(500, description="steps that are measured")
    eps: float = Field(1e-6, gt=0, description="added to the standard deviation")


class PhiSConfig(Frozen):
    """PCA-Hadamard isotropic standardization, measured for n steps and kept (arXiv 2410.01680)."""

    kind: Literal["phi_s"] = "phi_s"
    steps: Positive = Field(500, description="steps that are measured")


class IdentityConfig(Frozen):
    """Raw teacher features."""

    kind: Literal["none"] = "none"


StandardizerConfig = Annotated[
    EmaConfig | BatchConfig | FrozenConfig | PhiSConfig | IdentityConfig, Field(discriminator="kind")
]


class LossConfig(Frozen):
    """Half cosine, half smooth-L1, per token kind (section 1.4)."""

    cls: TokenLoss = TokenLoss()
    patch: TokenLoss = TokenLoss()
    beta: float = Field(1.0, gt=0, description="where smooth-L1 turns from quadratic to linear")


class LossRankedConfig(Frozen):
    """Teacher dropping: the teacher with the largest loss stays, the others go with probability `drop` (1.5)."""

    kind: Literal["loss_ranked"] = "loss_ranked"
    drop: Fraction = Field(0.5, description="probability")


class UniformConfig(Frozen):
    """Every teacher is dropped with probability `drop`, one always stays; decided before the forward pass."""

    kind: Literal["uniform"] = "uniform"
    drop: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="probability")


class FixedConfig(Frozen):
    """A constant weight per teacher."""

    kind: Literal["fixed"] = "fixed"
    weights: dict[str, NonNegative] = Field(description="by name of the teacher")


class EqualConfig(Frozen):
    """No balancing: the mean over teachers."""

    kind: Literal["none"] = "none"


BalancerConfig = Annotated[LossRankedConfig | UniformConfig | FixedConfig | EqualConfig, Field(discriminator="kind")]
