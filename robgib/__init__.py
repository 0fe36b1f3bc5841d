"""RobGIB: how robust is this network, and what does its information flow say about why?"""

from robgib.attacks import (
    Attack,
    SampleRNG,
    ThreatModel,
    ascend,
    check_attack,
    failure_signs,
    make_attack,
    make_goal,
)
from robgib.data import Dataset, Split, load_data
from robgib.errors import AttackContractError, RobGIBError, RobGIBWarning
from robgib.evaluation import evaluate
from robgib.information import Decomposition, Estimate, Estimator, make_estimator
from robgib.models import register_architecture
from robgib.reporting import write_report
from robgib.store import Run, load_run

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
    "ascend",
    "check_attack",
    "evaluate",
    "failure_signs",
    "load_data",
    "load_run",
    "make_attack",
    "make_estimator",
    "make_goal",
    "register_architecture",
    "write_report",
]
__version__ = "0.1.0"
