"""RobGIB: how robust is this network, and what does its information flow say about why?

Names and sub-packages are imported when they are first used, so that ``import robgib`` takes no time.

>>> import robgib
>>> model, data = robgib.load_model("digits-cnn")
>>> run = robgib.evaluate(model, data, attacks=["pgd-linf"], samples=32, estimators=[], corruptions=False)
>>> bool(run.robustness["robust_accuracy"].item() < run.robustness["clean_accuracy"].item())
True
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robgib import (
        attacks,
        data,
        engines,
        files,
        information,
        measures,
        models,
        registry,
        reporting,
        results,
        robustness,
        runtime,
        studies,
        training,
        validation,
        zoo,
    )
    from robgib.attacks.base import Attack, projected_gradient_ascent, register_attack
    from robgib.attacks.checks import check_attack
    from robgib.attacks.objective import make_objective
    from robgib.attacks.registry import list_attacks, make_attack
    from robgib.attacks.threat_model import ThreatModel
    from robgib.data.dataset import Dataset, Split
    from robgib.data.loaders import list_data, load_data, register_data
    from robgib.errors import AttackContractError, RobGIBError, RobGIBWarning
    from robgib.evaluation import evaluate
    from robgib.information.base import Decomposition, Estimator, register_estimator
    from robgib.information.estimate import Estimate
    from robgib.information.registry import list_estimators, make_estimator
    from robgib.models.registry import register_architecture
    from robgib.reporting.page import write_report
    from robgib.results import Run, load_run
    from robgib.robustness.failure_indicators import failure_indicators
    from robgib.runtime import SampleRNG
    from robgib.studies.ledger import load_ledger
    from robgib.zoo.loading import load_model
    from robgib.zoo.recipe import list_models

__all__ = [
    "Attack",
    "AttackContractError",
    "Dataset",
    "Decomposition",
    "Estimate",
    "Estimator",
    "RobGIBError",
    "RobGIBWarning",
    "Run",
    "SampleRNG",
    "Split",
    "ThreatModel",
    "attacks",
    "check_attack",
    "data",
    "engines",
    "evaluate",
    "failure_indicators",
    "files",
    "information",
    "list_attacks",
    "list_data",
    "list_estimators",
    "list_models",
    "load_data",
    "load_ledger",
    "load_model",
    "load_run",
    "make_attack",
    "make_estimator",
    "make_objective",
    "measures",
    "models",
    "projected_gradient_ascent",
    "register_architecture",
    "register_attack",
    "register_data",
    "register_estimator",
    "registry",
    "reporting",
    "results",
    "robustness",
    "runtime",
    "studies",
    "training",
    "validation",
    "write_report",
    "zoo",
]
__version__ = "0.1.0"

_HOMES = {
    "attacks.base": ("Attack", "projected_gradient_ascent", "register_attack"),
    "attacks.checks": ("check_attack",),
    "attacks.objective": ("make_objective",),
    "attacks.registry": ("list_attacks", "make_attack"),
    "attacks.threat_model": ("ThreatModel",),
    "data.dataset": ("Dataset", "Split"),
    "data.loaders": ("list_data", "load_data", "register_data"),
    "errors": ("AttackContractError", "RobGIBError", "RobGIBWarning"),
    "evaluation": ("evaluate",),
    "information.base": ("Decomposition", "Estimator", "register_estimator"),
    "information.estimate": ("Estimate",),
    "information.registry": ("list_estimators", "make_estimator"),
    "models.registry": ("register_architecture",),
    "reporting.page": ("write_report",),
    "results": ("Run", "load_run"),
    "robustness.failure_indicators": ("failure_indicators",),
    "runtime": ("SampleRNG",),
    "studies.ledger": ("load_ledger",),
    "zoo.loading": ("load_model",),
    "zoo.recipe": ("list_models",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f"robgib.{_HOME_OF[name]}"), name)
    elif name in __all__:
        value = importlib.import_module(f"robgib.{name}")
    else:
        raise AttributeError(f"module 'robgib' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
