"""Zero-shot classification: cosines with texts, the file that holds them, and the way back to the teacher's space."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from unic_core.config import load_config
from unic_core.errors import UnicError
from unic_core.evals.zeroshot import TextClassifier, evaluate_zeroshot, read_texts

CLASSES = ("cat", "dog", "fish")


def texts(path: Path, classes: tuple[str, ...] | None = CLASSES, **tensors: Tensor) -> str:
    metadata = None if classes is None else {"classes": json.dumps(classes)}
    save_file({"text": torch.eye(3, 4), **tensors}, path, metadata)
    return str(path)


def test_the_largest_cosine_wins_whatever_the_lengths() -> None:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(5, 8, generator=generator)
    projection = torch.randn(6, 8, generator=generator)
    cls = torch.randn(20, 6, generator=generator)
    found = TextClassifier(text / text.norm(dim=1, keepdim=True), projection)(cls)
    for i in range(20):
        for k in range(5):
            seen = cls[i] @ projection
            assert float(found[i, k]) == pytest.approx(float(seen @ text[k] / seen.norm() / text[k].norm()), abs=1e-5)


def test_texts_are_normalized_and_their_file_is_checked(tmp_path: Path) -> None:
    path = texts(tmp_path / "t.safetensors", text=7 * torch.eye(3, 4), projection=torch.ones(2, 4))
    found = read_texts(path, CLASSES)
    assert found.text.equal(torch.eye(3, 4))
    assert found.projection is not None
    assert found.projection.shape == (2, 4)
    unnamed = read_texts(texts(tmp_path / "u.safetensors", None), CLASSES)
    assert unnamed.fingerprint != found.fingerprint
    assert unnamed.fingerprint == read_texts(texts(tmp_path / "v.safetensors"), CLASSES).fingerprint


def test_mistakes_in_the_file_are_sentences(tmp_path: Path) -> None:
    def refused(path: str, match: str, classes: tuple[str, ...] = CLASSES) -> None:
        with pytest.raises(UnicError, match=match):
            read_texts(path, classes)

    refused(str(tmp_path / "none"), "there is no file of text embeddings")
    (tmp_path / "text.txt").write_text("no tensors")
    refused(str(tmp_path / "text.txt"), "holds no text embeddings")
    path = texts(tmp_path / "t.safetensors")
    refused(path, "has 3 texts, but the data set 2 classes", ("cat", "dog"))
    refused(path, "'dog' instead of 'fish'", ("cat", "fish", "dog"))
    refused(texts(tmp_path / "p.safetensors", projection=torch.ones(2, 5)), r"`projection` in .* is \[2, 5\]")
    save_file({"embeddings": torch.eye(3)}, tmp_path / "e.safetensors")
    refused(str(tmp_path / "e.safetensors"), "has no matrix `text`")
    with pytest.raises(UnicError, match="cls tokens have 7 channels, the texts take 4; add the teacher's visual"):
        read_texts(path, CLASSES)(torch.ones(1, 7))


def test_images_are_scored_by_class() -> None:
    """Images whose brightness names the class; a third of the labels are wrong."""
    images = torch.tensor([0, 100, 200] * 4, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    labels = torch.tensor([0, 1, 2] * 4)
    labels[:4] = (labels[:4] + 1) % 3

    def embed(x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot((x[:, 0, 0, 0] * 255 / 100).round().long(), 3).float()

    batches = [(images[:7], labels[:7]), (images[7:], labels[7:])]
    score = evaluate_zeroshot(embed, TextClassifier(torch.eye(3)), batches, seed=0)
    assert score.top1 == pytest.approx(8 / 12)
    assert score.ci_low < score.top1 < score.ci_high
    assert score.mean_class_accuracy == pytest.approx((2 / 3 + 3 / 5 + 3 / 4) / 3)
    with pytest.raises(UnicError, match="no label"):
        evaluate_zeroshot(embed, TextClassifier(torch.eye(3)), [(images, -torch.ones(12))], seed=0)
    with pytest.raises(UnicError, match="no test images"):
        evaluate_zeroshot(embed, TextClassifier(torch.eye(3)), [], seed=0)


def test_tasks_have_names_and_no_doubles() -> None:
    task = "{dataset: digits, teacher: lite0, text: t.safetensors}"
    uri = "{dataset: 's3://b/datasets/x/0123abcd', teacher: lite0, text: t}"
    config = load_config("smoke", [f"evaluation.zeroshot=[{task}, {uri}]", "evaluation.depth=[{dataset: nyu}]"])
    assert list(config.evaluation.tasks) == ["depth-nyu", "zeroshot-digits", "zeroshot-x-0123abcd"]
    with pytest.raises(UnicError, match="zeroshot names a data set twice"):
        load_config("smoke", [f"evaluation.zeroshot=[{task}, {task}]"])
    with pytest.raises(UnicError, match="zeroshot names the teacher 'clip'; choose from lite0"):
        load_config("smoke", ["evaluation.zeroshot=[{dataset: digits, teacher: clip, text: t}]"])
    with pytest.raises(UnicError, match="stride 600 is larger than crop 512"):
        load_config("smoke", ["evaluation.segmentation=[{dataset: a, stride: 600}]"])
