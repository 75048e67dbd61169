"""What a run of the pipeline is asked for: the fields of Kubeflow's form, checked before anything starts.

`unic pipeline submit` and `run` check here, and so does the pipeline's first step: a form that was filled in by hand
in Kubeflow comes from nobody else. Kubeflow hands numbers over as it likes (a 1 as 1.0, a number inside a list of
texts), so that types are looked at as well. Nothing here imports kfp.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from unic_core.config import RunConfig, load_config, read_config
from unic_core.errors import UnicError
from unic_core.storage import open_store
from workflows.launch import Backend, job_name
from workflows.launch.config import IMAGE, Quantity

MAX_TEXT = 10_000  # characters; a large parameter kills Kubeflow's driver without a reason
Text = Annotated[str, Field(strict=True)]


class PipelineRequest(BaseModel):
    """The pipeline's parameters. Their names are the only help that Kubeflow's form shows, sorted alphabetically."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    distill_launcher: Backend = "pytorchjob"
    """What trains: a PyTorchJob, a RayJob, or (on this machine only) the step itself."""
    distill_pod_memory: Quantity = "16Gi"
    """Memory of each training pod."""
    distill_workers_per_pod: int = Field(1, gt=0)
    """Training processes, and so GPUs, in one pod."""
    evaluate_cpu: Quantity = "4"
    """CPU cores of the steps prepare and evaluate."""
    evaluate_datasets: tuple[Text, ...] = ()
    """Data sets to compare on; empty means all of the recipe."""
    evaluate_memory: Quantity = "16Gi"
    """Memory of the steps prepare and evaluate."""
    fail_on_missing: bool = False
    """Whether the run fails at its end when results are missing."""
    image: str = Field(IMAGE, min_length=1, pattern=r"^\S+$")
    """Container image of every step and of the training pods."""
    recipe: Text = Field("smoke", min_length=1)
    """Name of a recipe, URI of a YAML file, or a short YAML text."""
    recipe_overrides: tuple[Text, ...] = ()
    """`key.path=value` items that change the recipe."""
    run_name: Text = ""
    """Name of the run; empty means the recipe's. The same name again continues."""
    storage_root: Text = Field("s3://unic", min_length=1)
    """Where data sets and runs lie."""

    @field_validator("recipe", "recipe_overrides")
    @classmethod
    def _is_small(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        length = len("".join(value))
        if length > MAX_TEXT:
            raise ValueError(
                f"{length:,} characters are too many for a parameter (at most {MAX_TEXT:,}); store the YAML on S3 "
                "and give its URI, as in s3://bucket/recipes/my.yaml"
            )
        return value

    @model_validator(mode="after")
    def _reaches_its_store(self) -> Self:
        is_local = "://" not in self.storage_root or self.storage_root.startswith("file://")
        if self.distill_launcher != "local" and is_local:
            raise ValueError(
                f"pods can't reach {self.storage_root!r}; set storage_root to a place on S3, as in s3://bucket/unic"
            )
        return self

    def parameters(self) -> dict[str, Any]:
        """The values as Kubeflow takes them."""
        return self.model_dump(mode="json")

    def config(self) -> RunConfig:
        """The run's resolved config.

        Raises:
            UnicError: the recipe can't be read, or a key or value is wrong; or no job can have the run's name.
        """
        open_store(self.storage_root)  # an unknown scheme is refused
        names = [f"name={json.dumps(self.run_name)}"] if self.run_name else []
        overrides = [*self.recipe_overrides, *names]
        if is_yaml(self.recipe):
            config = read_config(self.recipe, "the YAML text in recipe", overrides)
        else:
            config = load_config(self.recipe, overrides)
        if self.distill_launcher != "local":
            job_name(config)
        return config


def read_request(parameters: Mapping[str, Any]) -> PipelineRequest:
    """Check the parameters of a run; those that are left out have their defaults.

    Raises:
        UnicError: one sentence about the first mistake.
    """
    try:
        return PipelineRequest.model_validate(dict(parameters))
    except ValidationError as error:
        raise UnicError(_sentence(error)) from None


def is_yaml(recipe: str) -> bool:
    """Whether `recipe` is YAML itself, and no name or place of a file: `key: value`, or several lines."""
    return "\n" in recipe.strip() or ": " in recipe or recipe.lstrip().startswith("{")


def choose_datasets(config: RunConfig, names: tuple[str, ...] | list[str]) -> list[str]:
    """`names`, or every data set of the comparison when there are none.

    Raises:
        UnicError: an unknown name, or nothing to compare on: Kubeflow can't loop over an empty list.
    """
    from workflows.steps import probe_groups

    known = probe_groups(config)
    for name in names:
        if name not in known:
            raise UnicError(f"no probe {name!r} in the config {config.name}; choose from {', '.join(known)}")
    return list(dict.fromkeys(names)) or known


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return f"the pipeline has no parameter {name}; it has {', '.join(PipelineRequest.model_fields)}"
    where = f"{name}[{first['loc'][1]}]" if len(first["loc"]) > 1 else name
    if first["type"] == "value_error":
        return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"
    shown, wanted = _short(first.get("input")), _wanted(name, first["type"], len(first["loc"]) > 1)
    return f"{where} is {shown}; {wanted}"


def _wanted(name: str, kind: str, is_item: bool) -> str:
    """What to give instead."""
    field = PipelineRequest.model_fields[name]
    if is_item or kind == "string_type":
        return "give text, in quotes" + (', such as "training.steps=100"' if name == "recipe_overrides" else "")
    if kind.startswith("string_pattern") and name.endswith(("cpu", "memory")):
        return f"give a quantity as Kubernetes writes it, as in {field.default}"
    kinds = {
        "literal": f"choose from {', '.join(map(str, get_args(field.annotation)))}",
        "tuple": 'give a list of texts, as in ["one", "two"], or []',
        "bool": "give true or false",
        "int": "give a whole number from 1",
        "greater": "give a whole number from 1",
    }
    return kinds.get(kind.partition("_")[0], f"give a value such as {field.default}")


def _short(value: Any) -> str:
    text = "empty" if value == "" else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
