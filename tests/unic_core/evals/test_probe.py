"""From features to scores: selection of C, the test set, bad labels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from unic_core.config import EvaluationConfig
from unic_core.errors import UnicError
from unic_core.evals.features import FeatureSet
from unic_core.evals.linear import validation_split
from unic_core.evals.logreg import fit_logreg
from unic_core.evals.probe import fit_probe, mean_class_accuracy, run_probe

CONFIG = EvaluationConfig(c_values=(1e-3, 1e-1, 1e1), knn_k=(5, 20))


def digits(start: int, stop: int) -> FeatureSet:
    data = load_digits()
    return FeatureSet(torch.tensor(data.data[start:stop] / 16).float(), torch.tensor(data.target[start:stop]))


def test_digits_end_to_end() -> None:
    train, test = digits(0, 500), digits(500, 900)
    logreg, knn = run_probe(train, test, CONFIG, seed=3)
    assert (logreg.protocol, knn.protocol) == ("logreg", "knn")
    for score in (logreg, knn):
        assert 0.8 < score.ci_low < score.top1 < score.ci_high <= 1
        assert abs(score.mean_class_accuracy - score.top1) < 0.02
        assert (score.n_train, score.n_test) == (500, 400)
    assert logreg.hyper["C"] in CONFIG.c_values
    assert knn.hyper["k"] == 20
    assert knn.hyper["top1_k20"] == knn.top1
    assert knn.hyper["top1_k5"] != knn.top1


def test_the_same_seed_gives_the_same_scores() -> None:
    def numbers(seed: int) -> list[object]:
        scores = run_probe(digits(0, 300), digits(300, 400), CONFIG, seed)
        return [(s.top1, s.ci_low, s.ci_high, s.hyper) for s in scores]

    assert numbers(1) == numbers(1)


def test_selection_takes_the_smallest_of_the_best_c_and_refits_on_everything() -> None:
    x = torch.tensor([[-1.0], [1.0]]).repeat(20, 1)  # every C separates it
    train = FeatureSet(x, (x[:, 0] > 0).long())
    fitted = fit_probe(train, EvaluationConfig(c_values=(10.0, 0.1, 1.0)), seed=0)
    (head,) = fitted.heads
    assert head.hyper == {"C": 0.1, "validation_top1": 1.0}
    whole = fit_logreg(train.x, train.y, (0.1,), 2)
    assert torch.allclose(head.weight, whole.weight[0], atol=1e-3)


def test_one_training_serves_several_test_sets() -> None:
    fitted = fit_probe(digits(0, 400), CONFIG, seed=0)
    clean = digits(400, 700)
    noisy = FeatureSet(clean.x + 0.5 * torch.randn(clean.x.shape), clean.y)
    assert fitted.score(noisy)[0].top1 < fitted.score(clean)[0].top1
    assert fitted.score(clean) != []
    assert [s.top1 for s in fitted.score(clean)] == [s.top1 for s in run_probe(digits(0, 400), clean, CONFIG, seed=0)]


def test_labels_may_have_gaps_and_the_test_set_may_lack_classes() -> None:
    train, test = digits(0, 400), digits(400, 600)
    keep = test.y < 5
    test = FeatureSet(test.x[keep], test.y[keep])
    plain = run_probe(train, test, CONFIG, seed=0)
    renamed = run_probe(FeatureSet(train.x, 7 * train.y + 3), FeatureSet(test.x, 7 * test.y + 3), CONFIG, seed=0)
    assert [s.top1 for s in plain] == [s.top1 for s in renamed]
    assert [s.mean_class_accuracy for s in plain] == [s.mean_class_accuracy for s in renamed]


def test_images_of_classes_never_seen_count_as_wrong() -> None:
    train, test = digits(0, 400), digits(400, 600)
    known = train.y < 9
    scores = run_probe(FeatureSet(train.x[known], train.y[known]), test, CONFIG, seed=0)
    for score in scores:
        assert score.top1 <= 1 - (test.y == 9).double().mean().item()


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6).filter(lambda c: max(c) > 1),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_validation_split_is_per_class(counts: list[int], share: float, seed: int) -> None:
    y = torch.cat([torch.full((n,), label) for label, n in enumerate(counts)])
    held_out = validation_split(y, share, seed)
    assert torch.equal(held_out, validation_split(y, share, seed))
    for label, n in enumerate(counts):
        taken = int(held_out[y == label].sum())
        assert taken == min(max(1, int(share * n)), n - 1)


def test_mean_class_accuracy_weighs_classes_equally() -> None:
    y = torch.tensor([0] * 8 + [5] * 2)
    correct = torch.tensor([True] * 8 + [False] * 2)
    assert mean_class_accuracy(correct, y) == 0.5


def _labels(*values: int) -> FeatureSet:
    return FeatureSet(torch.randn(len(values), 64), torch.tensor(values, dtype=torch.int64))


@pytest.mark.parametrize(
    ("train", "test", "sentence"),
    [
        (_labels(2, 2, 2), _labels(2), "label 2; a probe needs at least two classes"),
        (_labels(0, 1, -1, -1), _labels(0), "2 images of the train set have no label"),
        (digits(0, 60), _labels(0, -1), "1 images of the test set have no label"),
        (_labels(0, 1, 2), _labels(0), "single training image"),
        (_labels(), _labels(0), "train set is empty"),
        (digits(0, 60), _labels(), "test set is empty"),
        (digits(0, 60), _labels(10, 11), "none of the classes"),
        (digits(0, 60), FeatureSet(torch.zeros(2, 3), torch.zeros(2).long()), "3 wide, train features 64"),
    ],
)
def test_bad_sets_are_refused_in_a_sentence(train: FeatureSet, test: FeatureSet, sentence: str) -> None:
    with pytest.raises(UnicError, match=sentence):
        run_probe(train, test, CONFIG, seed=0)


def test_sgd_selects_on_a_validation_split_and_is_scored_on_normalized_features() -> None:
    config = CONFIG.model_copy(update={"sgd_heads": 5, "sgd_epochs": 10})
    train, test = digits(0, 600), digits(600, 900)
    linear, knn = run_probe(train, test, config, seed=0, classifier="sgd")
    assert (linear.protocol, knn.protocol) == ("sgd", "knn")
    assert linear.top1 > 0.85
    assert set(linear.hyper) == {"lr", "weight_decay", "validation_top1"}
    scaled = FeatureSet(100 * test.x, test.y)
    assert run_probe(train, scaled, config, seed=0, classifier="sgd")[0].top1 == linear.top1


def test_several_seeds_are_averaged_image_by_image() -> None:
    train, test = digits(0, 300), digits(300, 700)
    config = CONFIG.model_copy(update={"validation": 0.5})
    single = [run_probe(train, test, config, seed)[0] for seed in (7, 8, 9)]
    linear, knn = run_probe(train, test, config.model_copy(update={"seeds": 3}), seed=7)
    top1 = [score.top1 for score in single]
    assert linear.top1 == pytest.approx(sum(top1) / 3)
    assert linear.hyper["top1_std"] == pytest.approx(torch.tensor(top1).std().item(), abs=1e-6)
    assert linear.hyper["seeds"] == 3
    assert [linear.hyper[f"C_seed{seed}"] for seed in (7, 8, 9)] == [score.hyper["C"] for score in single]
    assert [linear.hyper[f"top1_seed{seed}"] for seed in (7, 8, 9)] == pytest.approx(top1)
    assert linear.ci_low < linear.top1 < linear.ci_high
    plain = run_probe(train, test, config, seed=7)[1]
    assert (knn.top1, knn.ci_low, knn.hyper) == (plain.top1, plain.ci_low, plain.hyper)


def test_optuna_is_deterministic_and_no_worse_than_its_first_trials() -> None:
    train, test = digits(0, 300), digits(300, 700)
    config = CONFIG.model_copy(update={"c_search": "optuna", "c_trials": 14, "c_values": (1e-5, 1e6)})
    one, two = (run_probe(train, test, config, seed=3)[0] for _ in range(2))
    assert (one.top1, one.hyper) == (two.top1, two.hyper)
    assert 1e-5 <= one.hyper["C"] <= 1e6
    few = run_probe(train, test, config.model_copy(update={"c_trials": 5}), seed=3)[0]
    assert one.hyper["validation_top1"] >= few.hyper["validation_top1"]
