"""A template for new attacks."""

from __future__ import annotations

import re
from pathlib import Path

from robgib.attacks.base import ATTACKS
from robgib.errors import RobGIBError
from robgib.files import write_file
from robgib.reading import as_path

__all__ = [
    "new_attack",
]

_ATTACK = '''"""{title}."""

from dataclasses import dataclass

from robgib import Attack, make_objective, projected_gradient_ascent


@dataclass(frozen=True)
class {kind}(Attack):
    """{title}: projected gradient ascent from a random start, to be replaced."""

    steps: int = 10

    def perturb(self, model, x, y, rng):
        """Return images inside the threat model; see robgib.Attack.perturb."""
        objective = make_objective(model, x, y, "none", "ce", rng)
        start = self.threat.random_start(x, rng)
        return projected_gradient_ascent(
            model, x, objective, self.threat, start=start, steps=self.steps, step_size=self.threat.eps / 4
        )
'''
_TEST = """from pathlib import Path

import pytest

from robgib import check_attack, make_attack


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_{module}_keeps_the_contract(norm):
    attack = make_attack(f"{name}:norm={{norm}},eps=0.1", extra=[Path(__file__).parent])
    assert [check for check in check_attack(attack) if not check.passed] == []
"""


def new_attack(name: str, folder: str | Path) -> tuple[Path, Path]:
    """Write a working attack and its test, as a template.

    Args:
        name: in lower case with hyphens, such as ``my-attack``; the class is named after it.
        folder: folder of the two files.

    Returns:
        The paths of the attack and of its test.

    Raises:
        RobGIBError: the name is invalid, or the attack or a file exists.
    """
    folder = as_path(folder, "folder")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z][a-z0-9]*)*", name):
        raise RobGIBError(f"{name!r} cannot name an attack; use lower-case words joined by hyphens, such as my-attack.")
    kind = "".join(word.capitalize() for word in name.split("-"))
    classes = ATTACKS.entries([folder] if folder.is_dir() else [])
    if kind.lower() in {c.lower() for c in classes}:
        raise RobGIBError(f"an attack class {kind!r} exists already; choose another name.")
    module = name.replace("-", "_")
    files = folder / f"{module}.py", folder / f"test_{module}.py"
    for file in files:
        if file.exists():
            raise RobGIBError(f"{file} exists already; choose another name or folder.")
    words = {"kind": kind, "name": name, "module": module, "title": name.replace("-", " ").capitalize()}
    for file, text in zip(files, (_ATTACK, _TEST), strict=True):
        write_file(file, text.format(**words).encode())
    return files
