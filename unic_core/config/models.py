"""Student, teachers and projectors."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from unic_core.config.base import Fraction, Frozen, Name, NonNegative, Positive
from unic_core.tokens import TOKEN_KINDS, TokenKind


class StudentConfig(Frozen):
    """The encoder to train: any timm model. `None` keeps timm's own value."""

    model: str = Field("vit_base_patch16_224", description="name of a timm model")
    image_size: Positive = Field(224, description="input height and width in pixels")
    patch_size: Positive | None = Field(None, description="pixels per side of a patch")
    width: Positive | None = Field(None, description="embedding width of a ViT")
    depth: Positive | None = Field(None, description="number of blocks of a ViT")
    heads: Positive | None = Field(None, description="attention heads of a ViT")
    drop_path: Fraction = Field(0.1, description="rate at the last block; rises linearly from 0")
    layer_scale: float | None = Field(None, gt=0, description="initial LayerScale value")
    registers: int | None = Field(None, ge=0, description="number of register tokens")
    pretrained: bool = Field(False, description="start from timm's weights instead of from scratch")
    position_embedding: Literal["timm", "offset"] = Field(
        "timm",
        description="how position embeddings are resized: timm's way, or that of the published UNIC model",
    )


class TokenLoss(Frozen):
    """Weights of one token kind: `weight` against the other kind, `cosine` and `smooth_l1` inside (section 1.4)."""

    weight: NonNegative = Field(1.0, description="of this token kind against the other")
    cosine: NonNegative = Field(0.5, description="weight of 1 - cosine similarity")
    smooth_l1: NonNegative = Field(0.5, description="weight of smooth-L1")

    @model_validator(mode="after")
    def _something_left(self) -> Self:
        if self.weight > 0 and self.cosine + self.smooth_l1 == 0:
            raise ValueError("cosine and smooth_l1 are both 0; give one of them a weight")
        return self


class TeacherConfig(Frozen):
    """One frozen teacher. `model` is a name of the registry (`unic teachers`) or `timm:<model name>`.

    The remaining keys override what the registry says.
    """

    name: Name = Field(description="your name for it: in metrics, plots and files")
    model: str = Field(description="a name of the registry, or timm:<model name>")
    weights: str | None = Field(None, description="checkpoint: a path, s3://..., or package://<module>/<file>")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="checksum that the weights file must have")
    converter: str | None = Field(None, description="key layout of the checkpoint: dino, deit3, dbot, dinov2, ...")
    license: str | None = Field(None, description="license of the weights")
    image_size: Positive | None = Field(None, description="input resolution of the teacher")
    mean: tuple[float, float, float] | None = Field(None, description="of the input, per channel")
    std: tuple[float, float, float] | None = Field(None, description="of the input, per channel")
    tokens: tuple[TokenKind, ...] = Field(TOKEN_KINDS, description="which targets it gives")
    loss: dict[TokenKind, TokenLoss] = Field({}, description="loss weights of this teacher alone")

    @model_validator(mode="after")
    def _tokens(self) -> Self:
        if not self.tokens or len(set(self.tokens)) != len(self.tokens):
            raise ValueError("tokens must name cls, patch or both, each once")
        return self


class LadderConfig(Frozen):
    """An MLP on every block, summed (section 1.2)."""

    kind: Literal["ladder"] = "ladder"
    blocks: tuple[int, ...] | None = Field(None, description="block numbers from 0; none means all of them")
    hidden: Positive = Field(768, description="hidden size on all other blocks")
    hidden_last: Positive = Field(3072, description="hidden size on the student's last block")
    pre_norm: bool = Field(False, description="LayerNorm before the first linear map")
    mid_norm: bool = Field(False, description="LayerNorm before the GELU")
    init_std: float = Field(0.02, gt=0, description="of the initial weights")


class MLPConfig(Frozen):
    """One MLP on the last block: the paper's baseline."""

    kind: Literal["mlp"] = "mlp"
    hidden: Positive = Field(3072, description="hidden size")
    pre_norm: bool = Field(False, description="LayerNorm before the first linear map")
    mid_norm: bool = Field(False, description="LayerNorm before the GELU")
    init_std: float = Field(0.02, gt=0, description="of the initial weights")


class LinearNormConfig(Frozen):
    """Linear, LayerNorm, GELU, Linear without biases on the last block (EUPE)."""

    kind: Literal["linear_norm"] = "linear_norm"
    hidden: Positive = Field(3072, description="hidden size")
    init_std: float = Field(0.02, gt=0, description="of the initial weights")


class TransformerConfig(Frozen):
    """One transformer block on all tokens of the last block, then a linear map (DUNE)."""

    kind: Literal["transformer"] = "transformer"
    heads: Positive = Field(12, description="attention heads")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden size of the block's MLP over its width")
    init_std: float = Field(0.02, gt=0, description="of the initial weights")


ProjectorConfig = Annotated[
    LadderConfig | MLPConfig | LinearNormConfig | TransformerConfig, Field(discriminator="kind")
]
