import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robgib.errors import RobGIBError
from robgib.information import ESTIMATORS, Exact, Gaussian
from robgib.information.base import Estimator, decompose
from robgib.validation.known_variables import REGIMES, Sample, VariableTask, _student, half_cube, spiral
from robgib.validation.tasks import tasks
from robgib.validation.validate import validate, verdict

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("name", tasks())
def test_every_task_draws_what_it_says(name):
    task = tasks()[name]
    assert task.regime in REGIMES
    sample = task.draw(60, np.random.default_rng(1))
    n = len(sample.features)
    assert len(sample.truth) == 2 * n + 1
    assert all(len(x) == len(sample.target) == 60 for x in sample.features)
    total, parts = sample.truth[0], sample.truth[1:]
    assert (parts >= -1e-9).all()
    if task.regime != "kernel":  # whose widths change from subset to subset
        assert (parts <= total + 1e-9).all()
    again = task.draw(60, np.random.default_rng(1))
    assert all(np.array_equal(a, b) for a, b in zip(sample.features, again.features, strict=True))


def test_random_discrete_truth_is_that_of_the_samples_in_the_limit():
    sample = tasks()["random-3x3x3"].draw(200_000, np.random.default_rng(2))
    found = Exact().estimate(sample.features, sample.target)
    got = [found.total, *found.single_feature, *found.leave_one_out]
    assert [e.value for e in got] == pytest.approx(list(sample.truth), abs=0.01)


def test_student_truth_against_its_densities():
    freedom = 3
    sample = _student((1, 1), 1, freedom)(200_000, np.random.default_rng(3))
    values = np.hstack([*sample.features, sample.target])
    # The dispersion is drawn from the same generator before the samples: draw it again.
    from robgib.validation.known_variables import _random_covariance

    shape = _random_covariance(3, np.random.default_rng(3))

    def log_density(columns):
        return stats.multivariate_t(np.zeros(len(columns)), shape[np.ix_(columns, columns)], df=freedom).logpdf(
            values[:, columns]
        )

    information = np.mean(log_density([0, 1, 2]) - log_density([0, 1]) - log_density([2])) / np.log(2)
    assert sample.truth[0] == pytest.approx(information, abs=0.01)


def test_additive_noise_truth_by_integration():
    sample = tasks()["additive-noise"].draw(20, RNG)
    width = 0.75
    t = np.linspace(-width, 1 + width, 400_001)
    density = np.clip(np.minimum(t + width, 1 + width - t), 0, 1) / (2 * width)
    entropy = -np.trapezoid(np.where(density > 0, density * np.log2(np.where(density > 0, density, 1)), 0), t)
    assert sample.truth[0] == pytest.approx(entropy - np.log2(2 * width), abs=1e-4)


def test_the_changes_are_bijections():
    x = RNG.standard_normal((500, 2))
    assert (np.argsort(half_cube(x)[:, 0]) == np.argsort(x[:, 0])).all()
    assert np.hypot(*spiral(x).T) == pytest.approx(np.hypot(*x.T))  # a rotation at each radius


class Off(Estimator):
    """Knows the truth and misses it by 0.2 bit, with intervals of ±0.1."""

    name = "off"
    bound = "none"
    summary = "wrong by 0.2 bit"
    regimes = ("gaussian",)

    def _estimate(self, problem):
        return decompose(
            [0.5 + 0.2, 0.1, 0.4], estimator=self, problem=problem, resolution="", pointwise=None, floor=0.05
        )


def test_a_biased_estimator_is_shown_as_one():
    def draw(samples, rng):
        return Sample([rng.standard_normal(samples)], rng.standard_normal(samples), np.array([0.5, 0.1, 0.4]))

    found = validate([Off()], [VariableTask("t", "gaussian", draw, 50)], repeats=3).set_index("figure")
    assert found.loc["I", "bias"] == pytest.approx(0.2)
    assert found.loc["I", "coverage"] == 0
    assert found.loc["single-feature", "bias"] == pytest.approx(0)
    assert found.loc["single-feature", "coverage"] == 1
    assert found.loc["I", "null"] == 0  # 0.7 ± 0.1 is not 0, whatever the target


def test_only_claimed_regimes_are_asked_unless_told():
    chosen = [tasks()["xor"], tasks()["gaussian-row"]]
    assert set(validate([Gaussian()], chosen, repeats=2)["task"]) == {"gaussian-row"}
    every = validate([Gaussian()], chosen, repeats=2, every=True)
    assert set(every["task"]) == {"xor", "gaussian-row"}
    assert not every[every["task"] == "xor"]["claims"].any()


def test_the_goals_hold_for_closed_forms():
    """Bias at most 0.05 bit, coverage and null as promised, in the regimes that are claimed."""
    chosen = [tasks()[n] for n in ("gaussian-row", "gaussian-3-features", "half-cube")]
    found = validate([Gaussian()], chosen, repeats=40)
    assert found["bias"].abs().max() <= 0.05
    assert 0.9 <= found["coverage"].mean() <= 0.98
    assert found["null"].min() >= 0.93


@pytest.mark.slow
def test_processes_share_the_repeats_and_change_nothing(tmp_path):
    (tmp_path / "far.py").write_text(
        "from dataclasses import dataclass\n"
        "from robgib.information.base import Estimator, decompose\n\n\n"
        "@dataclass(frozen=True)\n"
        "class Far(Estimator):\n"
        "    name = 'far'\n"
        "    bound = 'none'\n"
        "    summary = 'always 9 bits'\n"
        "    regimes = ('gaussian',)\n\n"
        "    def _estimate(self, problem):\n"
        "        return decompose([9.0] * 5, estimator=self, problem=problem, resolution='')\n"
    )
    chosen = [tasks()[name] for name in ("gaussian-row", "half-cube")]
    makers = [Gaussian(), ESTIMATORS.find("far", [tmp_path])()]
    one, two = (validate(makers, chosen, repeats=2, jobs=jobs).drop(columns="seconds") for jobs in (1, 2))
    pd.testing.assert_frame_equal(one, two)
    assert two.set_index(["estimator", "figure"]).loc[("far", "I"), "bias"] > 8


def test_command(cli, tmp_path):
    done = cli("validate-estimators", "--estimator", "gaussian", "--task", "gaussian-row", "--repeats", "3", "--quiet")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "validation"
    assert sorted(p.name for p in folder.iterdir()) == ["estimators.md", "validation.csv", "validation.html"]
    table = pd.read_csv(folder / "validation.csv")
    assert f"{table['bias'][0]:+.3f}" in done.stdout
    assert f"{table['bias'][0]:+.3f}" in (folder / "estimators.md").read_text()
    more = ["--estimator", "binned", "--task", "copy", "--repeats", "2", "--quiet", "--add"]
    assert cli("validate-estimators", *more).returncode == 0
    both = pd.read_csv(folder / "validation.csv")
    assert list(dict.fromkeys(both["estimator"])) == ["binned", "gaussian"]
    pd.testing.assert_frame_equal(both[both["estimator"] == "gaussian"].reset_index(drop=True), table)
    assert len(pd.read_csv(folder / "validation.csv")) == len(table) + 5
    (folder / "validation.csv").write_text("a,b\n1,2\n")
    refused = cli("validate-estimators", *more)
    assert refused.returncode == 2
    assert "omit --add" in refused.stderr
    assert cli("validate-estimators", "--task", "gausian-row").returncode == 2
    assert cli("validate-estimators", "--estimator", "gaussian", "--task", "xor").returncode == 2


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("bmi-normal-1+1", 0.596),
        ("bmi-sparse-5+5", 1.474),
        ("bmi-dense-2+2", 0.424),
        ("bmi-student-1-1+1", 0.322),
        ("bmi-swiss-roll-2+1", 0.596),
        ("bmi-additive-noise-0.1-1+1", 2.466),
        ("bmi-additive-noise-0.75-1+1", 0.481),
    ],
)
def test_benchmark_truths(name, truth):
    """As the benchmark has them, in nats over log 2."""
    assert tasks()[name].draw(10, RNG).truth[0] == pytest.approx(truth, abs=2e-3)


@pytest.mark.parametrize("name", [n for n in tasks() if n.startswith("bmi-") and n.endswith("1+1")])
def test_benchmark_truths_by_nearest_neighbours(name):
    """An independent implementation, scikit-learn's, on one coordinate of X; bijections of it lose nothing."""
    from sklearn.feature_selection import mutual_info_regression

    task = tasks()[name]
    sample = task.draw(20_000, np.random.default_rng(5))
    found = mutual_info_regression(sample.features[0], sample.target[:, 0], n_neighbors=8, random_state=0)[0]
    long_tails = 0.12 if "student-1" in name and "asinh" not in name else 0.05
    assert found / np.log(2) == pytest.approx(sample.truth[0], abs=long_tails)


def test_waves_truth_by_counting():
    """On a fine grid of T and X's first coordinate, which alone tells of T; and the bend is undone by its inverse."""
    sample = tasks()["bmi-waves-2+1"].draw(400_000, np.random.default_rng(6))
    bent, t = sample.features[0], sample.target[:, 0]
    straight = bent[:, 1] - 5 * np.sin(30 * bent[:, 0])
    assert straight.std() == pytest.approx(1, abs=0.01)
    of_x, of_t = (np.searchsorted(np.quantile(v, np.linspace(0, 1, 121)[1:-1]), v) for v in (bent[:, 0], t))
    counted = Exact().estimate([of_x], of_t).total.value - 119**2 / (2 * len(t) * np.log(2))
    assert counted == pytest.approx(sample.truth[0], abs=0.02)


class TestVerdict:
    NEVER, ALWAYS = np.zeros((40, 2), bool), np.ones((40, 2), bool)

    def test_it_tells_misses_that_are_marked_from_silent_ones(self):
        some = self.ALWAYS.copy()
        some[:12] = False
        assert verdict(some, self.NEVER, self.NEVER) == "wrong"
        assert verdict(some, ~some, self.NEVER) == "marked"
        assert verdict(self.ALWAYS, self.ALWAYS, self.NEVER) == "holds"
        assert verdict(self.NEVER, self.NEVER, self.ALWAYS) == "refused"

    def test_a_few_misses_are_chance(self):
        few = self.ALWAYS.copy()
        few[:7] = False
        assert verdict(few, self.NEVER, self.NEVER) == "holds"


def test_an_estimator_that_refuses_is_shown_as_one():
    class Refuses(Off):
        name = "refuses"

        def _estimate(self, problem):
            raise RobGIBError("not this")

    found = validate([Refuses()], [tasks()["gaussian-row"]], repeats=2)
    assert set(found["verdict"]) == {"refused"}
    assert found["bias"].isna().all()
