"""A document as one self-contained HTML page: pictures inline, no scripts, nothing fetched.

So it opens from a disk, as an MLflow artifact, and in the sandboxed frame of the Kubeflow UI.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from importlib.resources import files

from unic_core.report.cells import Cell, Document, Grid, Section
from unic_core.report.plots import PICTURES


def render(document: Document, pngs: Mapping[str, bytes]) -> str:
    """The page."""
    style = files("unic_core.report").joinpath("style.css").read_text(encoding="utf-8")
    pictures = "".join(_figure(name, pngs[name]) for name in PICTURES if name in pngs)
    config = f"<details><summary>Whole config</summary><pre>{escape(document.config)}</pre></details>"
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(document.title)}</title><style>{style}</style></head><body><main>"
        f"<header><p class=run>{escape(document.title)}</p><h1>{escape(document.headline)}</h1>"
        f"{''.join(f'<p>{escape(sentence)}</p>' for sentence in document.sentences)}{_links(document)}</header>"
        f"<div class=figures>{pictures}</div>{''.join(map(_section, document.sections))}"
        f"{f'<section>{config}</section>' if document.config else ''}</main></body></html>\n"
    )


def _section(section: Section) -> str:
    caption = f"<p class=caption>{escape(section.caption)}</p>" if section.caption else ""
    return f"<section><h2>{escape(section.title)}</h2>{_table(section.grid, section.kind)}{caption}</section>"


def _links(document: Document) -> str:
    """Web addresses can be followed; any other address is shown as text."""
    items = []
    for text, address in document.links.items():
        if address.startswith(("https://", "http://")):
            items.append(f"<li><a href='{escape(address)}' rel=noopener target=_blank>{escape(text)}</a></li>")
        else:
            items.append(f"<li>{escape(text)}: <code>{escape(address)}</code></li>")
    return f"<ul class=links>{''.join(items)}</ul>" if items else ""


def _figure(name: str, png: bytes) -> str:
    title, text = PICTURES[name]
    data = base64.b64encode(png).decode()
    return (
        f"<figure><h2>{escape(title)}</h2><img alt='{escape(title)}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def _table(grid: Grid, kind: str = "") -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in grid.header) if any(grid.header) else ""
    body = "".join(f"<tr>{''.join(_cell(cell, i == 0) for i, cell in enumerate(line))}</tr>" for line in grid.lines)
    return f"<div class=scroll><table class='{kind}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(cell: Cell, first: bool) -> str:
    tag = "th" if first else "td"
    note = f"<small>{escape(cell.note)}</small>" if cell.note else ""
    return f"<{tag} class='{cell.tone}'>{escape(cell.text)}{note}</{tag}>"
