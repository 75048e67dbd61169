"""The documentation agrees with the code: generated pages, links, commands, names, examples."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import click
import pytest
import yaml

from unic_core import load_config
from unic_core.config import dump_config
from unic_core.teachers import resolve

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def links(text: str) -> list[str]:
    """Targets of Markdown links and images, outside of code."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'src="([^"]+)"', prose)


def code(text: str) -> str:
    """Code blocks and inline code."""
    return "\n".join(re.findall(r"```\w*\n.*?```|`[^`\n]+`", text, flags=re.DOTALL))


def anchors(text: str) -> set[str]:
    """The anchors that a renderer makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_generated_pages_are_in_sync() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    for path, text in generate["pages"]().items():
        assert path.read_text() == text, f"{path.name} is out of date; run: python -m docs.generate"


@pages
def test_internal_links_lead_somewhere(page: Path) -> None:
    for link in links(page.read_text()):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{page.name} links to {link}"
        assert target.is_relative_to(ROOT), f"{page.name} links out of the project: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text()), f"{page.name} links to {link}"


@pages
def test_files_named_in_code_exist(page: Path) -> None:
    for name in re.findall(r"(?<![\w./<-])((?:unic_core|workflows|tests|docs|examples)/[\w./-]+)", page.read_text()):
        assert (ROOT / name.rstrip(".")).exists(), f"{page.name} names {name}"


@pages
def test_commands_exist(page: Path) -> None:
    from workflows.cli import unic

    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for line in re.findall(r"(?:^|`)make ([a-z-]+)", code(page.read_text()), flags=re.MULTILINE):
        assert line in targets, f"{page.name}: make {line}"
    for words in re.findall(r"(?:^|`)unic ((?:[\w-]+ ?)+)", code(page.read_text()), flags=re.MULTILINE):
        command: click.Command = unic
        for word in words.split():
            if not isinstance(command, click.Group):
                break
            assert word in command.commands, f"{page.name}: unic {words}"
            command = command.commands[word]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_examples_are_valid(example: Path) -> None:
    config = load_config(example)
    assert load_config(example, ["seed=1"]).seed == 1
    for teacher in config.teachers:
        assert resolve(teacher).license
    names = {dataset.name for dataset in config.datasets}
    assert {mix.dataset for mix in config.data.train} <= names
    assert {probe.dataset for probe in config.evaluation.probes} <= names
    assert yaml.safe_load(dump_config(config))["name"] == config.name


def test_teacher_snippets_are_valid(tmp_path: Path) -> None:
    snippets = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "teachers.md").read_text(), flags=re.DOTALL)
    assert snippets
    for snippet in snippets:
        text = snippet if snippet.startswith("teachers:") else f"teachers:\n{snippet}"
        path = tmp_path / "run.yaml"
        path.write_text(f"name: snippet\n{text}")
        for teacher in load_config(path).teachers:
            assert resolve(teacher).license


def test_readme_python_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (block,) = blocks
    lines = [line for line in block.splitlines() if "load_student(" not in line]  # needs a trained student
    names: dict[str, object] = {}
    exec("\n".join(lines), names)  # noqa: S102 (our own README)
    report = names["report"]
    assert report.per_image.shape == report.kept.shape == (1, 8)  # type: ignore[attr-defined]
