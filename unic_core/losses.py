"""The loss of each image: cosine and smooth-L1 between prediction and standardized target (section 1.4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from unic_core.config import LossConfig, TeacherConfig, TokenLoss
from unic_core.errors import UnicError
from unic_core.tokens import TokenKind


def token_weights(config: LossConfig, teacher: TeacherConfig) -> dict[TokenKind, TokenLoss]:
    """The loss weights of each token kind of one teacher: the teacher's own, where given, else the run's.

    Raises:
        UnicError: weights for a kind that the teacher has no target for, or no kind with a weight above 0.
    """
    surplus = set(teacher.loss) - set(teacher.tokens)
    if surplus:
        raise UnicError(
            f"teacher {teacher.name} has loss weights for {sorted(surplus)[0]}, which is not among its "
            "tokens; add it to tokens or remove it from loss"
        )
    common: dict[TokenKind, TokenLoss] = {"cls": config.cls, "patch": config.patch}
    weights = {kind: teacher.loss.get(kind, common[kind]) for kind in teacher.tokens}
    if not any(weight.weight for weight in weights.values()):
        raise UnicError(f"the token weights of teacher {teacher.name} are all 0; give one a weight")
    return weights


def token_loss(prediction: Tensor, target: Tensor, weights: TokenLoss, beta: float = 1.0) -> Tensor:
    """cosine * (1 - cos(p, t)) + smooth_l1 * mean_d smoothL1(p - t), averaged over the tokens of an image.

    Args:
        prediction: [B, D] for cls, [B, N, D] for patch; any floating type.
        target: same shape, without gradient.
        weights: its `cosine` and `smooth_l1`; `weight` is for `teacher_loss`.
        beta: where smooth-L1 turns from quadratic to linear.

    Returns:
        [B] fp32, also under autocast (float64 for float64 input).

    Raises:
        UnicError: the shapes differ (they would be broadcast silently).
    """
    if prediction.shape != target.shape or prediction.ndim not in (2, 3):
        raise UnicError(
            f"prediction {list(prediction.shape)} and target {list(target.shape)} must both be [B, D] or "
            "[B, N, D]; check the projector's width and the token grid of the teacher"
        )
    with torch.autocast(prediction.device.type, enabled=False):
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        prediction, target = prediction.to(dtype), target.detach().to(dtype)
        cosine = 1 - F.cosine_similarity(prediction, target, dim=-1)
        distance = F.smooth_l1_loss(prediction, target, reduction="none", beta=beta).mean(-1)
        loss = weights.cosine * cosine + weights.smooth_l1 * distance
        return loss if loss.ndim == 1 else loss.mean(1)


def teacher_loss(
    prediction: Mapping[TokenKind, Tensor],
    target: Mapping[TokenKind, Tensor],
    weights: Mapping[TokenKind, TokenLoss],
    beta: float = 1.0,
) -> tuple[Tensor, dict[TokenKind, Tensor]]:
    """The loss of one teacher for each image: the weighted mean over its token kinds (the paper: plain mean).

    Args:
        prediction, target: {kind: [B, D] or [B, N, D]}, the same kinds as `weights`.
        weights: from `token_weights`.
        beta: as for `token_loss`.

    Returns:
        The combined loss [B] and its parts {kind: [B]}, fp32; a part carries no `weight`.

    Raises:
        UnicError: kinds or shapes differ.
    """
    if not prediction.keys() == target.keys() == weights.keys():
        raise UnicError(
            f"the loss needs the token kinds {sorted(weights)}, but has predictions of {sorted(prediction)} "
            f"and targets of {sorted(target)}; make student and teacher produce the same"
        )
    parts = {kind: token_loss(prediction[kind], target[kind], weights[kind], beta) for kind in weights}
    total = sum(weight.weight for weight in weights.values())
    combined = torch.stack([weights[kind].weight / total * part for kind, part in parts.items()]).sum(0)
    return combined, parts
