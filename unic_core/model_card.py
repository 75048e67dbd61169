"""The README of an exported student: what it is, whose knowledge it holds, and under which license that comes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from unic_core.config import RunConfig

# What a license asks of a derived model, from nothing to most. Unknown terms come last: they may ask for anything.
_RANKS = (
    {"cc0-1.0", "unlicense"},
    {"mit", "bsd-2-clause", "bsd-3-clause", "isc"},
    {"apache-2.0"},
    {"cc-by-4.0"},
    {"cc-by-sa-4.0"},
    {"cc-by-nc-4.0"},
    {"cc-by-nc-sa-4.0"},
)


def strictest(licenses: Iterable[str]) -> str:
    """The license of the list that asks most; an unknown one asks more than any known one.

    Args:
        licenses: SPDX identifiers or free text; not empty.
    """
    return max(licenses, key=_rank)


def render_card(
    config: RunConfig,
    teachers: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, float],
    license: str | None = None,
) -> str:
    """A model card in Markdown with the header of the Hugging Face hub.

    Args:
        config: the resolved config of the run.
        teachers: manifests, `Teacher.manifest()`.
        metrics: numbers to show, by name.
        license: of the student's own weights, where they have one besides the teachers'.
    """
    strict = strictest([*(teacher["license"] for teacher in teachers), *([license] if license else [])])
    parts = [
        f"---\n{yaml.safe_dump(_header(config, strict), sort_keys=False)}---",
        f"# {config.name}",
        f"`{config.student.model}` at {config.student.image_size} px, distilled from {len(teachers)} frozen teachers "
        "at once with UNIC (arXiv 2408.05088). The projectors to the teachers are left out; this is the encoder alone.",
        _usage(config),
        _teachers(teachers),
        f"**License.** The student inherits the strictest license of its teachers{_own(license)}: **{strict}**."
        + (
            " Its terms are not known here: read them at the teacher's source before use." if not _known(strict) else ""
        ),
        _data(config),
        _metrics(metrics),
        "`unic.yaml` is the resolved config: it repeats the run.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rank(license: str) -> int:
    ranks = (i for i, names in enumerate(_RANKS) if license.lower() in names)
    return next(ranks, len(_RANKS))


def _known(license: str) -> bool:
    return _rank(license) < len(_RANKS)


def _own(license: str | None) -> str:
    return f" and of the weights it was made from ({license})" if license else ""


def _header(config: RunConfig, license: str) -> dict[str, Any]:
    header: dict[str, Any] = {"library_name": "timm", "pipeline_tag": "image-feature-extraction"}
    header |= {"license": license.lower()} if _known(license) else {"license": "other", "license_name": license}
    return header | {"tags": ["timm", "distillation", "unic"], "datasets": [mix.dataset for mix in config.data.train]}


def _usage(config: RunConfig) -> str:
    size = config.student.image_size
    note = ""
    if config.student.position_embedding == "offset":
        note = (
            f"\n\nPosition embeddings were trained to be resized with an offset of 0.1 pixels; at other than {size} px "
            "timm's own resizing gives slightly different features."
        )
    return (
        "## Use\n\n```python\nimport timm\n\n"
        'model = timm.create_model("local-dir:<this directory>", pretrained=True).eval()\n'
        f"tokens = model.forward_features(images)  # [B, 3, {size}, {size}], normalized with model.pretrained_cfg\n```"
        + note
    )


def _teachers(teachers: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (t["name"], t["model"], t["license"], f"`{t['source']}`", f"`{t['sha256'][:16]}`" if t["sha256"] else "")
        for t in teachers
    ]
    return "## Teachers\n\n" + _table(("name", "model", "license", "weights", "sha256"), rows)


def _data(config: RunConfig) -> str:
    licenses = {dataset.name: dataset.license for dataset in config.datasets}
    rows = [(m.dataset, m.split, f"{m.weight:g}", licenses.get(m.dataset, "")) for m in config.data.train]
    return "## Training images\n\n" + _table(("data set", "split", "weight", "license"), rows)


def _metrics(metrics: Mapping[str, float]) -> str:
    if not metrics:
        return ""
    return "## Results\n\n" + _table(("metric", "value"), [(name, f"{value:.4g}") for name, value in metrics.items()])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines])
