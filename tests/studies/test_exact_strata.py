"""The fields of recipes and the designs whose levels are permuted, by hand."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robgib.studies.ladder import _p
from robgib.studies.strata import (
    _crossed,
    _sources,
    axes,
    cell_of,
    clusters,
    exchangeable,
    indicators,
    relabelled,
    training_fields,
    varied_fields,
)
from robgib.zoo.recipe import Recipe


def test_the_fields_of_a_training_are_all_fields_of_its_recipe_but_the_seed():
    recipe = Recipe(name="a", data="digits", architecture={"name": "cnn", "options": {"width": 8}}, group="b")
    content = recipe.model_dump()
    expected = {"recipe.data": "digits", "recipe.architecture.name": "cnn", "recipe.architecture.options.width": 8}
    expected["recipe.checkpoint"] = None
    for name, value in content["training"].items():
        if name != "seed":
            expected[f"recipe.training.{name}"] = value
    assert training_fields(recipe) == expected
    adversarial = {"epochs": 2, "adversary": {"norm": "linf", "eps": 0.1}}
    fields = training_fields(Recipe(name="a", data="digits", architecture={"name": "mlp"}, training=adversarial))
    assert (fields["recipe.training.adversary.norm"], fields["recipe.training.adversary.eps"]) == ("linf", 0.1)
    assert "recipe.training.adversary" not in fields


def models(**columns):
    count = len(next(iter(columns.values())))
    basic = {"data": "digits", "architecture": "cnn", "regime": "standard", "strength": 0.0}
    return pd.DataFrame({name: [value] * count for name, value in basic.items()} | columns)


def test_fields_that_vary_within_models_that_are_alike_otherwise():
    rows = models(
        architecture=["cnn", "cnn", "vit", "vit"],
        **{"recipe.depth": [1, 1, 2, 2], "recipe.epochs": [5, 9, 5, 5], "recipe.width": [3, 3, 3, 3]},
    )
    assert varied_fields(rows) == ["recipe.epochs"]  # depth goes with the architecture
    assert cell_of(rows).tolist() == [0, 1, 2, 2]
    found = axes(rows)
    assert list(found) == ["architecture", "epochs"]
    assert found["architecture"].tolist() == [0, 0, 1, 1]
    assert found["epochs"].tolist() == [0, 1, 0, 0]
    assert [c.tolist() for c in clusters(rows, 3)] == [[0], [1], [2, 3]]
    assert [c.tolist() for c in clusters(rows.iloc[2:], 1)] == [[0, 1]]  # one cell
    assert clusters(rows.iloc[:0], 0) == []
    assert [c.tolist() for c in clusters(rows, 4)] == [[0], [1], [2], [3]]


def test_indicators_of_levels():
    assert indicators(np.array([2, 0, 2])).tolist() == [[0, 1], [1, 0], [0, 1]]


def generator():
    return np.random.default_rng(0)


def lists(levels):
    return [level.tolist() for level in levels]


def design(*settings, **further):
    """Models of some (architecture, strength); ``further`` fields have a value a model."""
    architecture, strength = zip(*settings, strict=True)
    fields = {f"recipe.{name}": values for name, values in further.items()}
    same = {"data": "digits", "regime": "pgd-at"}
    return pd.DataFrame({"architecture": architecture, "strength": np.array(strength, float), **fields}).assign(**same)


GRID = [(a, s) for a in ("cnn", "vit", "mlp") for s in (0, 1)]


def test_each_field_is_relabelled_by_itself_where_the_design_has_the_combinations():
    unit, levels = exchangeable(design(*GRID, *GRID), generator())
    assert unit.tolist() == [*range(6), *range(6)]
    assert lists(levels) == [[0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1]]


def test_fields_that_go_together_are_relabelled_together():
    three = [(a, s) for a in ("cnn", "vit", "mlp") for s in (0, 1, 2)]
    # Epochs and width differ where strengths do, and in their second halves for that alone.
    rows = design(*three, *three, epochs=[s for _, s in three] + [s + 3 for _, s in three],
                  width=[9 - s for _, s in three] + [6 - s for _, s in three])  # fmt: skip
    unit, levels = exchangeable(rows, generator())
    assert unit.tolist() == list(range(18))
    assert levels[0].tolist() == np.tile(np.repeat([0, 1, 2], 3), 2).tolist()
    assert levels[1].tolist() == [*np.tile([0, 2, 4], 3), *np.tile([1, 3, 5], 3)]


def test_of_three_fields_the_last_two_may_go_together():
    three = [(a, s) for a in ("cnn", "vit", "mlp") for s in (0, 1, 2)]
    alike = [(a, 0) for a, _ in three]
    further = {"epochs": [s for _, s in three], "width": [9 - s for _, s in three]}
    unit, levels = exchangeable(design(*alike, **further), generator())
    assert unit.tolist() == list(range(9))
    assert lists(levels) == [np.repeat([0, 1, 2], 3).tolist(), np.tile([0, 1, 2], 3).tolist()]


def test_of_many_fields_that_are_not_crossed_the_first_are_relabelled_and_the_others_are_noise():
    rng = generator()
    settings = GRID * 4
    further = {name: rng.integers(4, size=len(settings)) for name in ("epochs", "width", "depth", "batch_size")}
    rows = design(*settings, **further)
    unit, levels = exchangeable(rows, generator())
    assert [settings[i] for i in np.unique(unit, return_index=True)[1]] == sorted(GRID, key=settings.index)
    assert unit.tolist() == [*range(6)] * 4
    assert lists(levels) == [[0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1]]


def test_without_the_combinations_the_cells_are_permuted_freely():
    unit, levels = exchangeable(design(*((f"a{i}", 4 - i) for i in range(5))), generator())
    assert (unit.tolist(), lists(levels)) == ([0, 1, 2, 3, 4], [[0, 1, 2, 3, 4]])
    # Ten cells of five architectures: no field is crossed with another.
    apart = design(*((f"a{i // 2}", 0) for i in range(10)), epochs=range(10), width=[(3 * i) % 10 for i in range(10)])
    unit, levels = exchangeable(apart, generator())
    assert (unit.tolist(), lists(levels)) == ([*range(10)], [[*range(10)]])
    a, b = np.repeat([0, 1, 2], 3), np.tile([0, 1, 2], 3)
    assert _crossed([a[:7], b[:7]], generator())  # seven of nine places: 78% of the cells are kept on average
    kept = [0, 1, 2, 3, 7, 8]  # six of nine: 67%
    assert not _crossed([a[kept], b[kept]], generator())
    many = np.arange(1100)
    assert not _crossed([many, many], generator())  # of more than a million places
    assert not _crossed([np.arange(5), np.arange(5)[::-1].copy()], generator())


def test_the_source_of_a_cell_is_the_one_with_its_reordered_levels():
    a, b = np.array([0, 0, 1]), np.array([0, 1, 0])  # (1, 1) is not there
    orders = [np.array([[0, 1], [1, 0], [0, 1]]), np.array([[0, 1], [0, 1], [1, 0]])]
    assert _sources([a, b], orders).tolist() == [[0, 1, 2], [2, -1, 0], [1, 0, -1]]


@pytest.mark.parametrize(("draws", "all_of_them"), [(13, True), (12, True), (11, False)])
def test_no_more_relabellings_than_there_are(draws, all_of_them):
    a, b = np.repeat([0, 1, 2], 2), np.tile([0, 1], 3)
    x, y = generator().standard_normal((2, 6))
    found, every = relabelled(x, y, [a, b], draws, generator())
    assert (len(found), every) == (12 if all_of_them else draws, all_of_them)
    if all_of_them:
        own = [np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1]]
        assert np.isclose(found, own).any()


def test_a_permutation_of_free_cells_is_any_order():
    x, y = generator().standard_normal((2, 4))
    found, every = relabelled(x, y, [], 24, generator())
    ranks = x.argsort().argsort()
    by_hand = [np.corrcoef(ranks[list(p)], y.argsort().argsort())[0, 1] for p in itertools.permutations(range(4))]
    assert every
    assert sorted(found) == pytest.approx(sorted(by_hand))


def test_a_relabelling_that_leaves_nothing_to_correlate_is_no_evidence():
    """Of 16 cells 12 are there; one alone has another outcome, and is left out of some of the 576 relabellings."""
    places = [(i, j) for i in range(4) for j in range(4) if (i + j) % 4 != 3]
    a, b = (np.array(level) for level in zip(*places, strict=True))
    x, y = np.arange(12.0) % 5, np.zeros(12)
    x[5], y[5] = 9, 1
    found, every = relabelled(x, y, [a, b], 2000, generator())
    assert every
    undefined = 0
    for rows, columns in itertools.product(itertools.permutations(range(4)), repeat=2):
        source = (rows[places[5][0]], columns[places[5][1]])
        undefined += source not in places
    assert np.isnan(found).sum() == undefined > 0
    own = stats.spearmanr(x, y).statistic
    assert _p(own, found, 1, every) == np.mean(np.isnan(found) | (np.nan_to_num(found) >= own - 1e-9))
