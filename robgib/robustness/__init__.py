"""Run attacks on a model, count the samples that remain robust, and measure indicators of attack failure."""

from robgib.robustness.certification import NotCertifiableError, certify
from robgib.robustness.corruptions import corrupted_files_accuracy, corruption_accuracy
from robgib.robustness.curve import accuracy_curve
from robgib.robustness.evaluate import BUDGETS, DEFAULT_ATTACKS, evaluate, named_attacks
from robgib.robustness.failure_indicators import FailureIndicator, failure_indicators, weaker_than_reference
from robgib.robustness.run_attack import AttackResult, run_attack
from robgib.robustness.verify import UNCHECKED, Verification, verify

__all__ = [
    "BUDGETS",
    "DEFAULT_ATTACKS",
    "UNCHECKED",
    "AttackResult",
    "FailureIndicator",
    "NotCertifiableError",
    "Verification",
    "accuracy_curve",
    "certify",
    "corrupted_files_accuracy",
    "corruption_accuracy",
    "evaluate",
    "failure_indicators",
    "named_attacks",
    "run_attack",
    "verify",
    "weaker_than_reference",
]
