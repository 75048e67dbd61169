"""`unic datasets` lists and checks."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from workflows.cli import unic


def test_the_list_names_every_set_with_its_license() -> None:
    result = CliRunner().invoke(unic, ["datasets"])
    assert result.exit_code == 0
    assert "imagenet-cog-l5" in result.output
    assert "1,091,654" in result.output


def test_check_says_what_is_missing(tmp_path: Path) -> None:
    complete = CliRunner().invoke(unic, ["datasets", "check", "digits"], standalone_mode=False)
    assert complete.return_value == 0
    assert "is complete; source: sklearn:digits" in complete.output
    missing = CliRunner().invoke(unic, ["datasets", "check", "food101", str(tmp_path)], standalone_mode=False)
    assert missing.return_value == 1
    assert "meta/train.txt" in missing.output
    assert "obtain it from" in missing.output


def test_show_says_how_to_obtain_and_use_a_set() -> None:
    shown = {}
    for name in ("cars196", "imagenet-a", "inat2019"):
        result = CliRunner().invoke(unic, ["datasets", "show", name])
        assert result.exit_code == 0, result.output
        shown[name] = result.output
    assert "cars_annos.mat or devkit/cars_train_annos.mat" in shown["cars196"]
    assert "{dataset: imagenet-a, train_on: imagenet-1k, group: shift, classifier: sgd}" in shown["imagenet-a"]
    assert "{dataset: inat2019, test_split: val, classifier: sgd}" in shown["inat2019"]
    assert "visipedia" in shown["inat2019"]
