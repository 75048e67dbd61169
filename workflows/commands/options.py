"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]


def _root(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    from unic_core.storage import open_store

    return open_store(value).uri  # an unknown scheme is refused at once; a path becomes absolute


root_option = click.option(
    "--root",
    envvar="UNIC_ROOT",
    default="./.unic",
    show_default=True,
    callback=_root,
    help="Where data sets and runs lie: a directory or s3://bucket/prefix. [env: UNIC_ROOT]",
)


probe_option = click.option(
    "--probe", "probes", multiple=True, metavar="NAME", help="Only this data set; may be given repeatedly."
)
config_argument = click.argument("config")
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


def with_config(command: Command) -> Command:
    """CONFIG [KEY=VALUE]... --root URI: `command` gets the validated config first."""

    def call(config: str, overrides: tuple[str, ...], **options: Any) -> Any:
        from unic_core.config import load_config

        return command(load_config(config, overrides), **options)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    return config_argument(overrides_argument(call))
