"""Labelled samples in [0, 1]: data sets by name, files of one's own, functions of known information."""

from robgib.data.classes import class_indices, map_classes, read_classes
from robgib.data.corruptions import CORRUPTIONS, corrupt
from robgib.data.dataset import Dataset, Split
from robgib.data.loaders import DATASETS, check_data, list_data, load_data, load_data_sets, read_idx, register_data
from robgib.data.sizing import INTERPOLATIONS, Sizing
from robgib.data.synthetic import Function, function, function_names

__all__ = [
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
    "function",
    "function_names",
    "list_data",
    "load_data",
    "load_data_sets",
    "map_classes",
    "read_classes",
    "read_idx",
    "register_data",
]
