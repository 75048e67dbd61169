"""Rules that hold for the whole repository."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("unic_core", "workflows")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PLATFORM = ("ray", "kfp", "mlflow", "boto3", "botocore", "kubernetes", "kubeflow", "pyarrow", "workflows")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

modules = pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())


def project_files() -> list[Path]:
    """What git tracks or would track; without git, everything but hidden and generated folders."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    ]


def texts() -> Iterator[tuple[str, str]]:
    """Name and content of every text file of the project."""
    for path in project_files():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            yield path.relative_to(ROOT).as_posix(), data.decode()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def dotted(node: ast.expr) -> str:
    """`os.system` for the expression os.system; empty for anything that is no dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def test_core_knows_no_platform() -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES]
    names = [name.removesuffix(".__init__") for name in names if name.startswith("unic_core")]
    script = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(*sorted({set(PLATFORM)!r} & {{name.partition('.')[0] for name in sys.modules}}))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_no_path_of_a_machine() -> None:
    home = re.compile(r"(?<![\w.}])/(?:home|Users)/\w|(?<![\w.}])/(?:root)/")
    own = str(ROOT) if len(ROOT.parts) > 2 else None  # not of a checkout in /app or the like
    for name, text in texts():
        found = home.search(text)
        assert not found, f"{name}: {found and found[0]}"
        assert own is None or f"{own}/" not in text, f"{name} names the directory of this checkout"


def test_no_address_of_a_registry() -> None:
    address = re.compile(
        r"(?<!no-emit)(?<!no)-(?:extra-)?index-url[ =]+\S*//|(?:PIP|UV)_\w*INDEX\w*\s*=\s*\S*//|\[\[tool\.uv\.index\]\]"
        r"|[\w.-]+\.(?:pkg\.dev|jfrog\.io|amazonaws\.com/simple)|//[^\s/]+/(?:simple|artifactory)/"
    )
    for name, text in texts():
        if name != "tests/test_repository.py":
            found = address.search(text)
            assert not found, f"{name}: {found and found[0]}"
    assert "://" not in (ROOT / "requirements.lock").read_text()


@modules
def test_no_dangerous_call(module: Path) -> None:
    tree = ast.parse(module.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            assert not (isinstance(node, ast.ImportFrom) and node.module == "pickle"), f"line {node.lineno}"
            wrong = {name.partition(".")[0] for name in names} & {"cloudpickle", "dill", "joblib", "marshal", "shelve"}
            assert not wrong, f"line {node.lineno} imports {wrong}"
        if isinstance(node, ast.Attribute) and dotted(node).startswith("pickle."):
            assert node.attr == "UnpicklingError", f"line {node.lineno}: {dotted(node)}"  # what torch.load raises
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            keywords = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            where = f"line {node.lineno}: {name}"
            assert name not in {"eval", "exec", "os.system", "os.popen"}, where
            assert keywords.get("shell") is not True, f"{where} uses a shell"
            assert keywords.get("allow_pickle") is not True, f"{where} reads pickles"
            if name == "torch.load":
                assert keywords.get("weights_only") is True, f"{where} without weights_only=True"


@modules
def test_no_print(module: Path) -> None:
    calls = (node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call))
    lines = [node.lineno for node in calls if dotted(node.func) == "print"]
    assert not lines, f"print in lines {lines}; raise, log or call back instead"


@modules
def test_size_and_docstring(module: Path) -> None:
    text = module.read_text()
    tree = ast.parse(text)
    assert not text or ast.get_docstring(tree), "the module says nothing about itself"
    assert text.count("\n") < MAX_FILE_LINES
    for function in functions(tree):
        documented = ast.get_docstring(function, clean=False)
        lines = (function.end_lineno or 0) - function.lineno + 1 - (documented or "").count("\n")
        assert lines <= MAX_FUNCTION_LINES, f"{function.name} has {lines} lines beside its docstring"


def test_nothing_left_to_do() -> None:
    marks = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b")
    for name, text in texts():
        assert not marks.search(text), name


def test_license_is_the_standard_text() -> None:
    words = " ".join((ROOT / "LICENSE").read_text().split())  # packages differ in blank lines only
    assert hashlib.sha256(words.encode()).hexdigest() == LICENSE_WORDS


def test_scripts_can_be_run() -> None:
    for path in project_files():
        if path.open("rb").read(2) == b"#!":
            assert os.access(path, os.X_OK), f"{path.relative_to(ROOT)} is not executable"
            if b"bash" in path.read_bytes().partition(b"\n")[0]:
                subprocess.run(["bash", "-n", str(path)], check=True)


# sha256 of the words of the Apache License 2.0, separated by single spaces
LICENSE_WORDS = "0ffddef9e48f8a09aed5caf2d44f7ba1c1be2d9b8e0a6f693b1635b2d5566645"
