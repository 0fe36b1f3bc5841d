import re
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import pytest
import torch
from pydantic import Field

import robgib
from robgib import RobGIBError
from robgib.attacks import APGD, PGD
from robgib.attacks.registry import make_attack
from robgib.attacks.template import new_attack
from robgib.attacks.threat_model import ThreatModel
from robgib.information import KSG, Imputation
from robgib.information.registry import make_estimator
from robgib.models.checkpoint import read_record, read_state, save_checkpoint
from robgib.options import AttackOptions, Context, Count, InformationOptions, Positive, check, construct, former_names
from robgib.studies.kinds import open_study
from robgib.zoo import load_checkpoint


@dataclass(frozen=True)
class Walk:
    steps: Count = 10
    size: Positive | None = None
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    kind: Literal["long", "short"] = "long"
    fixed: str = ""
    width: Annotated[int, Field(le=2**20)] = 1

    def __post_init__(self):
        check(self, "Walk")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Context(seed=2**32), "seed must be at most 4294967295, not 4294967296."),
        (lambda: Walk(width=5_000_000), "width must be at most 1048576, not 5000000."),
        (lambda: PGD("l1", 2_000_000.0).threat.check(1_500_000), "more than the whole box [0, 1] (1500000)"),
        (lambda: ThreatModel("patch", 1_234_567.5), "a whole number from 1 on, not 1.23457e+06."),
        (lambda: ThreatModel("rotation", 12_345_678.0), "at most 180, not 12345678."),
    ],
)
def test_a_whole_number_has_all_its_digits_in_a_message(make, sentence):
    with pytest.raises(RobGIBError, match=re.escape(sentence)):
        make()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 0}, "Walk's steps must be at least 1, not 0."),
        ({"steps": 1.5}, "Walk's steps must be a whole number, not 1.5."),
        ({"steps": "many"}, "Walk's steps must be a whole number, not 'many'."),
        ({"size": 0}, "Walk's size must be above 0, not 0."),
        ({"size": float("nan")}, "Walk's size must be a finite number, not nan."),
        ({"size": [1]}, "Walk's size must be a number, not [1]."),
        ({"share": 1}, "Walk's share must be below 1, not 1."),
        ({"kind": "shrt"}, "unknown kind of Walk: 'shrt'; did you mean 'short'?"),
    ],
)
def test_a_wrong_option_is_one_sentence(options, sentence):
    with pytest.raises(RobGIBError) as caught:
        Walk(**options)
    assert str(caught.value) == sentence


def test_what_was_meant_is_taken():
    made = Walk(steps=np.int64(3), size="0.5", share=np.float32(0.25))
    assert (made.steps, made.size, made.share) == (3, 0.5, 0.25)
    assert type(made.steps) is int


def test_construct_names_the_parameters():
    assert construct(Walk, {"steps": 2}, "walk", fixed="here") == Walk(steps=2, fixed="here")
    with pytest.raises(RobGIBError, match="unknown parameter of walk: 'step'; did you mean 'steps'"):
        construct(Walk, {"step": 2}, "walk")
    with pytest.raises(RobGIBError, match="'walk:steps=0': steps must be at least 1, not 0"):
        construct(Walk, {"steps": 0}, "'walk:steps=0'")


def test_former_names_are_taken_by_python_and_by_specifications():
    assert APGD("l2", 1, widest=4) == APGD("l2", 1, schedule_start=4) == make_attack("apgd-ce-l2:eps=1,widest=4")
    assert make_attack("fast-l2:widest=3").schedule_start == 3
    assert APGD("l2", 1, schedule_start=4).widest == 4
    assert replace(APGD("l2", 1, schedule_start=4), widest=5).schedule_start == 5
    assert Imputation(singles=False) == make_estimator("imputation:singles=false") == Imputation(single_feature=False)
    with pytest.raises(RobGIBError, match="widest is the former name of schedule_start; give schedule_start alone"):
        make_attack("apgd-ce-l2:widest=4,schedule_start=8")
    with pytest.raises(RobGIBError, match="schedule_start must be at least 1"):
        APGD("l2", 1, widest=0.5)


def test_former_names_are_not_suggested():
    @former_names(length="steps")
    @dataclass(frozen=True)
    class Run:
        steps: Count = 1

    with pytest.raises(RobGIBError, match="unknown parameter of run: 'lengt'") as caught:
        construct(Run, {"lengt": 1}, "run")
    assert "'length'" not in str(caught.value)


def test_a_class_of_local_types_is_held_to_what_can_be_read():
    class Hidden:
        pass

    @dataclass(frozen=True)
    class Local:
        value: "Hidden | None" = None

        def __post_init__(self):
            check(self, "Local")

    assert Local().value is None


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PGD("linf", 0.1, steps=0), "PGD's steps must be at least 1, not 0."),
        (lambda: PGD("linf", 0.1, eot=0), "PGD's eot must be at least 1, not 0."),
        (lambda: APGD("linf", 0.1, loss="hinge"), "unknown loss of APGD: 'hinge'; known: ce, dlr, margin."),
        (lambda: KSG(k=0), "the ksg estimator's k must be at least 1, not 0."),
    ],
)
def test_attacks_and_estimators_declare_theirs(make, sentence):
    with pytest.raises(RobGIBError) as caught:
        make()
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"attack": "pgd"}, "attack must be an AttackOptions, not 'pgd'; its fields, such as attacks=, are also"),
        ({"attack": {"samples": 3}}, "attack must be an AttackOptions, not an object of the class dict;"),
        ({"attack": {}}, "attack must be an AttackOptions"),
        ({"information": True}, "information must be an InformationOptions, not True; its fields, such as estimators="),
        ({"record": 3}, "record must be a Record, not 3;"),
        ({"context": AttackOptions()}, "context must be a Context, not an object of the class AttackOptions;"),
        ({"name": None}, "name must be text, such as 'model', not None."),
    ],
)
def test_an_object_that_holds_no_options_is_refused(wrong, sentence):
    with pytest.raises(RobGIBError, match=re.escape(sentence)):
        robgib.evaluate(lambda x: x.flatten(1)[:, :2], "digits", **wrong)


def test_further_functions_refuse_an_object_that_holds_no_options(tmp_path):
    for call in (
        lambda: robgib.robustness.evaluate(None, None, None, options="quick"),
        lambda: robgib.robustness.run_attack(None, None, None, None, context=3),
        lambda: load_checkpoint(tmp_path / "x.pt", "mlp"),
    ):
        with pytest.raises(RobGIBError, match=r"must be an? \w+, not "):
            call()


def test_a_path_may_be_text(tmp_path):
    layer = torch.nn.Linear(2, 2)
    save_checkpoint(layer, str(tmp_path / "net.safetensors"), {"epoch": 3})
    assert read_record(str(tmp_path / "net.safetensors")) == {"epoch": 3}
    assert set(read_state(str(tmp_path / "net.safetensors"))) == {"weight", "bias"}
    with pytest.raises(RobGIBError, match="does not exist"):
        load_checkpoint(str(tmp_path / "x.pt"))
    with pytest.raises(RobGIBError, match="path must be a path, such as 'folder/file', not 3"):
        load_checkpoint(3)
    with pytest.raises(RobGIBError, match=r"study.yaml' does not exist"):
        open_study(str(tmp_path / "study.yaml"))
    new_attack("mine", str(tmp_path))
    assert "mine" in robgib.list_attacks([str(tmp_path)])
    assert "mine" in robgib.list_attacks(str(tmp_path))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: AttackOptions(norm=3), "norm must be text or a list, not 3."),
        (lambda: AttackOptions(norm=[3]), "norm[0] must be text, not 3."),
        (lambda: AttackOptions(eps={"linf": 1}), "eps must be a number or text or a list, not {'linf': 1}."),
        (lambda: AttackOptions(samples=True), "samples must be a whole number, not True."),
        (lambda: AttackOptions(eps=True), "eps must be a number, not True."),
        (lambda: AttackOptions(norm="linf", eps=[0.1, True]), "eps[1] must be a number, not True."),
        (lambda: InformationOptions(layers="logits"), "layers must be a list, such as [logits], not 'logits'."),
        (lambda: InformationOptions(layers=3), "layers must be a list, not 3."),
        (lambda: Context(seed=True), "seed must be a whole number, not True."),
        (lambda: Context(workers=3), "workers must be a robgib.engines.Workers, not 3."),
        (lambda: Context(progress="x"), "progress must be a function of (task, done, total, note), not 'x'."),
        (lambda: PGD("linf", 0.1, steps=True), "PGD's steps must be a whole number, not True."),
        (lambda: make_attack("pgd-linf:steps=true"), "attack 'pgd-linf:steps=true': steps must be a whole number"),
    ],
)
def test_a_value_of_another_kind_is_described_in_the_words_of_a_user(make, sentence):
    with pytest.raises(RobGIBError) as caught:
        make()
    assert str(caught.value).startswith(sentence)
