"""Threat models, attacks, and what they do to a model."""

from robgib.attacks.apgd import APGD
from robgib.attacks.autoattack import AutoAttack, cascade
from robgib.attacks.base import Attack, MinimumNormAttack, objective_gradient, projected_gradient_ascent
from robgib.attacks.carlini_wagner import CarliniWagner
from robgib.attacks.checks import Check, check_attack
from robgib.attacks.deepfool import DeepFool
from robgib.attacks.fab import FAB
from robgib.attacks.fgsm import FGSM
from robgib.attacks.libraries import ARTAttack, FoolboxAttack, TorchAttack
from robgib.attacks.mifgsm import MIFGSM
from robgib.attacks.objective import Objective, make_objective
from robgib.attacks.pgd import PGD
from robgib.attacks.registry import CatalogueEntry, attack_catalogue, attack_classes, list_attacks, make_attack
from robgib.attacks.rfgsm import RFGSM
from robgib.attacks.square import Square
from robgib.attacks.template import new_attack
from robgib.attacks.threat_model import ThreatModel
from robgib.runtime import SampleRNG

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "MIFGSM",
    "PGD",
    "RFGSM",
    "ARTAttack",
    "Attack",
    "AutoAttack",
    "CarliniWagner",
    "CatalogueEntry",
    "Check",
    "DeepFool",
    "FoolboxAttack",
    "MinimumNormAttack",
    "Objective",
    "SampleRNG",
    "Square",
    "ThreatModel",
    "TorchAttack",
    "attack_catalogue",
    "attack_classes",
    "cascade",
    "check_attack",
    "list_attacks",
    "make_attack",
    "make_objective",
    "new_attack",
    "objective_gradient",
    "projected_gradient_ascent",
]
