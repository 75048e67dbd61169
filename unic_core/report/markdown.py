"""A document as Markdown, for repositories and model cards; pictures are files beside it."""

from __future__ import annotations

from collections.abc import Mapping

from unic_core.report.cells import Cell, Document, Grid
from unic_core.report.plots import PICTURES


def render(document: Document, pngs: Mapping[str, bytes]) -> str:
    """GitHub-flavored Markdown."""
    parts = [f"# {_escape(document.title)}", f"**{_escape(document.headline)}**"]
    parts += [_escape(sentence) for sentence in document.sentences]
    if document.links:
        parts.append("\n".join(f"- {_escape(text)}: <{address}>" for text, address in document.links.items()))
    parts += [f"## {title}\n\n![{title}]({name})\n\n{text}" for name, (title, text) in PICTURES.items() if name in pngs]
    for section in document.sections:
        parts += [f"## {section.title}", _table(section.grid), *([_escape(section.caption)] if section.caption else [])]
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
