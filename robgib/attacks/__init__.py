"""Threat models and adversarial attacks."""

from robgib.attacks.alma import ALMA
from robgib.attacks.apgd import APGD
from robgib.attacks.autoattack import AutoAttack, cascade
from robgib.attacks.base import (
    ATTACKS,
    Attack,
    MinimumNormAttack,
    TransformAttack,
    objective_gradient,
    projected_gradient_ascent,
    register_attack,
)
from robgib.attacks.carlini_wagner import CarliniWagner
from robgib.attacks.carried import carry
from robgib.attacks.checks import Check, check_attack
from robgib.attacks.ddn import DDN
from robgib.attacks.deepfool import DeepFool
from robgib.attacks.estimated import EstimatedAscent
from robgib.attacks.fab import FAB
from robgib.attacks.fast import FastEnsemble
from robgib.attacks.fgsm import FGSM
from robgib.attacks.fmn import FMN
from robgib.attacks.hop_skip_jump import HopSkipJump
from robgib.attacks.libraries import AdvLibAttack, ARTAttack, FoolboxAttack, TorchAttack
from robgib.attacks.mifgsm import MIFGSM
from robgib.attacks.objective import Criterion, Objective, make_objective
from robgib.attacks.patch import Patch
from robgib.attacks.pgd import PGD
from robgib.attacks.primal_dual import PDGD, PDPGD
from robgib.attacks.registry import CatalogueEntry, attack_catalogue, list_attacks, make_attack
from robgib.attacks.rfgsm import RFGSM
from robgib.attacks.rotation import RotationTranslation
from robgib.attacks.sigma_zero import SigmaZero
from robgib.attacks.square import Square
from robgib.attacks.superdeepfool import SuperDeepFool
from robgib.attacks.template import new_attack
from robgib.attacks.threat_model import ThreatModel
from robgib.attacks.transfer import Transfer
from robgib.runtime import SampleRNG

__all__ = [
    "ALMA",
    "APGD",
    "ATTACKS",
    "DDN",
    "FAB",
    "FGSM",
    "FMN",
    "MIFGSM",
    "PDGD",
    "PDPGD",
    "PGD",
    "RFGSM",
    "ARTAttack",
    "AdvLibAttack",
    "Attack",
    "AutoAttack",
    "CarliniWagner",
    "CatalogueEntry",
    "Check",
    "Criterion",
    "DeepFool",
    "EstimatedAscent",
    "FastEnsemble",
    "FoolboxAttack",
    "HopSkipJump",
    "MinimumNormAttack",
    "Objective",
    "Patch",
    "RotationTranslation",
    "SampleRNG",
    "SigmaZero",
    "Square",
    "SuperDeepFool",
    "ThreatModel",
    "TorchAttack",
    "Transfer",
    "TransformAttack",
    "attack_catalogue",
    "carry",
    "cascade",
    "check_attack",
    "list_attacks",
    "make_attack",
    "make_objective",
    "new_attack",
    "objective_gradient",
    "projected_gradient_ascent",
    "register_attack",
]
