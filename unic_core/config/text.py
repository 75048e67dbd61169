"""Configs as text: YAML in, dotted overrides, YAML out, JSON schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from unic_core.config.run import RunConfig
from unic_core.errors import UnicError
from unic_core.storage import open_store


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: `1e-4` is a number, as everywhere else."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"),
    list("-+0123456789."),
)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The config of a recipe name, a YAML file or a URI, with `key.path=value` overrides applied.

    Args:
        path: name of a recipe (`paper_vitb16`), path of a YAML file, or URI of one.
        overrides: `a.b=value`; values are YAML, list items are addressed by number (`teachers.0.name=x`).

    Raises:
        UnicError: the file can't be read, a key is unknown, a value is wrong; the sentence names the key.
    """
    from unic_core.recipes import RECIPES

    if str(path) in RECIPES:
        data = RECIPES[str(path)]().model_dump(mode="json")
    else:
        data = _read_yaml(str(path), known=sorted(RECIPES))
    return _overridden(data, overrides, where=str(path))


def read_config(text: str, where: str, overrides: Iterable[str] = ()) -> RunConfig:
    """The config that YAML `text` from `where` holds, with overrides applied; UnicError as in `load_config`."""
    return _overridden(parse_yaml(text, where), overrides, where)


def parse_config(data: Mapping[str, Any], where: str = "the config") -> RunConfig:
    """Validate plain data; UnicError with one sentence for the first mistake."""
    try:
        return RunConfig.model_validate_json(json.dumps(data))  # JSON mode: strict types, lists as tuples
    except ValidationError as error:
        raise UnicError(_sentence(error, where)) from None
    except (TypeError, ValueError) as error:
        raise UnicError(f"{where}: {error}; use numbers, strings, lists and mappings only") from None


def dump_config(config: RunConfig) -> str:
    """YAML that `load_config` turns into the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def json_schema() -> dict[str, Any]:
    """JSON schema of a run, for editors and forms."""
    return RunConfig.model_json_schema()


def _read_yaml(uri: str, known: list[str]) -> dict[str, Any]:
    parent, _, name = uri.rpartition("/")
    try:
        text = open_store(parent or ".").get(name).decode()
    except PermissionError:
        raise UnicError(f"{uri} may not be read by this user; change its permissions") from None
    except OSError:  # nothing there, a directory, a name that no file can have
        raise UnicError(f"no config at {uri}; give a YAML file or one of the recipes {', '.join(known)}") from None
    except UnicodeDecodeError:
        raise UnicError(f"{uri} is not a text file; give a YAML file") from None
    return parse_yaml(text, where=uri)


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """A YAML mapping as plain data; UnicError names the line that can't be read."""
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise UnicError(f"{where} is not valid YAML{line}: {problem}") from None
    if not isinstance(data, dict):
        raise UnicError(f"{where} must be a YAML mapping of config keys")
    return data


def _overridden(data: dict[str, Any], overrides: Iterable[str], where: str) -> RunConfig:
    for override in overrides:
        _apply(data, override)
    return parse_config(data, where)


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one dotted key. Setting `<section>.kind` starts that section afresh: other kinds have other keys."""
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise UnicError(f"cannot read the override {override!r}; write it as key.path=value")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError:
        raise UnicError(f"cannot read the value of the override {override!r}; it must be YAML") from None
    node: Any = data
    for depth, key in enumerate(keys[:-1]):
        node = _step(node, key, ".".join(keys[: depth + 1]))
    last = keys[-1]
    if last == "kind" and isinstance(node, dict) and node.get("kind") != value:
        node.clear()
    if isinstance(node, list):
        index = _index(node, last, path)
        node[index] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UnicError(f"cannot set {path}: {'.'.join(keys[:-1])} has no keys below it")


def _step(node: Any, key: str, path: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, path)]
    if not isinstance(node, dict):
        raise UnicError(f"cannot set {path}: nothing can lie below it")
    if node.get(key) is None:
        node[key] = {}
    return node[key]


def _index(node: list[Any], key: str, path: str) -> int:
    if not key.isdecimal() or int(key) >= len(node):
        raise UnicError(f"cannot set {path}: the list has the items 0 to {len(node) - 1}")
    return int(key)


def _sentence(error: ValidationError, where: str) -> str:
    """The first mistake of a validation, as one sentence that names the key."""
    mistakes = error.errors()
    first = mistakes[0]
    # pydantic puts the discriminator's value into the path of a union: it is no key of the file
    kinds = {"ladder", "mlp", "linear_norm", "transformer", "ema", "batch", "frozen", "phi_s"}
    kinds |= {"none", "loss_ranked", "uniform", "fixed"}
    location = first["loc"]
    sections = ("projector", "standardizer", "balancer")
    parts = [str(p) for i, p in enumerate(location) if not (i == 1 and location[0] in sections and p in kinds)]
    key = ".".join(parts)
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {key}{more}; remove it or correct its spelling"
    if first["type"] == "missing":
        return f"{where}: {key} is missing{more}; add it"
    message = first["msg"].removeprefix("Value error, ")
    value = first.get("input")
    shown = f", not {value!r}" if isinstance(value, str | int | float | bool) else ""
    return f"{where}: {key + ': ' if key else ''}{message[:1].lower() + message[1:]}{shown}{more}"
