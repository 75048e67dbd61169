"""Complete configs as functions. `load_config(name)` starts from one of them; `unic config show <name>` prints it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from unic_core.config import RunConfig
from unic_core.recipes.demo import fashion_demo
from unic_core.recipes.paper import paper_vitb16, unic_l
from unic_core.recipes.smoke import smoke

RECIPES: Mapping[str, Callable[[], RunConfig]] = {
    "paper_vitb16": paper_vitb16,
    "unic_l": unic_l,
    "fashion_demo": fashion_demo,
    "smoke": smoke,
}
