"""What a reader of the report is told, and what its numbers are made of."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unic_core.config import EvaluationConfig, ProbeConfig, RunConfig, TeacherConfig, load_config
from unic_core.cost import CostRow
from unic_core.errors import UnicError
from unic_core.evals.difference import pack_hits
from unic_core.evals.results import Group, Protocol, ResultRow, Role
from unic_core.report import Report, build_report
from unic_core.report.summary import summarize

SETS: tuple[tuple[str, Group], ...] = (("digits", "transfer"), ("fashion", "transfer"), ("blur", "shift"))
MODELS: tuple[tuple[str, Role], ...] = (
    ("student", "student"),
    ("lite0", "teacher"),
    ("lite2", "teacher"),
    ("random student", "random"),
)
CONFIG = RunConfig(
    name="unit",
    teachers=(
        TeacherConfig(name="lite0", model="efficientnet_lite0"),
        TeacherConfig(name="lite2", model="efficientnet_lite2", license="My-License"),
    ),
    evaluation=EvaluationConfig(probes=tuple(ProbeConfig(dataset=name, group=group) for name, group in SETS)),
)
TOP1 = {
    ("student", "digits"): 0.90,
    ("lite0", "digits"): 0.80,
    ("lite2", "digits"): 0.85,
    ("student", "fashion"): 0.70,
    ("lite0", "fashion"): 0.71,
    ("lite2", "fashion"): 0.60,
    ("student", "blur"): 0.40,
    ("lite0", "blur"): 0.60,
    ("lite2", "blur"): 0.55,
}
HISTORY = [{"step": s, "loss": 1 / s, "loss/lite0": 1.1 / s, "loss/lite2": 0.9 / s, "lr": 1e-3} for s in range(1, 9)]


def row(model: str, role: Role, dataset: str, group: Group, protocol: Protocol, top1: float) -> ResultRow:
    return ResultRow(
        model=model,
        role=role,
        dataset=dataset,
        group=group,
        protocol=protocol,
        top1=top1,
        ci_low=max(0.0, top1 - 0.02),
        ci_high=min(1.0, top1 + 0.02),
        mean_class_accuracy=top1,
        n_train=100,
        n_test=1234,
        hyper={"C": 0.1} if protocol == "logreg" else {"k": 20},
    )


def measured() -> Iterator[ResultRow]:
    for model, role in MODELS:
        for dataset, group in SETS:
            top1 = TOP1.get((model, dataset), 0.25)
            yield row(model, role, dataset, group, "logreg", top1)
            yield row(model, role, dataset, group, "knn", top1 - 0.05)


def failed(rows: Iterator[ResultRow], model: str, dataset: str, reason: str) -> list[ResultRow]:
    empty = {"top1": None, "ci_low": None, "ci_high": None, "mean_class_accuracy": None, "error": reason}
    return [r.model_copy(update=empty) if (r.model, r.dataset) == (model, dataset) else r for r in rows]


class Page(HTMLParser):
    """Text, tags and addresses of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href"} and value]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def complete() -> Report:
    return build_report(list(measured()), CONFIG, HISTORY)


def test_headline_and_means(complete: Report) -> None:
    text = Page(complete.html).text
    for form in (text, complete.markdown):
        assert "The student is at or above the best teacher on 1 of 3 data sets." in form
        assert "Mean top-1 over 2 transfer sets: student 80.0, lite0 75.5, lite2 72.5, random student 25.0." in form
        assert "Mean top-1 over 1 shift set: student 40.0" in form
    assert "better than the best teacher on 1, worse on 1; 1 may be chance." in text  # digits, blur; fashion
    assert "missing or failed" not in text


def test_metrics_of_the_student(complete: Report) -> None:
    metrics = complete.metrics
    assert all(type(value) is float for value in metrics.values())
    for dataset, _ in SETS:
        assert metrics[f"probe/{dataset}/top1"] == metrics[f"{dataset}/top1"] == TOP1["student", dataset]
        assert metrics[f"knn/{dataset}/top1"] == pytest.approx(TOP1["student", dataset] - 0.05)
    assert metrics["relative/digits"] == pytest.approx(0.05)
    assert metrics["relative/blur"] == pytest.approx(-0.2)
    assert metrics["probe/mean_top1"] == pytest.approx(0.8)
    assert metrics["probe/mean_top1_shift"] == pytest.approx(0.4)
    transfer = [TOP1["student", dataset] for dataset, group in SETS if group == "transfer"]
    odds = [math.log(p / (1 - p)) for p in transfer]
    assert metrics["probe/mean_log_odds"] == pytest.approx(sum(odds) / len(odds))
    variance = sum(p * (1 - p) / 1234 for p in transfer) / len(transfer) ** 2
    assert metrics["probe/mean_top1_error"] == pytest.approx(math.sqrt(variance))
    assert metrics["probe/failed"] == 0


def test_every_teacher_is_an_opponent_and_winners_are_named(complete: Report) -> None:
    table = complete.markdown.split("## Student against each teacher")[1].split("##")[0]
    lines = {line.split("|")[1].strip(): " ".join(line.split()) for line in table.splitlines() if line.startswith("|")}
    half = 2 * math.sqrt(2)  # both intervals are 2 points wide to each side
    plus = f"(+{10 - half:.1f} to +{10 + half:.1f})"
    assert lines["digits"] == f"| digits | student (90.0) | +10.0 {plus} | +5.0 (+{5 - half:.1f} to +{5 + half:.1f}) |"
    assert lines["fashion"].startswith("| fashion | lite0 (71.0; even: student) | −1.0 (−3.8 to +1.8) | +10.0")  # noqa: RUF001
    assert lines["Better / even / worse"] == "| Better / even / worse | | 1 / 1 / 1 | 2 / 0 / 1 |"
    assert "Intervals are not paired" in table
    assert complete.tags == {
        "winner.digits": "student", "winner.fashion": "lite0 (even: student)", "winner.blur": "lite0",
    }  # fmt: skip
    assert {name: complete.metrics[f"wins/{name}"] for name in ("better", "even", "worse")} == {
        "better": 1, "even": 1, "worse": 1,
    }  # fmt: skip
    assert complete.metrics["relative_low/digits"] == pytest.approx(0.05 - half / 100)
    assert complete.metrics["relative/mean"] == pytest.approx((0.05 - 0.01) / 2)
    assert complete.metrics["models/lite2/mean_top1"] == pytest.approx((0.85 + 0.60) / 2)
    assert complete.metrics["models/random-student/blur/top1"] == 0.25


def test_rows_that_know_their_hits_are_compared_image_by_image() -> None:
    rows = []
    for r in measured():
        hits = torch.arange(1000) < round(1000 * (r.top1 or 0))  # the better one is right wherever the other one is
        about = {"n_test": 1000, "dataset_fingerprint": r.dataset, "test_split": "test", "hits": pack_hits(hits)}
        rows.append(r.model_copy(update=about))
    report = build_report(rows, CONFIG)
    assert "Intervals are paired" in report.markdown
    assert report.tags["winner.fashion"] == "lite0"  # ten images that only lite0 has right are not chance
    assert report.metrics["relative_high/fashion"] < 0
    elsewhere = [r.model_copy(update={"dataset_fingerprint": "x"}) if r.model == "lite0" else r for r in rows]
    report = build_report(elsewhere, CONFIG)
    assert "different images" in report.markdown
    assert "winner.fashion" not in report.tags


def test_cost_is_told_where_it_is_known() -> None:
    rows = [r.model_copy(update={"seconds": 0.5 if r.protocol == "logreg" else 0.25}) for r in measured()]
    history = [{"step": 10, "images_per_s": 100.0, "loss": 1.0}, {"step": 30, "images_per_s": 400.0, "loss": 0.5}]
    parts = [
        CostRow("student", 5_000_000, 5_000_000, 1.0, 3.0),
        CostRow("projectors: cls", 1_000_000, 1_000_000, 0.5, 1.5),
        CostRow("teacher: lite0", 9_000_000, 0, 2.5, 2.5),
        CostRow("training step", 15_000_000, 6_000_000, 4.0, 7.0),
    ]
    report = build_report(rows, CONFIG, history, cost=parts)
    batch = CONFIG.training.batch
    assert report.metrics["cost/training_hours"] == pytest.approx((10 * batch / 100 + 20 * batch / 400) / 3600)
    assert report.metrics["cost/images_per_s"] == 250
    assert report.metrics["cost/student_parameters"] == 5e6
    assert report.metrics["cost/step_gflops"] == 7
    assert report.metrics["cost/probe_seconds"] == pytest.approx(12 * 0.75)
    for words in ("lite0 (teacher) | 9.0 M | 2.50 (2.50", "All teachers together take 2.50 GFLOPs", "250 images/s"):
        assert words in report.markdown
    assert "| digits | 0.8 (0.5 + 0.2)" in report.markdown
    unknown = build_report(list(measured()), CONFIG)
    assert not [name for name in unknown.metrics if name.startswith("cost/")]
    assert "Cost of" not in unknown.markdown


def test_scores_during_training_are_drawn() -> None:
    history = [*HISTORY, *({"step": s, "knn/top1_k10": 0.1 * s, "knn/top1_k20": 0.05 * s} for s in (2, 4))]
    assert "knn.png" in build_report(list(measured()), CONFIG, history).pngs


def test_page_fetches_nothing_and_shows_every_picture(complete: Report) -> None:
    page = Page(complete.html)
    assert set(complete.pngs) == {"relative.png", "accuracy.png", "radar.png", "training.png"}
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert len(page.addresses) == 4
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "url(" not in complete.html
    assert "@import" not in complete.html
    for name, png in complete.pngs.items():
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        assert f"({name})" in complete.markdown


def test_tables_hold_values_intervals_licenses_and_the_config(complete: Report) -> None:
    text = Page(complete.html).text
    for words in ("90.0 88.0–92.0", "+5.0", "−20.0", "1,234 test images", "k = 20", "My-License", "Apache-2.0"):  # noqa: RUF001
        assert words in text
    assert "balancer: kind: loss_ranked" in text
    line = next(line for line in complete.markdown.splitlines() if line.startswith("| digits"))
    assert "**90.0** (88.0–92.0)" in line  # noqa: RUF001
    assert line.count("**") == 2  # one best model


def test_markdown_tables_are_regular(complete: Report) -> None:
    for block in complete.markdown.split("\n\n"):
        if block.startswith("|"):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_csv_holds_every_row(complete: Report) -> None:
    lines = list(csv.DictReader(io.StringIO(complete.csv)))
    assert len(lines) == len(list(measured()))
    assert {(r["model"], r["dataset"], float(r["top1"])) for r in lines if r["protocol"] == "logreg"} >= {
        (model, dataset, top1) for (model, dataset), top1 in TOP1.items()
    }


def test_a_failed_teacher_is_named_and_not_averaged_silently() -> None:
    report = build_report(failed(measured(), "lite0", "fashion", "no <b>weights</b> | found"), CONFIG)
    text = Page(report.html).text
    assert "lite0 80.0 (over 1 of 2)" in text
    assert "On 1 data set only some of the teachers could be measured." in text
    assert "of 1 measured of 2" in text
    assert "2 results missing or failed" in text
    assert "no <b>weights</b> | found" in text  # as text, not as markup
    assert "lite0" in report.markdown.split("## Missing and failed")[1]
    assert report.metrics["relative/fashion"] == pytest.approx(0.10)  # against lite2, which was measured
    assert report.metrics["probe/mean_top1"] == pytest.approx(0.8)  # the student's is complete
    assert report.metrics["probe/failed"] == 2


def test_a_failed_student_has_no_mean_to_be_promoted_by() -> None:
    report = build_report(failed(measured(), "student", "digits", "out of memory"), CONFIG)
    assert "probe/mean_top1" not in report.metrics
    assert not {"probe/mean_top1_error", "probe/mean_log_odds"} & set(report.metrics)
    assert "probe/digits/top1" not in report.metrics
    assert "relative/digits" not in report.metrics
    assert "probe/mean_top1_shift" in report.metrics
    text = Page(report.html).text
    assert "on 0 of 2 data sets. On 1 more it could not be compared." in text
    assert "student 70.0 (over 1 of 2)" in text


def test_what_was_asked_for_and_never_ran_is_shown_as_not_evaluated() -> None:
    rows = [r for r in measured() if r.dataset != "blur" and r.model != "lite2"]
    report = build_report(rows, CONFIG)
    gaps = summarize(rows, CONFIG).gaps
    assert {(g.model, g.dataset) for g in gaps if g.reason == "not evaluated"} == {
        *((model, "blur") for model, _ in MODELS),
        ("lite2", "digits"),
        ("lite2", "fashion"),
    }
    assert "Mean top-1 over 1 shift set: student not measured" in Page(report.html).text
    assert "radar.png" not in report.pngs  # two data sets make no radar


def test_nothing_but_failures_still_makes_a_report() -> None:
    rows = list(measured())
    for model, _ in MODELS:
        for dataset, _ in SETS:
            rows = failed(iter(rows), model, dataset, "broken")
    report = build_report(rows, CONFIG)
    assert report.pngs == {}
    assert "could not be compared with a teacher on any data set" in report.html
    assert report.metrics == {"probe/failed": 24.0}


def test_a_run_without_teacher_results_or_probes_in_the_config() -> None:
    config = CONFIG.model_copy(update={"evaluation": EvaluationConfig(random_student=False)})
    report = build_report([r for r in measured() if r.role == "student"], config)
    assert "relative.png" not in report.pngs
    assert report.metrics["probe/mean_top1"] == pytest.approx(0.8)


def test_names_are_text_everywhere() -> None:
    name = "<script>alert(1)</script>|$x_1$ *b*"
    rows = [r.model_copy(update={"dataset": name if r.dataset == "blur" else r.dataset}) for r in measured()]
    report = build_report(
        rows, CONFIG, links={"<i>MLflow</i>": "https://host/?a=1&b='2'", "bad": "javascript:alert(1)"}
    )
    page = Page(report.html)
    assert "script" not in page.tags
    assert "i" not in page.tags
    assert name in page.text
    assert "https://host/?a=1&b='2'" in page.addresses
    assert not [address for address in page.addresses if address.startswith("javascript")]
    assert "\\<script\\>" in report.markdown


def test_rows_that_contradict_each_other_or_none_are_refused() -> None:
    rows = list(measured())
    with pytest.raises(UnicError, match="two logreg results of student on digits"):
        build_report([*rows, rows[0]], CONFIG)
    with pytest.raises(UnicError, match="no results to report"):
        build_report([], CONFIG)


def test_same_rows_in_any_order_give_the_same_report(complete: Report) -> None:
    again = build_report(list(measured())[::-1], CONFIG, HISTORY)
    assert again.html == complete.html
    assert again.metrics == complete.metrics


@given(
    st.dictionaries(
        st.tuples(st.sampled_from([m for m, _ in MODELS]), st.sampled_from([d for d, _ in SETS])),
        st.floats(0, 1),
        min_size=1,
    )
)
@settings(max_examples=50, deadline=None)
def test_summary_adds_up_for_any_subset_of_results(values: dict[tuple[str, str], float]) -> None:
    roles, groups = dict(MODELS), dict(SETS)
    rows = [row(m, roles[m], d, groups[d], "logreg", v) for (m, d), v in values.items()]
    table = summarize(rows, CONFIG).tables[0]
    assert {m.name for m in table.models} == set(roles)
    for dataset in table.datasets:
        teachers = [v for (m, d), v in values.items() if d == dataset.name and roles[m] == "teacher"]
        best = table.best_teacher(dataset)
        assert (best is None) == (not teachers)
        if best is not None:
            assert table.top1(best, dataset) == max(teachers)
    for model in table.models:
        means = [table.mean(model, group) for group in ("transfer", "shift")]
        assert sum(m.of for m in means) == len(SETS)
        assert sum(m.over for m in means) == sum(name == model.name for name, _ in values)
        assert sum((m.value or 0) * m.over for m in means) == pytest.approx(
            sum(v for (name, _), v in values.items() if name == model.name)
        )


def test_every_shipped_recipe_can_be_reported() -> None:
    config = load_config("fashion_demo")
    report = build_report([row("student", "student", "digits", "transfer", "logreg", 0.5)], config)
    assert "not evaluated" in report.html
