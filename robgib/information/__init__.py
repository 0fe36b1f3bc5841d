"""Information measures, the estimators of their terms, and what they are estimated on."""

from robgib.information.activations import LOGITS, collect_activations, default_layers, layer_shapes
from robgib.information.analysis import DEFAULT_ESTIMATORS, LayerInformation, layer_information
from robgib.information.base import ESTIMATORS, Decomposition, Estimator, register_estimator
from robgib.information.binned import Binned
from robgib.information.estimate import Estimate
from robgib.information.exact import Exact
from robgib.information.features import Features, group_inputs, group_units, reduce, unit_slices
from robgib.information.flow import Flow
from robgib.information.gaussian import Gaussian
from robgib.information.imputation import Imputation
from robgib.information.infonce import InfoNCE
from robgib.information.ksg import KSG
from robgib.information.loss_comparison import LossComparison
from robgib.information.probe import Probe
from robgib.information.registry import estimator_catalogue, list_estimators, make_estimator
from robgib.information.renyi import Renyi

__all__ = [
    "DEFAULT_ESTIMATORS",
    "ESTIMATORS",
    "KSG",
    "LOGITS",
    "Binned",
    "Decomposition",
    "Estimate",
    "Estimator",
    "Exact",
    "Features",
    "Flow",
    "Gaussian",
    "Imputation",
    "InfoNCE",
    "LayerInformation",
    "LossComparison",
    "Probe",
    "Renyi",
    "collect_activations",
    "default_layers",
    "estimator_catalogue",
    "group_inputs",
    "group_units",
    "layer_information",
    "layer_shapes",
    "list_estimators",
    "make_estimator",
    "reduce",
    "register_estimator",
    "unit_slices",
]
