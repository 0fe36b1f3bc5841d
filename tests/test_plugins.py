"""Plug-ins as the guides had them before the decorators, and with the decorators."""

import numpy as np
import pytest
import torch

import robgib
from robgib import RobGIBError, register_architecture, register_attack, register_data, register_estimator
from robgib.attacks import attack_catalogue
from robgib.robustness import run_attack

ATTACK = """
from dataclasses import dataclass

from robgib import Attack
from robgib.options import Positive


@dataclass(frozen=True)
class Mirror(Attack):
    \"\"\"Move each image towards its mirror image, as far as the ball allows.\"\"\"

    strength: Positive = 1.0

    def perturb(self, model, x, y, rng):
        return self.threat.project(x + self.strength * (x.flip(-1) - x), x)
"""
ESTIMATOR = """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from robgib import Estimator
from robgib.information.base import decompose
from robgib.information.discrete import plug_in, subset_codes
from robgib.options import NonNegative


@dataclass(frozen=True)
class Quadrant(Estimator):
    \"\"\"Information between the signs of the first coordinates, counted.\"\"\"

    name: ClassVar[str] = "quadrant"
    bound: ClassVar[str] = "lower (information between signs)"
    summary: ClassVar[str] = "signs of the first coordinates, plug-in counts"
    threshold: NonNegative = 0.0

    def _prepare(self, features, fit_features):
        return subset_codes([self._sign(x) for x in features])

    def _estimate(self, problem):
        target = self._sign(problem.target)
        found = [plug_in(code, target) for code in problem.prepared.own]
        pointwise = np.stack([f[1] for f in found], 1)
        return decompose(pointwise.mean(0), estimator=self, problem=problem, resolution="signs", pointwise=pointwise)

    def _sign(self, values):
        return (values[:, 0] > self.threshold).astype(np.int64)
"""


def written(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return [folder]


class Sum(torch.nn.Module):
    """Two classes: the brighter half of the image."""

    def forward(self, x):
        return torch.stack([x[..., :2].flatten(1).sum(1), x[..., 2:].flatten(1).sum(1)], 1)


@pytest.mark.parametrize("decorator", ["", '@register_attack("mirror")\n'])
def test_an_attack_of_the_guide_runs(decorator, tmp_path):
    text = ATTACK.replace("import Attack\n", "import Attack, register_attack\n")
    folder = written(tmp_path / "mine", "mirror.py", text.replace("@dataclass", decorator + "@dataclass"))
    attack = robgib.make_attack("mirror:eps=0.4,strength=0.5", extra=folder)
    x, y = torch.tensor([[[[0.9, 0.9, 0.2, 0.2]]], [[[0.1, 0.1, 0.8, 0.8]]]]), torch.tensor([0, 1])
    result = run_attack(Sum(), x, y, attack)
    assert result.linf == pytest.approx([0.35, 0.35])  # half way
    assert [name for name, entry in attack_catalogue(folder).items() if entry.source.startswith(str(tmp_path))] == [
        "mirror"
    ]
    with pytest.raises(RobGIBError, match="strength must be above 0"):
        robgib.make_attack("mirror:strength=-1", extra=folder)


def test_a_decorated_attack_has_the_name_of_the_decorator_alone(tmp_path):
    text = ATTACK.replace("import Attack\n", "import Attack, register_attack\n")
    folder = written(tmp_path / "mine", "tilt.py", text.replace("@dataclass", '@register_attack("tilt")\n@dataclass'))
    for name, kind in (("by-class", "Mirror"), ("by-name", "tilt")):
        written(folder[0], f"{name}.yaml", f"attack: {kind}\nnorm: l2\neps: 0.5\n")
    names = robgib.list_attacks(folder)
    assert {"tilt", "by-class", "by-name"} <= set(names)
    assert "mirror" not in names
    assert [type(robgib.make_attack(n, extra=folder)).__name__ for n in ("tilt", "by-class", "by-name")] == [
        "Mirror"
    ] * 3
    assert "tilt" not in robgib.list_attacks()  # other catalogues do not have it


@pytest.mark.parametrize("decorated", [False, True])
def test_an_estimator_of_the_guide_runs(decorated, tmp_path):
    text = ESTIMATOR
    if decorated:
        text = text.replace("import Estimator\n", "import Estimator, register_estimator\n")
        text = text.replace("@dataclass", '@register_estimator("quadrant")\n@dataclass')
        text = text.replace('    name: ClassVar[str] = "quadrant"\n', "")
    folder = written(tmp_path / "mine", "quadrant.py", text)
    estimator = robgib.make_estimator("quadrant:threshold=0.1", folder)
    signs = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 10)
    x = [np.where(signs[:, [i]], 1.0, -1.0) for i in (0, 1)]
    terms = estimator.estimate(x, np.where(signs[:, 0] ^ signs[:, 1], 1.0, -1.0))
    assert terms.synergy.value == pytest.approx(1)
    assert estimator.name == "quadrant"
    assert "quadrant" in robgib.list_estimators(folder)
    assert "quadrant" not in robgib.list_estimators()


_FIELD = "    threshold: NonNegative = 0.0\n"
_OWN = (
    r"estimator class Quadrant has an __init__ .* declare them as fields, such as `bins: int = 8`, without an __init__"
)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ((_FIELD, "    def __init__(self, threshold=0.0):\n        pass\n"), _OWN),
        ((_FIELD, _FIELD + "    def __init__(self, other=0.0):\n        pass\n"), _OWN),
        ((_FIELD, _FIELD + "    def __post_init__(self):\n        self.threshold = 1\n"), _OWN),
        ((_FIELD, _FIELD + "    sizes: list = []\n"), "estimator class Quadrant: mutable default .* its own, as in"),
    ],
)
def test_an_estimator_that_cannot_be_made_is_named_with_the_remedy(change, sentence, tmp_path):
    undecorated = ESTIMATOR.replace("@dataclass(frozen=True)\n", "").replace(*change)
    with pytest.raises(RobGIBError, match=sentence):
        robgib.make_estimator("quadrant:threshold=0.1", written(tmp_path / "plain", "quadrant.py", undecorated))
    if _FIELD in change[1] and sentence == _OWN:  # of a dataclass, where it is not in place of the fields
        folder = written(tmp_path / "decorated", "quadrant.py", ESTIMATOR.replace(*change))
        with pytest.raises(RobGIBError, match=sentence):
            robgib.make_estimator("quadrant:threshold=0.1", folder)


def test_an_estimator_without_a_decorator_has_its_fields(tmp_path):
    folder = written(tmp_path / "mine", "quadrant.py", ESTIMATOR.replace("@dataclass(frozen=True)\n", ""))
    assert robgib.make_estimator("quadrant:threshold=0.1", folder).threshold == 0.1
    with pytest.raises(RobGIBError, match="threshold must be at least 0, not -1"):
        robgib.make_estimator("quadrant:threshold=-1", folder)


def test_a_decorator_says_what_it_takes():
    for decorator in (register_attack, register_estimator, register_architecture, register_data):
        with pytest.raises(RobGIBError, match="write it in the decorator's parentheses"):
            decorator(Sum)  # without parentheses
    with pytest.raises(RobGIBError, match=r"must decorate a subclass of robgib\.Attack"):
        register_attack("sum")(Sum)
    with pytest.raises(RobGIBError, match=r"must decorate a subclass of robgib\.Estimator"):
        register_estimator("sum")(Sum)
