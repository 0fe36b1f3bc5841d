"""Check before any work that the data and networks of a study can give what its file requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from robgib.attacks import MinimumNormAttack
from robgib.attacks.registry import make_attack
from robgib.data.dataset import Dataset
from robgib.errors import RobGIBError, unknown_name
from robgib.information.activations import find_layers
from robgib.information.analysis import LABEL, PREDICTION, check_suited, partitions_of
from robgib.information.base import Estimator
from robgib.information.features import check_features
from robgib.information.registry import make_estimator
from robgib.measures import MEASURES
from robgib.studies.design import OF_UNITS, Outcome, Study
from robgib.zoo.loading import data_of
from robgib.zoo.recipe import Recipe

__all__ = ["check_names", "check_networks", "check_outcome", "check_partition", "check_weighs"]

_SHAPES = ((3, 10**6, 10**6), (10**6, 10**6), (10**6,))  # an image, a sequence, a vector, of any size
_BALLS = ("linf", "l2")


def check_names(study: Study, path: Path, catalogue: Sequence[Path] = ()) -> None:
    """Raise for a request of a study file that no data set and no network can meet.

    Raises:
        RobGIBError: a partition, measure, attack or pair of estimators that cannot be; the sentence names the file.
    """
    try:
        for partition in study.partitions:
            check_partition(partition)
        for name in study.measures:
            MEASURES.find(name, catalogue)
        check_outcome(study.outcome, catalogue)
        _check_figures(study, catalogue)
    except RobGIBError as error:
        raise RobGIBError(f"{path}: {error}") from error


def check_partition(partition: str, shape: tuple[int, ...] | None = None) -> None:
    """Raise unless samples of this shape, or where that is not known of some shape, can be cut so.

    >>> check_partition("patch:2")
    Traceback (most recent call last):
    robgib.errors.RobGIBError: unknown kind of features 'patch'; did you mean 'patches'?
    """
    if partition == "auto":
        raise RobGIBError("partition 'auto' may be several; name one, such as patches:2.")
    errors = []
    for one in _SHAPES if shape is None else (shape,):
        try:
            check_features(partition, one)
        except RobGIBError as error:
            errors.append(error)
        else:
            return
    raise errors[0]


def _check_figures(study: Study, catalogue: Sequence[Path]) -> None:
    makers = {spec: make_estimator(spec, catalogue) for spec in study.estimators}
    for figure in study.figures:
        if figure.figure not in OF_UNITS:
            continue
        if figure.layer in (PREDICTION, LABEL):
            raise RobGIBError(
                f"figure {figure.figure} is of a layer's units, and {figure.layer} is a label; name a layer, or last."
            )
        if makers[figure.estimator].runs_network and figure.figure != "subset_synergy":
            raise RobGIBError(
                f"figure {figure.figure} needs an estimator of variables, such as binned or probe: {figure.estimator} "
                "replaces pieces of the input, and a layer's units are not pieces of the input."
            )
    if study.pmi:
        check_weighs(list(makers.values()))


def check_weighs(estimators: Sequence[Estimator]) -> None:
    """Raise for an estimator that cannot weigh samples, where ``pmi: true`` asks for it."""
    for maker in estimators:
        if not maker.weighs:
            raise RobGIBError(f"pmi: true weighs samples, which the {maker.name} estimator cannot; name another one.")


def check_outcome(outcome: Outcome, catalogue: Sequence[Path] = ()) -> None:
    """Raise if the attack of an outcome cannot give it."""
    if outcome.measure == "median_distance":
        attack = make_attack(outcome.attack, extra=catalogue)
        if not isinstance(attack, MinimumNormAttack):
            raise RobGIBError(
                f"outcome median_distance needs an attack that minimises the distance, and {outcome.attack!r} stays "
                "within a budget; name one such as fab-t-linf or deepfool-linf."
            )
    if outcome.measure == "probabilistic_robustness":
        norm = make_attack(outcome.attack, extra=catalogue).norm
        if norm not in _BALLS:
            raise RobGIBError(
                f"outcome probabilistic_robustness draws points of an linf or l2 ball, and {outcome.attack!r} is of "
                f"the norm {norm}; name an attack of linf or l2."
            )


def check_networks(
    name: str,
    recipes: Iterable[Recipe],
    layers: Sequence[str],
    partitions: Sequence[str],
    samples: int,
    data_root: Path | None = None,
    estimators: Sequence[Estimator] = (),
    information_samples: int | None = None,
) -> None:
    """Raise for a request that the data or networks of a study cannot meet. Missing data are not checked.

    Args:
        name: of the study.
        recipes: of its networks; one of each data set and architecture is built, untrained.
        layers: that figures are taken of; ``last``, ``mean``, ``Ŷ`` and ``Y`` are always there.
        partitions: of the input.
        samples: the most test samples that it uses.
        data_root: folder of the data files.
        estimators: of the information.
        information_samples: that they see; None is all test samples.

    Raises:
        RobGIBError: a partition that the samples cannot be cut into, more samples than there are, an estimator that
            cannot use the data, an architecture that cannot be built, or a layer that a network does not have.
    """
    loaded: dict[str, Dataset] = {}
    known: set[str] = set()
    named = [n for n in layers if n not in ("last", "mean", PREDICTION, LABEL)]
    for recipe in recipes:
        key = f"{recipe.data} {recipe.architecture}"
        if key in known:
            continue
        known.add(key)
        try:
            data = data_of(recipe, data_root, loaded)
        except RobGIBError:  # its cells will say so, and the plan does
            continue
        if samples > len(data.test):
            raise RobGIBError(
                f"study {name!r} asks for {samples:,} samples, and {recipe.data!r} has {len(data.test):,} test "
                "samples; ask for fewer."
            )
        for partition in partitions:
            check_partition(partition, data.shape) if partition != "auto" else partitions_of(partition, data.shape)
        check_suited(estimators, data, information_samples or len(data.test))
        if recipe.architecture is None:
            continue
        model = recipe.untrained(data).eval()
        if named:
            there, _ = find_layers(model, data.test.x[:2])
            for layer in named:
                if layer not in there:
                    raise unknown_name(f"layer of {recipe.name!r}, in study {name!r}:", layer, there)
