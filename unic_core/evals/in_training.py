"""kNN top-1 of the student while it trains: an early sign that costs one pass over a small labeled set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from unic_core.errors import UnicError
from unic_core.evals.features import TokenChoice, extract
from unic_core.evals.knn import classify_knn
from unic_core.student import Student

Batches = Iterable[tuple[Tensor, Tensor]]


class InTrainingKnn:
    """Call it at the end of an epoch: `{"knn/top1_k20": 0.71, ...}`, to be logged beside the loss.

    The student's mode is restored and no gradient or randomness is touched, so training goes on as without it.
    """

    def __init__(
        self,
        train: Callable[[], Batches],
        test: Callable[[], Batches],
        ks: Sequence[int],
        temperature: float,
        token: TokenChoice = "cls",  # noqa: S107 (no password)
    ) -> None:
        """`train`, `test`: make the batches (uint8 images [B, 3, H, W], labels [B]) anew for every call."""
        self.train, self.test = train, test
        self.ks, self.temperature, self.token = tuple(ks), temperature, token

    def __call__(self, student: Student) -> dict[str, float]:
        """Top-1 for every k.

        Raises:
            UnicError: as in `extract` and `classify_knn`, or images without a label.
        """
        device = next(student.parameters()).device
        training = student.training
        student.eval()
        try:
            train, test = (extract(student.features, make(), self.token, device=device)
                           for make in (self.train, self.test))  # fmt: skip
        finally:
            student.train(training)
        if int(torch.cat([train.y, test.y]).min()) < 0:
            raise UnicError("kNN in training needs labels, but some images have none; choose a labeled data set")
        classes = int(torch.cat([train.y, test.y]).max()) + 1
        found = classify_knn(
            train.x.to(device), train.y.to(device), test.x.to(device), self.ks, self.temperature, classes
        )
        return {f"knn/top1_k{k}": float((found[k].cpu() == test.y).double().mean()) for k in self.ks}
