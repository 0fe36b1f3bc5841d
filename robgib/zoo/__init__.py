"""The model zoo: recipes in YAML, checkpoints trained on first use and cached."""

from robgib.zoo.leaderboard import measure, table_markdown
from robgib.zoo.loading import (
    ROBUSTBENCH,
    Loaded,
    add_recipe,
    checkpoint_path,
    data_of,
    is_file,
    load,
    load_checkpoint,
    load_model,
    load_recipe,
    load_robustbench,
    stored_checkpoint,
    trace_recipe,
    train_recipe,
)
from robgib.zoo.recipe import Architecture, PretrainedWeights, Recipe, chosen, find_recipe, list_models, recipes

__all__ = [
    "ROBUSTBENCH",
    "Architecture",
    "Loaded",
    "PretrainedWeights",
    "Recipe",
    "add_recipe",
    "checkpoint_path",
    "chosen",
    "data_of",
    "find_recipe",
    "is_file",
    "list_models",
    "load",
    "load_checkpoint",
    "load_model",
    "load_recipe",
    "load_robustbench",
    "measure",
    "recipes",
    "stored_checkpoint",
    "table_markdown",
    "trace_recipe",
    "train_recipe",
]
