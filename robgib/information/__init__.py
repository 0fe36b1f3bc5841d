"""Information measures, the estimators of their terms, and what they are estimated on."""

from robgib.information.binned import Binned
from robgib.information.estimator import Decomposition, Estimate, Estimator
from robgib.information.exact import Exact
from robgib.information.features import Features, group_inputs, group_units, reduce, unit_slices
from robgib.information.gaussian import Gaussian
from robgib.information.infonce import InfoNCE
from robgib.information.ksg import KSG
from robgib.information.layers import LOGITS, capture, default_layers, layer_shapes
from robgib.information.probe import Probe
from robgib.information.registry import estimator_classes, make_estimator
from robgib.information.renyi import Renyi

__all__ = [
    "KSG",
    "LOGITS",
    "Binned",
    "Decomposition",
    "Estimate",
    "Estimator",
    "Exact",
    "Features",
    "Gaussian",
    "InfoNCE",
    "Probe",
    "Renyi",
    "capture",
    "default_layers",
    "estimator_classes",
    "group_inputs",
    "group_units",
    "layer_shapes",
    "make_estimator",
    "reduce",
    "unit_slices",
]
