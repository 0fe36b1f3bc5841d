import sys

import pytest

from robgib import RobGIBError, RobGIBWarning, check_attack, make_attack, registry
from robgib.attacks import PGD, Attack, TorchAttack, TransformAttack, attack_catalogue
from robgib.attacks.registry import attack_class
from robgib.registry import parse_value


def test_catalogue_parameters_and_overrides():
    attack = make_attack("pgd-linf:eps=8/255,steps=40,step_size=0.01")
    assert isinstance(attack, PGD)
    assert attack.threat.norm == "linf"
    assert attack.threat.eps == pytest.approx(8 / 255)
    assert (attack.steps, attack.step_size, attack.random_start) == (40, 0.01, True)


def test_a_class_is_found_by_its_name():
    class Rotated(PGD):
        pass

    first = Rotated
    adapted = type("PGD", (Attack,), {"__module__": "torchattacks.attacks.pgd"})  # as a library's class is taken

    class Rotated(PGD):
        pass

    assert attack_class("PGD") is PGD is not adapted
    assert attack_class("Rotated") is Rotated is not first
    assert attack_class("PGD", TransformAttack) is attack_class("Unheard") is None
    assert attack_class("RotationTranslation", TransformAttack).__name__ == "RotationTranslation"


def test_a_parameter_that_was_removed_is_one_sentence():
    with pytest.raises(
        RobGIBError, match=r"^unknown parameter of attack 'fab-t-linf:skip=2': 'skip'; (did you mean|known)"
    ):
        make_attack("fab-t-linf:skip=2")


def test_default_budget_is_the_data_sets():
    assert make_attack("pgd-l2", {"l2": 1.25}).threat.eps == 1.25
    assert make_attack("pgd-linf").threat.eps == pytest.approx(8 / 255)


SHORT = {
    "square": "queries=30",
    "autoattack": "steps=5,queries=30,targets=1",
    "cw": "steps=30,binary_steps=3",
    "fab": "steps=8",
    "apgd": "steps=10",
    "pgd": "steps=10",
    **dict.fromkeys(("ddn", "fmn", "pdgd", "pdpgd", "alma", "sigma"), "steps=30"),
    "superdeepfool": "steps=3",
    "fast": "short=2,long=5,probe=5",
    "hop": "queries=200",
    "patch": "steps=3,places=2",
    "rotation": "angles=3,shifts=1,steps=2",
}
RADII = {"l0": 3, "patch": 3, "translation": 20}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in ("fast-l1", "fast-l2") else n for n in attack_catalogue()],
)
def test_every_catalogue_attack_keeps_the_contract(name):
    budget = next((f",{short}" for start, short in SHORT.items() if name.startswith(start)), "")
    attack = make_attack(f"{name}:eps={RADII.get(name.rpartition('-')[2], 0.2)}{budget}")
    assert not [c for c in check_attack(attack) if not c.passed]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fast-linf", "fast-l2", "fast-l1"])
def test_the_fast_ensembles_keep_it_at_length(name):
    assert not [c for c in check_attack(make_attack(f"{name}:eps=0.2")) if not c.passed]


@pytest.mark.parametrize("name", ["PGD:steps=3", "PGDL2:steps=3", "CW:steps=5", "APGD:steps=3,n_restarts=1", "FGSM"])
def test_adapted_attacks_keep_the_contract(name):
    assert not [c for c in check_attack(make_attack(f"torchattacks:{name}")) if not c.passed]


def test_adapter_reads_norms_and_holds_minimal_attacks_to_the_budget():
    attack = make_attack("torchattacks:APGD:norm=L2,eps=0.7")
    assert isinstance(attack, TorchAttack)
    assert (attack.threat.norm, attack.threat.eps) == ("l2", 0.7)
    assert make_attack("torchattacks:CW:c=10").threat.norm == "l2"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pgdlinf", "unknown attack 'pgdlinf'; did you mean 'pgd-linf'"),
        ("pgd-linf:eps=-0.1", "eps must be a finite number above 0"),
        ("pgd-linf:eps=0", "eps must be a finite number above 0"),
        ("pgd-linf:eps=nan", "eps must be"),
        ("pgd-linf:eps=abc", "eps must be a number such as 8/255"),
        ("pgd-linf:eps=1/0", "divides by zero"),
        ("pgd-linf:step=3", "unknown parameter of attack .*'step'; did you mean 'steps'"),
        ("pgd-linf:steps=2.5", "steps must be a whole number, not 2.5"),
        ("pgd-linf:steps", "does not have the form key=value"),
        ("pgd-linf:steps=1,steps=2", "gives 'steps' twice"),
        ("pgd-linf:norm=l2", "defined for the norm linf"),
        ("pgd-linf:loss=hinge", "unknown loss of attack .*'hinge'; known: ce, dlr, margin"),
        ("uniform-noise:norm=l3", "unknown norm 'l3'"),
        ("uniform-noise:norm=l1", "not defined for the norm 'l1'; use linf or l2"),
        ("torchattacks:PDG", "did you mean 'PGD'"),
        ("torchattacks:PGD:stepz=3", "did you mean 'steps'"),
        ("torchattacks:OnePixel", "no budget can be verified"),
    ],
)
def test_bad_specifications(spec, message):
    with pytest.raises(RobGIBError, match=message):
        make_attack(spec)


PLUGIN = '''
from dataclasses import dataclass
from robgib import Attack

@dataclass(frozen=True)
class GreyOut(Attack):
    """Pull every pixel towards grey."""

    share: float = 1.0

    def perturb(self, model, x, y, rng):
        return self.threat.project(x + self.share * (0.5 - x), x)
'''


def test_plugin_file_and_yaml_that_uses_it(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "half-grey.yaml").write_text("attack: GreyOut\nnorm: l2\neps: 1/4\nparameters: {share: 1/2}\n")
    found = attack_catalogue([tmp_path])
    assert found["grey-out"].description == "Pull every pixel towards grey."
    attack = make_attack("half-grey", extra=[tmp_path])
    assert (attack.threat.norm, attack.threat.eps, attack.share) == ("l2", 0.25, 0.5)
    assert make_attack("grey-out:norm=linf,eps=0.1", extra=[tmp_path]).threat.eps == 0.1
    assert not [c for c in check_attack(attack) if not c.passed]


def test_entry_points(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    kind = attack_catalogue([tmp_path])["grey-out"].attack

    class Point:
        name = "anything"

        def load(self):
            return kind

    monkeypatch.setattr(registry, "_installed", lambda group, folders: [Point()] if group == "robgib.attacks" else [])
    assert "grey-out" in attack_catalogue()


def test_a_package_that_is_installed_meanwhile_is_found(monkeypatch, tmp_path):
    """Entry points are searched once for each state of the folders of packages."""
    monkeypatch.syspath_prepend(tmp_path)
    assert "grey-out" not in attack_catalogue()
    (tmp_path / "greys.py").write_text(PLUGIN)
    (tmp_path / "greys-1.0.dist-info").mkdir()
    (tmp_path / "greys-1.0.dist-info" / "entry_points.txt").write_text("[robgib.attacks]\ngreys = greys:GreyOut\n")
    (tmp_path / "greys-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: greys\nVersion: 1.0\n")
    try:
        assert "grey-out" in attack_catalogue()
    finally:
        sys.modules.pop("greys", None)


def test_a_catalogue_file_that_changes_is_read_again(tmp_path):
    file = tmp_path / "mild.yaml"
    for eps in (0.25, 0.5):
        file.write_text(f"attack: PGD\nnorm: l2\neps: {eps}\nparameters: {{steps: 3}}\n")
        read = registry.read_yaml(file)
        read["parameters"]["steps"] = 99  # what a caller does to it reaches no other
        attack = make_attack("mild", extra=[tmp_path])
        assert (attack.threat.eps, attack.steps) == (eps, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.py", "import nothing_there", "plug-in .*a.py does not import: ModuleNotFoundError"),
    ],
)
def test_a_plugin_that_does_not_import(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(RobGIBError, match=message):
        make_attack("pgd-linf", extra=[tmp_path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("attack: PGDD\n", "did you mean 'PGD'"),
        ("attack: PGD\nnorm: l7\n", "norm: input should be 'linf', 'l2', 'l1', 'l0', 'patch' or 'rotation'"),
        ("attack: PGD\nstep: 3\n", "line 2: step: extra inputs are not permitted"),
        ("attack: PGD\nparameters: [1, 2]\n", "parameters: input should be a valid dictionary"),
        ("attack: PGD\nparameters: 3\n", "parameters: input should be a valid dictionary"),
        ("attack: [PGD]\n", "attack: input should be a valid string"),
        ("attack: PGD\ndescription: 3\n", "description: input should be a valid string"),
        ("attack: PGD\neps: [1]\n", "eps"),
        ("attack: PGD\neps: true\n", "line 2: eps: must be a number, not true or false"),
        ("attack: PGD\nattack: FGSM\n", "'attack' is given twice"),
        ("attack: PGD\nparameters: {steps: 3, steps: 4}\n", "'steps' is given twice"),
    ],
)
def test_a_bad_file_is_left_out_with_a_warning_and_refused_where_it_is_asked_for(tmp_path, content, message):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.warns(RobGIBWarning, match=message):
        assert make_attack("pgd-linf", extra=[tmp_path]).norm == "linf"
    if "twice" not in message:
        with pytest.raises(RobGIBError, match=message):
            make_attack("a:steps=3", extra=[tmp_path])


def test_missing_catalogue_folder(tmp_path):
    with pytest.raises(RobGIBError, match=r"catalogue folder .* does not exist"):
        attack_catalogue([tmp_path / "no"])


BROKEN = """
import torch
from dataclasses import dataclass
from robgib import Attack

@dataclass(frozen=True)
class {name}(Attack):
    def perturb(self, model, x, y, rng):
        {body}
"""


@pytest.mark.parametrize(
    ("body", "clause"),
    [
        ("return x[:3]", "same shape"),
        ("return x + 9", "inside the linf ball"),
        ("return x - self.threat.eps", "inside the box"),
        ("x.add_(0.01); return x", "clean images untouched"),
        ("model.train(); return x.clone()", "train/eval modes"),
        ("torch.nn.functional.cross_entropy(model(x), y).backward(); return x.clone()", "no gradients left"),
        ("model[5].bias.data += 1; return x.clone()", "parameters and buffers unchanged"),
        ("[p.requires_grad_(False) for p in model.parameters()]; return x.clone()", "requires_grad flags"),
        ("return (x + 0.01 * torch.rand_like(x)).clamp(0, 1)", "deterministic"),
        ("return (x + 0.01 * x.mean()).clamp(0, 1)", "independent of the batch size"),
        ("return x.clone().requires_grad_(True) * 1", "no gradient history"),
        ("raise ValueError('no')", "runs"),
        ("return None", "returns images"),
    ],
)
def test_contract_check_finds_each_breach(tmp_path, body, clause):
    (tmp_path / "broken.py").write_text(BROKEN.format(name="Broken", body=body))
    broken = [c.name for c in check_attack(make_attack("broken:eps=0.1", extra=[tmp_path])) if not c.passed]
    assert any(clause in name for name in broken)


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("3", 3), ("1e-3", 1e-3), ("true", True), ("None", None), ("second", "second"), (".5", 0.5)],
)
def test_parse_value(text, value):
    assert parse_value(text) == value
