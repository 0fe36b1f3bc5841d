"""How terms and their errors become a decomposition, and the former names of its parts."""

import numpy as np
import pandas as pd
import pytest

from robgib import RobGIBError
from robgib.information import Estimate, Exact
from robgib.information.base import Uncertainty, decompose
from robgib.information.decomposition import Problem
from robgib.reporting import read_validation
from robgib.results import column_names, with_present_names

BITS = np.array([0, 0, 1, 1])


def decomposed(terms=(1.0, 1.0, 0.0), counted=None, **errors):
    exact = Exact()
    problem = Problem(exact.prepare([BITS]), BITS, BITS, counted=counted)
    return decompose(terms, estimator=exact, problem=problem, resolution="values", **errors)


def test_errors_are_given_by_name_or_as_one_object():
    by_name = decomposed(floor=0.1, below=0.2, flagged=True)
    assert by_name == decomposed(uncertainty=Uncertainty(floor=0.1, below=0.2, flagged=True))
    half = 1.959964 * 0.1
    assert (by_name.total.low, by_name.total.high) == (pytest.approx(0.8 - half), pytest.approx(1 + half))
    assert by_name.total.flagged


def test_an_error_of_another_name_is_refused_in_one_sentence():
    with pytest.raises(RobGIBError, match=r"unknown field of decompose's uncertainty: 'flor'; did you mean 'floor'"):
        decomposed(flor=0.1)


def test_former_names_still_work():
    assert Estimate(1.0, 0.0, 2.0, saturated=True) == Estimate(1.0, 0.0, 2.0, flagged=True)
    assert Estimate(1.0, 0.0, 2.0, flagged=True).saturated
    found = decomposed(saturated=[True, False, False])
    assert found.total.flagged
    assert not found.single_feature[0].flagged
    assert (found.singles, found.rests) == (found.single_feature, found.leave_one_out)


def test_terms_are_scaled_to_a_counted_total():
    """1 bit is learnt, half of it in the feature alone; 2 bits are counted: twice the terms and their sampling errors.

    The learnt total lacks half of the counted one; so may each kind of terms, by 0.75 of that as a standard deviation.
    """
    found = decomposed([1.0, 0.5, 0.25], Estimate(2.0, 2.0, 2.0), floor=0.01)
    assert [e.value for e in (found.total, *found.single_feature, *found.leave_one_out)] == [2.0, 1.0, 0.5]
    assert found.learnt.value == 1
    sd = np.hypot(0.02, 0.75 * (1 - 1 / 2) * 1.0)
    assert found.single_feature[0].high - 1 == pytest.approx(1.959964 * sd, abs=1e-6)
    assert found.total.high - 2 == pytest.approx(1.959964 * 0.02, abs=1e-6)


def test_degrees_at_a_bound_are_the_bound():
    """Terms that are moved until v is 0 sum to 0 up to rounding: v was -1.5e-16."""
    rng = np.random.default_rng(0)
    exact = Exact()
    problem = Problem(exact.prepare([BITS] * 3), BITS, BITS)
    for _ in range(20):
        total, *of_none = 0.1 + rng.random(4)
        beyond = total * (1 + rng.random(3) / 3)
        least = decompose([total, *of_none, *beyond], estimator=exact, problem=problem, resolution="values")
        most = decompose([total, *beyond, *of_none], estimator=exact, problem=problem, resolution="values")
        assert 0 <= least.vulnerability.low <= least.vulnerability.value < 1e-9
        assert 3 - 1e-9 < most.redundancy.value <= most.redundancy.high <= 3


def test_tables_with_former_names_are_read(tmp_path):
    old = pd.DataFrame([[0.5] * 4], columns=["single", "rest_low", "total", "interaction"])
    assert list(with_present_names(old, "features")) == ["single_feature", "leave_one_out_low", "total", "interaction"]
    assert list(with_present_names(pd.DataFrame({"epoch": [0], "saturated": [True]}), "trace")) == ["epoch", "flagged"]
    columns = column_names("validation")
    table = pd.DataFrame([{**dict.fromkeys(columns, 0), "figure": figure} for figure in ("I", "singles", "rests")])
    table.rename(columns={"flagged": "saturated"}).to_csv(tmp_path / "validation.csv", index=False)
    read = read_validation(tmp_path / "validation.csv")
    assert list(read.columns) == columns
    assert list(read["figure"]) == ["I", "single-feature", "leave-one-out"]
