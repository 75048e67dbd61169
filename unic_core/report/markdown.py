"""A document as Markdown, for repositories and model cards; pictures are files beside it."""

from __future__ import annotations

from collections.abc import Mapping

from unic_core.report.document import Cell, Document, Grid
from unic_core.report.plots import PICTURES


def render(document: Document, pngs: Mapping[str, bytes]) -> str:
    """GitHub-flavored Markdown."""
    parts = [f"# {_escape(document.title)}", f"**{_escape(document.headline)}**"]
    parts += [_escape(sentence) for sentence in document.sentences]
    if document.links:
        parts.append("\n".join(f"- {_escape(text)}: <{address}>" for text, address in document.links.items()))
    for title, grid in document.grids.items():
        parts += [f"## {title}", _table(grid), _escape(document.captions[title])]
    parts += [f"## {title}\n\n![{title}]({name})\n\n{text}" for name, (title, text) in PICTURES.items() if name in pngs]
    parts += ["## Teachers", _table(document.teachers), "## Run", _table(document.facts)]
    if document.gaps.lines:
        parts += ["## Missing and failed", _table(document.gaps)]
    return "\n\n".join(parts) + "\n"


def _table(grid: Grid) -> str:
    lines = [grid.header, ["---"] * len(grid.header), *([_cell(cell) for cell in line] for line in grid.lines)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(cell: Cell) -> str:
    text = _escape(cell.text)
    if cell.tone == "best":
        text = f"**{text}**"
    return f"{text} ({_escape(cell.note)})" if cell.note else text


def _escape(text: str) -> str:
    """Names come from users: no markup, no broken table."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
