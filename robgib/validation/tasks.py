"""All tasks that the estimators of variables are held against."""

from __future__ import annotations

from robgib.validation.benchmark_tasks import benchmark_tasks
from robgib.validation.known_variables import VariableTask, variable_tasks

__all__ = [
    "tasks",
]


def tasks() -> dict[str, VariableTask]:
    """Return every validation task by name.

    >>> tasks()["xor"].regime
    'discrete'
    """
    return {task.name: task for task in (*variable_tasks(), *benchmark_tasks())}
