"""Writes the generated parts of the documentation: `python -m docs.generate`. A test compares them with the files.

`configuration.md` comes from the JSON schema of the config, the table in `teachers.md` from the registry.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unic_core.config import json_schema
from unic_core.recipes import RECIPES
from unic_core.teachers import REGISTRY

DOCS = Path(__file__).parent
_BEGIN, _END = "<!-- generated: {} -->", "<!-- end: {} -->"
Schema = dict[str, Any]

_INTRODUCTION = """\
# Configuration

<!-- Written by `python -m docs.generate` from the JSON schema. Change the models in `unic_core/config/`. -->

A run is one YAML file. It starts from the paper's values, so only what differs needs a line. Every command takes the
name of a recipe, a path or a URI, and then single keys that differ:

```
unic distill my.yaml training.epochs=100 teachers.0.image_size=448 "evaluation.knn_k=[10, 20]"
```

- A change is `key.path=value`; the value is YAML; items of a list are addressed by number.
- Setting `<section>.kind` starts that section afresh, because other kinds have other keys.
- Unknown keys, wrong types and impossible combinations are refused in one sentence before anything starts.
- The resolved config is stored with the run and can be used to repeat it.
- `null` means "not set". Section numbers refer to [method.md](method.md).

`unic config show my.yaml` prints the resolved config. In Python it is `unic_core.load_config(path, overrides)`.
An example to start from is [examples/custom.yaml](../examples/custom.yaml).

## Recipes

{recipes}

## Not in the config

Addresses, credentials and places come from the environment or the command line, so that a config can be shared:

| variable | meaning |
|---|---|
| `UNIC_ROOT` | where data sets and runs lie: a directory or `s3://bucket/prefix`; the same as `--root` |
| `AWS_ENDPOINT_URL_S3`, `AWS_REGION`, `AWS_PROFILE`, ... | the S3 server; the whole standard chain of AWS works |
| `MLFLOW_TRACKING_URI` | the MLflow server |
| `MLFLOW_RUN_ID` | an existing run of MLflow to continue as the parent run |
| `UNIC_FASHION_MNIST` | folder of the demo's images, where they are on this machine already |

## Top level

{top}
"""


def configuration() -> str:
    """The text of configuration.md."""
    schema = json_schema()
    recipes = _table(
        ("recipe", "what it is"),
        ((f"`{name}`", _first_sentence(build.__doc__ or "")) for name, build in RECIPES.items()),
    )
    top = _key_table(schema, "", schema["$defs"])
    sections = "\n".join(_sections(schema, "", schema["$defs"], level=2, seen={}))
    return f"{_INTRODUCTION.format(recipes=recipes, top=top)}\n{sections}".rstrip() + "\n"


def teachers() -> str:
    """The registry's table in teachers.md."""
    rows = (
        (
            f"`{spec.id}`",
            f"`{spec.model}`",
            "?" if spec.parameters is None else f"{spec.parameters:,.1f}",
            str(spec.image_size),
            spec.license,
            f"[source]({spec.url})" if spec.url else "",
        )
        for spec in REGISTRY.values()
    )
    return _table(("name", "timm model", "M parameters", "pixels", "license of the weights", ""), rows)


def replace_part(text: str, name: str, part: str) -> str:
    """`text` with what lies between the marks of `name` replaced by `part`."""
    before, begin, rest = text.partition(_BEGIN.format(name))
    _, end, after = rest.partition(_END.format(name))
    if not begin or not end:
        raise ValueError(f"the marks of {name!r} are missing")
    return f"{before}{begin}\n\n{part}\n\n{end}{after}"


def pages() -> dict[Path, str]:
    """Every page with generated text, as it should be."""
    teachers_page = DOCS / "teachers.md"
    return {
        DOCS / "configuration.md": configuration(),
        teachers_page: replace_part(teachers_page.read_text(), "registry", teachers()),
    }


# ---------------------------------------------------------------- JSON schema -> tables


def _sections(node: Schema, path: str, models: Schema, level: int, seen: dict[str, str]) -> Iterator[str]:
    """Heading, description and table of every model below `node`, depth first; a model met again is referred to.

    `seen`: name of a model -> where it was described.
    """
    for key, value in node.get("properties", {}).items():
        below = _models_of(value)
        place = f"{path}.{key}" if path else key
        if len(below) > 1:
            yield f"{'#' * level} `{place}`\n\nOne of the following; `{place}.kind` chooses.\n"
        for suffix, model in below:
            schema = models[model]
            kind = schema["properties"].get("kind", {}).get("const")
            title = f"`{place}.kind: {kind}`" if kind else f"`{place}{suffix}`"
            yield f"{'#' * (level + (len(below) > 1))} {title}\n"
            if model in seen:
                yield f"The keys are those of `{seen[model]}`.\n"
                continue
            seen[model] = place + suffix
            yield _escape(schema["description"].strip()) + "\n"
            table = _key_table(schema, place + suffix, models)
            if table:
                yield f"{table}\n"
            yield from _sections(schema, place + suffix, models, level + 1, seen)


def _models_of(value: Schema) -> list[tuple[str, str]]:
    """What a key leads to: (suffix of the path, name of the model) of each possibility."""
    below = value.get("additionalProperties")
    for schema, suffix in ((value, ""), (value.get("items", {}), ".N"), (below, ".<name>")):
        options = schema.get("oneOf", [schema]) if isinstance(schema, dict) else []
        found = [(suffix, option["$ref"].rpartition("/")[2]) for option in options if "$ref" in option]
        if found:
            return found
    return []


def _key_table(schema: Schema, path: str, models: Schema) -> str:
    """Rows of one model; empty when it has no key but `kind`."""
    rows = []
    for key, value in schema.get("properties", {}).items():
        if key != "kind":
            default = "required" if key in schema.get("required", []) else _default(value)
            place = f"{path}.{key}" if path else key
            rows.append((f"`{key}`", _type(value, place), default, _meaning(value, models)))
    return _table(("key", "type", "default", "meaning"), rows) if rows else ""


def _meaning(value: Schema, models: Schema) -> str:
    """The key's own description; a section without one has the first sentence of its model."""
    below = _models_of(value)
    if "description" in value or not below:
        return _escape(value.get("description", ""))
    if len(below) > 1:
        return "kinds: " + ", ".join(f"`{kind}`" for kind in value["discriminator"]["mapping"])
    return _escape(models[below[0][1]]["description"].partition(". ")[0].partition(".\n")[0].removesuffix("."))


def _default(value: Schema) -> str:
    default = value.get("default")
    if isinstance(default, dict) and "kind" in default:
        return f"kind `{default['kind']}`"
    if _models_of(value) and default:
        return "see there" if isinstance(default, dict) else f"`{json.dumps(default)}`"
    gib, rest = divmod(default, 2**30) if isinstance(default, int) else (0, 1)
    mib, odd = divmod(default, 2**20) if isinstance(default, int) else (0, 1)
    size = f" ({gib} GiB)" if gib and not rest else f" ({mib} MiB)" if mib and not odd else ""
    return f"`{json.dumps(default)}`{size}"


def _type(value: Schema, place: str) -> str:
    """A type as people read it, with its bounds."""
    if below := _models_of(value):
        suffix = below[0][0]
        text = {"": "section", ".N": "list of", ".<name>": "mapping to"}[suffix] + f" `{place}{suffix}`"
    elif "anyOf" in value:
        text = " or ".join(_type(option, place) for option in value["anyOf"])
    elif "enum" in value:
        text = ", ".join(f"`{option}`" for option in value["enum"])
    elif "prefixItems" in value:
        text = f"{len(value['prefixItems'])} times {_type(value['prefixItems'][0], place)}"
    elif value["type"] == "array":
        text = f"list of {_type(value['items'], place)}"
    elif value["type"] == "object":
        text = f"mapping to {_type(value['additionalProperties'], place)}"
    elif "pattern" in value:
        text = f"text like `{value['pattern']}`".replace("|", r"\|")
    else:
        names = {"integer": "integer", "number": "number", "string": "text", "null": "`null`"}
        text = names.get(value["type"], "`true`, `false`") + _bounds(value)
    return text


def _bounds(value: Schema) -> str:
    signs = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
    bounds = [f"{sign} {value[key]:g}" for key, sign in signs if key in value and value[key] < 2**31]
    return f" {', '.join(bounds)}" if bounds else ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _escape(text: str) -> str:
    """Text whose angle brackets are no HTML; code between backticks stays as it is."""
    parts = text.split("`")
    return "`".join(part if index % 2 else part.replace("<", r"\<") for index, part in enumerate(parts))


def _first_sentence(docstring: str) -> str:
    return " ".join(docstring.partition("\n\n")[0].split()).removesuffix(".")


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
