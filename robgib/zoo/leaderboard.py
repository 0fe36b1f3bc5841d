"""Clean and robust accuracy of many models, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from robgib.data.dataset import Dataset
from robgib.results import markdown_table
from robgib.robustness.evaluate import evaluate
from robgib.runtime import Progress, environment
from robgib.zoo.loading import data_of, load_recipe
from robgib.zoo.recipe import Recipe

__all__ = [
    "measure",
    "table_markdown",
]


def measure(
    recipes: Sequence[Recipe],
    attack: str,
    samples: int,
    *,
    root: Path | None = None,
    device: torch.device | str = "cpu",
    catalogue: Sequence[Path] = (),
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure models; train them first if necessary.

    Returns:
        A row a model: name, description, weights in MB, clean and robust accuracy in percent with the latter's 95%
        interval, on ``samples`` test images (:meth:`~robgib.data.Split.rows`), and the seconds that training took.
    """
    loaded: dict[str, Dataset] = {}
    rows = []
    for i, recipe in enumerate(recipes):
        data = data_of(recipe, root, loaded)
        model, record = load_recipe(recipe, data, device=device, progress=progress)
        tables = evaluate(
            model,
            *data.test.sample(samples),
            [attack],
            default_eps=data.eps,
            classes=len(data.classes),
            curve=False,
            signs=False,
            corruptions=False,
            device=device,
            catalogue=catalogue,
        )
        robustness = tables["robustness"].iloc[0]
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        rows.append(
            {
                "model": recipe.name,
                "what it is": recipe.description,
                "architecture": recipe.architecture.name if recipe.architecture else "program",
                "MB": f"{size / 1e6:.2f}",
                "clean": f"{100 * robustness['clean_accuracy']:.1f}%",
                "robust": f"{100 * robustness['robust_accuracy']:.1f}%",
                "95% interval": f"{100 * robustness['low']:.1f}–{100 * robustness['high']:.1f}",
                "trained in": f"{record['seconds']:.0f} s" if "seconds" in record else "",
                "digest": recipe.digest[:8],
            }
        )
        if progress:
            progress("measuring", i + 1, len(recipes), recipe.name)
    return pd.DataFrame(rows)


def table_markdown(rows: pd.DataFrame, attack: str, samples: int, command: str) -> str:
    """Return :func:`measure`'s table as a Markdown page."""
    body = markdown_table(rows)
    made_with = environment()
    return (
        f"# The zoo, measured\n\nClean accuracy, and accuracy under `{attack}`, on {samples} test images; made by\n"
        f"`{command}` with torch {made_with['packages']['torch']}. The digest is the recipe's.\n\n{body}\n"
    )
