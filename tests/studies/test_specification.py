"""Specification curves: analyses on known answers, what separates them, and the page."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest

from robgib import RobGIBError
from robgib.information.features import group_inputs
from robgib.information.observer import Resolution
from robgib.reporting.specification_curve import specification_curve
from robgib.studies import Engine, open_study
from robgib.studies.analyses import CHOICES, COMPRESSION, UNIT_SYNERGY, Layer, Sample, analyse, rescaled
from robgib.studies.kinds import KINDS
from robgib.studies.specification import specification_rows
from robgib.studies.specification_claim import matched_difference, quiet_analyses, specification_claim

EPOCHS = (0, 1, 2)
BITS = np.array(list(itertools.product((0, 1), repeat=6)))
LABELS = BITS[:, 0] ^ BITS[:, 1]


def layer(*units):
    """A layer of (N, D) units at each epoch, of which all inputs are listed."""
    return Layer("last", dict(zip(EPOCHS, units, strict=True)), dict(zip(EPOCHS, units, strict=True)))


@pytest.fixture(scope="module")
def sample():
    inputs = group_inputs("pixels", BITS, BITS)
    weights = {e: np.ones(len(BITS)) for e in range(5)}
    return Sample(LABELS, weights, inputs, inputs, True, Resolution(8, 16, 0.3, 30, 0), noisy=64)


def table(layer, sample):
    return pd.DataFrame(analyse(layer, sample, learn=False))


SPREAD = BITS[:, :3] @ np.diag([1.0, 0.7, 0.4]) + 0.01 * BITS[:, 3:] @ np.ones((3, 3))


def test_a_layer_that_forgets_all_but_one_bit_is_compressed_in_every_counted_analysis(sample):
    found = table(layer(SPREAD, SPREAD, SPREAD * [1, 0, 0]), sample)
    about = found[(found["claim"] == COMPRESSION) & (found["view"] != "noise")]
    assert (about["outcome"] == "comes out").all()
    bins = about[(about["view"] == "bins") & (about["features"] == "layer units") & (about["fitted"] == "by epoch")]
    assert bins.loc[bins["term"] == "I", "final"].iloc[0] == pytest.approx(1.0, abs=0.3)


def test_a_layer_that_does_not_change_is_compressed_in_none(sample):
    found = table(layer(SPREAD, SPREAD, SPREAD), sample)
    assert (found["outcome"] == "does not").all()
    assert set(found["claim"]) == {COMPRESSION, UNIT_SYNERGY}
    assert len(found) == len(found.drop_duplicates(["claim", *CHOICES]))


def test_a_layer_of_one_unit_has_no_rest(sample):
    few = Sample(**{**vars(sample), "noisy": 32})
    found = table(layer(*[SPREAD[:, :1]] * 3), few).query("claim == @COMPRESSION and features != 'input pieces'")
    both = found.pivot_table(index=["features", "view", "fitted", "weights"], columns="term", values="peak")
    assert both["C"].to_numpy() == pytest.approx(both["I"].to_numpy())  # the single unit is all there is


def test_scale_alone_is_compression_where_bins_are_fixed_and_not_in_own_units(sample):
    """A unit's growth coarsens bins of each epoch; a layer that grows and shrinks again loses fixed bins."""
    rng = np.random.default_rng(0)
    smooth = layer(*[BITS @ rng.standard_normal((6, 3)) for _ in EPOCHS])
    scaled = {kind: table(rescaled(smooth, kind), sample) for kind in ("rescaled layer", "rescaled unit")}

    def share(kind, fitted):
        of = scaled[kind].query("claim == @COMPRESSION")
        of = of[(of["view"] == "bins") & (of["features"] == "layer units") & (of["fitted"] == fitted)]
        return (of["outcome"] == "comes out").mean()

    assert share("rescaled layer", "fixed over training") == 1
    assert share("rescaled layer", "own units of each epoch") == 0
    assert share("rescaled layer", "by epoch") == 0
    assert share("rescaled unit", "by epoch") == 1


def test_units_that_turn_from_nothing_to_copies_of_the_label_lose_synergy(sample):
    """At first the units tell nothing; at last each is the label: S falls by 1 bit while I(X;Z) rises by 1."""
    copies = np.repeat(LABELS[:, None].astype(float), 3, 1)
    found = table(layer(np.zeros((64, 3)), copies, copies), sample)
    of = found[(found["claim"] == UNIT_SYNERGY) & (found["fitted"] == "fixed over training")].iloc[0]
    assert (of["change"], of["rise"]) == pytest.approx((-1.0, 1.0))
    assert of["outcome"] == "comes out"


def rows(**more):
    """Analyses of three networks in which bins by epoch come out and fixed ones do not, and two rescaled networks."""
    made = []
    for number, fitted, term in itertools.product(range(3), ("fixed", "by epoch"), "IC"):
        made.append({"network": f"n{number}", "kind": "tanh", "seed": number, "control": "", "fitted": fitted,
                     "term": term, "outcome": "comes out" if fitted == "by epoch" else "does not"})  # fmt: skip
    for control, fitted in itertools.product(("rescaled layer", "rescaled unit"), ("fixed", "by epoch")):
        came = (control == "rescaled unit") == (fitted == "by epoch") and fitted == "by epoch"
        made.append({"network": "n0", "kind": "tanh", "seed": 0, "control": control, "fitted": fitted, "term": "I",
                     "outcome": "comes out" if came else "does not"})  # fmt: skip
    same = {"claim": COMPRESSION, "features": "layer units", "view": "bins", "estimator": "counted", "weights": "none",
            "layer": "last", "change": 0.5, "low": 0.4, "high": 0.6, "peak_epoch": 4}  # fmt: skip
    return pd.DataFrame(made).assign(**same, **more)


def test_pairs_differ_in_one_choice_and_networks_are_what_is_flipped():
    own = rows().query("control == ''")
    assert matched_difference(own, "fitted", "by epoch", "fixed") == (1.0, 2 / 2**3, 6, 3)
    assert matched_difference(own, "term", "I", "C") == (0.0, 1.0, 6, 3)


def test_quiet_analyses_come_out_in_neither_rescaled_network():
    quiet = quiet_analyses(rows())
    assert quiet[["fitted", "term"]].to_numpy().tolist() == [["fixed", "I"]]


def test_the_sentence_gives_shares_what_separates_and_what_controls_say():
    found = specification_claim(rows(), pd.DataFrame({"network": [], "control": []}))
    assert found.verdict == "depends on the analysis"
    assert "Of 12 analyses of 3 networks the claim comes out in 50%, does not in 50%" in found.words
    assert "by epoch more often than fixed, by 100 points" in found.words
    assert "3 analyses find nothing where only the scale" in found.words
    assert "among these the claim comes out in: tanh 0 of 3" in found.words


def test_subset_synergy_is_held_against_the_gap():
    networks = pd.DataFrame({"network": list("abcdefgh"), "control": "", "subset_synergy": range(8)})
    for sign, place in ((-1, "out"), (1, "does_not")):
        found = specification_claim(rows(), networks.assign(gap=sign * networks["subset_synergy"] / 10)).others
        assert found[place].tolist() == [1, 1]
        assert f"ρ {sign:+.2f}" in found["found"].iloc[0]


def test_the_curve_has_a_mark_an_analysis_in_the_order_of_effects():
    own = rows().query("control == ''").assign(change=lambda t: np.linspace(1, 0, len(t)))
    drawn = specification_curve(own, {"fitted": "Bins"}, {"comes out": 1, "does not": 0}, "what it says")
    strips = re.findall(r'class="strip".*?</svg>', drawn)
    assert [len(re.findall(r"M[\d.]+ 0v10", s)) for s in strips] == [6, 6]
    assert 'aria-label="what it says"' in drawn
    assert "by epoch <b>100%</b>" in drawn
    assert specification_curve(own.iloc[:0], {}, {}, "") == ""


STUDY = """
kind: specification
question: Does it compress?
train: [{recipe: sphere-tanh, vary: {training.seed: [0], training.epochs: [2]}}]
epochs: 3
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("kind: specification", "kind: specifcation"), "did you mean 'specification'"),
        (("epochs: 3", "epoch: 3"), "unknown key 'epoch'; did you mean 'epochs'"),
        (("recipe: sphere-tanh", "recipe: sphere-tan"), "did you mean 'sphere-tanh'"),
        (("epochs: 3", "labels: {sphere-relu: ReLU}"), "labels name 'sphere-relu', which is no recipe of train"),
        (("epochs: 3", "samples: 100000"), "asks for 100,000 samples"),
    ],
)
def test_what_does_not_exist_is_refused_by_the_plan(tmp_path, change, words):
    (tmp_path / "study.yaml").write_text(STUDY.replace(*change))
    with pytest.raises(RobGIBError, match=words):
        open_study(tmp_path / "study.yaml").plan(None)


def test_a_table_of_analyses_is_claimed_again(tmp_path):
    assert "specification" in KINDS
    (tmp_path / "study.yaml").write_text(STUDY)
    study = open_study(tmp_path / "study.yaml")
    with pytest.raises(RobGIBError, match=r"specifications.csv' does not exist"):
        study.claim(tmp_path / "specifications.csv")
    rows().to_csv(tmp_path / "specifications.csv", index=False)
    networks = pd.DataFrame({"network": ["n0"], "control": [""], "subset_synergy": [0.1], "gap": [0.2]})
    networks.to_csv(tmp_path / "networks.csv", index=False)
    answer = study.claim(tmp_path / "specifications.csv")
    assert "comes out in 50%" in answer.words
    page = answer.texts["html"]()
    assert page.count('class="strip"') >= 4
    assert "What separates the analyses" in page
    assert "Comes out" in answer.texts["markdown"]()
    assert '"separating"' in answer.texts["json"]()
    assert study.plan(None).summary == ("1 network, 0 analysed before.",)


def test_rescaled_networks_are_controls_of_their_own(tmp_path, monkeypatch):
    (tmp_path / "study.yaml").write_text(STUDY)
    study = open_study(tmp_path / "study.yaml")
    (one,) = study.networks
    monkeypatch.setattr("robgib.studies.specification.cache_folder", lambda: tmp_path)
    one.folder(study.study).mkdir(parents=True)
    kept = pd.DataFrame({"claim": COMPRESSION, "change": [0.1, 0.2], "rescaled": ["", "rescaled unit"]})
    kept.to_csv(one.folder(study.study) / "analyses.csv", index=False)
    (one.folder(study.study) / "network.json").write_text('{"gap": 0.1, "subset_synergy": 0.2}')
    found, facts = specification_rows(study.study, study.networks)
    assert found["control"].tolist() == ["", "rescaled unit"]
    assert found["kind"].tolist() == ["sphere-tanh"] * 2
    assert facts["gap"].tolist() == [0.1]


@pytest.mark.slow
def test_a_study_from_its_file_to_its_tables(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    study = open_study(tmp_path / "study.yaml")
    answer = study.run(None, Engine(), None)
    found = answer.tables["specifications.csv"]
    assert set(found["control"]) == {"", "rescaled layer", "rescaled unit"}
    assert {"loss comparison after PCA", "counted"} <= set(found["estimator"])
    assert {"none", "PMI"} == set(found["weights"])
