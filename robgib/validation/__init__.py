"""Estimators held against variables and networks of known information."""

from robgib.validation.known_networks import known_networks
from robgib.validation.known_pictures import known_pictures
from robgib.validation.known_variables import REGIMES, true_information
from robgib.validation.tasks import tasks
from robgib.validation.validate import chosen_tasks, known, task_names, validate

__all__ = [
    "REGIMES",
    "chosen_tasks",
    "known",
    "known_networks",
    "known_pictures",
    "task_names",
    "tasks",
    "true_information",
    "validate",
]
