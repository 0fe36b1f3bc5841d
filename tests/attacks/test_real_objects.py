"""Objects and classes of torchattacks and Foolbox as attacks, in Python and in plug-in files."""

import textwrap

import pytest

from robgib.attacks.foreign import foreign_class, is_foreign
from robgib.robustness import evaluate, run_attack

OPTIONS = {"signs": False, "curve": False, "corruptions": False}


def test_objects_and_classes_of_torchattacks(digits_mlp, digits):
    torchattacks = pytest.importorskip("torchattacks")
    x, y = digits.test.x[:16], digits.test.y[:16]
    made = torchattacks.PGD(digits_mlp, eps=0.2, steps=5, random_start=False)
    for given in (made, torchattacks.FGSM, torchattacks.PGD):
        assert is_foreign(given)
        tables = evaluate(digits_mlp, x, y, [given], norm="linf", eps=0.2, **OPTIONS)
        assert tables["robustness"]["status"].tolist() == ["ok"], tables["robustness"]["reason"]
        assert tables["robustness"]["robust"].iloc[0] < tables["robustness"]["correct"].iloc[0]
    right = digits_mlp(x).argmax(1) == y
    fooled = digits_mlp(made(x[right], y[right])).argmax(1) != y[right]
    ours = run_attack(digits_mlp, x[right], y[right], foreign_class(made)("linf", 0.2))
    assert ours.right.tolist() == (~fooled).double().tolist()


def test_objects_and_classes_of_foolbox(digits_mlp, digits):
    foolbox = pytest.importorskip("foolbox")
    x, y = digits.test.x[:16], digits.test.y[:16]
    for given in (foolbox.attacks.LinfPGD(steps=5), foolbox.attacks.LinfFastGradientAttack, foolbox.attacks.LinfPGD):
        tables = evaluate(digits_mlp, x, y, [given], norm="linf", eps=0.2, **OPTIONS)
        assert tables["robustness"]["status"].tolist() == ["ok"], tables["robustness"]["reason"]
        assert tables["robustness"]["robust"].iloc[0] < tables["robustness"]["correct"].iloc[0]


def test_plug_in_files_may_name_them(digits_mlp, digits, tmp_path):
    pytest.importorskip("torchattacks")
    pytest.importorskip("foolbox")
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "others.py").write_text(
        textwrap.dedent(
            """
            import foolbox
            import torchattacks


            class Short(torchattacks.PGD):
                def __init__(self, model, eps=0.1, steps=3):
                    super().__init__(model, eps=eps, steps=steps)


            class Quick(foolbox.attacks.LinfPGD):
                pass
            """
        )
    )
    x, y = digits.test.x[:16], digits.test.y[:16]
    for spec in ("short:eps=0.2,steps=4", "quick:eps=0.2"):
        catalogue = [tmp_path / "attacks"]
        tables = evaluate(digits_mlp, x, y, [spec], catalogue=catalogue, **OPTIONS)
        assert tables["robustness"]["status"].tolist() == ["ok"], tables["robustness"]["reason"].tolist()
