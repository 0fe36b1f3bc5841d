"""Results of evaluations: one schema of all tables, and run folders that are written atomically."""

from __future__ import annotations

import csv
import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from robgib.errors import RobGIBError, sentence_of, visible
from robgib.files import atomic_directory, digest, read_json
from robgib.reading import as_path, check_regular

__all__ = [
    "NOT_RUN",
    "OF_FILES",
    "OF_SURROGATE",
    "RUN_TABLES",
    "SCHEMA",
    "SCHEMA_VERSION",
    "TERMS",
    "Column",
    "Run",
    "Term",
    "checks_run",
    "column_names",
    "csv_text",
    "eps_text",
    "find_run",
    "load_adversarial",
    "load_run",
    "markdown_table",
    "plain_rows",
    "read_csv",
    "save_run",
    "table",
    "with_present_names",
]

SCHEMA_VERSION = 10
"""Kept in every run folder. Folders without one are of version 1."""


Form = Literal[
    "name", "budget", "bar", "flag", "percent", "share", "interval", "estimate", "bits", "error", "distance", "seconds",
    "hundredths", "text",
]  # fmt: skip
_WORDS = ("name", "budget", "bar", "flag", "text")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: of the column.
        kind: of its values; a ``count`` is whole but where shares of draws are summed.
        what: it holds.
        unit: ``bits``, ``share`` (of 1), ``pixel`` (pixel scale [0, 1], in the row's norm), ``s``, or nothing.
        since: the schema version that brought it.
        missing: default value in folders that are older.
        label: its heading where it is shown; empty is not shown.
        form: how a value is written: ``name``, ``budget`` (norm and eps), ``bar`` (a percentage; on a page a bar with
            the interval), ``flag`` (a name, marked where ``seen``), ``percent``, ``share`` (whole percent),
            ``interval`` (from the table's ``low`` and ``high``), ``estimate`` (with half of that interval, and a *
            where ``flagged``), ``bits``, ``error`` (bits with a sign), ``distance``, ``seconds``, ``hundredths`` (two
            decimals) or ``text``.
        shown: where: ``terminal``, ``page``. A column without a value in any row is left out there.
        former: its name in older folders.
        former_values: values in older folders, each with its present one.
    """

    name: str
    kind: Literal["text", "integer", "count", "number", "boolean"]
    what: str
    unit: str = ""
    since: int = 1
    missing: Any = None
    label: str = ""
    form: Form = "text"
    shown: tuple[Literal["terminal", "page"], ...] = ()
    former: str = ""
    former_values: tuple[tuple[str, str], ...] = ()

    @property
    def is_number(self) -> bool:
        """Whether it is shown as a column of numbers."""
        return self.form not in _WORDS


_INTERVAL = (
    Column("low", "number", "lower end of the 95% Clopper-Pearson interval", "share"),
    Column("high", "number", "upper end", "share"),
)
_BUDGET = (
    Column("attack", "text", "label of the attack"),
    Column("norm", "text", "norm of its ball"),
    Column("eps", "number", "radius of its ball", "pixel"),
)
_EVERYWHERE: tuple[Literal["terminal", "page"], ...] = ("terminal", "page")
_SHOWN_ATTACK = (
    replace(_BUDGET[0], label="attack", form="name", shown=_EVERYWHERE),
    _BUDGET[1],
    replace(_BUDGET[2], label="budget", form="budget", shown=_EVERYWHERE),
)
_LAYER = (
    Column("estimator", "text", "name of the estimator"),
    Column("layer", "text", "module name, or logits", label="layer", shown=("terminal", "page")),
    Column("depth", "integer", "place of the layer, from 0; -1: the label, predicted or true"),
    Column("view", "text", "in which the layer is seen: rate, noise or exact", "", 3, ""),
    Column("partition", "text", "how the input was cut into features", "", 3, ""),
)


def _with_interval(name: str, what: str, unit: str = "bits", former: str = "") -> tuple[Column, ...]:
    return tuple(
        Column(f"{name}{end}", "number", text, unit, former=f"{former}{end}" if former else "")
        for end, text in (("", what), ("_low", "lower end of its 95% interval"), ("_high", "upper end"))
    )


def _on_page(name: str, *arguments: Any, **options: Any) -> Column:
    return replace(Column(name, *arguments, **options), label=name, shown=("page",))


SCHEMA: Mapping[str, tuple[Column, ...]] = {
    "robustness": (
        *_SHOWN_ATTACK,
        Column("samples", "integer", "samples evaluated"),
        Column("correct", "count", "of them labelled right when clean"),
        Column("robust", "count", "of them labelled right under the attack"),
        Column("clean_accuracy", "number", "accuracy on clean samples", "share"),
        Column("clean_low", "number", "lower end of its 95% Clopper-Pearson interval", "share"),
        Column("clean_high", "number", "upper end", "share"),
        Column(
            "robust_accuracy",
            "number",
            "accuracy under the attack",
            "share",
            label="robust accuracy",
            form="bar",
            shown=_EVERYWHERE,
        ),
        Column(
            "low",
            "number",
            "lower end of the 95% Clopper-Pearson interval",
            "share",
            label="95% interval",
            form="interval",
            shown=("terminal",),
        ),
        Column("high", "number", "upper end", "share"),
        Column(
            "robust_accuracy_8bit",
            "number",
            "the same, adversarial images rounded to 8 bits",
            "share",
            2,
            np.nan,
            label="quantized",
            form="percent",
            shown=("terminal", "page"),
        ),
        Column(
            "certified",
            "count",
            "samples certified robust at this budget; empty: not requested, or no certificate",
            "",
            5,
            np.nan,
        ),
        Column(
            "certified_accuracy",
            "number",
            "their share: a lower bound for every attack",
            "share",
            5,
            np.nan,
            label="certified",
            form="percent",
            shown=("terminal", "page"),
        ),
        Column("audited", "count", "remaining samples that AutoAttack was run on; empty: no audit", "", 8, np.nan),
        Column(
            "audit_bound",
            "number",
            "by how much AutoAttack would lower the robust accuracy at most (95%); empty: no audit",
            "share",
            8,
            np.nan,
            label="audit bound",
            form="percent",
            shown=("terminal", "page"),
        ),
        Column(
            "not_finite",
            "integer",
            "samples for which the output is not finite; none is robust",
            "",
            2,
            0,
            former="undecided",
        ),
        Column("seconds", "number", "time that the attack took", "s", label="time", form="seconds", shown=("page",)),
        Column("forward", "integer", "samples that went forward through the model"),
        Column("backward", "integer", "gradients that came back"),
        Column(
            "median_distance",
            "number",
            "median distance of the nearest adversarial images",
            "pixel",
            label="median minimum norm",
            form="distance",
            shown=("page",),
        ),
        Column("status", "text", "ok or failed"),
        Column("reason", "text", "why it failed"),
        Column("note", "text", "limits of the figure", "", 2, ""),
    ),
    "outcomes": (
        Column("index", "integer", "number of the sample"),
        Column("label", "integer", "its class"),
        *_BUDGET,
        Column("clean_prediction", "integer", "the model's prediction for the clean sample; -1: not finite"),
        Column("adversarial_prediction", "integer", "its prediction for the adversarial one; -1: not finite"),
        Column("robust", "boolean", "whether both are right"),
        Column("right", "number", "draws answered right on the adversarial sample", "share", 2, np.nan),
        Column("right_8bit", "number", "the same on its copy in 8 bits", "share", 2, np.nan),
        Column("linf", "number", "size of the perturbation in L-infinity", "pixel"),
        Column("l2", "number", "size in L2", "pixel"),
        Column("distance", "number", "distance of the nearest adversarial sample found; inf: none", "pixel", 2, np.nan),
        Column(
            "certified_margin",
            "number",
            "lower bound of the true class's margin on the whole ball, logits; above 0: certified; empty: not computed",
            "",
            5,
            np.nan,
            former="certified_lead",
        ),
    ),
    "curve": (
        *_BUDGET,
        Column("at", "number", "radius at which the accuracy was measured", "pixel"),
        Column("right", "count", "samples labelled right"),
        Column("samples", "integer", "of so many"),
        Column("accuracy", "number", "accuracy there", "share"),
        *_INTERVAL,
    ),
    "layers": (
        *_LAYER,
        Column("term", "text", "which quantity, as in I(X;Z)"),
        Column(
            "value",
            "number",
            "its estimate (r and v are numbers of features); empty: not estimable",
            "bits",
            label="term",
            form="estimate",
            shown=("terminal", "page"),
        ),
        Column("low", "number", "lower end of its 95% interval", "bits"),
        Column("high", "number", "upper end", "bits"),
        Column(
            "flagged",
            "boolean",
            "whether the estimate is not reliable: at the estimator's ceiling, or for the reason in the note",
            former="saturated",
        ),
        Column("bound", "text", "relation of the estimate to the truth"),
        Column("resolution", "text", "number of codes or bins, or the noise, that the variables were observed with"),
        Column("samples", "integer", "that it rests on"),
        Column("note", "text", "limits of the figure", label="limits", shown=("page",)),
    ),
    "features": (
        *_LAYER,
        Column("feature", "text", "name of the input's feature X_i"),
        *_with_interval("single_feature", "I(X_i;Z)", former="single"),
        *_with_interval("leave_one_out", "I(X_-i;Z)", former="rest"),
        *_with_interval("interaction", "II_i(X;Z)"),
        Column("total", "number", "the same estimator's I(X;Z)", "bits", 3, np.nan),
    ),
    "signs": (
        Column("norm", "text", "norm of the threat model"),
        Column("eps", "number", "its radius", "pixel", label="budget", form="budget", shown=("page",)),
        Column(
            "name",
            "text",
            "name of the indicator of attack failure",
            label="indicator",
            form="flag",
            shown=("page",),
        ),
        Column("seen", "boolean", "whether it was seen"),
        Column("detail", "text", "what was measured", label="measured", shown=("page",)),
        Column("meaning", "text", "what it would mean"),
    ),
    "corruptions": (
        Column("corruption", "text", "name of the common corruption"),
        Column("severity", "integer", "from 1 to 5"),
        Column("right", "count", "samples labelled right"),
        Column("samples", "integer", "of so many"),
        Column("accuracy", "number", "accuracy", "share"),
        *_INTERVAL,
    ),
    "corrupted": (
        Column("index", "integer", "the sample's; of files the image's, of each severity"),
        Column("corruption", "text", "name of the common corruption"),
        Column("from_file", "boolean", "whether the corrupted images were read from files"),
        Column("right", "number", "share of the severities at which it is labelled right", "share"),
    ),
    "random_points": (
        *_BUDGET[1:],
        Column("points", "integer", "random points of the ball of each sample", "", 9),
        Column("samples", "integer", "samples evaluated", "", 9),
        Column("kept", "count", "sum over the samples of the share of their points that are labelled right", "", 9),
        Column("share", "number", "share of the points that are labelled right", "share", 9),
        *_INTERVAL,
    ),
    "convergence": (
        *_BUDGET,
        Column("step", "integer", "gradient steps that a sample had taken", "", 4),
        Column("samples", "integer", "samples watched", "", 4),
        Column("right", "number", "of them still labelled right", "share", 4),
        Column(
            "margin",
            "number",
            "smallest margin of the true class so far, relative to the clean sample",
            "share",
            4,
            former="lead",
        ),
        Column("distance", "number", "mean distance of the samples from the clean ones", "pixel", 4),
    ),
    "trace": (
        Column("epoch", "integer", "epochs over; 0 is the untrained network"),
        Column("test_accuracy", "number", "accuracy on the test samples", "share"),
    ),
    "compression": (
        *_LAYER,
        Column("term", "text", "which quantity: I(X;Z), counted, or C(X;Z)"),
        Column("resolution", "text", "at which the layer was seen at every epoch"),
        Column("units", "text", "of the layer: pooled over the epochs, or each epoch's own spread"),
        Column("peak_epoch", "integer", "the epoch of its highest value"),
        Column("peak", "number", "its highest value", "bits"),
        Column("final", "number", "its value at the last epoch", "bits"),
        Column("compression", "number", "(peak - final)/peak", "share"),
        Column("low", "number", "lower end of its 95% interval", "share"),
        Column("high", "number", "upper end", "share"),
        Column(
            "verdict",
            "text",
            "compresses, does not compress, or undetermined; of a term's first row, on which all others must agree, "
            "also rescaling (the units do not) or depends on the resolution (codes or bins do not)",
            former_values=(("cannot be told", "undetermined"),),
        ),
    ),
    "summary": (
        Column("model", "text", "name of the model"),
        Column("estimator", "text", "name of the estimator"),
        Column("partition", "text", "how the input was cut into features"),
        *_BUDGET,
        Column("robust_accuracy", "number", "accuracy under the attack", "share"),
        Column("robust_low", "number", "lower end of its 95% interval", "share"),
        Column("robust_high", "number", "upper end", "share"),
        *_with_interval("vulnerability", "v(X;Z), mean over the layers", "features"),
        *_with_interval("redundancy", "r(X;Z), mean over the layers", "features"),
        *_with_interval("gib_complexity", "C(X;Z), mean over the layers"),
        *_with_interval("ib_complexity", "I(X;Z), mean over the layers"),
        *_with_interval("synergy", "S(X;Z), mean over the layers"),
        *_with_interval("gib_depth_compression", "fall of C(X;Z) from its highest layer to the last", "share"),
        *_with_interval("ib_depth_compression", "fall of I(X;Z) from its highest layer to the last", "share"),
        Column("flagged", "boolean", "whether any of the figures is flagged", former="saturated"),
    ),
    "validation": (
        Column("estimator", "text", "name of the estimator"),
        _on_page("regime", "text", "kind of task"),
        _on_page("task", "text", "name of the task"),
        _on_page("samples", "integer", "samples of one repeat"),
        _on_page("figure", "text", "I, S, C, single-feature or leave-one-out; of a network's layer its term"),
        _on_page("truth", "number", "its true value, the mean over repeats", "bits", form="bits"),
        _on_page("bias", "number", "mean error", "bits", form="error"),
        _on_page("sd", "number", "standard deviation of the error", "bits", form="bits"),
        _on_page("coverage", "number", "95% intervals that contain the truth", "share", form="share"),
        _on_page("null", "number", "shuffled targets whose intervals contain 0", "share", form="share"),
        _on_page("flagged", "number", "figures that are flagged", "share", form="share", former="saturated"),
        _on_page("seconds", "number", "median time of an estimate", "s", form="hundredths"),
        _on_page("repeats", "integer", "draws of the task"),
        Column("claims", "boolean", "whether the estimator claims the regime"),
        _on_page("verdict", "text", "holds, marked, refused or wrong", since=3, missing=""),
    ),
}
"""The columns of every table, in order. A trace has those of ``layers`` after its own."""


@dataclass(frozen=True)
class Term:
    """A quantity of the ``layers`` table, which is shown as a column of its own.

    Attributes:
        name: value of the column ``term``.
        short: heading where there is little room.
        shown: where: ``terminal``, ``page``. A term without a value in any layer is left out there.
    """

    name: str
    short: str = ""
    shown: tuple[Literal["terminal", "page"], ...] = ("terminal", "page")


TERMS = (
    Term("I(Z;Y)"),
    Term("I(X;Z)"),
    Term("C(X;Z)", "C"),
    Term("S(X;Z)", "S"),
    Term("S(Z;Y)"),
    Term("C(Z;Y)"),
    Term("subset synergy"),
    Term("r(X;Z)", "r"),
    Term("v(X;Z)", "v"),
    Term("learnt I(X;Z)", shown=("page",)),
    Term("IB"),
    Term("I(X;Z) noise"),
    Term("IB noise"),
    Term("GIB"),
    *(Term(f"{name}(X;Z) {count}", shown=("page",)) for name in "CSrv" for count in ("k/2", "2k")),
)
"""The terms of the ``layers`` table that are shown, in order."""
ADVERSARIAL = "adversarial.safetensors"
"""The file of a run folder that holds all adversarial images, if they were requested."""
RUN_TABLES = (
    "robustness", "outcomes", "curve", "layers", "features", "signs", "corruptions", "corrupted", "convergence",
    "random_points",
)  # fmt: skip
"""The tables of a run folder, a CSV file each."""
_SINCE = {
    "signs": 2,
    "corruptions": 2,
    "convergence": 4,
    "random_points": 9,
    "corrupted": 10,
}  # the versions that brought tables


def eps_text(eps: float) -> str:
    """Write a radius as it is customary: 8/255 as a fraction, 0.5 as a decimal number.

    >>> eps_text(8 / 255), eps_text(0.5), eps_text(0.0123456), eps_text(1 / 3)
    ('8/255', '0.5', '0.01235', '1/3')
    """
    short = f"{eps:.4g}"
    if not math.isfinite(eps) or math.isclose(float(short), eps, rel_tol=1e-6):  # possibly of 32 bits
        return short
    for exact in (Fraction(eps).limit_denominator(20), Fraction(round(eps * 256), 256)):
        if math.isclose(eps, exact, rel_tol=1e-6):
            return f"{exact.numerator}/{exact.denominator}"
    levels = round(eps * 255)
    return f"{levels}/255" if math.isclose(eps, levels / 255, rel_tol=1e-6) else short


def plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's rows as plain values for JSON; values that are not finite are null.

    >>> plain_rows(pd.DataFrame({"a": [1.5, np.nan]}))
    [{'a': 1.5}, {'a': None}]
    """

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value.item() if hasattr(value, "item") else value

    return [{k: plain(v) for k, v in row.items()} for row in frame.to_dict("records")]


_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
"""What a spreadsheet takes for a formula, behind the marks of text that may stand there already."""


def csv_text(frame: pd.DataFrame) -> str:
    """Return a table as CSV in which a spreadsheet finds no formula.

    A text that begins as a formula does, as with ``=``, gets an apostrophe before it, which spreadsheets know as the
    mark of text, and :func:`read_csv` takes away. Numbers stay as they are.

    >>> print(csv_text(pd.DataFrame({"attack": ["=1+1", "pgd-linf"], "change": [-0.5, 0.5]})))
    attack,change
    '=1+1,-0.5
    pgd-linf,0.5
    <BLANKLINE>
    """

    def marked(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value

    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    plain = frame.assign(**{name: frame[name].map(marked) for name in texts}) if texts else frame
    broken = any(isinstance(value, str) and "\r" in value for name in texts for value in frame[name])
    # By itself the writer leaves a carriage return without quotes, and readers end the row there.
    quoting = csv.QUOTE_NONNUMERIC if broken else csv.QUOTE_MINIMAL
    return str(plain.rename(columns=marked).to_csv(index=False, quoting=quoting))


def markdown_table(frame: pd.DataFrame) -> str:
    """Return a table of texts as Markdown. No cell ends its cell or its row, or begins an HTML tag.

    >>> print(markdown_table(pd.DataFrame({"|ρ|": ["0.50"], "model": ["a|b\\nc"]})))
    | \\|ρ\\|   | model   |
    |:--------|:--------|
    | 0.50    | a\\|b c  |
    """

    def plain(value: Any) -> str:
        text = " ".join(str(value).splitlines())
        return re.sub(r"[\\|]|<(?=[A-Za-z/!?])", r"\\\g<0>", text)

    return str(frame.map(plain).rename(columns=plain).to_markdown(index=False, disable_numparse=True))


def read_csv(file: Path) -> pd.DataFrame:
    """Read a table that :func:`csv_text` wrote.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: it is no CSV.
    """

    def plain(value: Any) -> Any:
        return value[1:] if isinstance(value, str) and value[:1] == "'" and _FORMULA.match(value) else value

    check_regular(file)
    frame = pd.read_csv(file, keep_default_na=True)
    for name in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            frame[name] = frame[name].map(plain)
    return frame.rename(columns=plain)


def column_names(name: str) -> list[str]:
    """Names of the columns of a table, in order."""
    own = [column.name for column in SCHEMA[name]]
    return own + column_names("layers") if name == "trace" else own


def table(name: str, rows: Iterable[Mapping[str, Any] | Sequence[Any]] = ()) -> pd.DataFrame:
    """Make a table of rows, mappings or sequences in the columns' order.

    >>> table("corruptions", [("noise", 1, 9, 10, 0.9, 0.55, 1.0)])["accuracy"].item()
    0.9
    """
    columns = column_names(name)
    listed = list(rows)
    for row in listed:
        assert len(row) == len(columns), f"a row of {name!r} has other columns than the schema"
        assert not isinstance(row, Mapping) or set(row) == set(columns), f"a row of {name!r} has other columns"
    return pd.DataFrame(listed, columns=columns)


NOT_RUN = ("left out: ", "skipped: ", "does not apply: ", "not measured: ")
"""How the detail of a check for a failed attack begins that did not run, before the reason."""


def checks_run(signs: pd.DataFrame) -> pd.Series:
    """Return which of the checks for a failed attack ran (rows of ``signs``): the others say why they did not.

    >>> details = ["FGSM leaves 40% right", "left out: it would take too long", "skipped: Square did not run"]
    >>> checks_run(table("signs", [("linf", 0.1, "name", False, detail, "") for detail in details])).tolist()
    [True, False, False]
    """
    details = signs["detail"].astype(str).str.removeprefix(OF_SURROGATE)
    return signs["seen"].astype(bool) | ~details.str.startswith(NOT_RUN)


OF_FILES = " (files)"
"""What follows the name of a corruption of files where the run also generated one of this name."""


OF_SURROGATE = "of the surrogate, "
"""What comes before the detail of a check of a surrogate."""


@dataclass(frozen=True)
class Run:
    """One evaluated model.

    Attributes:
        name: the model's name.
        config: everything that determines the result: ``options`` (those of attacks, information and the context, each
            by name), the digests of the model and the data, and what was found out about them.
        environment: versions and machine.
        robustness: a row an attack: eps, samples, correct, robust, clean and robust accuracy with 95%
            Clopper–Pearson intervals (``low``, ``high``), robust accuracy when adversarial images are rounded to 8
            bits, on request the samples certified robust (``certified``), samples to which the model has no
            finite answer (``not_finite``, none of them robust), seconds, status, and a note on limitations of
            the result. For a stochastic model ``correct`` and ``robust`` are sums of shares of right answers.
        outcomes: a row a sample and attack: clean and adversarial prediction (-1: not finite), robust, the shares of
            draws answered right on the adversarial image and on its 8-bit copy, L-inf and L2 size, and where it was
            asked for the lower bound of the true class's margin on the whole ball (``certified_margin``).
        curve: a row an attack and eps: samples still right.
        layers: a row a layer, estimator and term: value in bits, 95% interval, saturation, resolution.
        features: a row a layer, estimator and input feature: I(X_i;Z), I(X_-i;Z) and II_i with intervals.
        signs: a row a threat model and check for a failed attack: whether it was seen, what was measured, and what it
            would mean.
        corruptions: a row a common corruption and severity: samples right, accuracy with its interval.
        convergence: a row an attack and gradient step, on some samples: how many were still right, by how much.
        corrupted: a row a common corruption and sample: the share of severities at which it is labelled right.
        random_points: if requested, a row a threat model: the share of random points of the balls that keep the label.
        pictures: per attack the rows, clean and adversarial images of some fooled samples.
        place: name of the folder that it was read from.
        adversarial: if requested, ``clean`` images (N, …), ``labels`` (N,), with these the ``mask`` (N, …) and
            ``targets`` (N,) of the samples, and by attack's label ``…/rows`` and ``…/images`` of all fooled samples,
            and of transformations ``…/parameters`` (n, p) of the rows ``…/made``; not read back with the run
            (:func:`load_adversarial`).
    """

    name: str
    config: dict[str, Any]
    environment: dict[str, Any]
    robustness: pd.DataFrame
    outcomes: pd.DataFrame
    curve: pd.DataFrame
    layers: pd.DataFrame
    features: pd.DataFrame
    signs: pd.DataFrame
    corruptions: pd.DataFrame
    convergence: pd.DataFrame = field(default_factory=lambda: table("convergence"))
    random_points: pd.DataFrame = field(default_factory=lambda: table("random_points"))
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    adversarial: dict[str, np.ndarray] = field(default_factory=dict)
    place: str = ""
    corrupted: pd.DataFrame = field(default_factory=lambda: table("corrupted"))

    @property
    def attack_options(self) -> Mapping[str, Any]:
        """What was attacked and measured beside it, by the names of :class:`~robgib.options.AttackOptions`."""
        options: Mapping[str, Any] = self.config["options"]["attack"]
        return options

    @property
    def information_options(self) -> Mapping[str, Any]:
        """What was estimated, by the names of :class:`~robgib.options.InformationOptions`."""
        options: Mapping[str, Any] = self.config["options"]["information"]
        return options

    @property
    def folder(self) -> str:
        """Name of the run's folder: the model's name and the digest of the configuration."""
        if self.place:
            return self.place
        safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in self.name).strip(".-") or "model"
        return f"{safe}-{digest(self.config)[:8]}"

    def save(self, root: str | Path = "runs") -> Path:
        """Write the run folder below ``root`` and return it."""
        return save_run(self, Path(root))

    @property
    def summary(self) -> pd.DataFrame:
        """Accuracy, clean and under each attack, with its 95% interval."""
        first = self.robustness.iloc[0]
        rows = [("none", "", "", first["clean_accuracy"], first["clean_low"], first["clean_high"])]
        for r in self.robustness.itertuples():
            if r.attack != "none":
                rows.append((r.attack, r.norm, eps_text(r.eps), r.robust_accuracy, r.low, r.high))
        return pd.DataFrame(rows, columns=["attack", "norm", "eps", "accuracy", "low", "high"])

    def __repr__(self) -> str:
        """Return the accuracies and the layers with information, one line each."""
        lines = [
            f"Run {self.name!r} on {self.config['data']['name']}: {int(self.robustness['samples'].iloc[0])} samples"
        ]
        for r in self.summary.itertuples():
            what = "clean" if r.attack == "none" else f"{r.attack}, {r.norm} {r.eps}"
            accuracy = "failed" if r.accuracy != r.accuracy else f"{r.accuracy:.1%} [{r.low:.1%}, {r.high:.1%}]"
            lines.append(f"  {what}: {accuracy}")
        flagged = self.signs[self.signs["seen"].astype(bool)]
        lines += [f"  attack-failure indicator ({s.norm} {eps_text(s.eps)}): {s.name}" for s in flagged.itertuples()]
        if len(self.layers):
            of = ", ".join(dict.fromkeys(self.layers["estimator"]))
            lines.append(f"  information in {self.layers['layer'].nunique()} layers by {of}: see .layers")
        return visible("\n".join(lines))

    def _repr_html_(self) -> str:
        """Return the summary as HTML for notebooks."""
        shown = self.summary.assign(
            accuracy=lambda t: [f"{v:.1%}" if v == v else "failed" for v in t["accuracy"]],
            interval=lambda t: [
                f"[{a:.1%}, {b:.1%}]" if a == a else "" for a, b in zip(t["low"], t["high"], strict=True)
            ],
        )[["attack", "norm", "eps", "accuracy", "interval"]]
        flagged = self.signs[self.signs["seen"].astype(bool)]
        below = "".join(
            f"<p>Attack-failure indicator ({escape(str(s.norm))}): {escape(s.name)}</p>" for s in flagged.itertuples()
        )
        head = f"<p><b>{escape(self.name)}</b> on {escape(self.config['data']['name'])}</p>"
        return head + str(shown.to_html(index=False)) + below


def save_run(run: Run, root: str | Path, also: Callable[[Path], None] | None = None) -> Path:
    """Write ``root/<name>-<digest>/``, replacing a former one whole.

    ``also`` is called with the folder before it takes its name, to add files to it.
    """
    root = as_path(root, "root")
    target = root / run.folder
    with atomic_directory(target) as folder:
        # How long each table is: one cut off at the end of a line would read as a shorter one.
        rows = {name: len(getattr(run, name)) for name in RUN_TABLES}
        config = {"schema": SCHEMA_VERSION, "name": run.name, "rows": rows, **run.config}
        (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
        (folder / "environment.json").write_text(json.dumps(run.environment, indent=2) + "\n")
        for name in RUN_TABLES:
            (folder / f"{name}.csv").write_text(csv_text(getattr(run, name)), encoding="utf-8", newline="")
        np.savez_compressed(folder / "pictures.npz", **run.pictures)  # type: ignore[arg-type]
        if run.adversarial:
            arrays = {k: np.ascontiguousarray(v) for k, v in run.adversarial.items()}
            (folder / ADVERSARIAL).write_bytes(save(arrays))
        if also:
            also(folder)
    return target


def find_run(root: str | Path, request: str) -> Run | None:
    """Return the finished run below ``root`` that came of the same request (``config["request"]``), if there is one."""
    for file in sorted(Path(root).glob("*/config.json")):
        if file.parent.name.startswith("."):  # a folder that a killed process left unfinished
            continue
        try:
            if file.is_file() and read_json(file).get("request") == request:
                return load_run(file.parent)
        except (OSError, ValueError, AttributeError, RobGIBError):
            continue  # another's folder, or half of one
    return None


def load_adversarial(folder: str | Path) -> dict[str, np.ndarray]:
    """Read the adversarial images of a run folder: see :attr:`Run.adversarial`.

    Raises:
        RobGIBError: it keeps none, or the file is damaged.
    """
    file = Path(folder) / ADVERSARIAL
    if not file.is_file():
        raise RobGIBError(f"{str(folder)!r} holds no adversarial images; evaluate with --save-adversarial.")
    try:
        arrays: dict[str, np.ndarray] = load_file(file)
        clean, labels = arrays["clean"], arrays["labels"]
        sound = len(clean) == len(labels) and labels.dtype == np.int64 and clean.dtype == np.float32
        sound &= all(_fits(name, values, arrays) for name, values in arrays.items())
        if not sound:
            raise ValueError("arrays do not fit each other")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise RobGIBError(f"{str(file)!r} cannot be read ({type(error).__name__}: {error}).") from error
    return arrays


def _fits(name: str, values: np.ndarray, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether an array of :attr:`Run.adversarial` fits the others.

    Raises:
        KeyError: an array that belongs to it is missing.
    """
    clean = arrays["clean"]
    if name == "mask":
        return values.dtype == np.bool_ and values.shape == clean.shape
    if name == "targets":
        return values.dtype == np.int64 and values.shape == (len(clean),)
    label, _, kind = name.rpartition("/")
    if not label or kind not in ("rows", "made"):
        return True
    made = arrays[f"{label}/{'images' if kind == 'rows' else 'parameters'}"]
    shaped = made.shape[1:] == clean.shape[1:] if kind == "rows" else made.ndim == 2 and made.dtype == np.float32
    inside = values.dtype == np.int64 and bool(((values >= 0) & (values < len(clean))).all())
    return inside and len(values) == len(made) and shaped


def load_run(folder: str | Path) -> Run:
    """Read a run folder, of this version of the schema or an older one.

    Raises:
        RobGIBError: the folder is missing, is not a whole run folder, or was written by a newer version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RobGIBError(f"run folder {str(folder)!r} does not exist.")
    for part in ("config.json", "environment.json", "pictures.npz", *(f"{name}.csv" for name in RUN_TABLES)):
        if (folder / part).exists() and not (folder / part).is_file():  # a pipe, which would be waited for
            raise RobGIBError(f"{str(folder)!r} is not a whole run folder: {part} is no regular file.")
    try:
        config = read_json(folder / "config.json")
        version = int(config.pop("schema", 1))
        if version > SCHEMA_VERSION:
            raise RobGIBError(
                f"{str(folder)!r} was written by a newer RobGIB (schema {version}; this one reads up to "
                f"{SCHEMA_VERSION}); update robgib."
            )
        config = _upgraded(config)
        _Config.model_validate(config)
        name = str(config.pop("name"))
        tables = {one: _read_table(folder / f"{one}.csv", one, version) for one in RUN_TABLES}
        for one, count in config.pop("rows", {}).items():
            if one in tables and len(tables[one]) != count:
                raise ValueError(f"{one}.csv has {len(tables[one])} rows and not {count}")
        with np.load(folder / "pictures.npz", allow_pickle=False) as archive:
            pictures = {k: archive[k] for k in archive.files}
        surroundings = read_json(folder / "environment.json")
        _Environment.model_validate(surroundings)
        if tables["robustness"].empty:
            raise ValueError("robustness.csv has no rows")
        for key, terms in tables["layers"].groupby(["estimator", "partition", "layer"]):
            if missing := _COUNTED - set(terms["term"]):
                raise ValueError(f"layers.csv lacks {min(missing)} of {', '.join(filter(None, map(str, key)))}")
    except ValidationError as error:
        raise RobGIBError(
            f"{str(folder)!r} is not a whole run folder: {sentence_of(error, '')[:-1]}; evaluate the model again."
        ) from error
    except (*_UNREADABLE, KeyError, TypeError, AttributeError) as error:
        raise RobGIBError(
            f"{str(folder)!r} is not a whole run folder ({type(error).__name__}: {error}); evaluate the model again."
        ) from error
    return Run(name, config, surroundings, pictures=pictures, place=folder.resolve().name, **tables)


_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


class _Data(BaseModel):
    name: str
    classes: list[str]


class _AttackOptions(BaseModel):
    attacks: dict[str, dict[str, Any]]
    cascade: bool = False
    curve: bool | None = False
    certify: bool | None = None


class _InformationOptions(BaseModel):
    beta: float = 1.0
    pmi: bool = False


class _Options(BaseModel):
    attack: _AttackOptions
    information: _InformationOptions


class _Source(BaseModel):
    """The model's origin, for :mod:`robgib.cli.verify`."""

    kind: str | None = None
    recipe: str | None = None
    name: str | None = None
    file: str | None = None
    arch: str | None = None


class _Config(BaseModel):
    """The fields of a run's configuration that readers need."""

    data: _Data
    options: _Options
    partitions: list[str]
    source: _Source = _Source()
    rows: dict[str, int] = {}
    reading: list[str] = []
    reading_warnings: list[str] = []


_FORMER_WARNINGS = "doubts"
_FORMER_ATTACK = ("attacks", "cascade", "curve", "precision")
_FORMER_INFORMATION = ("estimators", "layers", "beta", "pmi")
_FORMER_FEATURES = {
    "dims": "feature_dims",
    "layer_dims": "layer_dims",
    "codes": "codes",
    "sigma": "sigma",
    "groups": "unit_groups",
}


def _upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration in this version's form; before version 6 options were in other places."""
    if _FORMER_WARNINGS in config:
        config.setdefault("reading_warnings", config.pop(_FORMER_WARNINGS))
    if "options" in config:
        return config
    cut = config["features"]
    information = {new: cut.get(old) for old, new in _FORMER_FEATURES.items()}
    information |= {key: config[key] for key in _FORMER_INFORMATION if key in config}
    partitions = [cut["input"]] if isinstance(cut["input"], str) else cut["input"]
    options = {
        "attack": {"attacks": {}, **{key: config[key] for key in _FORMER_ATTACK if key in config}},
        "information": {**information, "features": partitions},
        "context": {"seed": config.get("seed")},
    }
    former = {*_FORMER_ATTACK, *_FORMER_INFORMATION, "features", "seed"} - {"layers"}
    return {
        **{key: value for key, value in config.items() if key not in former},
        "options": options,
        "partitions": partitions,
    }


class _Environment(BaseModel):
    packages: dict[str, str] = {}


_COUNTED = {"I(Z;Y)", "I(X;Z)"}
"""Terms that every layer has."""


def with_present_names(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return a table with former names of columns (:attr:`Column.former`) and of values as the present ones.

    >>> with_present_names(pd.DataFrame({"single": [0.5]}), "features").columns.tolist()
    ['single_feature']
    """
    columns = (*SCHEMA[name], *(SCHEMA["layers"] if name == "trace" else ()))
    renamed = {c.former: c.name for c in columns if c.former in frame and c.name not in frame}
    return _with_present_values(frame.rename(columns=renamed), columns)


def _with_present_values(frame: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    present = {c.name: dict(c.former_values) for c in columns if c.former_values and c.name in frame}
    return frame.replace(present) if present else frame


def _read_table(file: Path, name: str, version: int) -> pd.DataFrame:
    if version < _SINCE.get(name, 1) and not file.exists():
        return table(name)
    frame = read_csv(file)
    if version < SCHEMA_VERSION:
        frame = with_present_names(frame, name)
    frame = _with_present_values(frame, SCHEMA[name])  # a value may be renamed within a version
    for column in SCHEMA[name]:
        if column.name not in frame:
            if column.missing is None or version >= column.since:
                raise KeyError(f"{file.name} has no column {column.name!r}")
            frame[column.name] = column.missing
        if column.kind == "text":
            frame[column.name] = frame[column.name].astype(object).where(frame[column.name].notna(), "").map(str)
        elif column.kind == "boolean":
            if not frame[column.name].isin([True, False]).all():
                raise ValueError(f"{file.name}: {column.name} must be True or False")
        else:
            frame[column.name] = pd.to_numeric(frame[column.name])
            if column.kind == "integer" and not (frame[column.name] % 1 == 0).all():  # NaN is none either
                raise ValueError(f"{file.name}: {column.name} must be whole numbers")
    return frame[column_names(name)]
