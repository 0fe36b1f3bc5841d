"""Labelled samples in [0, 1]: data sets by name, users' own files, and functions of known information."""

from robgib.data.classes import class_indices, map_classes, read_classes
from robgib.data.corruptions import COMMON_CORRUPTIONS, CORRUPTIONS, corrupt
from robgib.data.dataset import Dataset, Split
from robgib.data.loaders import DATASETS, check_data, data_sets, list_data, load_data, read_idx, register_data
from robgib.data.sizing import INTERPOLATIONS, Sizing
from robgib.data.synthetic import Function, function, function_names

__all__ = [
    "COMMON_CORRUPTIONS",
    "CORRUPTIONS",
    "DATASETS",
    "INTERPOLATIONS",
    "Dataset",
    "Function",
    "Sizing",
    "Split",
    "check_data",
    "class_indices",
    "corrupt",
    "data_sets",
    "function",
    "function_names",
    "list_data",
    "load_data",
    "map_classes",
    "read_classes",
    "read_idx",
    "register_data",
]
