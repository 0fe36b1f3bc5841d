"""Measuring robustness: attacks run on a model, what they leave, and signs that they failed."""

from robgib.robustness.certification import NotCertifiableError, certify
from robgib.robustness.corruptions import corruption_accuracy
from robgib.robustness.evaluate import BUDGETS, DEFAULT_ATTACKS, evaluate, named_attacks
from robgib.robustness.failure_indicators import FailureIndicator, failure_indicators, weaker_than_reference
from robgib.robustness.run_attack import AttackResult, accuracy_curve, run_attack
from robgib.robustness.verify import UNCHECKED, Claim, verify

__all__ = [
    "BUDGETS",
    "DEFAULT_ATTACKS",
    "UNCHECKED",
    "AttackResult",
    "Claim",
    "FailureIndicator",
    "NotCertifiableError",
    "accuracy_curve",
    "certify",
    "corruption_accuracy",
    "evaluate",
    "failure_indicators",
    "named_attacks",
    "run_attack",
    "verify",
    "weaker_than_reference",
]
