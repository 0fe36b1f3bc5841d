"""The floors that import-linter does not see: what is imported inside functions, and when."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import robgib

PACKAGE = Path(robgib.__file__).parent


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_function_imports_the_package():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                within = [name for name in imports(node) if name.partition(".")[0] == "robgib"]
                assert not within, f"{path}: {node.name} imports {within}"


def test_only_the_command_line_calls_the_package_by_its_lazy_names():
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "cli"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not [a for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names if a.name == "robgib"], path


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("robgib", ["torch", "pandas", "scipy", "sklearn", "rich"]),
        ("robgib.cli.app", ["torch", "pandas", "scipy", "sklearn"]),
    ],
)
def test_importing_it_loads_nothing_heavy(module, heavy):
    """Else ``robgib --help`` takes seconds."""
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_every_lazy_name_is_there():
    assert all(getattr(robgib, name) is not None for name in robgib.__all__)
    assert set(robgib.__all__) <= set(dir(robgib))
