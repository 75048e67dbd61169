"""Zero-shot classification (section 3.5): images against the embeddings of their classes' names.

A teacher that was trained together with a text encoder puts its cls token (perhaps after a linear projection) into the
space of the texts. The student predicts that cls token, standardized; the standardizer's inverse brings the prediction
back. The class whose text has the largest cosine with it wins. The text encoder itself is not part of this package: its
embeddings come as a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from unic_core.errors import UnicError
from unic_core.evals.bootstrap import bootstrap_accuracy
from unic_core.evals.dense import Precision
from unic_core.evals.probe import mean_class_accuracy
from unic_core.precision import autocast
from unic_core.storage import read_uri
from unic_core.teachers.weights import tensors_sha256

Embed = Callable[[Tensor], Tensor]
"""Float images [B, 3, H, W] in [0, 1] to the teacher's cls tokens [B, D], not standardized."""


@dataclass(frozen=True)
class TextClassifier:
    """Class numbers by cosine. text: [K, E], rows of length 1. projection: [D, E], or None where D is E."""

    text: Tensor
    projection: Tensor | None = None

    @property
    def fingerprint(self) -> str:
        """sha256 of both."""
        tensors = {"text": self.text, "projection": self.projection}
        return tensors_sha256({name: tensor for name, tensor in tensors.items() if tensor is not None})

    def __call__(self, cls: Tensor) -> Tensor:
        """Cosines [B, K] of cls tokens [B, D]; UnicError for another width."""
        wanted = self.text.shape[1] if self.projection is None else len(self.projection)
        if cls.shape[1] != wanted:
            hint = "" if self.projection is not None else "; add the teacher's visual `projection` to the file"
            raise UnicError(f"cls tokens have {cls.shape[1]} channels, the texts take {wanted}{hint}")
        x = cls.float() if self.projection is None else cls.float() @ self.projection
        return F.normalize(x, dim=1) @ self.text.T


def read_texts(path: str, classes: Sequence[str]) -> TextClassifier:
    """The file of `ZeroShotConfig.text`, at a path or URI.

    Where its metadata has `classes`, a JSON list, these must be the data set's, in its order.

    Raises:
        UnicError: no such file, no `text` in it, shapes or classes that don't fit.
    """
    try:
        data = read_uri(path)
        tensors = {name: tensor.float() for name, tensor in load(data).items()}
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        named = json.loads(header.get("__metadata__", {}).get("classes", "null"))
    except (FileNotFoundError, IsADirectoryError):
        raise UnicError(f"there is no file of text embeddings at {path}; correct `text` of the task") from None
    except (SafetensorError, ValueError) as error:
        raise UnicError(f"{path} holds no text embeddings ({error}); write safetensors with `text` [K, E]") from None
    text, projection = tensors.get("text"), tensors.get("projection")
    if text is None or text.ndim != 2:
        raise UnicError(f"{path} has no matrix `text`; write one row for every class")
    if len(text) != len(classes):
        raise UnicError(f"{path} has {len(text)} texts, but the data set {len(classes)} classes; write one for each")
    if named is not None and list(named) != list(classes):
        odd = next((f"{a!r} instead of {b!r}" for a, b in zip(named, classes, strict=False) if a != b), "their number")
        raise UnicError(f"the classes in {path} differ from the data set's ({odd}); order the texts as its classes")
    if projection is not None and (projection.ndim != 2 or projection.shape[1] != text.shape[1]):
        raise UnicError(f"`projection` in {path} is {list(projection.shape)}, but texts are {text.shape[1]} wide")
    return TextClassifier(F.normalize(text, dim=1), projection)


@dataclass(frozen=True)
class ZeroShotScore:
    """Top-1 with its 95 % bootstrap interval, and mean per-class accuracy."""

    top1: float
    ci_low: float
    ci_high: float
    mean_class_accuracy: float
    n_test: int


@torch.no_grad()
def evaluate_zeroshot(
    embed: Embed,
    texts: TextClassifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    seed: int,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> ZeroShotScore:
    """Classify uint8 images [B, 3, H, W] with labels [B].

    Raises:
        UnicError: no images, unlabeled ones, or tokens of another width than the texts take.
    """
    device = torch.device(device)
    classify = TextClassifier(texts.text.to(device), None if texts.projection is None else texts.projection.to(device))
    predicted, labels = [], []
    for images, y in batches:
        with autocast(device, precision):
            cls = embed(images.to(device, non_blocking=True).float() / 255)
        predicted.append(classify(cls).argmax(1).cpu())
        labels.append(y.long())
    if not labels:
        raise UnicError("there are no test images to classify; check the test split")
    y = torch.cat(labels)
    if bool((y < 0).any()):
        raise UnicError(f"{int((y < 0).sum())} test images have no label; zero-shot classification needs labels")
    correct = torch.cat(predicted) == y
    low, high = bootstrap_accuracy(correct, seed)
    return ZeroShotScore(float(correct.double().mean()), low, high, mean_class_accuracy(correct, y), len(y))
