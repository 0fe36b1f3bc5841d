import json
import pickle
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from torch import nn

import robgib
from robgib import Attack, RobGIBError, evaluate, load_run, make_attack, write_report
from robgib.information import Binned
from robgib.models.adapt import as_module
from robgib.models.inference import count_queries
from robgib.results import RUN_TABLES, SCHEMA, SCHEMA_VERSION, column_names, save_run, with_present_names
from robgib.robustness.evaluate import named_attacks
from robgib.robustness.failure_indicators import CHECKS
from robgib.statistics import clopper_pearson
from tests import unusual

TERMS = ["I(Z;Y)", "I(X;Z)", "C(X;Z)", "S(X;Z)", "r(X;Z)", "v(X;Z)", "learnt I(X;Z)", "IB", "GIB"]
QUICK = ["gaussian", "binned", "imputation:donors=2,steps=20"]


@pytest.fixture(scope="session")  # of a module it would be read again whenever a worker comes back to it
def run(digits, digits_cnn, shared):
    """An evaluation of everything, by one of the test processes for all of them."""
    file = shared / "evaluation.pickle"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            made = evaluate(
                digits_cnn,
                digits,
                attacks=["fgsm-linf:eps=0.05", "pgd-linf:eps=0.05,steps=5", "pgd-l2:steps=5"],
                corruptions=True,
                curve=True,
                layers=["blocks.0", "hidden", "logits"],
                estimators=QUICK,
                samples=150,
                name="digits-cnn",
                beta=0.5,
            )
            file.write_bytes(pickle.dumps(made))
        return pickle.loads(file.read_bytes())


def test_robustness_table_follows_from_the_outcomes(run, digits):
    table = run.robustness.set_index("attack")
    attacks = [label for label in table.index if not label.startswith("failure-checks")]
    assert attacks[:3] == ["fgsm-linf:eps=0.05", "pgd-linf:eps=0.05,steps=5", "pgd-l2:steps=5"]
    assert attacks[3] == "worst of 2"
    for attack, rows in run.outcomes.groupby("attack"):
        assert len(rows) == 150
        assert (rows["label"].to_numpy() == digits.test.y[:150].numpy()).all()
        right = rows["clean_prediction"] == rows["label"]
        assert table.loc[attack, "correct"] == right.sum()
        assert (rows["robust"] == (right & (rows["adversarial_prediction"] == rows["label"]))).all()
        assert table.loc[attack, "robust"] == rows["robust"].sum()
        assert table.loc[attack, ["low", "high"]].tolist() == pytest.approx(clopper_pearson(rows["robust"].sum(), 150))
        norm, eps = rows["norm"].iloc[0], rows["eps"].iloc[0]
        assert rows[norm].max() <= eps + 1e-6
    wide = run.outcomes[run.outcomes["norm"] == "linf"].pivot(index="index", columns="attack", values="robust")
    assert table[table["norm"] == "linf"].loc["worst of 2", "robust"] == wide.all(axis=1).sum()


def test_curve_passes_through_the_table(run):
    for attack, rows in run.curve.groupby("attack"):
        assert rows["accuracy"].is_monotonic_decreasing
        at = rows[np.isclose(rows["at"], rows["eps"])]
        assert int(at["right"].iloc[0]) == run.robustness.set_index("attack").loc[attack, "robust"]


def test_layer_terms_are_complete_and_consistent(run):
    table = run.layers[run.layers["term"].isin(TERMS)]
    assert set(table["partition"]) == {"patches:2", "patches:4"}
    layers = ["blocks.0", "hidden", "logits", "Ŷ", "Y"]
    assert len(table) == 3 * 5 * 2 * len(TERMS)
    beside = run.layers[~run.layers["term"].isin(TERMS)].groupby("term").size().to_dict()
    swept = {f"{t}(X;Z) {k}": 2 * 3 * 2 for t in "CSrv" for k in ("k/2", "2k")}  # of both estimators that see codes
    assert beside == {**swept, "I(X;Z) noise": 12, "IB noise": 12}
    known = table[table["value"].notna()]
    assert ((known["low"] <= known["value"]) & (known["value"] <= known["high"])).all()
    for (estimator, partition, layer), g in table.groupby(["estimator", "partition", "layer"]):
        v, n = g.set_index("term")["value"], int(partition[-1]) ** 2
        assert layer in layers
        assert list(v.index) == TERMS
        if layer != "Y":
            assert v["IB"] == pytest.approx(v["I(Z;Y)"] - 0.5 * v["I(X;Z)"])
            assert v["I(Z;Y)"] <= v["I(X;Z)"] + 0.05  # what is not kept of the input cannot tell of the label
        if estimator == "imputation":
            assert 0 <= v["v(X;Z)"] <= n
        # What is learnt is shares of the counted I(X;Z), where that is known.
        counted = g[g["term"] == "I(X;Z)"].iloc[0]
        known = np.isfinite(counted["value"]) and not counted["flagged"]
        total = counted["value"] if known else v["learnt I(X;Z)"]
        assert total == pytest.approx(v["C(X;Z)"] + v["S(X;Z)"])
        assert v["GIB"] == pytest.approx(v["I(Z;Y)"] - 0.25 * v["C(X;Z)"])
        assert v["S(X;Z)"] / total == pytest.approx((v["v(X;Z)"] - v["r(X;Z)"]) / n)  # also where one is at its bound
        assert v["C(X;Z)"] / total == pytest.approx(1 + (v["r(X;Z)"] - v["v(X;Z)"]) / n)


def test_views_are_told_and_counted_terms_are_those_of_the_view(run):
    views = run.layers[run.layers["term"].isin(TERMS)].groupby("estimator")["view"].unique().map(list)
    assert views.to_dict() == {"gaussian": ["noise"], "binned": ["rate"], "imputation": ["rate"]}
    counted = run.layers[run.layers["term"].isin(["I(X;Z)", "I(Z;Y)", "IB"])]
    assert (counted.groupby(["view", "layer", "term"])["value"].nunique(dropna=False) == 1).all()
    hidden = run.layers.query("layer == 'hidden' and term == 'I(X;Z)'").set_index("view")["resolution"]
    assert "k-means code of 40 symbols" in hidden["rate"].iloc[0]
    assert "noise of 0.3 total standard deviations" in hidden["noise"].iloc[0]
    beside = run.layers.query("layer == 'hidden' and term == 'I(X;Z) noise'")
    assert set(beside["view"]) == {"noise"}
    of_gaussian = run.layers.query("layer == 'hidden' and term == 'I(X;Z)' and view == 'noise'")["value"]
    assert beside["value"].to_numpy() == pytest.approx(of_gaussian.iloc[0])  # the noise view's own


def test_what_an_estimator_did_not_learn_is_marked(run):
    table = run.layers[run.layers["estimator"] == "binned"].set_index(["partition", "layer", "term"])
    for (partition, layer, term), row in table.iterrows():
        if term == "C(X;Z)" and layer not in ("Y", "Ŷ"):
            total, learnt = (table.loc[(partition, layer, t), "value"] for t in ("I(X;Z)", "learnt I(X;Z)"))
            if learnt < 0.9 * total:
                assert row["flagged"]
                assert "of the counted I(X;Z) is learnt" in row["note"]


def test_feature_table_gives_the_layer_terms_back(run):
    features = run.features[run.features["estimator"] != "imputation"]
    keys = ["estimator", "partition", "layer"]
    values = run.layers.set_index([*keys, "term"])["value"]
    for key, g in features.groupby(keys):
        assert len(g) == int(key[1][-1]) ** 2
        assert g["interaction"].mean() == pytest.approx(values[(*key, "S(X;Z)")])
        assert (g["single_feature"] + g["leave_one_out"]).mean() == pytest.approx(values[(*key, "C(X;Z)")])
        assert g["total"].iloc[0] == pytest.approx(values[(*key, "C(X;Z)")] + values[(*key, "S(X;Z)")])


def without(config, *names):
    """A run's configuration without some options of its attacks, and what follows from them."""
    kept = {name: value for name, value in config["options"]["attack"].items() if name not in names}
    same = {name: value for name, value in config.items() if name not in ("request", "rows")}
    return {**same, "options": {**config["options"], "attack": kept}}


def test_evaluation_is_deterministic(digits, digits_cnn):
    beside = ("corruptions",)  # they change no figure that is compared here
    options = {
        "attacks": ["fgsm-linf:eps=0.05", "pgd-linf:eps=0.05,steps=5", "pgd-l2:steps=5"], "curve": True,
        "layers": ["hidden"], "estimators": QUICK, "features": "patches:2", "samples": 60, "beta": 0.5, "signs": False,
    }  # fmt: skip
    one = evaluate(digits_cnn, digits, **options, **dict.fromkeys(beside, True))
    again = evaluate(digits_cnn, digits, batch_size=64, **options, **dict.fromkeys(beside, False))
    assert without(again.config, *beside) == without(one.config, *beside)
    pd.testing.assert_frame_equal(again.outcomes, one.outcomes, atol=1e-5)
    pd.testing.assert_frame_equal(again.layers, one.layers, rtol=1e-4)


def test_any_module_and_arrays():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.Tanh(), nn.Linear(12, 3))
    x = torch.rand(300, 3, 4, 4)
    with torch.no_grad():
        y = model(x).argmax(1)
    model.train()
    found = evaluate(
        model,
        (x, y),
        attacks={"mine": make_attack("pgd-linf:eps=0.05")},
        estimators=[Binned(codes=4)],
        features="patches:2",
        device="cpu",
    )
    assert model.training
    assert found.robustness.iloc[0]["clean_accuracy"] == 1
    assert list(found.layers["layer"].unique()) == ["2", "logits", "Ŷ", "Y"]
    assert found.config["fit_samples"] == found.config["information_samples"] == 150
    assert found.information_options["estimators"]["binned"]["codes"] == 4


class Explodes(Attack):
    """Raises in the middle."""

    def perturb(self, model, x, y, rng):
        raise ValueError("no luck")


def test_a_failing_attack_is_marked_and_the_others_delivered(digits, digits_mlp, tmp_path):
    attacks = {"bad": Explodes("linf", 0.1), "good": make_attack("fgsm-linf:eps=0.1")}
    found = evaluate(digits_mlp, digits, attacks=attacks, estimators=[], samples=50)
    table = found.robustness.set_index("attack")
    assert table.loc["bad", "status"] == "failed"
    assert table.loc["bad", "reason"] == "attack 'bad' raised ValueError: no luck."
    assert np.isnan(table.loc["bad", "robust_accuracy"])
    assert table.loc["good", "status"] == "ok"
    page = write_report(found, tmp_path / "r.html").read_text()
    assert "no luck" in page
    with pytest.raises(RobGIBError, match="every attack failed; the first: attack 'bad' raised"):
        evaluate(digits_mlp, digits, attacks={"bad": attacks["bad"]}, estimators=[], samples=20)


def test_pmi_weighting_changes_the_information_and_not_the_robustness(run, digits, digits_cnn, tmp_path):
    found = evaluate(
        digits_cnn,
        digits,
        attacks=["fgsm-linf:eps=0.05"],
        estimators=["gaussian"],
        layers=["blocks.0", "hidden", "logits"],
        samples=150,
        beta=0.5,
        pmi=True,
    )
    assert found.robustness["robust"][0] == run.robustness["robust"][0]
    plain = run.layers[run.layers["estimator"] == "gaussian"]["value"].to_numpy()
    assert not np.allclose(found.layers["value"].to_numpy(), plain, rtol=1e-6, equal_nan=True)
    near = np.abs(found.layers["value"].to_numpy() - plain) <= 0.2 + 0.2 * np.abs(plain)
    assert near[np.isfinite(plain)].mean() > 0.9  # 99% right: little to weigh
    assert "weighted by" in write_report(found, tmp_path / "r.html").read_text()


def test_without_attacks_or_estimators(digits, digits_mlp):
    found = evaluate(digits_mlp, digits, attacks=[], estimators=[], samples=50)
    assert found.outcomes.empty
    assert found.layers.empty
    assert found.robustness["attack"].tolist() == ["none"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "digit"}, "unknown data set"),
        ({"data": 3}, "data must be"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"beta": -1}, "beta must be"),
        ({"estimators": ["gauss"]}, "did you mean 'gaussian'"),
        ({"estimators": ["binned", "binned:codes=3"]}, "an estimator is given twice"),
        ({"estimators": ["gaussian:noise=-1"]}, "noise must be"),
        ({"attacks": "pgd-linf"}, "attacks must be a sequence"),
        ({"attacks": ["pgd-linf", "pgd-linf"]}, "given twice"),
        ({"layers": ["hiden"]}, "did you mean 'hidden'"),
        ({"features": "patches:40"}, "no such grid"),
        ({"device": "gpu"}, "unknown device"),
        ({"source": 3}, "source must be a mapping, not 3"),
        ({"unfinished": 3}, "unfinished must be a path, not 3"),
        ({"known": "x"}, "known must be a function, not 'x'"),
    ],
)
def test_bad_requests(options, message, digits, digits_cnn):
    arguments = {"data": digits, "attacks": [], "samples": 20, **options}
    with pytest.raises(RobGIBError, match=message):
        evaluate(digits_cnn, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none(digits, digits_mlp):
    with pytest.raises(RobGIBError, match="this machine has no CUDA device; use --device cpu"):
        evaluate(digits_mlp, digits, device="cuda")


def test_the_model_must_be_one(digits):
    with pytest.raises(RobGIBError, match=r"must be a torch.nn.Module or a function of images, not str"):
        evaluate("digits-cnn", digits)
    with pytest.raises(RobGIBError, match=r"output is \(8, 1, 8, 8\) for 8 images"):
        evaluate(lambda x: x, digits)


def robustness(model, data, attacks, **options):
    """The table of an evaluation without information, by attack, and the run."""
    settings = {"estimators": [], "corruptions": False, "curve": False, "samples": 100, **options}
    run = evaluate(model, data, attacks=attacks, **settings)
    return run.robustness.set_index("attack"), run


def test_a_curve_uses_large_to_small_eps_where_the_cheapest_attack_stalled():
    x, y = torch.full((30, 1, 8, 8), 0.5), torch.zeros(30, dtype=torch.long)
    attacks = ["apgd-ce-l2:eps=0.4", "fast-l2:eps=0.4"]
    tables = robgib.robustness.evaluate(
        unusual.HardOfHearing(), x, y, attacks, cascade=True, corruptions=False, signs=False
    )
    right = dict(zip(tables["robustness"]["attack"], tables["robustness"]["robust_accuracy"], strict=True))
    assert right["apgd-ce-l2:eps=0.4"] == 1
    assert right["fast-l2:eps=0.4"] < 0.2
    # No climb that begins in the ball finds anything at 0.3.
    at = tables["curve"]["at"]
    assert tables["curve"]["accuracy"][np.isclose(at, 0.3)].max() < 0.8


def test_a_cascades_curve_is_its_last_attacks_own(digits, digits_mlp):
    """Samples that fell earlier never reached the last attack: accuracy at half eps was 99.5% for 76%."""
    attacks = ["pgd-linf:eps=0.1", "fab-t-linf:eps=0.1,steps=20,targets=4"]
    both = {
        cascade: robustness(digits_mlp, digits, attacks, cascade=cascade, curve=True, signs=False)[1].curve
        for cascade in (True, False)
    }
    ours, alone = (c[c["attack"] == attacks[1]].set_index("at")["accuracy"] for c in both.values())
    assert ours.index.tolist() == alone.index.tolist()
    assert (ours <= alone + 1e-9).all()
    assert (alone[:0.1] - ours[:0.1]).max() <= 0.03
    assert alone[0.05] < 0.9


def test_what_an_attack_leaves_above_the_checks_own_is_said_beside_it(digits, digits_mlp, tmp_path):
    weak = "torchattacks:PGD:eps=0.1,alpha=0.001,steps=5"
    table, run = robustness(digits_mlp, digits, [weak, "pgd-linf:eps=0.1", "pgd-linf:eps=0.05"], signs=True)
    assert "5 steps of 0.001 move at most 0.005" in table.loc[weak, "note"]
    assert "PGD of 20 steps on the model itself leaves" in table.loc[weak, "note"]
    assert table.loc["pgd-linf:eps=0.1", "note"] == table.loc["pgd-linf:eps=0.05", "note"] == ""
    signs = run.signs.set_index("name")
    assert signs.loc["weaker than a short attack", "seen"]
    back = load_run(run.save(tmp_path))
    assert back.robustness["note"].tolist() == run.robustness["note"].tolist()
    assert "move at most 0.005" in write_report(run, tmp_path / "page.html").read_text()


def test_without_any_gradient_the_signs_still_say_why(digits, digits_mlp, tmp_path):
    table, run = robustness(unusual.Cut(digits_mlp), digits, ["pgd-linf:eps=0.1", "apgd-ce-linf:eps=0.1"])
    assert set(table["status"]) == {"failed"}
    assert all("no gradient" in r for r in table["reason"])
    seen = run.signs[run.signs["seen"]].set_index("name")
    assert {"zero gradients", "black box beats gradients"} <= set(seen.index)
    assert "black box beats gradients" in write_report(run, tmp_path / "page.html").read_text()


def test_an_undecided_model_is_not_robust_and_its_run_is_whole(digits, digits_mlp, tmp_path):
    table, run = robustness(
        unusual.Undecided(digits_mlp), digits, ["pgd-linf:eps=0.1"], estimators=["gaussian"], layers=["logits"]
    )
    row = table.loc["pgd-linf:eps=0.1"]
    assert row["not_finite"] > 50
    assert row["robust_accuracy"] < 0.15
    assert any("without a finite answer" in note for note in run.config["reading"])
    page = write_report(run, tmp_path / "page.html").read_text()
    assert f"{row['not_finite']} of 100 samples have no finite answer" in page
    assert run.layers.query("layer == 'logits'")["value"].notna().all()


@pytest.mark.slow
def test_a_random_models_accuracies_are_means_over_draws(digits, digits_mlp):
    spec = ["pgd-linf:eps=0.1,eot=5,steps=10"]
    table, run = robustness(unusual.Noisy(digits_mlp, 0.1), digits, spec, samples=30, curve=True)
    again, _ = robustness(unusual.Noisy(digits_mlp, 0.1), digits, spec, samples=30, curve=True, signs=False)
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), again.drop(columns="seconds"))
    row = table.iloc[0]
    assert row["robust_accuracy"] == pytest.approx(run.outcomes["right"].mean())
    assert row["low"] < row["robust_accuracy"] < row["high"]
    assert any("the model is stochastic" in told for told in run.config["reading"])
    assert run.signs.set_index("name").loc["random outputs", "seen"]
    assert run.curve["accuracy"].is_monotonic_decreasing


def test_checks_that_run_out_of_memory_take_nothing_with_them(digits, digits_mlp, monkeypatch):
    def no_memory(*arguments, **options):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(sys.modules["robgib.robustness.beside"], "examine", no_memory)
    table, run = robustness(digits_mlp, digits, ["pgd-linf:eps=0.1"])
    assert table["status"].tolist() == ["ok"]
    assert run.signs["name"].tolist() == ["checks did not finish"]


def test_an_eps_of_another_unit_is_refused_before_any_work(digits, digits_mlp):
    with pytest.raises(RobGIBError, match=r"attack 'pgd-l2:eps=12'.*eps 12 .l2. is more than the whole box"):
        robustness(digits_mlp, digits, ["pgd-l2:eps=12"])


def test_folders_of_before_there_were_notes_are_read(run, tmp_path):
    folder = run.save(tmp_path)
    table = pd.read_csv(folder / "robustness.csv")
    table.drop(columns=["note", "not_finite", "robust_accuracy_8bit"]).to_csv(folder / "robustness.csv", index=False)
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("schema") == SCHEMA_VERSION
    with pytest.raises(RobGIBError, match="no column 'robust_accuracy_8bit'"):
        load_run(folder)  # one of today's without it is damaged
    (folder / "config.json").write_text(json.dumps(config))
    back = load_run(folder)
    assert set(back.robustness["note"]) == {""}
    assert set(back.robustness["not_finite"]) == {0}
    assert write_report(back, tmp_path / "page.html").is_file()


def test_folders_with_former_column_names_are_read(run, tmp_path):
    folder = run.save(tmp_path)
    now = load_run(folder)
    former = {
        "robustness": {"not_finite": "undecided"},
        "outcomes": {"certified_margin": "certified_lead"},
        "convergence": {"margin": "lead"},
    }
    for name, columns in former.items():
        table = pd.read_csv(folder / f"{name}.csv")
        assert set(columns) <= set(table.columns)
        table.rename(columns=columns).to_csv(folder / f"{name}.csv", index=False)
    with pytest.raises(RobGIBError, match="no column 'not_finite'"):
        load_run(folder)  # a folder of this version must have the new names
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "schema": 6}))
    back = load_run(folder)
    for name in former:
        pd.testing.assert_frame_equal(getattr(back, name), getattr(now, name))


def test_folders_with_former_keys_of_the_configuration_are_read(run, tmp_path):
    folder = run.save(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "doubts": ["it is no better than chance"]}))
    back = load_run(folder)
    assert back.config["reading_warnings"] == ["it is no better than chance"]
    assert "doubts" not in back.config


def test_former_values_of_a_table_are_read_as_the_present_ones():
    former = pd.DataFrame({"verdict": ["compresses", "cannot be told"]})
    assert with_present_names(former, "compression")["verdict"].tolist() == ["compresses", "undetermined"]


def test_a_folder_of_a_newer_version_is_refused_in_a_sentence(run, tmp_path):
    folder = run.save(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "schema": SCHEMA_VERSION + 1}))
    with pytest.raises(RobGIBError, match=r"newer RobGIB .*; update robgib"):
        load_run(folder)


def test_a_table_that_lacks_a_whole_row_is_refused_in_a_sentence(run, tmp_path):
    folder = run.save(tmp_path)
    lines = (folder / "outcomes.csv").read_text().splitlines(keepends=True)
    (folder / "outcomes.csv").write_text("".join(lines[:-1]))
    with pytest.raises(RobGIBError, match=rf"outcomes.csv has {len(lines) - 2} rows and not {len(lines) - 1}"):
        load_run(folder)


@pytest.mark.parametrize("name", ["convergence", "outcomes", "layers"])
def test_a_row_that_ends_early_is_refused_in_a_sentence(run, tmp_path, name):
    folder = run.save(tmp_path)
    file = folder / f"{name}.csv"
    head, first, *_ = file.read_text().splitlines()
    file.write_text("\n".join([head, first.rpartition(",")[0][: len(first) // 3]]))
    with pytest.raises(RobGIBError, match="is not a whole run folder"):
        load_run(folder)


def test_tables_have_the_columns_of_the_schema(run):
    for name in RUN_TABLES:
        assert list(getattr(run, name).columns) == column_names(name) == [c.name for c in SCHEMA[name]]


def test_a_run_shows_itself(run):
    shown = repr(run)
    assert "digits-cnn" in shown
    assert f"clean: {run.robustness['clean_accuracy'][0]:.1%}" in shown
    assert "pgd-linf" in shown
    assert "<table" in run._repr_html_()


@pytest.mark.gpu
def test_cpu_and_gpu_agree(digits, digits_cnn):
    cpu, gpu = (
        evaluate(digits_cnn, digits, attacks=["pgd-linf"], estimators=["gaussian"], device=d) for d in ("cpu", "cuda")
    )
    assert gpu.robustness["robust_accuracy"][0] == pytest.approx(cpu.robustness["robust_accuracy"][0], abs=0.01)
    assert gpu.layers["value"].to_numpy() == pytest.approx(cpu.layers["value"].to_numpy(), abs=0.05)


class TestStore:
    def test_round_trip(self, run, tmp_path):
        folder = run.save(tmp_path)
        assert folder.name == run.folder
        assert folder.name.startswith("digits-cnn-")
        back = load_run(folder)
        assert back.name == run.name
        assert back.folder == run.folder
        for table in RUN_TABLES:
            pd.testing.assert_frame_equal(getattr(back, table), getattr(run, table), check_dtype=False)
        assert {k: v.tolist() for k, v in back.pictures.items()} == {k: v.tolist() for k, v in run.pictures.items()}

    def test_saving_again_replaces_the_folder_whole(self, run, tmp_path):
        folder = run.save(tmp_path)
        (folder / "stale").touch()
        run.save(tmp_path)
        assert not (folder / "stale").exists()
        assert [p.name for p in tmp_path.iterdir()] == [folder.name]

    def test_a_failure_while_writing_leaves_nothing(self, run, tmp_path):
        def fail(folder):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            save_run(run, tmp_path, also=fail)
        assert list(tmp_path.iterdir()) == []

    def test_loading_what_is_no_run(self, run, tmp_path):
        with pytest.raises(RobGIBError, match="does not exist"):
            load_run(tmp_path / "no")
        folder = run.save(tmp_path)
        (folder / "layers.csv").unlink()
        with pytest.raises(RobGIBError, match="not a whole run folder"):
            load_run(folder)

    def test_other_settings_have_other_folders(self, run, digits, digits_mlp):
        other = evaluate(digits_mlp, digits, attacks=["fgsm-linf"], estimators=[], samples=20, name="digits-cnn")
        assert other.folder != run.folder


def test_what_stands_beside_the_attacks_does_not_outgrow_them(digits, digits_mlp):
    """A network that falls at once: the curve's attack makes fewer steps, and the checks that attack are moot."""
    passes = {"now": 0}
    with count_queries(as_module(digits_mlp)) as counted:

        def told(task, *_):
            name = "beside" if " at eps=" in task or "looking" in task else task
            passes[name] = passes.get(name, 0) + counted.cost - passes["now"]
            passes["now"] = counted.cost

        spec = "apgd-ce-linf:eps=0.5"
        run = evaluate(
            digits_mlp,
            digits,
            attacks=[spec],
            estimators=[],
            samples=60,
            corruptions=False,
            progress=told,
            device="cpu",
        )
    row = run.robustness.iloc[0]
    assert row["robust"] == 0
    curve = run.curve.set_index("at")
    assert curve.loc[0.5, "right"] == 0
    assert curve["right"].is_monotonic_decreasing
    whole = 5 * 3 * 100 * 60  # passes of a curve whose attack makes all of its steps
    assert passes.get("beside", 0) < 0.4 * whole
    signs = run.signs.set_index("name")
    assert not signs["seen"].any()
    assert signs.loc["black box beats gradients", "detail"] == f"skipped: {spec} fooled every image"
    assert list(signs.index) == list(CHECKS)


def test_by_default_the_fast_ensembles_judge(digits, digits_mlp):
    """As a cascade, cheapest first, at the data set's budgets."""
    options = {"estimators": [], "samples": 8, "signs": False, "corruptions": False, "curve": False, "audit": 0}
    table = evaluate(digits_mlp, digits, progress=False, **options).robustness
    assert table["attack"].tolist() == ["apgd-ce-linf", "fast-linf"]
    assert table["eps"].tolist() == [digits.eps["linf"]] * 2


def test_the_norms_and_radii_of_a_budget_are_the_users(digits, digits_mlp):
    """They are shown as they were written."""
    options = {"estimators": [], "samples": 8, "signs": False, "corruptions": False, "curve": False}
    both = {"norm": ["linf", "l2"], "eps": ["8/255", 0.25]}
    run = evaluate(digits_mlp, digits, progress=False, attacks="quick", **both, **options)
    table = run.robustness[~run.robustness["attack"].str.startswith("worst")]
    linf, l2 = ("fgsm-linf:eps=8/255", "pgd-linf:eps=8/255"), ("fgsm-l2:eps=0.25", "pgd-l2:eps=0.25")
    assert table["attack"].tolist() == [*linf, *l2]
    assert table["eps"].tolist() == [8 / 255] * 2 + [0.25] * 2
    assert run.summary["eps"].tolist()[1:3] == ["8/255", "8/255"]
    named = named_attacks(["pgd-linf", "pgd-l2:eps=1"], norm="linf", eps=["4/255"])
    assert [attack.eps for attack in named.values()] == [4 / 255, 1.0]
    assert [a.norm for a in named_attacks("standard", norm="l0", eps=3).values()] == ["l0", "l0"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"norm": ["linf", "l2"], "eps": ["8/255"]}, r"2 norms came with 1 values of eps; give one eps for each norm"),
        ({"norm": "l3"}, r"unknown norm 'l3'"),
        ({"eps": "eight"}, r"eps must be a number such as 8/255 or 0.03, not 'eight'"),
        ({"eps": ["8/255", "8/255"]}, r"the norm linf is given twice with the same eps"),
        ({"norm": "linf", "eps": 2}, r"eps 2 .linf. is more than the whole box"),
    ],
)
def test_norms_and_radii_that_cannot_be(given, message, digits, digits_mlp):
    with pytest.raises(RobGIBError, match=message):
        evaluate(digits_mlp, digits, progress=False, estimators=[], samples=4, **given)


def test_a_plan_is_told_before_the_work(digits, digits_mlp):
    """Each part with its passes, and with the option that leaves it out."""
    told = []

    def stop(plan):
        told.append(plan)
        raise KeyboardInterrupt

    options = {"attacks": ["pgd-linf"], "samples": 100, "signs": False, "curve": False, "device": "cpu"}
    quick = {"estimators": ["imputation:donors=2,steps=20"], "layers": ["logits"]}
    with pytest.raises(KeyboardInterrupt):
        evaluate(digits_mlp, digits, planned=stop, progress=False, **quick, **options)
    assert {part.name: part.switch for part in told[0]} == {
        "information": "--no-information",
        "attacks": "--samples",
        "common corruptions": "--no-corruptions",
    }
    assert all(0 < part.seconds < 600 for part in told[0])
    passes = {part.name: part.passes for part in told[0]}
    assert passes["attacks"] == 3 * 20 * 100
    assert passes["common corruptions"] == passes["attacks"] // 12
    with pytest.raises(KeyboardInterrupt):
        evaluate(digits_mlp, digits, planned=stop, estimators=[], samples=4, norm="linf", eps=0.01, progress=False)
    parts = {part.name: part for part in told[1]}
    assert list(parts) == [
        "gradient check", "attacks", "audit by AutoAttack", "attack-failure indicators", "curve against eps",
        "common corruptions",
    ]  # fmt: skip
    assert parts["audit by AutoAttack"].switch == "--no-audit"
    assert parts["attacks"].switch == "--quick"


@pytest.mark.parametrize(("samples", "corrupted"), [(60, False), (300, True)])
def test_a_plan_contains_what_will_run(samples, corrupted, digits, digits_mlp):
    """What the passes of the attacks do not suffice for is neither announced nor measured."""
    told = []
    options = {"attacks": "quick", "samples": samples, "estimators": [], "progress": False, "signs": False}
    run = evaluate(digits_mlp, digits, norm="linf", eps=0.05, planned=told.append, **options)
    assert run.curve["at"].nunique() == 2  # no radius but 0 and eps
    announced = {part.name for part in told[0]}
    assert "curve against eps" not in announced
    assert ("common corruptions" in announced) == corrupted
    assert corrupted or run.corruptions.empty


def test_a_cascade_leaves_what_every_attack_leaves(digits, digits_mlp):
    attacks = ["apgd-ce-linf:eps=0.08,steps=20", "fgsm-linf:eps=0.08", "pgd-linf:eps=0.08", "fgsm-l2"]
    common = {"estimators": [], "samples": 120, "signs": False, "corruptions": False}
    apart = evaluate(digits_mlp, digits, attacks=attacks, **common)
    together = evaluate(digits_mlp, digits, attacks=attacks, cascade=True, **common)
    table = together.robustness.set_index("attack")
    assert list(table.index) == [attacks[1], attacks[0], attacks[2], attacks[3]]  # by budget, cheapest first
    left = table["robust"][:3].tolist()
    assert left == sorted(left, reverse=True)
    singly = apart.robustness.set_index("attack")
    assert left[0] == singly.loc[attacks[1], "robust"]
    assert left[2] == singly.loc["worst of 3", "robust"]
    assert table.loc[attacks[0], "backward"] < singly.loc[attacks[0], "backward"]
    # What fell to an attack keeps the size that it fell at.
    for _, rows in together.outcomes[together.outcomes["norm"] == "linf"].groupby("index"):
        fell = rows[rows["adversarial_prediction"] != rows["label"]]
        assert fell["adversarial_prediction"].nunique() <= 1
        assert fell["linf"].nunique() <= 1
    assert set(together.curve["attack"]) == {attacks[2], attacks[3]}
    at = together.curve[(together.curve["attack"] == attacks[2]) & np.isclose(together.curve["at"], 0.08)]
    assert int(at["right"].iloc[0]) == left[2]


def test_corruptions_and_distances_are_recorded(run):
    assert len(run.corruptions) == 20
    assert (run.corruptions["samples"] == 150).all()
    right = run.outcomes[run.outcomes["clean_prediction"] == run.outcomes["label"]]
    for attack, rows in right.groupby("attack"):
        told = run.robustness.set_index("attack").loc[attack]
        assert told["median_distance"] == np.median(rows["distance"])
        assert (rows.loc[~rows["robust"], "distance"] <= told["eps"] + 1e-6).all()
        assert (told["forward"], told["backward"]) > (0, 0)
    vectors = (torch.rand(60, 5), torch.randint(0, 3, (60,)))
    flat = evaluate(nn.Linear(5, 3), vectors, attacks=["pgd-linf"], estimators=[], layers=["logits"])
    assert flat.corruptions.empty


def test_a_folder_that_a_killed_process_left_is_no_finished_run(run, tmp_path):
    folder = run.save(tmp_path)
    folder.rename(tmp_path / f".{folder.name}.unfinished")
    assert robgib.results.find_run(tmp_path, run.config["request"]) is None


def test_names_are_looked_up_once(monkeypatch, digits, digits_mlp):
    """Before the data are read; the default radius of the data is applied afterwards."""
    looked_up = []
    for module, name in (
        ("robgib.robustness.evaluate", "read_attack"),
        ("robgib.information.registry", "make_estimator"),
    ):
        function = getattr(sys.modules[module], name)
        monkeypatch.setattr(
            sys.modules[module], name, lambda spec, *a, f=function, **k: looked_up.append(spec) or f(spec, *a, **k)
        )
    run = robgib.evaluate(
        digits_mlp, digits, attacks=["fgsm-linf"], estimators=["gaussian"], layers=["logits"], samples=16,
        information_samples=60, curve=False, signs=False, corruptions=False, progress=False,
    )  # fmt: skip
    assert run.robustness["eps"].tolist() == [digits.eps["linf"]]
    assert sorted(looked_up) == ["fgsm-linf", "gaussian"]
