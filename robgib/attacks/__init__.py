"""Threat models, attacks, and what they do to a model."""

from robgib.attacks.adapters import ARTAttack, FoolboxAttack, TorchAttack
from robgib.attacks.apgd import APGD
from robgib.attacks.attack import Attack, Goal, MinimalNorm, ascend, ascent_gradient, frozen, make_goal
from robgib.attacks.autoattack import AutoAttack, cascade
from robgib.attacks.contract import Check, check_attack
from robgib.attacks.cw import CarliniWagner
from robgib.attacks.deepfool import DeepFool
from robgib.attacks.fab import FAB
from robgib.attacks.fgsm import FGSM
from robgib.attacks.mifgsm import MIFGSM
from robgib.attacks.passes import InBatches, Passes, count_passes
from robgib.attacks.pgd import PGD
from robgib.attacks.registry import CatalogueEntry, attack_catalogue, attack_classes, make_attack
from robgib.attacks.rfgsm import RFGSM
from robgib.attacks.robustness import (
    Answers,
    Outcome,
    Prepared,
    accuracy_curve,
    answers,
    attack_samples,
    check_decided,
    predict,
    prepare,
)
from robgib.attacks.signs import Sign, failure_signs, weaker_than_reference
from robgib.attacks.square import Square
from robgib.attacks.threat import SampleRNG, ThreatModel

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "MIFGSM",
    "PGD",
    "RFGSM",
    "ARTAttack",
    "Answers",
    "Attack",
    "AutoAttack",
    "CarliniWagner",
    "CatalogueEntry",
    "Check",
    "DeepFool",
    "FoolboxAttack",
    "Goal",
    "InBatches",
    "MinimalNorm",
    "Outcome",
    "Passes",
    "Prepared",
    "SampleRNG",
    "Sign",
    "Square",
    "ThreatModel",
    "TorchAttack",
    "accuracy_curve",
    "answers",
    "ascend",
    "ascent_gradient",
    "attack_catalogue",
    "attack_classes",
    "attack_samples",
    "cascade",
    "check_attack",
    "check_decided",
    "count_passes",
    "failure_signs",
    "frozen",
    "make_attack",
    "make_goal",
    "predict",
    "prepare",
    "weaker_than_reference",
]
