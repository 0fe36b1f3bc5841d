"""The estimators side by side on real layers: figures, agreement of ranks, time, saturation.

    python benchmarks/layers.py --data-root DATA [--models fashion-cnn,fashion-vit] [--samples 5000]

For every estimator and term, the layers of all models are ranked by its figure; the agreement of two estimators is
Spearman's rho between their ranks, over all layers of all models. Prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from robgib import evaluate
from robgib.data.loaders import load_data
from robgib.zoo.loading import load_recipe
from robgib.zoo.recipe import find_recipe

TERMS = ("I(Z;Y)", "I(X;Z)", "C(X;Z)", "S(X;Z)", "S(Z;Y)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default="fashion-cnn,fashion-vit")
    parser.add_argument("--estimators", default="gaussian,binned,probe,infonce,renyi,ksg")
    parser.add_argument("--data-root", default=None)
    parser.add_argument("--samples", type=int, default=5000)
    options = parser.parse_args()
    tables = []
    print("| model | estimator | layer | " + " | ".join(TERMS) + " | IB ≤ GIB | s a layer |")
    print("| --- | --- | --- |" + " --: |" * (len(TERMS) + 2), flush=True)
    for name in options.models.split(","):
        recipe = find_recipe(name)
        data = load_data(recipe.data, options.data_root)
        model, _ = load_recipe(recipe, data)
        for estimator in options.estimators.split(","):
            began = time.perf_counter()
            run = evaluate(
                model,
                data,
                attacks=[],
                estimators=[estimator],
                name=name,
                information_samples=options.samples,
                samples=10,
            )
            seconds = (time.perf_counter() - began) / run.layers["layer"].nunique()
            tables.append(run.layers.assign(model=name))
            for (_, layer), rows in run.layers.groupby(["depth", "layer"], sort=False):
                of = {r.term: r for r in rows.itertuples()}
                cells = [
                    ("n/e" if np.isnan(of[t].value) else f"{of[t].value:.2f} ± {(of[t].high - of[t].low) / 2:.2f}")
                    + (" sat" if of[t].flagged else "")
                    for t in TERMS
                ]
                kept = "yes" if of["IB"].value <= of["GIB"].value else "no"
                print(f"| {name} | {estimator} | {layer} | {' | '.join(cells)} | {kept} | {seconds:.1f} |", flush=True)
    table = pd.concat(tables, ignore_index=True)
    estimators = list(dict.fromkeys(table["estimator"]))

    print("\n| term | " + " | ".join(f"{a} / {b}" for a, b in itertools.combinations(estimators, 2)) + " |")
    print("| --- |" + " --: |" * len(list(itertools.combinations(estimators, 2))))
    for term in TERMS:
        wide = table[table["term"] == term].pivot(index=["model", "layer"], columns="estimator", values="value")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rhos = [spearmanr(wide[a], wide[b]).statistic for a, b in itertools.combinations(estimators, 2)]
        print(f"| {term} | {' | '.join('n/e' if np.isnan(r) else f'{r:+.2f}' for r in rhos)} |")


if __name__ == "__main__":
    main()
