"""A study's design, in a YAML file: which models, what is measured of them, and the question."""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from robgib import registry
from robgib.attacks.registry import make_attack
from robgib.attacks.threat_model import Radius
from robgib.data.loaders import check_data
from robgib.errors import RobGIBError, boolean_as_number, unknown_name
from robgib.files import digest
from robgib.information.registry import make_estimator
from robgib.measures import list_measures
from robgib.reading import as_path
from robgib.results import SCHEMA_VERSION
from robgib.training.tracing import Control
from robgib.zoo.recipe import Recipe, recipes

__all__ = [
    "FAILED_ATTACK",
    "FIGURES",
    "OF_UNITS",
    "Cell",
    "Figure",
    "Outcome",
    "Study",
    "cells",
    "chosen_recipes",
    "heading",
    "read_design",
    "read_study",
    "strength_of",
]

FIGURES = {
    "vulnerability": "v(X;Z)",
    "redundancy": "r(X;Z)",
    "synergy": "S(X;Z)",
    "gib_complexity": "C(X;Z)",
    "ib_complexity": "I(X;Z)",
    "label_information": "I(Z;Y)",
    "unit_synergy": "S(Z;Y)",
    "unit_complexity": "C(Z;Y)",
    "subset_synergy": "subset synergy",
    "ib_complexity_noise": "I(X;Z) noise",
}
"""What a study may ask of a layer, and the term of the layers' table that it is."""
FAILED_ATTACK = "signs of a failed attack"
"""Why a model is left out whose outcome an attack did not find; the signs follow after a colon."""
OF_UNITS = ("unit_synergy", "unit_complexity", "subset_synergy")
"""Those of a layer's units: the features of the first two, and what the third sets to 0."""
_HEADINGS = {
    "rho": "ρ",
    "low": "95% from",
    "high": "95% to",
    "p_holm": "p, Holm",
    "pearson": "Pearson's r",
    "kendall": "Kendall's τ",
    "tau": "τ",
    "tau given baselines": "τ given the baselines",
    "sd": "standard deviation",
    "outcome_se": "outcome, standard error",
    "bound_of": "layers with IB and GIB",
    "bound_held": "of them IB ≤ GIB",
    "bound_worst": "largest IB − GIB",
    **{name: FIGURES[name] for name in ("gib_complexity", "ib_complexity", "ib_complexity_noise")},
    "linear_r2": "linear R²",
}
_PARTS = {"_se": ", standard error", "_marked": ", flagged", "": ""}


def heading(column: str) -> str:
    """Return what tables and sentences call a column of the models' table.

    >>> heading("p_holm"), heading("gib_complexity (exact, pixels, last layer)_se"), heading("peak_epoch")
    ('p, Holm', 'C(X;Z) (exact, pixels, last layer), standard error', 'peak epoch')
    """
    if column in _HEADINGS:
        return _HEADINGS[column]
    part = next(p for p in _PARTS if column.endswith(p))
    figure, bracket, where = column.removesuffix(part).partition(" (")
    return _HEADINGS.get(figure, figure.replace("_", " ")) + bracket + where + _PARTS[part]


Part = Literal["explore", "confirm"]
Design = TypeVar("Design", bound=BaseModel)
_RANGE = re.compile(r"\{(\d{1,6})\.\.(\d{1,6})\}")
_MOST = 10_000


class Figure(BaseModel):
    """An information figure of a model: which term, of which layer, by which estimator, on which cut of the input."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    figure: Literal[
        "vulnerability",
        "redundancy",
        "synergy",
        "gib_complexity",
        "ib_complexity",
        "label_information",
        "unit_synergy",
        "unit_complexity",
        "subset_synergy",
        "ib_complexity_noise",
    ]
    estimator: str = "imputation"
    partition: str = "patches:4"
    layer: str = "last"
    """``last`` is the last layer before the logits, ``mean`` the mean over all but those, or a layer's name; ``Ŷ`` and
    ``Y`` are the predicted and the true label."""

    @property
    def label(self) -> str:
        """Its name in tables."""
        return f"{self.figure} ({self.estimator.partition(':')[0]}, {self.partition}, {self.layer} layer)"


_OUTCOMES = {
    "area": ("robustness", "area under accuracy"),
    "median_distance": ("robustness", "median minimal distance"),
    "generalisation_gap": ("the generalisation gap", "accuracy on trained samples less that on held-out ones"),
    "robust_generalisation_gap": (
        "the robust generalisation gap",
        "area under accuracy on trained samples less that on test samples",
    ),
    "corruption_accuracy": ("robustness to corruptions", "mean accuracy over corruptions and severities"),
    "probabilistic_robustness": ("probabilistic robustness", "share of random points of the ball that keep the label"),
}
_SWEPT = ("area", "robust_generalisation_gap")


class Outcome(BaseModel):
    """What the figures are correlated with.

    Robustness is the area under accuracy against eps, or the median distance of the nearest adversarial image: both
    still differ between networks whose accuracy at one eps is 0. Generalisation is the gap in accuracy between training
    and held-out samples.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    measure: Literal[
        "area",
        "median_distance",
        "generalisation_gap",
        "robust_generalisation_gap",
        "corruption_accuracy",
        "probabilistic_robustness",
    ] = "area"
    attack: str = "pgd-linf"
    """For a median distance one that looks for the nearest image, such as ``fab-t-linf``."""
    eps: tuple[Radius, ...] = (0.02, 0.05, 0.1, 0.15, 0.2)
    """Radii, pixel scale; the accuracy at 0 is the clean one."""

    @field_validator("eps")
    @classmethod
    def _rising(cls, eps: tuple[float, ...]) -> tuple[float, ...]:
        if not eps or list(eps) != sorted(set(eps)):
            raise ValueError("give radii in rising order, each once")
        return eps

    @property
    def attacks(self) -> list[str]:
        """The specification at each radius; of the nearest images one, of what needs no attack none."""
        if self.measure not in _SWEPT:
            return [self.attack] if self.measure == "median_distance" else []
        joint = "," if ":" in self.attack else ":"
        return [f"{self.attack}{joint}eps={eps:g}" for eps in self.eps]

    @property
    def noun(self) -> str:
        """What it measures, in a few words."""
        return _OUTCOMES[self.measure][0]

    @property
    def words(self) -> str:
        """How it is measured."""
        if self.measure == "area":
            return f"area under accuracy by {self.attack} for eps 0 to {self.eps[-1]:g}"
        how = {
            "median_distance": f" by {self.attack}",
            "robust_generalisation_gap": f", by {self.attack} for eps 0 to {self.eps[-1]:g}",
            "probabilistic_robustness": f" of radius {self.eps[-1]:g}",
        }
        return _OUTCOMES[self.measure][1] + how.get(self.measure, "")

    @property
    def axis(self) -> str:
        """How a figure's axis calls it."""
        if self.measure.endswith("gap"):
            return self.noun.removeprefix("the ")
        return f"{self.noun}: {_OUTCOMES[self.measure][1]}"


class Grid(BaseModel):
    """Models to train: a recipe, and its keys that vary (``training.seed``, ``training.adversary.eps`` …)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    recipe: str
    vary: dict[str, list[Any]]
    """Every combination is a model; a value of null takes the recipe's own. A text such as ``function:random-{0..99}``
    is one value for each of the numbers."""

    @field_validator("vary")
    @classmethod
    def _some(cls, vary: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in vary.items():
            if not values:
                raise ValueError(f"{key} has no values")
        return {key: [one for value in values for one in _numbered(value)] for key, values in vary.items()}


def _numbered(value: Any) -> list[Any]:
    """Expand a text with a range of numbers, as in {0..99}, to one text a number; return anything else alone."""
    span = _RANGE.search(value) if isinstance(value, str) else None
    if span is None:
        return [value]
    first, last = int(span[1]), int(span[2])
    if not first <= last < first + _MOST:
        raise ValueError(f"{value}: give a range in rising order, of at most {_MOST} numbers")
    return [value[: span.start()] + str(k) + value[span.end() :] for k in range(first, last + 1)]


class Models(BaseModel):
    """Models of one part of a study."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    models: list[str] = Field(default_factory=list)
    """Zoo names, or patterns of them such as ``f24-*-at``."""
    group: str | None = None
    train: list[Grid] = Field(default_factory=list)


class Study(BaseModel):
    """A study: the question, its one primary figure, and everything else, which is secondary."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["correlation"] = "correlation"
    name: str
    question: str
    expect: Literal["positive", "negative", "either"] = "either"
    """The sign of the correlation of the primary figure with the outcome that the claim predicts."""
    primary: Figure
    secondary: list[Figure] = Field(default_factory=list)
    outcome: Outcome = Field(default_factory=Outcome)
    confirm: Models
    """The models that the verdict rests on."""
    explore: Models = Field(default_factory=Models)
    """Models on which the question arose: shown apart, never part of the verdict."""
    controls: Models = Field(default_factory=Models)
    """Untrained networks of these recipes, on which no correlation may appear."""
    random_labels: Models = Field(default_factory=Models)
    """Networks trained on shuffled labels, on which no correlation may appear either."""
    permuted_patches: Models = Field(default_factory=Models)
    """Networks trained and measured on images whose patches lie in an order of chance, each image's its own."""
    samples: PositiveInt = 500
    information_samples: PositiveInt = 1000
    signs: bool = True
    """Look for signs of failed attacks; models that show one are left out of the verdict."""
    measures: list[str] = Field(default_factory=list_measures)
    """The baselines that are measured of every model, beside the strength of its training."""
    pmi: bool = False
    """Weigh samples by 1[ŷ = y]·max(0, pmi(ŷ;y)) in all information figures."""
    unit_groups: PositiveInt = 8
    """Groups of a layer's units, which are the features of ``unit_synergy`` and ``unit_complexity``."""
    least_accuracy: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Clean accuracy below which a network is left out; when not given, those near chance are."""
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _each_once(self) -> Study:
        if self.primary in self.secondary:
            raise ValueError("the primary figure is among the secondary ones; name it once")
        labels = [f.label for f in self.figures]
        twice = next((n for n in labels if labels.count(n) > 1), None)
        if twice:
            raise ValueError(f"the figure {twice} is named twice; name it once, with one setting of its estimator")
        settings: dict[str, str] = {}
        for spec in self.estimators:
            name = spec.partition(":")[0]
            if settings.setdefault(name, spec) != spec:
                raise ValueError(
                    f"the estimator {name} has two settings, {settings[name]!r} and {spec!r}, and one name in the "
                    "tables; give one setting"
                )
        repeated = next((m for m in self.measures if self.measures.count(m) > 1), None)
        if repeated:
            raise ValueError(f"the measure {repeated} is named twice; name it once")
        return self

    @property
    def figures(self) -> list[Figure]:
        """The primary figure and the others."""
        return [self.primary, *self.secondary]

    @property
    def estimators(self) -> list[str]:
        """Specifications of the estimators."""
        return list(dict.fromkeys(f.estimator for f in self.figures))

    @property
    def groups(self) -> int:
        """Groups of units to measure: none where no figure is of the units."""
        return self.unit_groups if any(f.figure in OF_UNITS for f in self.figures) else 0

    @property
    def partitions(self) -> list[str]:
        """Cuts of the input."""
        return list(dict.fromkeys(f.partition for f in self.figures))


@dataclass(frozen=True)
class Cell:
    """One model of a study and what is known of how it came about.

    Attributes:
        recipe: of the model.
        part: ``explore`` or ``confirm``.
        architecture: its name.
        regime: how it was trained: standard, adversarial, trades, mart, awp, noise, or a penalty.
        strength: of that: eps, the noise's deviation, or the penalty's weight; 0 for standard training.
        training_seed: of the training.
        control: ``untrained`` (weights left as they are drawn), ``random-labels``, ``permuted-patches``, or none.
    """

    recipe: Recipe
    part: str
    architecture: str
    regime: str
    strength: float
    training_seed: int
    control: Control | None = None

    @property
    def name(self) -> str:
        """Of the model."""
        return f"{self.recipe.name}-{self.control}" if self.control else self.recipe.name

    def key(self, study: Study) -> str:
        """Digest of everything that the cell's measurement depends on."""
        content = {
            "weights": self.recipe.digest,
            "untrained": self.control == "untrained",
            "data": self.recipe.data,
            "attacks": study.outcome.attacks,
            "estimators": study.estimators,
            "partitions": study.partitions,
            "samples": [study.samples, study.information_samples],
            "signs": study.signs,
            "seed": study.seed,
            "measures": sorted(study.measures),
            "schema": SCHEMA_VERSION,
        }
        if study.outcome.measure not in ("area", "median_distance"):
            content["outcome"] = study.outcome.model_dump()
        if self.control not in (None, "untrained"):
            content["control"] = self.control
        if study.pmi:
            content["pmi"] = True
        if study.groups:
            content["unit_groups"] = study.groups
        return digest(content)[:16]


def read_design(path: str | Path, kind: type[Design]) -> Design:
    """Read a study file of one kind; its name is the file's, or the folder's where the file is called study.yaml.

    Raises:
        RobGIBError: it is no such study; the sentence names the line and the key.
    """
    path = as_path(path, "path")
    if not path.exists():
        raise RobGIBError(f"study file {str(path)!r} does not exist.")
    content = registry.read_yaml(path)
    name = path.resolve().parent.name if path.stem == "study" else path.stem
    try:
        return registry.read_model(kind, {"name": name, **content}, path)
    except ValidationError as error:
        raise _misspelt(error, path, kind) or registry.yaml_error(error, path) from error


def _misspelt(error: ValidationError, path: Path, kind: type[BaseModel]) -> RobGIBError | None:
    """The error for the first key that there is not, with the key that may be meant; None if all keys are known.

    If a required key is misspelt, two errors are found: an unknown key and a missing one. The first is more helpful.
    """
    wrong = next((e for e in error.errors() if e["type"] == "extra_forbidden"), None)
    if wrong is None:
        return None
    *place, key = wrong["loc"]
    known = _keys_at(kind, [str(p) for p in place if isinstance(p, str)])
    where = ".".join(map(str, place))
    what = f"key of {where}:" if where else "key"
    return RobGIBError(f"{path}, line {registry.line_of(path, wrong['loc'])}: {unknown_name(what, str(key), known)}")


def _keys_at(kind: type[BaseModel], place: Sequence[str]) -> list[str]:
    """The keys of the model at the end of nested keys; those that a mapping's user chooses are no fields."""
    for key in place:
        if key in kind.model_fields:
            kind = next(_models_in(kind.model_fields[key].annotation), kind)
    return list(kind.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in a type, such as that of the items of a list."""
    if inner := get_args(annotation):
        for one in inner:
            yield from _models_in(one)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation


def read_study(path: Path, catalogue: Sequence[Path] = ()) -> Study:
    """Read a study file.

    Raises:
        RobGIBError: it is no study; the sentence names the line and the key.
    """
    study = read_design(path, Study)
    try:
        for attack in study.outcome.attacks:
            make_attack(attack, extra=catalogue)
        for estimator in study.estimators:
            make_estimator(estimator, catalogue)
    except RobGIBError as error:
        raise RobGIBError(f"{path}: {error}") from error
    return study


def cells(study: Study, catalogue: Sequence[Path] = (), *, allow_code: bool = False) -> list[Cell]:
    """Return the models of a study, trained or not, each once.

    Args:
        study: the design.
        catalogue: further folders of recipes and plug-ins.
        allow_code: take ``package.module:factory`` from the study and its recipes, whose code is imported and run when
            a network is built.

    Raises:
        RobGIBError: a model, pattern, group, recipe or key that there is not, a model in both parts, none at all, or
            one that names code to run where that is not allowed.
    """
    known = recipes(catalogue)
    parts: tuple[tuple[str, Models, Control | None], ...] = (
        ("explore", study.explore, None),
        ("confirm", study.confirm, None),
        ("control", study.controls, "untrained"),
        ("control", study.random_labels, "random-labels"),
        ("control", study.permuted_patches, "permuted-patches"),
    )
    chosen: dict[str, Cell] = {}
    weights: dict[tuple[str, Control | None], Cell] = {}
    for part, models, how in parts:
        for recipe in chosen_recipes(study.name, models, known, allow_code):
            cell = Cell(recipe, part, *_origin(recipe), how)
            if cell.name in chosen:
                former = chosen[cell.name].part
                twice = f"both in {former} and in {part}" if former != part else f"twice in {part}"
                raise RobGIBError(f"study {study.name!r} has the model {cell.name!r} {twice}; name it once.")
            chosen[cell.name] = cell
            same = weights.setdefault((recipe.digest, how), cell)
            if same.part != part:
                raise RobGIBError(
                    f"study {study.name!r}: {same.name!r} in {same.part} and {cell.name!r} in {part} have the same "
                    "weights; a model may be in one part only."
                )
    if not any(c.part == "confirm" for c in chosen.values()):
        raise RobGIBError(f"study {study.name!r} has no models to confirm on; give confirm: models, group or train.")
    for data in {c.recipe.data for c in chosen.values()}:
        check_data(data, catalogue)
    return list(chosen.values())


def chosen_recipes(study: str, models: Models, known: Mapping[str, Recipe], allow_code: bool = False) -> list[Recipe]:
    """Return the recipes that a part of a study names.

    Args:
        study: its name.
        models: of the part.
        known: the recipes that there are, by name.
        allow_code: take ``package.module:factory`` from the study and its recipes.

    Raises:
        RobGIBError: a model, pattern, group, recipe or key that there is not, or code to run that is not allowed.
    """
    chosen: list[Recipe] = []
    for pattern in models.models:
        named = [r for n, r in known.items() if fnmatch.fnmatchcase(n, pattern)]
        if not named:
            raise unknown_name("model", pattern, known, "robgib zoo list")
        chosen += named
    if models.group is not None:
        of_group = [r for r in known.values() if r.group == models.group]
        if not of_group:
            raise unknown_name("group", models.group, sorted({r.group for r in known.values() if r.group}))
        chosen += of_group
    for grid in models.train:
        if grid.recipe not in known:
            raise unknown_name("model", grid.recipe, known, "robgib zoo list")
        chosen += [_varied(known[grid.recipe], grid.vary, values) for values in itertools.product(*grid.vary.values())]
    chosen = [recipe.allowing_code(allow_code) for recipe in chosen]
    for recipe in chosen:
        recipe.check_architecture(f"study {study!r}, model {recipe.name!r},")
    return list({r.name: r for r in chosen}.values()) if not models.train else chosen


_VARIED = ("data", "architecture", "training", "checkpoint")
"""What of a recipe a study may vary: not its name, nor where it lies."""


def _varied(recipe: Recipe, keys: Mapping[str, Any], values: Sequence[Any]) -> Recipe:
    """A recipe with some keys set, called after them."""
    content = recipe.model_dump(exclude={"group", "description"})
    words = []
    for key, value in zip(keys, values, strict=True):
        *path, last = key.split(".")
        place: Any = content if (*path, last)[0] in _VARIED else None
        for step in path:
            if isinstance(place, dict) and step in place and place[step] is None:
                place[step] = {}
            place = place.get(step) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise RobGIBError(f"recipe {recipe.name!r} has no key {key!r} to vary.")
        if value is not None:
            place[last] = value
        if len(keys[key]) > 1:
            called = str(value).rpartition(":")[2] if last == "data" else f"{last.replace('_', '-')}{value}"
            words.append(called)
    name = "-".join([recipe.name, *words]).replace("/", "-")
    try:
        varied = Recipe.model_validate({**content, "name": name, "folder": recipe.folder})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RobGIBError(
            f"recipe {recipe.name!r} varied to {name!r}: {where}: {first['msg'].lower()} (found {first['input']!r})."
        ) from error
    wrong = boolean_as_number(content, varied)
    if wrong is not None:
        where = ".".join(map(str, wrong))
        raise RobGIBError(f"recipe {recipe.name!r} varied to {name!r}: {where}: must be a number, not true or false.")
    return varied.among(recipe.catalogue)


def strength_of(recipe: Recipe) -> float:
    """Return the strength of a recipe's training: the attack's radius, the penalty's weight, the noise's deviation.

    It is 0 for standard training.
    """
    return _origin(recipe)[2]


def _origin(recipe: Recipe) -> tuple[str, str, float, int]:
    """Architecture, regime, strength and seed of a recipe."""
    training = recipe.training
    regime, strength = "standard", 0.0
    if training.adversary is not None:
        losses = [n for n in ("trades", "mart", "awp") if getattr(training.adversary, n)]
        regime, strength = "-".join(losses) or "adversarial", training.adversary.eps
    elif training.penalty is not None:
        regime, strength = training.penalty.kind, training.penalty.beta
    elif training.noise:
        regime, strength = "noise", training.noise
    architecture = recipe.architecture.name if recipe.architecture else "checkpoint"
    return architecture, regime, float(strength), training.seed
