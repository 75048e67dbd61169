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
    assert "food-101/meta" in missing.output
    assert "obtain it from" in missing.output
