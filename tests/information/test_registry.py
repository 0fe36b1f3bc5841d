import pytest

import robgib
from robgib import RobGIBError, make_estimator
from robgib.information import ESTIMATORS, Binned, Gaussian, layer_information
from robgib.information.analysis import check_used
from robgib.information.registry import build_estimators
from robgib.options import InformationOptions

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


@pytest.mark.parametrize(
    ("estimators", "given", "sentence"),
    [
        (
            ["gaussian", "renyi"],
            {"codes": 40},
            r"codes=40 has no effect, since no given estimator \(gaussian, renyi\) sees a layer as a code",
        ),
        (["exact"], {"sigma": 0.5}, "sigma=0.5 has no effect, since exact adds no noise to a layer"),
        (["gaussian"], {"sigma": 0.5}, None),
        (["gaussian", "binned"], {"codes": 40, "sigma": 0.5}, None),
    ],
)
def test_a_resolution_that_no_estimator_uses_is_refused(estimators, given, sentence):
    options = InformationOptions(estimators=estimators, **given)
    if sentence is None:
        check_used(build_estimators(estimators), options)
        return
    with pytest.raises(RobGIBError, match=sentence):
        check_used(build_estimators(estimators), options)


@pytest.mark.parametrize("ask", [robgib.evaluate, layer_information])
def test_it_is_refused_before_anything_runs(ask, digits, digits_mlp):
    with pytest.raises(RobGIBError, match=r"codes=1000000 has no effect, since no given estimator \(gaussian\)"):
        ask(digits_mlp, digits, estimators=["gaussian"], codes=1_000_000)
