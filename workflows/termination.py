"""The sentence that a pod leaves behind: Kubernetes shows it as the container's termination message."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

VARIABLE = "UNIC_TERMINATION_LOG"


def last_words(sentence: str) -> None:
    """Leave `sentence` where UNIC_TERMINATION_LOG says; nothing is left where the variable is not set."""
    path = os.environ.get(VARIABLE)
    if path:
        with contextlib.suppress(OSError):  # the sentence is in the log as well
            Path(path).write_text(sentence)
