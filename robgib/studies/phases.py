"""Studies of compression during training: the number of networks in which a layer's information falls from its peak."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator
from scipy import stats

from robgib.data.dataset import Dataset
from robgib.engines import HERE, Engine
from robgib.errors import RobGIBError, unknown_name
from robgib.files import cache_folder, digest
from robgib.information.activations import LOGITS
from robgib.information.registry import make_estimator
from robgib.results import SCHEMA_VERSION, csv_text, read_csv, with_present_names
from robgib.runtime import Progress
from robgib.studies.checks import check_partition, check_weighs
from robgib.studies.design import Grid, Models, chosen_recipes, read_design
from robgib.studies.engines import Task, finish
from robgib.training.tracing import CONTROLS, Control, control, log_spaced
from robgib.zoo.loading import trace_recipe
from robgib.zoo.recipe import Recipe, recipes

__all__ = [
    "COMPRESSES",
    "KEEPS",
    "Followed",
    "Phases",
    "PhasesClaim",
    "Traced",
    "followed",
    "phases_claim",
    "phases_rows",
    "read_phases",
    "trace_all",
]

COMPRESSES, KEEPS, UNDETERMINED = "compresses", "does not compress", "undetermined"
Verdict = Literal["compresses", "does not compress"]
_MOST = 0.8  # share of a group's networks that must have the verdict


class Controls(BaseModel):
    """Recipes of the control networks, by the kind of control.

    ``untrained`` keeps the initial weights. ``random_labels`` and ``permuted_patches`` train on changed data.
    ``bijective`` names recipes of the architecture ``bijective``, whose layers are invertible: I(X;Z) cannot fall.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    untrained: list[Grid] = Field(default_factory=list)
    random_labels: list[Grid] = Field(default_factory=list)
    permuted_patches: list[Grid] = Field(default_factory=list)
    bijective: list[Grid] = Field(default_factory=list)


class Phases(BaseModel):
    """The design of a study of compression during training (Shwartz-Ziv & Tishby 2017; Saxe et al. 2018).

    A layer compresses if I(X;Z) or C(X;Z) (bits) falls from its largest value over the epochs to its last value, beyond
    the error of the estimates. The networks of one recipe, which differ by their seed, are a group.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["compression"]
    name: str
    question: str
    expect: dict[str, Verdict] = Field(min_length=1)
    """Expected verdict of each recipe of ``train``: ``compresses`` or ``does not compress``."""
    term: Literal["I(X;Z)", "C(X;Z)"] = "C(X;Z)"
    """Term on which the verdict is based: I(X;Z) of the IB, or C(X;Z) of the GIB, in bits."""
    layer: str = "last"
    """Layer on which the verdict is based; ``last`` is the last layer before the logits."""
    estimator: str = "exact"
    partition: str = "auto"
    samples: PositiveInt = 2000
    pmi: bool = False
    """Weight samples by 1[ŷ = y]·max(0, pmi(ŷ;y)), with the predictions ŷ of the network of each epoch."""
    train: list[Grid]
    controls: Controls = Field(default_factory=Controls)
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _known(self) -> Phases:
        named = {grid.recipe for grid in self.train}
        for name in self.expect:
            if name not in named:
                raise ValueError(f"expect names {name!r}, which is no recipe of train")
        return self


@dataclass(frozen=True)
class Followed:
    """A network of the study.

    Attributes:
        recipe: its recipe, with the seed.
        group: name of the recipe in the study file.
        control: kind of control; None if it is not a control.
    """

    recipe: Recipe
    group: str
    control: Control | Literal["bijective"] | None = None

    @property
    def name(self) -> str:
        """Name of the network in tables."""
        return f"{self.recipe.name}-{self.control}" if self.control in CONTROLS else self.recipe.name

    def key(self, study: Phases) -> str:
        """Return a digest of everything that the trace depends on."""
        content = {
            "weights": self.recipe.digest,
            "control": self.control,
            "data": self.recipe.data,
            "trace": [study.estimator, study.partition, study.samples, study.seed, *(["pmi"] if study.pmi else [])],
            "schema": SCHEMA_VERSION,
        }
        return digest(content)[:16]

    def folder(self, study: Phases) -> Path:
        """Return the folder of the trace in the cache, which all studies share."""
        return cache_folder() / "measured" / f"trace-{self.key(study)}"


@dataclass(frozen=True)
class Traced:
    """A network with its trace, or with an error.

    Attributes:
        network: the network.
        table: information terms (bits) by epoch and layer; None after an error.
        compression: one row per layer and term: peak, final value, compression and verdict; None after an error.
        accuracy: test accuracy after the last epoch, in [0, 1].
        error: message of the error; empty if there is none.
    """

    network: Followed
    table: pd.DataFrame | None
    compression: pd.DataFrame | None
    accuracy: float = float("nan")
    error: str = ""


def read_phases(path: Path, catalogue: Sequence[Path] = ()) -> Phases:
    """Read the design of a study of compression from a YAML file.

    Args:
        path: the file, with ``kind: compression``.
        catalogue: further folders of plug-ins, for the estimator.

    Raises:
        RobGIBError: the file is invalid; the message names the line and the key.
    """
    study = read_design(path, Phases)
    try:
        if study.partition != "auto":
            check_partition(study.partition)
        maker = make_estimator(study.estimator, catalogue)
        check_weighs([maker] if study.pmi else [])
    except RobGIBError as error:
        raise RobGIBError(f"{path}: {error}") from error
    return study


def followed(study: Phases, catalogue: Sequence[Path] = (), *, allow_code: bool = False) -> list[Followed]:
    """Return the networks of a study, controls last.

    Args:
        study: the design.
        catalogue: further folders of recipes.
        allow_code: as in :func:`~robgib.studies.cells`.

    Raises:
        RobGIBError: an unknown recipe, a network that is named twice, or a ``bijective`` control of another
            architecture.
    """
    known = recipes(catalogue)
    networks: list[Followed] = []
    parts: tuple[tuple[Sequence[Grid], Control | Literal["bijective"] | None], ...] = (
        (study.train, None),
        (study.controls.untrained, "untrained"),
        (study.controls.random_labels, "random-labels"),
        (study.controls.permuted_patches, "permuted-patches"),
        (study.controls.bijective, "bijective"),
    )
    for grids, how in parts:
        for grid in grids:
            models = chosen_recipes(study.name, Models(train=[grid]), known, allow_code)
            networks += [Followed(r, grid.recipe, how) for r in models]
    for one in networks:
        built = one.recipe.architecture.name if one.recipe.architecture else "a checkpoint"
        if one.control == "bijective" and built != "bijective":
            raise RobGIBError(
                f"study {study.name!r}: the control {one.name!r} must lose no information, but its architecture is "
                f"{built!r}; name a recipe of the architecture 'bijective'."
            )
    names = [n.name for n in networks]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise RobGIBError(f"study {study.name!r} has the network {twice!r} twice; name it once.")
    return networks


def trace_all(
    study: Phases,
    networks: Sequence[Followed],
    *,
    data_root: Path | None = None,
    engine: Engine = HERE,
    catalogue: Sequence[Path] = (),
    progress: Progress | None = None,
) -> list[Traced]:
    """Train each network and estimate its information at several epochs; read the traces that exist.

    Args:
        study: the design.
        networks: the networks (:func:`followed`).
        data_root: folder of the data files; None is the usual one.
        engine: runs the tasks, on this machine or on a cluster.
        catalogue: further folders of data sets and plug-ins.
        progress: called after each network.

    Returns:
        One trace per network, in the same order. A network that failed has an error instead.
    """
    waiting = [n for n in networks if not (n.folder(study) / "trace.csv").is_file()]
    tasks = [Task(n.name, n.folder(study), n.recipe, partial(_one, n, study, list(catalogue))) for n in waiting]
    errors = finish(study.name, tasks, "traced", len(networks), engine, data_root, progress)
    return [_read(n, study, errors.get(n.name, "")) for n in networks]


def _one(
    network: Followed,
    study: Phases,
    catalogue: list[Path],
    folder: Path,
    data: Dataset,
    device: str,
    progress: Progress | None,
) -> None:
    """Train and trace one network, and write its tables to ``folder``."""
    recipe = network.recipe
    if network.control is not None and network.control != "bijective":
        data, training = control(network.control, data, recipe.training)
        recipe = recipe.model_copy(update={"training": training})
    target = network.folder(study)
    work = target.with_name(f"{target.name}.unfinished")  # a training that was killed goes on there
    trace, record = trace_recipe(
        recipe,
        data,
        work / "network.safetensors",
        log_spaced(recipe.training.epochs),
        [study.estimator],
        samples=study.samples,
        features=study.partition,
        pmi=study.pmi,
        device=device,
        catalogue=catalogue,
        progress=progress,
    )
    for name, table in (("trace.csv", trace.table), ("compression.csv", trace.compression)):
        (folder / name).write_text(csv_text(table), encoding="utf-8", newline="")
    (folder / "record.json").write_text(json.dumps(record, default=str))
    shutil.rmtree(work, ignore_errors=True)


def _read(network: Followed, study: Phases, error: str) -> Traced:
    folder = network.folder(study)
    if error or not (folder / "trace.csv").is_file():
        return Traced(network, None, None, error=error or "it was not traced")
    table, compression = (
        with_present_names(read_csv(folder / f"{name}.csv"), name) for name in ("trace", "compression")
    )
    return Traced(network, table, compression, float(table["test_accuracy"].iloc[-1]))


def phases_rows(study: Phases, traced: Sequence[Traced]) -> pd.DataFrame:
    """Return one row per network, layer and term.

    If I(X;Z) was counted at several resolutions, the first is used, which is also that of the estimated terms.

    Args:
        study: the design.
        traced: the traces (:func:`trace_all`).

    Returns:
        Columns ``network``, ``group``, ``control``, ``layer``, ``depth``, ``term``; ``peak`` and ``final`` (bits);
        ``peak_epoch``; ``compression`` = (peak − final) / peak with its 95% interval (``low``, ``high``); ``verdict``;
        ``primary``; ``accuracy``; and ``left_out``, the reason why the network has no figures.

    Raises:
        RobGIBError: a network has no layer of the study's name.
    """
    rows = []
    for one in traced:
        base: dict[str, Any] = {
            "network": one.network.name,
            "group": one.network.group,
            "control": one.network.control or "",
        }
        if one.compression is None:
            rows.append({**base, "left_out": one.error})
            continue
        terms = one.compression.drop_duplicates(["layer", "term"])
        inner = [n for n in terms.sort_values("depth")["layer"].unique() if n != LOGITS]
        chosen = (inner[-1] if inner else LOGITS) if study.layer == "last" else study.layer
        if chosen not in set(terms["layer"]):
            raise unknown_name("layer", chosen, list(terms["layer"].unique()))
        for r in terms.itertuples():
            figures = {k: getattr(r, k) for k in ("layer", "depth", "term", "peak_epoch", "peak", "final")}
            fall = {k: getattr(r, k) for k in ("compression", "low", "high", "verdict")}
            primary = r.layer == chosen and r.term == study.term
            rows.append({**base, **figures, **fall, "primary": primary, "accuracy": one.accuracy, "left_out": ""})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class PhasesClaim:
    """The result of a study of compression.

    Attributes:
        verdict: ``supported``, ``contradicted``, ``not shown``, or ``undetermined``.
        words: the verdict in a few sentences, one per group and control.
        models: number of networks that the verdict uses.
        groups: one row per group, control, layer and term: the number of networks that compress, do not compress, or
            are undetermined; the mean compression (``fall``), and its standard deviation over seeds (``sd``).
        notes: which networks were left out, and why.
    """

    verdict: str
    words: str
    models: int
    groups: pd.DataFrame
    notes: tuple[str, ...] = ()


def phases_claim(study: Phases, rows: pd.DataFrame) -> PhasesClaim:
    """Compare the verdicts of the networks with the expectations of the study.

    A group agrees with its expectation if at least 80% of its networks have the expected verdict and none has the
    opposite one. The claim is ``supported`` if all groups agree, ``contradicted`` if in one group more than half of the
    networks have the opposite verdict, and ``not shown`` otherwise. Each sentence gives the exact (Clopper-Pearson)
    lower bound of the share of networks with the expected verdict.

    Args:
        study: the design.
        rows: one row per network, layer and term (:func:`phases_rows`).

    >>> study = Phases(kind="compression", name="a", question="?", expect={"tanh": "compresses"},
    ...                train=[{"recipe": "tanh", "vary": {"training.seed": [0, 1, 2, 3, 4]}}])
    >>> row = {"group": "tanh", "control": "", "layer": "1", "term": "C(X;Z)", "primary": True, "left_out": "",
    ...        "verdict": "compresses", "compression": 0.3}
    >>> answer = phases_claim(study, pd.DataFrame([{**row, "network": f"tanh-{seed}"} for seed in range(5)]))
    >>> answer.verdict, answer.models
    ('supported', 5)
    """
    failed = rows[rows["left_out"] != ""]
    notes = [f"left out ({why}): {', '.join(g['network'])}" for why, g in failed.groupby("left_out", sort=False)]
    usable = rows[rows["left_out"] == ""]
    if usable.empty:
        return PhasesClaim("undetermined", "No network could be followed.", 0, pd.DataFrame(), tuple(notes))
    groups = []
    for (control_, group, layer, term), g in usable.groupby(["control", "group", "layer", "term"], sort=False):
        counts = g["verdict"].value_counts()
        groups.append(
            {
                "group": group,
                "control": control_,
                "layer": layer,
                "term": term,
                "networks": len(g),
                COMPRESSES: int(counts.get(COMPRESSES, 0)),
                KEEPS: int(counts.get(KEEPS, 0)),
                UNDETERMINED: int(counts.drop([COMPRESSES, KEEPS], errors="ignore").sum()),
                "fall": float(g["compression"].mean()),
                "sd": float(g["compression"].std(ddof=1)) if len(g) > 1 else float("nan"),
                "primary": bool(g["primary"].any()),
            }
        )
    table = pd.DataFrame(groups)
    own = usable[usable["primary"] & (usable["control"] == "")]
    sentences, outcomes = [], []
    for group, expected in study.expect.items():
        of = own[own["group"] == group]
        counts = _counts(of)
        for_it, against = counts[expected], counts[KEEPS if expected == COMPRESSES else COMPRESSES]
        least = float(stats.binomtest(for_it, len(of)).proportion_ci(method="exact").low) if len(of) else 0.0
        borne = len(of) > 0 and for_it >= _MOST * len(of) and against == 0
        outcomes.append("yes" if borne else "no" if against > len(of) / 2 else "open")
        falls = of["compression"].dropna()
        spread = f", fall {100 * falls.min():.0f}% to {100 * falls.max():.0f}%" if len(falls) else ""
        others = of["verdict"].value_counts().drop(expected, errors="ignore")
        listed = ", ".join(f"{verdict} {count}" for verdict, count in others.items())
        rest = f"; verdicts of the others: {listed}" if listed else ""
        sentences.append(
            f"{group}: {for_it} of {len(of)} networks {_verb(expected, for_it)} (at least {100 * least:.0f}% of such "
            f"networks, 95%{rest}){spread}."
        )
    if not own.empty and all(o == "yes" for o in outcomes):
        verdict = "supported"
    elif "no" in outcomes:
        verdict = "contradicted"
    else:
        verdict = "not shown"
    controls = usable[usable["primary"] & (usable["control"] != "")]
    for how, of in controls.groupby("control", sort=False):
        sentences.append(f"Controls, {str(how).replace('-', ' ')}: {_counts(of)[COMPRESSES]} of {len(of)} compress.")
    return PhasesClaim(verdict, " ".join(sentences), own["network"].nunique(), table, tuple(notes))


def _counts(rows: pd.DataFrame) -> Mapping[str, int]:
    return {v: int((rows["verdict"] == v).sum()) for v in (COMPRESSES, KEEPS, UNDETERMINED)}


def _verb(verdict: str, count: int) -> str:
    if verdict == COMPRESSES:
        return "compresses" if count == 1 else "compress"
    return "does not compress" if count == 1 else "do not compress"
