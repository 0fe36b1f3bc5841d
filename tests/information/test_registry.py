import pytest

from robgib import RobGIBError, make_estimator
from robgib.information import ESTIMATORS, Binned, Gaussian

PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from robgib import Estimator
from robgib.information import Exact


@dataclass(frozen=True)
class Counted(Exact):
    name: ClassVar[str] = "counted"
    summary: ClassVar[str] = "plain counts"
    bias: float = 0.0
"""


def test_options_and_defaults():
    assert make_estimator("binned:codes=5,target_codes=7") == Binned(codes=5, target_codes=7)
    assert make_estimator("gaussian", noise=0.5, unknown=3) == Gaussian(noise=0.5)
    assert make_estimator("gaussian:noise=1/4", noise=0.5) == Gaussian(noise=0.25)


def test_plugin_file(tmp_path):
    (tmp_path / "counted.py").write_text(PLUGIN)
    assert ESTIMATORS.find("counted", [tmp_path]).summary == "plain counts"
    found = make_estimator("counted:bias=1", [tmp_path]).estimate([[0, 0, 1, 1], [0, 1, 0, 1]], [0, 1, 1, 0])
    assert found.estimator == "counted"
    assert found.synergy.value == pytest.approx(1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gausian", "did you mean 'gaussian'"),
        ("binned:code=3", "did you mean 'codes'"),
        ("binned:codes=many", "codes must be a whole number, not 'many'"),
        ("binned:codes", "does not have the form key=value"),
    ],
)
def test_bad_specifications(spec, message):
    with pytest.raises(RobGIBError, match=message):
        make_estimator(spec)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_tells_what_it_is(name):
    kind = ESTIMATORS[name]
    assert kind.name == name
    assert all(len(text) > 3 for text in (kind.bound, kind.summary, kind.guide))
