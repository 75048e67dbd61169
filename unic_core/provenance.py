"""With what something was computed: written into checkpoints and result rows."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path


@cache
def versions() -> dict[str, str]:
    """Versions of this package and of what its numbers depend on; `commit` when this code runs from a clone."""
    found = {name: version(name) for name in ("unic", "torch", "timm")} | {"python": platform.python_version()}
    commit = git_commit()
    return found | {"commit": commit} if commit else found


@cache
def git_commit() -> str | None:
    """Commit of this code, with `-dirty` where files were changed; None when it is installed and not a clone."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "unic_core/provenance.py") is None:
        return None
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if commit and changes else commit
