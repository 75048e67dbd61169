from __future__ import annotations

import re

from unic_core.provenance import git_commit, versions


def test_versions_name_what_numbers_depend_on() -> None:
    found = versions()
    assert {"unic", "torch", "timm", "python"} <= found.keys()
    assert found.get("commit") == git_commit()


def test_the_commit_is_that_of_this_clone_or_absent() -> None:
    commit = git_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
